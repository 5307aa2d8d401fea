"""Which values of a config go together, for each of our methods.

Apart from the config classes, which need PEFT: commands refuse a wrong value before they import it.
Each function takes anything with the fields of the config as attributes.
"""

from __future__ import annotations

from typing import Any

# 2: trained tensors are stored as `<name>.weight`, and shared ones under the base model.
FORMAT_VERSION = 2
SAVE_DTYPES = ("float32", "bfloat16", "float16")


def factored(config: Any) -> None:
    """What all linear methods have in common.

    Raises:
        ValueError: values that do not go together, or a file of a newer version.
    """
    version = config.format_version
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"The adapter has format_version={version!r}, but this version of mos reads "
            f"versions 1 to {FORMAT_VERSION}. Upgrade mos, or save the adapter with this one."
        )
    if isinstance(config.target_modules, str) and config.layers_to_transform is not None:
        raise ValueError("`layers_to_transform` needs `target_modules` to be a list of names.")
    if config.layers_pattern and config.layers_to_transform is None:
        raise ValueError("`layers_pattern` needs `layers_to_transform`.")


def mos(config: Any) -> None:
    """
    Raises:
        ValueError: a value is out of its bounds; the message names it.
    """
    factored(config)
    for name, least in (("equivalent_rank", 1), ("shards_per_vector", 1), ("private_rank", 0)):
        _check_int(name, getattr(config, name), least)
    r, e, p = config.r, config.equivalent_rank, config.private_rank
    if p > e:
        raise ValueError(f"private_rank={p} must not exceed equivalent_rank={e}.")
    if r == "all":
        of_pure_sharing = {"pair_dissociation": False, "shards_per_vector": 1, "private_rank": 0}
        given = {name: getattr(config, name) for name in of_pure_sharing}
        if wrong := [f"{k}={v!r}" for k, v in given.items() if v != of_pure_sharing[k]]:
            raise ValueError(
                "r='all' (pure sharing) needs pair_dissociation=False, shards_per_vector=1 and "
                f"private_rank=0, got {', '.join(wrong)}."
            )
    else:
        _check_int("r", r, 1)
        if p > r:
            raise ValueError(f"private_rank={p} must not exceed r={r}.")
        if p == e and r != e:
            raise ValueError(
                f"private_rank={p} equals equivalent_rank, which leaves no shards to share: r must "
                f"be {e} then (LoRA of rank {e}), got r={r}."
            )
    if not 0 <= config.mos_dropout < 1:
        raise ValueError(f"mos_dropout={config.mos_dropout} must be in [0, 1).")
    if not config.mos_alpha > 0:
        raise ValueError(f"mos_alpha={config.mos_alpha} must be positive.")
    scaling = config.random_scaling
    if scaling is not None and (set(scaling) != {"mean", "std"} or not scaling["std"] >= 0):
        raise ValueError(
            "random_scaling must be None or {'mean': number, 'std': number >= 0}, got "
            f"{scaling!r}."
        )
    if config.save_dtype is not None and config.save_dtype not in SAVE_DTYPES:
        raise ValueError(
            f"save_dtype={config.save_dtype!r} must be None or one of {', '.join(SAVE_DTYPES)}."
        )


def prolora(config: Any) -> None:
    """Raises a ValueError that names a value out of its bounds."""
    factored(config)
    for name in ("r", "reduction_a", "reduction_b"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(config, name)}.")
    if not 0 <= config.unshared_rank <= config.r:
        raise ValueError(
            f"`unshared_rank` must be between 0 and r = {config.r}, got {config.unshared_rank}."
        )
    _check_dropout("prolora_dropout", config)


def tied_lora(config: Any) -> None:
    """Raises a ValueError that names a value out of its bounds."""
    factored(config)
    if config.r < 1:
        raise ValueError(f"`r` must be at least 1, got {config.r}.")
    _check_dropout("tied_lora_dropout", config)


def rasa(config: Any) -> None:
    """Raises a ValueError that names a value out of its bounds."""
    factored(config)
    if config.r < 1:
        raise ValueError(f"`r` must be at least 1, got {config.r}.")
    if not 0 <= config.shared_rank <= config.r:
        raise ValueError(f"`shared_rank` must be in 0 ... r={config.r}, got {config.shared_rank}.")
    _check_dropout("rasa_dropout", config)


def _check_dropout(name: str, config: Any) -> None:
    if not 0 <= getattr(config, name) < 1:
        raise ValueError(f"`{name}` must be in [0, 1), got {getattr(config, name)}.")


def _check_int(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}.")
