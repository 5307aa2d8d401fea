"""What a job needs of the machine and its user, checked before anything is loaded.

Consent, packages, device, data, weights; what takes long to find out comes last.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval import BENCHMARKS
from mos.errors import UserError
from mos.files import weight_files
from mos.folders import check_writable
from mos.places import SMOLLM2, TINY, smollm2_package


def choose_device(config: Mapping[str, Any]) -> str:
    """ "cuda" or "cpu", as configured.

    Raises:
        UserError: device=cuda without a usable GPU.
    """
    if config["device"] == "cpu":
        return "cpu"
    available = gpu_driver_is_there()
    if available:
        import torch  # takes seconds

        available = torch.cuda.is_available()
    if config["device"] == "cuda" and not available:
        smaller = "" if config["scale"]["name"] == "local" else " try scale=local,"
        raise UserError(
            "device=cuda asks for a GPU and torch sees none. Run it on a machine with one (and"
            f" torch's CUDA build),{smaller} or let the CPU do it with device=cpu."
        )
    return "cuda" if available else "cpu"


def gpu_driver_is_there() -> bool:
    """Whether the driver of a GPU is, without which torch would find none."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # AMD's
    return True


def choose_engines(config: Mapping[str, Any]) -> int:
    """How many engines evaluate at once on this machine, as configured.

    Raises:
        UserError: there are fewer GPUs, or on a CPU cores, than they need.
    """
    engines, each = (config["eval"][key] for key in ("data_parallel", "tensor_parallel"))
    on_gpu = choose_device(config) == "cuda"
    there = os.cpu_count() or 1
    if on_gpu:
        import torch

        there = torch.cuda.device_count()
    if engines == "auto":
        engines = max(1, there // each) if on_gpu else 1
    if engines * each > there:
        raise UserError(
            f"eval.data_parallel={engines}, eval.tensor_parallel={each}: that needs"
            f" {engines * each} {'GPUs' if on_gpu else 'CPU cores'}, and {there} are there."
        )
    return engines


def check_shapes(config: Mapping[str, Any]) -> None:
    """Put the adapter onto the model's shapes, without weights, and hold lengths against them.

    Raises:
        UserError: widths that do not divide, too few shards, target modules that are not there;
            examples longer than the model's context.
    """
    from mos.adapters import attach
    from mos.modeling import skeleton

    model, method = skeleton(config["model"]), config["adapter"]["method"]
    if model is None or method == "none":
        return
    length = config["data"]["max_seq_length"]
    context = getattr(model.config, "max_position_embeddings", length)
    if length > context:
        raise UserError(
            f"data.max_seq_length={length}: {config['model']['name']} has a context of {context}"
            " tokens."
        )
    # Quantised weights cannot be told from plain ones on the meta device, and `full` needs to know.
    if method != "full":
        attach(model, config["adapter"])


def check_consent(evaluation: Mapping[str, Any]) -> None:
    """Programs that a model wrote are only run when the caller says so.

    Args:
        evaluation: the `eval` config group.

    Raises:
        UserError: a benchmark runs code and `allow_code_execution` is off.
    """
    for name in evaluation["benchmarks"]:
        if BENCHMARKS[name].runs_code and not evaluation["allow_code_execution"]:
            raise UserError(
                f"{name} runs programs that the model wrote. They run in a sandbox, but it is your"
                " machine: allow it with eval.allow_code_execution=true, or leave the benchmark"
                " out."
            )


def missing(config: Mapping[str, Any]) -> list[str]:
    """What stands between a valid config and a run on this machine; each entry says what to do."""
    problems = []
    checks = (
        lambda config: check_consent(config["eval"]),
        lambda config: check_writable(config["paths"]["output_dir"], "paths.output_dir"),
        _check_trackers,
        check_benchmark_data,
        _check_training_data,
        check_model_files,
        _check_model,
        check_engines,
    )
    for check in checks:
        try:
            check(config)
        except UserError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))  # of weights, two checks may say the same


def check_engines(config: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: the machine lacks GPUs or cores that the config asks for.
    """
    several = (config["eval"]["data_parallel"], config["eval"]["tensor_parallel"]) != (1, 1)
    if config["device"] == "cuda" or several:  # one CPU is there; torch takes seconds to import
        choose_engines(config)


def _check_trackers(config: Mapping[str, Any]) -> None:
    for tracker in config["logging"]["report_to"]:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"logging.report_to={tracker}: the package is not installed;"
                " pip install 'mos-tuning[logging]'."
            )


def check_model_files(config: Mapping[str, Any]) -> None:
    """What can be told of the files of the `model` config group without importing torch.

    Raises:
        UserError: a package is not installed, weights are not there, or cannot be downloaded.
    """
    path = config["model"]["path"]
    if path == TINY:
        return
    if path == SMOLLM2:
        smollm2_package()
    elif _is_folder(path):
        weight_files(Path(path).expanduser())
    else:
        from huggingface_hub import constants, try_to_load_from_cache

        cached = try_to_load_from_cache(path, "config.json", revision=config["model"]["revision"])
        if not isinstance(cached, str) and constants.is_offline_mode():
            raise UserError(
                f"model.path={path} is not in the local cache and HF_HUB_OFFLINE is set: unset it"
                " to download the model, or give a folder with model.path=/path/to/model."
            )


def _check_model(config: Mapping[str, Any]) -> None:
    path = config["model"]["path"]
    if not _is_folder(path) or not (Path(path).expanduser() / "config.json").is_file():
        return
    from mos.model_check import check_model_folder
    from mos.modeling import load_tokenizer

    folder = check_model_folder(Path(path).expanduser())
    load_tokenizer(folder, config["model"]["pad_token"])


def _is_folder(path: str) -> bool:
    return Path(path).expanduser().exists() or path.startswith((".", "/", "~"))


def _check_training_data(config: Mapping[str, Any]) -> None:
    from mos.data import check_source

    if config["adapter"]["method"] != "none":
        check_source(config["data"]["corpus"], config["data"]["source"])


def check_benchmark_data(config: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: the folder of a benchmark is not there.
    """
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
