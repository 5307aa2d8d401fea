"""Adapters for other programs: a plain LoRA adapter, or a plain model with the adapter merged."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from transformers import AutoConfig

from mos.adapters import WEIGHTS
from mos.adapters.config import FactoredConfig
from mos.adapters.linear import lora_factors
from mos.adapters.saved import adapter_config, all_finite, load, skeleton
from mos.data.chat import CHAT_TEMPLATE_FILE
from mos.errors import UserError
from mos.files import check_output, output
from mos.models.card import carry_card
from mos.models.loading import copy_tokenizer, from_folder
from mos.models.sources import check_model_folder

# What an adapter may hold besides its factors, and the value that says that it does not.
MORE_THAN_FACTORS = {
    "modules_to_save": None,
    "trainable_token_indices": None,
    "bias": "none",
    "use_dora": False,
}


def to_lora(
    source: PeftModel | str | Path,
    out_dir: str | Path,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write an adapter as a LoRA adapter that stock PEFT and stock vLLM load.

    The update is the same, not an approximation: the factors are the method's own; a layer of less
    rank than others gets zeros. Needs no weights of the base model. A tokenizer, a chat template
    and a model card in the adapter's directory come along.

    Args:
        source: a PEFT model, whose active adapter is taken, or an adapter directory.
        out_dir: directory to write: a new or empty one, or that of an earlier export, whose files
            are replaced.
        dtype: of the factors; default as the adapter has them.

    Returns:
        `out_dir`.

    Raises:
        MissingFileError: no adapter in the directory.
        UserError: `out_dir` holds other files or is the source; the adapter has no exact LoRA form:
            it trains whole modules or biases, or is not linear.
    """
    _check_target(out_dir, source)
    model = source if isinstance(source, PeftModel) else _load_without_base(Path(source))
    if len(model.active_adapters) != 1:
        raise UserError(
            f"Export takes one adapter, but {model.active_adapters} are active: call set_adapter."
        )
    name = model.active_adapters[0]
    config: Any = model.peft_config[name]
    check_only_factors(config)
    _check_embeddings(model, config)
    factors = {
        path: lora_factors(layer, name)
        for path, layer in model.get_base_model().named_modules()
        if isinstance(layer, BaseTunerLayer) and name in layer._get_available_adapters()
    }
    for path, (A, B, _) in factors.items():
        if not (all_finite(A) and all_finite(B)):
            raise UserError(f"The adapter has numbers that are not finite, in {path}.")
    r = max(A.shape[0] for A, _, _ in factors.values())
    scalings = {scaling for _, _, scaling in factors.values()}
    # one scaling for all layers is kept as alpha / r; else it goes into B
    common = scalings.pop() if len(scalings) == 1 else 1.0
    tensors = {}
    for path, (A, B, scaling) in factors.items():
        B = B if scaling == common else B * scaling
        padding = r - A.shape[0]
        A = torch.nn.functional.pad(A.detach(), (0, 0, 0, padding))  # (r, in_features)
        B = torch.nn.functional.pad(B.detach(), (0, padding))  # (out_features, r)
        for side, factor in (("A", A), ("B", B)):
            key = f"base_model.model.{path}.lora_{side}.weight"
            tensors[key] = factor.to(device="cpu", dtype=dtype).contiguous()
    alpha = common * r
    lora = LoraConfig(
        r=r,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]
        target_modules=config.target_modules,
        exclude_modules=getattr(config, "exclude_modules", None),
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        task_type=config.task_type or "CAUSAL_LM",
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )
    with output(out_dir, "export") as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        lora.save_pretrained(str(folder))
        if not isinstance(source, PeftModel):
            copy_tokenizer(Path(source), folder)
            carry_card(Path(source), folder, "lora")
    return Path(out_dir)


