"""Adapters and results for other programs: `python -m mos.export adapter=outputs/... out=lora`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from omegaconf import DictConfig
from pydantic import AfterValidator, Field, model_validator

from mos.cli import command
from mos.config import compose_config, resolved
from mos.console import say
from mos.errors import UserError
from mos.files import MANIFEST, check_output
from mos.methods import check_adapter_folder
from mos.run import Run
from mos.schema import Strict, check

if TYPE_CHECKING:
    from mos.interchange import merge, to_lora

__all__ = ["export", "merge", "push", "to_lora"]


def __getattr__(name: str) -> Any:
    if name in ("merge", "to_lora"):  # they import torch and PEFT, which takes seconds
        from mos import interchange

        return getattr(interchange, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _hub_id(name: str) -> str:
    from mos.card import is_hub_id

    if not is_hub_id(name):
        raise ValueError(f"expected a hub id, <owner>/<name>, found {name!r}.")
    return name


class ExportConfig(Strict):
    """Everything that `python -m mos.export` reads; configs/export/export.yaml documents it."""

    adapter: str | None
    results: str | None
    out: str
    form: Literal["lora", "merged", "lm_eval"] = Field(alias="as")
    push: Annotated[str, AfterValidator(_hub_id)] | None
    pad: bool
    base: str | None
    quantization: str
    dtype: Literal["float32", "bfloat16", "float16", None]
    data_dir: str
    cache_dir: str

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.adapter is None) == (self.results is None):
            found = "neither" if self.adapter is None else "both"
            raise ValueError(
                f"expected one of adapter=<its folder> and results=<a run>, found {found}."
            )
        if (self.form == "lm_eval") != (self.results is not None):
            raise ValueError(
                f"as={self.form} does not go with {'adapter' if self.adapter else 'results'}=:"
                " expected adapter= with as=lora or as=merged, or results= with as=lm_eval."
            )
        if self.push and self.results:
            raise ValueError("push= uploads what was made of an adapter=, not results=.")
        return self


def export(cfg: DictConfig) -> Path:
    """Write an adapter, or a run's results, for other programs; returns the folder.

    Args:
        cfg: configs/export/export.yaml composed with overrides.

    Raises:
        UserError: a wrong config, an adapter that has no exact LoRA form or does not fit its base,
            results that are not whole, a folder that mos did not write, a hub repository that
            cannot be written.
    """
    config = resolved(cfg)
    check(config, ExportConfig)
    quantization = compose_config([f"quantization={config['quantization']}"]).quantization
    if config["results"]:
        from mos.lm_eval_files import write_lm_eval

        run, places = Run(config["results"]), (config["data_dir"], config["cache_dir"])
        out = write_lm_eval(run, config["out"], *places)
    else:
        check_adapter_folder(Path(config["adapter"]))
        check_output(config["out"], "export")
        if config["push"]:
            push(config["push"])
        say(f"exporting {config['adapter']}")
        out = _export_adapter(config, quantization)
    say(f"wrote {out}")
    if config["push"]:
        say(f"uploaded to {push(config['push'], out)}")
    return out


def _export_adapter(config: Mapping[str, Any], quantization: DictConfig) -> Path:
    import torch

    from mos.adapters.folder import adapter_config
    from mos.interchange import merge, to_lora
    from mos.model_sources import resolve_model
    from mos.modeling import dequantized_base

    dtype = config["dtype"] and getattr(torch, config["dtype"])
    if config["as"] == "lora":
        return to_lora(config["adapter"], config["out"], dtype, config["pad"])
    base = config["base"] or adapter_config(Path(config["adapter"])).base_model_name_or_path
    if not base:
        raise UserError("The adapter does not name its base model: give base=...")
    cache_dir = config["cache_dir"]
    folder = dequantized_base(resolve_model(base, cache_dir), quantization, cache_dir)
    return merge(folder, config["adapter"], config["out"], dtype)


def push(hub_id: str, folder: Path | None = None) -> str:
    """Make a repository of the hub, private if it is new, and upload a folder that mos wrote.

    Args:
        folder: what to upload; None finds out whether it could be.

    Returns:
        The repository's address.

    Raises:
        UserError: no network, no token, or no right to write there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # of the library that the hub's speaks through

    api = HfApi()
    try:
        url = api.create_repo(hub_id, private=True, exist_ok=True)
        if folder:
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, ignore_patterns=[MANIFEST])
    except (HTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        kept = f" {folder} is kept; `hf upload {hub_id} {folder}` uploads it." if folder else ""
        raise UserError(
            f"push={hub_id} cannot be written: {reason.rstrip('.')}. Expected a network, and a"
            f" token that may write there (`hf auth login`).{kept}"
        ) from error
    return str(url)


@command("export")
def main(cfg: DictConfig) -> None:
    """The command line around `export`."""
    export(cfg)


if __name__ == "__main__":
    main()
