"""What a job needs of the machine and its user, checked before anything is loaded.

Consent, packages, device, data, weights; what takes long to find out comes last.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

from eval import BENCHMARKS
from eval.sandbox import check_isolation
from mos.adapters import attach
from mos.config import Evaluation, Model, TrainConfig
from mos.console import say
from mos.errors import UserError
from mos.files import RANDOM, SMOLLM2, check_writable, smollm2_package, weight_files


def choose_device(config: TrainConfig) -> str:
    """ "cuda" or "cpu", as configured.

    Raises:
        UserError: device=cuda without a usable GPU.
    """
    if config.device == "cpu":
        return "cpu"
    available = gpu_driver_is_there()
    if available:
        import torch  # takes seconds

        available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        smaller = "" if config.scale.name == "local" else " try scale=local,"
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


def check_shapes(config: TrainConfig) -> int | None:
    """Put the adapter onto the model's shapes, without weights, and hold lengths against them.

    Returns how many parameters are trained; None where the shapes are not known.

    Raises:
        UserError: target modules that are not there; examples longer than the model's context.
    """
    from mos.models.loading import skeleton

    model, method = skeleton(config.model.dump()), config.adapter.method
    if model is None or method == "none":
        return None if model is None else 0
    length = config.data.max_seq_length
    context = getattr(model.config, "max_position_embeddings", length)
    if length > context:
        raise UserError(
            f"data.max_seq_length={length}: {config.model.name} has a context of {context} tokens."
        )
    # Quantised weights cannot be told from plain ones on the meta device, and `full` needs to know.
    adapted = model if method == "full" else attach(model, config.adapter.dump())
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def check_card(config: TrainConfig) -> None:
    """Hold what a training needs against what is free on the GPU, before anything is loaded.

    Raises:
        UserError: its tensors alone do not fit.
    """
    in_shards = "ACCELERATE_USE_FSDP" in os.environ
    if in_shards or config.adapter.method == "none" or choose_device(config) == "cpu":
        return
    from eval.engines.vllm import free_memory  # in another process: none of the GPU is held here
    from mos.models.memory import CONTEXT_BYTES, GIB, estimate

    needs, (free, whole) = estimate(config), free_memory(1)
    here = f"{free / GIB:.1f} of {whole / GIB:.1f} GiB are free on the GPU"
    if (least := needs.peak_memory_bytes + CONTEXT_BYTES) > free:
        raise UserError(
            f"this training needs {least / GIB:.1f} GiB, and {here}. Lower"
            " trainer.per_device_train_batch_size (now"
            f" {config.trainer.per_device_train_batch_size}) and raise"
            " trainer.gradient_accumulation_steps, or use trainer.gradient_checkpointing=true or"
            " quantization=nf4."
        )
    if needs.card_memory_bytes > free:
        say(f"this training may take {needs.card_memory_bytes / GIB:.1f} GiB, and {here}")


def check_consent(evaluation: Evaluation) -> None:
    """Programs that a model wrote are only run when the caller says so, and behind walls.

    Raises:
        UserError: a benchmark runs code and `allow_code_execution` is off, or nothing isolates it.
    """
    for name in evaluation.benchmarks:
        if not BENCHMARKS[name].runs_code:
            continue
        if not evaluation.allow_code_execution:
            raise UserError(
                f"{name} runs programs that the model wrote. They run in a sandbox, but it is your"
                " machine: allow it with eval.allow_code_execution=true, or leave the benchmark"
                " out."
            )
        if not evaluation.defer:
            check_isolation(evaluation.sandbox)


def missing(config: TrainConfig) -> list[str]:
    """What stands between a valid config and a run on this machine; each entry says what to do."""
    problems = []
    checks = (
        lambda config: check_consent(config.eval),
        lambda config: check_writable(config.paths.output_dir, "paths.output_dir"),
        lambda config: check_writable(config.paths.cache_dir, "paths.cache_dir"),
        _check_trackers,
        lambda config: check_benchmark_data(config.eval),
        _check_training_data,
        lambda config: check_model_files(config.model),
        _check_model,
        check_engine,
    )
    for check in checks:
        try:
            check(config)
        except UserError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))  # of weights, two checks may say the same


def check_engine(config: TrainConfig) -> None:
    """
    Raises:
        UserError: the machine has fewer GPUs than the config asks for.
    """
    each = config.eval.tensor_parallel
    if config.device != "cuda" and each == 1:
        return  # a CPU is there, and torch takes seconds to import
    there = 0
    if choose_device(config) == "cuda":
        import torch

        there = torch.cuda.device_count()
    if each > max(1, there):
        raise UserError(f"eval.tensor_parallel={each}: needs so many GPUs; {there} are here.")


def _check_trackers(config: TrainConfig) -> None:
    for tracker in config.logging.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"logging.report_to={tracker}: the package is not installed;"
                " pip install 'mos-tuning[logging]'."
            )


def check_model_files(model: Model) -> None:
    """What can be told of the files of the `model` config group without importing torch.

    Raises:
        UserError: a package is not installed, weights are not there, or cannot be downloaded.
    """
    path = model.path
    if path.startswith(RANDOM):
        return
    if path == SMOLLM2:
        smollm2_package()
    elif _is_folder(path):
        weight_files(Path(path).expanduser())
    else:
        from huggingface_hub import constants, try_to_load_from_cache

        cached = try_to_load_from_cache(path, "config.json", revision=model.revision)
        if not isinstance(cached, str) and constants.is_offline_mode():
            raise UserError(
                f"model.path={path} is not in the local cache and HF_HUB_OFFLINE is set: unset it"
                " to download the model, or give a folder with model.path=/path/to/model."
            )


def _check_model(config: TrainConfig) -> None:
    path = config.model.path
    if not _is_folder(path) or not (Path(path).expanduser() / "config.json").is_file():
        return
    from mos.models.loading import load_tokenizer
    from mos.models.sources import check_model_folder

    folder = check_model_folder(Path(path).expanduser())
    load_tokenizer(folder, config.model.pad_token)


def _is_folder(path: str) -> bool:
    return Path(path).expanduser().exists() or path.startswith((".", "/", "~"))


def _check_training_data(config: TrainConfig) -> None:
    from mos.data import check_source

    if config.adapter.method != "none":
        check_source(config.data.corpus, config.data.source)


def check_benchmark_data(evaluation: Evaluation) -> None:
    """
    Raises:
        UserError: the folder of a benchmark is not there.
    """
    absent = [
        options.data_dir
        for options in evaluation.benchmarks.values()
        if not Path(options.data_dir).is_dir()
    ]
    if absent:
        raise UserError(
            f"benchmark files are missing: no folder {', '.join(absent)}. Fetch them with"
            " scripts/prepare_eval_data.py, or choose others with paths.data_dir=."
        )
