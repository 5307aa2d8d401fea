"""What an adapter is by its content, and what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.files import read_json
from mos.errors import UserError
from mos.files import fingerprint, hash_files, hash_json, write_json

ADAPTER_CONFIG = "adapter_config.json"
ORIGIN = "trained_on.json"  # beside an adapter's files: the base that it was trained on


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` as PEFT saved it; empty where there is none, as in a whole model.

    Raises:
        UserError: it is not an adapter's config.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return {}
    config = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise UserError(f"{file} names no peft_type: it is not the config of a PEFT adapter.")
    return config


def adapter_hash(folder: Path, cache_dir: str | Path) -> str:
    """Content of an adapter, or of a whole model after full fine-tuning.

    Of an adapter's config without the path of the base model and PEFT's version.

    Args:
        cache_dir: remembers hashes.

    Raises:
        UserError: neither is there.
    """
    config = read_adapter_config(folder)
    if not config:
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds neither an adapter nor a model.")
        return fingerprint(folder, cache_dir)
    for where in ("base_model_name_or_path", "revision", "inference_mode", "peft_version"):
        config.pop(where, None)
    files = sorted(folder.glob("adapter_model.*"))
    if not files:
        raise UserError(f"{folder} has no adapter_model.safetensors: is it a whole adapter?")
    return hash_json([config, hash_files(files, cache_dir)])


def write_origin(adapter_dir: Path, config: Mapping[str, Any], base_sha256: str) -> None:
    """Note beside an adapter what it was trained on, for those who load it elsewhere.

    Args:
        config: of the training.
        base_sha256: `mos.files.fingerprint` of the base model's folder.
    """
    origin = {"model": config["model"]["name"], "model_sha256": base_sha256}
    origin["quantization"] = config["quantization"]
    write_json(adapter_dir / ORIGIN, origin)


def read_origin(adapter_dir: Path) -> dict[str, Any] | None:
    """What `write_origin` noted; None where nothing is known."""
    file = adapter_dir / ORIGIN
    if not file.is_file():
        return None
    origin = read_json(file)
    if not isinstance(origin, dict) or not isinstance(origin.get("model_sha256"), str):
        raise UserError(f"{file} does not say what the adapter was trained on: was it edited?")
    return origin
