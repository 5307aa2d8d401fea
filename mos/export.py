"""Adapters for other programs: `python -m mos.export adapter=outputs/... out=lora`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig
from pydantic import Field

from mos.cli import command
from mos.config import compose_config, resolved
from mos.console import say
from mos.errors import UserError
from mos.files import check_output
from mos.methods import check_adapter_folder
from mos.schema import Strict, check

if TYPE_CHECKING:
    from mos.interchange import merge, to_lora

__all__ = ["export", "merge", "to_lora"]


def __getattr__(name: str) -> Any:
    if name in ("merge", "to_lora"):  # they import torch and PEFT, which takes seconds
        from mos import interchange

        return getattr(interchange, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class ExportConfig(Strict):
    """Everything that `python -m mos.export` reads; configs/export/export.yaml documents it."""

    adapter: str
    out: str
    form: Literal["lora", "merged"] = Field(alias="as")
    pad: bool
    base: str | None
    quantization: str
    dtype: Literal["float32", "bfloat16", "float16", None]
    cache_dir: str


def export(cfg: DictConfig) -> Path:
    """Write an adapter for other programs; returns the folder.

    Args:
        cfg: configs/export/export.yaml composed with overrides.

    Raises:
        UserError: a wrong config, an adapter that has no exact LoRA form or does not fit its base,
            files in the folder that an export did not write.
    """
    config = check(resolved(cfg), ExportConfig)
    quantization = compose_config([f"quantization={config.quantization}"]).quantization
    check_adapter_folder(Path(config.adapter))
    check_output(config.out, "export")
    say(f"exporting {config.adapter}")
    out = _export_adapter(config, quantization)
    say(f"wrote {out}")
    return out


def _export_adapter(config: ExportConfig, quantization: DictConfig) -> Path:
    import torch

    from mos.adapters.saved import adapter_config
    from mos.interchange import merge, to_lora
    from mos.model_sources import resolve_model
    from mos.modeling import dequantized_base

    dtype = config.dtype and getattr(torch, config.dtype)
    if config.form == "lora":
        return to_lora(config.adapter, config.out, dtype, config.pad)
    base = config.base or adapter_config(Path(config.adapter)).base_model_name_or_path
    if not base:
        raise UserError("The adapter does not name its base model: give base=...")
    folder = resolve_model(base, config.cache_dir)
    folder = dequantized_base(folder, quantization, config.cache_dir)
    return merge(folder, config.adapter, config.out, dtype)


@command("export")
def main(cfg: DictConfig) -> None:
    """The command line around `export`."""
    export(cfg)


if __name__ == "__main__":
    main()
