"""vLLM, its GPU and its CPU build: one engine for all benchmarks and adapters of a call."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from eval.benchmark import Completion, Decoding
from eval.engines import (
    Engine,
    EngineError,
    EngineSettings,
    NotFiniteError,
    Prompt,
    check_lora_fits,
    choose,
    is_out_of_memory,
    model_config,
    request_seed,
    tensor_shapes,
)
from mos.console import say
from mos.errors import UserError

CPU_BATCH_TOKENS = 4096  # prompt tokens of one step
# Ranks for which vLLM has LoRA slots; an adapter of any rank up to a slot's fits it.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VllmEngine(Engine):
    """One `vllm.LLM`, whose weights are exchanged in place and which LoRA adapters ride on.

    On CPU it runs in this process (a worker process would be bound to one core), and adapters are
    better merged: vLLM's own LoRA kernels are slow there, and in a batch that mixed rows with and
    without an adapter they would apply it to all of them. `complete` never mixes.

    Args:
        model_dir, settings, tokenizer: see `Engine`.
        log: file for what vLLM writes to the terminal while it starts; None leaves it there.
    """

    def __init__(
        self,
        model_dir: str | Path,
        settings: EngineSettings,
        tokenizer: Any = None,
        log: str | Path | None = None,
    ) -> None:
        super().__init__(model_dir, settings, tokenizer)
        self._log = log
        self._adapter_ids = itertools.count(1)
        self._llm = self._start()

    def _start(self) -> Any:
        settings = self.settings
        on_cpu = settings.device == "cpu"
        options: dict[str, Any] = {
            "hf_overrides": {"head_dtype": "float32"},
            "generation_config": "vllm",
            "dtype": settings.dtype,
            "max_model_len": settings.window,
            "enforce_eager": settings.enforce_eager,
            "enable_prefix_caching": True,
            "seed": settings.seed,
            "use_tqdm_on_load": False,
            "trust_remote_code": False,
        }
        if on_cpu:
            options["kv_cache_memory_bytes"] = self._kv_cache_bytes()
            # A seeded request whose prompt is cut over two steps takes its draw back, which vLLM
            # does by an offset that generators on CPU do not have: the engine would die.
            options["enable_chunked_prefill"] = False
            options["max_num_batched_tokens"] = max(settings.window, CPU_BATCH_TOKENS)
        else:
            options["gpu_memory_utilization"] = self._share_of_memory()
            options["tensor_parallel_size"] = settings.tensor_parallel
        if settings.max_lora_rank:
            rank = lora_slot(settings.max_lora_rank)
            options |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
        with self._quiet(), _environment(settings):
            try:
                from vllm import LLM

                llm = LLM(model=str(self.model_dir), **options)
            except ImportError as error:
                raise EngineError(
                    f"vLLM is installed but cannot be imported ({error}): repair it, or use"
                    " eval.engine=transformers."
                ) from error
            except Exception as error:
                raise self._failed("did not start", error) from error
        # The tokenizer's EOS is the only stop; vLLM adds those of generation_config.json
        llm.llm_engine.input_processor.generation_config_fields.clear()
        return llm

    def _share_of_memory(self) -> float:
        """What vLLM may take of a GPU: `gpu_memory_utilization` of what is free now.

        Raises:
            EngineError: the weights alone need more.
        """
        settings = self.settings
        free, whole = (size / 2**30 for size in free_memory(settings.tensor_parallel))
        taken = settings.gpu_memory_utilization * free
        numbers = sum(map(math.prod, tensor_shapes(self.model_dir).values()))
        weights = numbers * getattr(torch, settings.dtype).itemsize / 2**30
        takes = f"takes {taken:.1f} of {whole:.1f} GiB, {free:.1f} free"
        if weights / settings.tensor_parallel > taken:
            raise EngineError(
                f"vLLM {takes}, too little for the {weights:.1f} GiB of weights of"
                f" {self.model_dir}: end what else uses this GPU (see nvidia-smi), or spread them"
                f" over more GPUs with eval.tensor_parallel (now {settings.tensor_parallel})."
            )
        say(f"engine: {takes}")
        return taken / whole

    def _kv_cache_bytes(self) -> int:
        """Room for eight of the longest requests, at least 1 GiB and at most 4."""
        config = model_config(self.model_dir)
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        # Families of before grouped queries have no key for it.
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        per_token = 2 * config.num_hidden_layers * heads * head_dim
        size = per_token * (4 if self.settings.dtype == "float32" else 2) * self.settings.window
        return max(size + (64 << 20), min(max(8 * size, 1 << 30), 4 << 30))

    def load_weights(self, model_dir: str | Path) -> None:
        with self._quiet():
            try:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model_dir)})
            except Exception as error:
                raise self._failed(f"could not load {model_dir}", error) from error
        self.model_dir = Path(model_dir)
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM kept keys and values of other weights; start the call again.")

    def close(self) -> None:
        if llm := self.__dict__.pop("_llm", None):
            llm.llm_engine.engine_core.shutdown()

    def complete(
        self, prompts: Sequence[Prompt], adapter: str | Path | None = None
    ) -> Iterator[list[tuple[int, Completion]]]:
        lora = None if adapter is None else self._load_adapter(Path(adapter))
        engine = self._llm.llm_engine
        first = self._llm.request_counter.counter
        pending = self._llm.enqueue(
            [{"prompt_token_ids": prompt.ids} for prompt in prompts],
            [self._sampling(prompt) for prompt in prompts],
            lora_request=lora,
            use_tqdm=False,
        )
        try:
            while engine.has_unfinished_requests():
                try:
                    with self._stance():
                        finished = [output for output in engine.step() if output.finished]
                except Exception as error:
                    raise self._failed("died", error) from error
                if finished:
                    positions = [int(output.request_id) - first for output in finished]
                    yield [
                        (i, self._completion(prompts[i], output))
                        for i, output in zip(positions, finished, strict=True)
                    ]
        except (GeneratorExit, KeyboardInterrupt, NotFiniteError):
            engine.abort_request(pending, internal=True)
            raise

    def _stance(self) -> AbstractContextManager:
        """Compile nothing on a CPU: vLLM's sampler takes half a minute for it in eager mode."""
        if self.settings.device == "cpu" and self.settings.enforce_eager:
            return torch.compiler.set_stance("force_eager")
        return nullcontext()

    def _load_adapter(self, adapter: Path) -> Any:
        """Load an adapter under an id, name and path of its own.

        The prefix cache goes by name and path, the loader by id, and an adapter that is loaded no
        earlier than in `generate` takes the engine down with it if it is broken.
        """
        from vllm.lora.request import LoRARequest

        check_lora_fits(adapter, self.model_dir)
        number = next(self._adapter_ids)
        request = LoRARequest(f"{adapter.name}-{number}", number, str(adapter.resolve()))
        try:
            loaded = self._llm.llm_engine.add_lora(request)
        except Exception as error:
            raise UserError(
                f"The adapter {adapter} does not fit the model {self.model_dir}: {error}"
            ) from error
        if not loaded:
            raise EngineError(f"vLLM did not load the adapter {adapter}.")
        return request

    def _sampling(self, prompt: Prompt) -> Any:
        from vllm import SamplingParams

        decoding: Decoding = prompt.request.decoding
        if decoding.choices:
            ids = self.choice_ids(decoding.choices)
            return SamplingParams(
                temperature=0, max_tokens=1, allowed_token_ids=ids, logprob_token_ids=ids
            )
        sampled = decoding.temperature > 0
        return SamplingParams(
            n=decoding.n,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            max_tokens=decoding.max_tokens,
            stop=list(decoding.stop) or None,
            seed=request_seed(self.settings.seed, prompt.request) if sampled else None,
            logprobs=0,  # of the sampled tokens: NaN where a logit is not finite
        )

    def _completion(self, prompt: Prompt, output: Any) -> Completion:
        choices = prompt.request.decoding.choices
        if choices:
            returned = output.outputs[0].logprobs[0]
            logprobs = [returned[i].logprob for i in self.choice_ids(choices)]
            self._check_finite(logprobs)
            return choose(choices, logprobs, len(prompt.ids))
        outputs = sorted(output.outputs, key=lambda o: o.index)
        self._check_finite([o.cumulative_logprob for o in outputs])
        return Completion(
            texts=tuple(o.text for o in outputs),
            finish_reasons=tuple(o.finish_reason for o in outputs),
            prompt_tokens=len(prompt.ids),
            output_tokens=tuple(len(o.token_ids) for o in outputs),
        )

    def _check_finite(self, logprobs: Sequence[float]) -> None:
        if not all(map(math.isfinite, logprobs)):
            raise NotFiniteError(self.model_dir)

    def _failed(self, what: str, error: BaseException) -> EngineError:
        settings = self.settings
        message = f"vLLM {what}: {type(error).__name__}: {str(error).strip()}"
        memory = ("kv cache", "cache blocks", "free memory", "available memory")
        if is_out_of_memory(error) or any(sign in str(error).lower() for sign in memory):
            message += f" It lacks memory: lower eval.max_model_len (now {settings.window})"
            if settings.device == "cuda":
                message += (
                    ", or change eval.gpu_memory_utilization (now"
                    f" {settings.gpu_memory_utilization}): up for a longer context, down if other"
                    " processes use this GPU"
                )
            message += "."
        elif self._log is not None:
            message += f" Its own log is {self._log}."
        return EngineError(message)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Send what libraries print, also from C++ and child processes, to the log file."""
        if self._log is None:
            yield
            return
        Path(self._log).parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        with Path(self._log).open("ab") as log:
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, copy in enumerate(kept, start=1):
                    os.dup2(copy, number)
                    os.close(copy)


def free_memory(gpus: int) -> tuple[int, int]:
    """Free and all memory, in bytes, of the fullest of the first `gpus` GPUs.

    Another process asks: CUDA would keep some of each GPU for as long as this one lives.
    """
    ask = f"import torch; print(*min(map(torch.cuda.mem_get_info, range({gpus}))))"
    done = subprocess.run([sys.executable, "-P", "-c", ask], capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"CUDA does not start: {done.stderr.strip().rpartition(chr(10))[2]}")
    free, whole = map(int, done.stdout.split())
    return free, whole


def lora_slot(rank: int) -> int:
    """The smallest of vLLM's ranks that has room for an adapter's.

    Raises:
        UserError: there is none.
    """
    for slot in LORA_RANKS:
        if slot >= rank:
            return slot
    raise UserError(
        f"The adapter has rank {rank}, and vLLM takes at most {LORA_RANKS[-1]}: evaluate it with"
        " eval.weights=merged."
    )


@contextmanager
def _environment(settings: EngineSettings) -> Iterator[None]:
    """What vLLM takes from the environment; what it leaves there is taken away again.

    It preloads its allocator into every later child process, among them those that run generated
    programs.
    """
    before = os.environ.get("LD_PRELOAD")
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # FlashInfer would compile its sampler at the start, with a CUDA toolkit that many machines
    # lack; it is never taken for requests with seeds, as ours are.
    os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    # A fork cannot use CUDA once anybody has asked torch whether it is there.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ["VLLM_BATCH_INVARIANT"] = str(int(settings.batch_invariant))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if settings.device == "cpu" else "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = before
