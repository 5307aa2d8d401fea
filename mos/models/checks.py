"""Whether a folder holds a whole model: checked in a second, before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from eval.engines.base import tensor_shapes
from mos.console import quiet_transformers
from mos.errors import UserError
from mos.files import weight_files

LFS_POINTER = b"version https://git-lfs"


def check_model_folder(folder: Path) -> Path:
    """Return `folder` if a model of plain weights can be loaded from it, every tensor its own.

    transformers starts with random weights where a file lacks a tensor, and leaves out tensors that
    it does not know, or puts an adapter on that lies there; here all are errors. Only headers of
    the weight files are read.

    Raises:
        MissingFileError: no config, no weights, or not all of their files.
        UserError: a model that needs code of its own, an adapter among its files, weights that are
            quantised, damaged, two sets, or not those of the config; the tensors are named.
    """
    files = weight_files(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"model.path={folder} holds an adapter beside the model (adapter_config.json), which"
            " transformers would put on it: move the adapter's files to a folder of their own."
        )
    config = load_config(folder)
    if settings := getattr(config, "quantization_config", None):
        raise UserError(
            f"model.path={folder} holds weights that are quantised already"
            f" ({settings.get('quant_method')}). Give the folder of the original weights:"
            " quantization=nf4 or int8 quantises them here, and what is recorded and evaluated is"
            " then what was trained on."
        )
    for file in files:
        with file.open("rb") as handle:
            if handle.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"{file} is a Git LFS pointer, not weights: run `git lfs pull` in {folder}."
                )
    tensors = len(tensor_shapes(folder))
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if tensors and layers > tensors:
        raise UserError(
            f"{folder}/config.json asks for {layers:,} layers, and its weights are {tensors}"
            " tensors: do they belong together?"
        )
    _check_loads(folder)
    return folder


def load_config(folder: str | Path) -> PreTrainedConfig:
    """The config of a model folder.

    Raises:
        UserError: it cannot be read, is inconsistent, or names code that would have to be run.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a damaged config makes the config classes raise
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.path={folder} needs code that comes with it (auto_map in config.json), and"
                " code of others is never run here: choose a model that transformers knows."
            ) from error
        raise UserError(
            f"model.path={folder}: config.json cannot be used: {type(error).__name__}: {error}"
        ) from error
    text = config.get_text_config()
    pad, size = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(pad, int) and isinstance(size, int) and pad >= size:
        raise UserError(
            f"model.path={folder}: pad_token_id={pad} is beyond the {size} rows of the embedding"
            " (vocab_size): correct config.json."
        )
    return config


def _check_loads(folder: Path) -> None:
    """Let transformers match the tensors of the files to those of the model, on the meta device."""
    with quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except Exception as error:  # whatever a damaged file makes the model classes raise
            raise UserError(
                f"model.path={folder} cannot be loaded: {type(error).__name__}:"
                f" {str(error).partition(chr(10))[0]}"
            ) from error
    _, info = loaded
    found: dict[str, list[str]] = {
        "missing in the files": sorted(info["missing_keys"]),
        "in the files and unknown to the model": sorted(info["unexpected_keys"]),
        "of another shape": sorted(f"{n} {tuple(a)}" for n, a, _ in info["mismatched_keys"]),
    }
    problems = [
        f"{len(names)} tensors are {what} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
        for what, names in found.items()
        if names
    ]
    if problems:
        raise UserError(
            f"The weights in {folder} are not those of its config.json: {'; '.join(problems)}."
            " Training would start from random weights; give the folder of the whole base model."
        )
