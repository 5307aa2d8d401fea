"""Adapters for other programs: `python -m mos.export adapter=outputs/... out=lora`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig
from pydantic import Field

from mos.__main__ import command
from mos.adapters import check_adapter_folder
from mos.config import Quantization, compose_config, resolved
from mos.console import say
from mos.errors import Strict, UserError, check
from mos.files import check_output, check_writable

if TYPE_CHECKING:
    from mos.models.interchange import merge, to_lora

__all__ = ["export", "merge", "to_lora"]


def __getattr__(name: str) -> Any:
    if name in ("merge", "to_lora"):  # they import torch and PEFT, which takes seconds
        from mos.models import interchange

        return getattr(interchange, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class ExportConfig(Strict):
    """Everything that `python -m mos.export` reads; configs/export/export.yaml documents it."""

    adapter: str
    out: str
    form: Literal["lora", "merged"] = Field(alias="as")
    base: str | None
    quantization: str | None
    dtype: Literal["float32", "bfloat16", "float16", None]
    cache_dir: str


def export(cfg: DictConfig) -> Path:
    """Write an adapter for other programs; returns the folder.

    Args:
        cfg: configs/export/export.yaml composed with overrides.

    Raises:
        UserError: a wrong config, an adapter that has no exact LoRA form, another base than that of
            its training, files in the folder that an export did not write.
    """
    config = check(resolved(cfg), ExportConfig)
    chosen = None
    if config.quantization is not None:
        given = compose_config([f"quantization={config.quantization}"]).quantization
        chosen = check(resolved(given), Quantization)
    for key in ("base", "quantization"):
        if config.form == "lora" and getattr(config, key) is not None:
            raise UserError(f"{key}= is for as=merged: a LoRA holds nothing of its base.")
    check_adapter_folder(Path(config.adapter))
    check_output(config.out, "export")
    check_writable(config.cache_dir, "cache_dir")
    import torch  # now that it is known to be needed

    from mos.models.interchange import merge, to_lora

    dtype = config.dtype and getattr(torch, config.dtype)
    if config.form == "lora":
        say(f"exporting {config.adapter}")
        out = to_lora(config.adapter, config.out, dtype)
    else:
        folder, as_trained = _base(config, chosen)
        out = merge(folder, config.adapter, config.out, dtype, as_trained)
    say(f"wrote {out}")
    return out


def _base(config: ExportConfig, chosen: Quantization | None) -> tuple[Path, bool]:
    """The base to merge into, and whether its weights are those that the adapter was trained on."""
    from mos.adapters.saved import adapter_config
    from mos.evaluation.subjects import ORIGIN, read_origin
    from mos.models.loading import dequantized_base
    from mos.models.sources import resolve_model

    base = config.base or adapter_config(Path(config.adapter)).base_model_name_or_path
    if not base:
        raise UserError("The adapter does not name its base model: give base=...")
    trained = None
    folder = resolve_model(base, config.cache_dir)
    if origin := read_origin(Path(config.adapter), folder, config.cache_dir):
        trained = check(origin.get("quantization", {}), Quantization, f"{ORIGIN}: quantization.")
    chosen = chosen or trained
    as_trained = False
    if chosen is not None:
        as_trained = trained is not None and _weights(chosen) == _weights(trained)
        folder = dequantized_base(folder, chosen.dump(), config.cache_dir)
    note = "the weights of its training" if as_trained else "maybe not the weights of its training"
    say(f"exporting {config.adapter}, merged into {folder} ({note})")
    return folder, as_trained


def _weights(quantization: Quantization) -> tuple:
    bits = quantization.bits
    return (bits, quantization.quant_type, quantization.double_quant) if bits == 4 else (bits,)


@command("export")
def main(cfg: DictConfig) -> None:
    """The command line around `export`."""
    export(cfg)


if __name__ == "__main__":
    main()