def merge(
    base_dir: str | Path,
    adapter_dir: str | Path,
    out_dir: str | Path,
    dtype: torch.dtype | None = None,
    as_trained: bool = False,
) -> Path:
    """Write a plain transformers model: the base with the adapter merged, and its tokenizer.

    A chat template in the adapter's folder takes the place of the base's, and its card comes along.

    Args:
        base_dir: a model directory with unquantised weights. Give the dequantised weights of a
            quantised base (`dequantized_base`) for the function that was trained.
        adapter_dir: an adapter of any method of PEFT's or ours that merges.
        out_dir: directory to write: a new or empty one, or that of an earlier export, whose files
            are replaced.
        dtype: of the weights; default as the base has them. The sum is rounded to it once.
        as_trained: the base's weights are those of the training, so that the scores on the
            adapter's card hold.

    Returns:
        `out_dir`.

    Raises:
        MissingFileError: the base or the adapter is not there.
        UserError: `out_dir` holds other files, the base is quantised, or the adapter does not fit
            it.
    """
    _check_target(out_dir, adapter_dir)
    base_dir = check_model_folder(Path(base_dir))
    config = adapter_config(Path(adapter_dir))
    model: Any = load(from_folder(base_dir, dtype), Path(adapter_dir), config)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{adapter_dir} cannot be merged into {base_dir}: {error}") from error
    with output(out_dir, "export") as folder:
        merged.save_pretrained(folder)
        copy_tokenizer(base_dir, folder)
        for template in Path(adapter_dir).glob(CHAT_TEMPLATE_FILE):  # the format of its training
            shutil.copyfile(template, folder / template.name)
        carry_card(Path(adapter_dir), folder, "merged", as_trained)
    return Path(out_dir)


def _load_without_base(adapter_dir: Path) -> PeftModel:
    config = adapter_config(adapter_dir)
    check_only_factors(config)
    # a task's model class would look for methods that only a whole model has
    task_type, config.task_type = config.task_type, None
    model = load(skeleton(adapter_dir, config), adapter_dir, config)
    model.peft_config["default"].task_type = task_type
    return model


def has_lora_form(adapter_config: Mapping[str, Any]) -> bool:
    """Whether an adapter, by its adapter_config.json, is low-rank factors and nothing else."""
    config_cls = PEFT_TYPE_TO_CONFIG_MAPPING.get(adapter_config["peft_type"])
    is_low_rank = config_cls is not None and issubclass(config_cls, LoraConfig | FactoredConfig)
    return is_low_rank and not _beside_factors(adapter_config)


def check_only_factors(config: PeftConfig) -> None:
    """Raise UserError if an adapter holds more than low-rank factors."""
    if more := _beside_factors(vars(config)):
        raise UserError(
            f"The adapter has {more}, which a plain LoRA adapter cannot hold: merge it into the"
            " base instead (as=merged)."
        )


def _beside_factors(config: Mapping[str, Any]) -> str:
    found = {name: config[name] for name in MORE_THAN_FACTORS if name in config}
    more = {name: v for name, v in found.items() if v not in (MORE_THAN_FACTORS[name], [])}
    return ", ".join(f"{name}={value!r}" for name, value in more.items())


def _check_embeddings(model: PeftModel, config: PeftConfig) -> None:
    """PEFT saves embeddings that were resized along with the adapter; a plain LoRA cannot."""
    base_dir = config.base_model_name_or_path
    vocabulary = getattr(getattr(model.get_base_model(), "config", None), "vocab_size", None)
    if vocabulary is None or not base_dir or not (Path(base_dir) / "config.json").is_file():
        return
    before = AutoConfig.from_pretrained(base_dir, trust_remote_code=False).vocab_size
    if vocabulary != before:
        raise UserError(
            f"The model's embeddings were resized from {before} to {vocabulary} tokens, which a "
            "plain LoRA adapter cannot hold: merge it into the base instead (as=merged)."
        )


def _check_target(out_dir: str | Path, source: PeftModel | str | Path) -> None:
    target = check_output(out_dir, "export")
    if not isinstance(source, PeftModel) and Path(source).expanduser().resolve() == target:
        raise UserError(f"out={out_dir} is the adapter itself: give another folder.")
