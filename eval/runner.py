"""Evaluating a benchmark: answers from the cache or the engine, then scores, then the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from eval.benchmark import Benchmark, Completion, Request
from eval.cache import CompletionStore, unwritable
from eval.engines import Engine, EngineError
from eval.results import METRICS, SCHEMA, Metrics
from mos.console import Bar, errors, say
from mos.errors import UserError
from mos.files import hash_json, lock_at


@dataclass(frozen=True)
class Weights:
    """The weights that answer.

    Attributes:
        model: name or path of the base model, for people.
        model_sha256: content of the base model's folder.
        quantization: settings of the quantised weights that were dequantised, which is what
            training saw; None for the original ones.
        adapter: how it is applied, "lora", "merged" or "full" (all weights were trained); None
            without one.
        adapter_sha256: content of the adapter.
    """

    model: str
    model_sha256: str
    quantization: Mapping[str, Any] | None = None
    adapter: str | None = None
    adapter_sha256: str | None = None

    def identity(self) -> dict[str, Any]:
        """What the answers depend on."""
        own = asdict(self)
        del own["model"]
        return own


# Gives the running engine with the right weights, and the LoRA directory to apply on them if any.
OpenEngine = Callable[[], tuple[Engine, Path | None]]


def run_benchmark(
    benchmark: Benchmark,
    out_dir: str | Path,
    *,
    weights: Weights,
    numerics: Mapping[str, Any],
    engine: OpenEngine,
    cache_dir: str | Path,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Metrics:
    """Evaluate a benchmark and return its `metrics.json`.

    Writes `records.jsonl` and then `metrics.json`, which is there only once both are whole. What
    was computed before, by whatever run, is taken from the cache; the engine is asked for only if
    something is missing. Two evaluators of the same result wait for each other.

    Args:
        benchmark: its requests and how they are scored.
        out_dir: receives the two files.
        weights: what answers; with `numerics` and the requests, the key of the cache.
        numerics: `EngineSettings.numerics()`.
        engine: opens the engine, when it is needed.
        cache_dir: holds the cache of completions.
        options: the benchmark's options, recorded, and part of what makes a result the same.
        overwrite: score and write again even if the result is there.

    Raises:
        EngineError: the engine died; finished outputs are kept and the next call continues.
        UserError: a prompt that is too long, an output that is missing, a full disk.
    """
    out_dir = Path(out_dir)
    benchmark.check_ready()
    identity = {"weights": weights.identity(), "engine": dict(numerics)}
    result = _described(benchmark, weights, numerics, options or {})
    try:
        with result_lock(out_dir, cache_dir):
            done = Metrics.whole(out_dir)
            if done is not None and done.key == result["key"] and not overwrite:
                say(f"{benchmark.name}: evaluated already, {out_dir / METRICS}")
                return done
            with CompletionStore(cache_dir, identity, benchmark.name) as store:
                started = time.perf_counter()
                cached = sum(store.get(request) is not None for request in benchmark.requests)
                _compute(benchmark, store, engine)
                answers = [store.get(request) for request in benchmark.requests]
                seconds = round(time.perf_counter() - started, 3)
            completions = _check(benchmark.requests, answers)
            computed = len(completions) - cached
            timing = {"seconds": seconds, "computed": computed, "cached": cached}
            return _write(benchmark, completions, out_dir, result, timing)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise unwritable(Path(error.filename or out_dir), error) from error


def _described(
    benchmark: Benchmark, weights: Weights, numerics: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a result is of, and its `key`: a hash of what makes it the same result."""
    prompts = benchmark.prompts_sha256()
    identity = {"weights": weights.identity(), "engine": dict(numerics)}
    return {
        "benchmark": benchmark.name,
        "prompts_sha256": prompts,
        "partial": benchmark.partial or None,
        "options": dict(options),
        "weights": asdict(weights),
        "engine": dict(numerics),
        "key": hash_json([identity, prompts, dict(options)]),
    }


def _compute(benchmark: Benchmark, store: CompletionStore, engine: OpenEngine) -> None:
    """Ask for what the store lacks, keeping every batch as it comes."""
    requests = benchmark.requests
    missing = [request for request in requests if store.get(request) is None]
    if not missing:
        return
    running, adapter = engine()
    prompts = running.encode(missing)
    tokens = 0
    started = time.perf_counter()
    done = len(requests) - len(missing)
    try:
        with closing(Bar(benchmark.name, len(requests), done, errors)) as bar:
            for batch in running.complete(prompts, adapter):
                store.add((missing[i], completion) for i, completion in batch)
                done += len(batch)
                tokens += sum(c.prompt_tokens + sum(c.output_tokens) for _, c in batch)
                bar.move(done, f"{tokens / (time.perf_counter() - started):,.0f} tokens/s")
    except EngineError as error:
        kept = sum(store.get(request) is not None for request in requests)
        raise EngineError(
            f"{error} {kept} of {len(requests)} outputs of {benchmark.name} are kept; the same"
            " command continues from there."
        ) from error


def _check(requests: Sequence[Request], answers: Sequence[Completion | None]) -> list[Completion]:
    """Every request has all its outputs, or an error names it."""
    for request, answer in zip(requests, answers, strict=True):
        found = 0 if answer is None else len(answer.texts)
        if found != request.decoding.n:
            raise UserError(
                f"The engine returned {found} of {request.decoding.n} outputs for {request.id}:"
                " nothing is scored. Run the same command again."
            )
    return [answer for answer in answers if answer]


def _write(
    benchmark: Benchmark,
    completions: list[Completion],
    out_dir: Path,
    result: dict[str, Any],
    timing: dict[str, Any],
) -> Metrics:
    outputs = [
        list(c.texts) if request.decoding.n > 1 else c.texts[0]
        for request, c in zip(benchmark.requests, completions, strict=True)
    ]
    started = time.perf_counter()
    score = benchmark.score(outputs)
    timing["scoring_seconds"] = round(time.perf_counter() - started, 3)
    metrics = Metrics(
        schema=SCHEMA,
        **result,
        n=score.n,
        metrics=score.metrics,
        stderr=dict(score.stderr),
        breakdown=score.breakdown,
        scoring=score.scoring,
        truncated=sum(reason == "length" for c in completions for reason in c.finish_reasons),
        ties=sum(c.tied for c in completions),
        prompt_tokens=sum(c.prompt_tokens for c in completions),
        output_tokens=sum(sum(c.output_tokens) for c in completions),
        timing=timing,
    )
    rows = zip(score.records, completions, strict=True)
    return metrics.write(out_dir, [{**record, **_about(c)} for record, c in rows])


def _about(completion: Completion) -> dict[str, Any]:
    """What a record says of how its output came about."""
    about: dict[str, Any] = {"prompt_tokens": completion.prompt_tokens}
    if len(completion.texts) == 1:
        about["finish_reason"] = completion.finish_reasons[0]
        about["output_tokens"] = completion.output_tokens[0]
    else:
        about["finish_reasons"] = completion.finish_reasons
        about["output_tokens"] = completion.output_tokens
    if completion.logprobs:
        about |= {"logprobs": completion.logprobs, "tied": completion.tied}
    return about


def result_lock(out_dir: Path, cache_dir: str | Path) -> BaseFileLock:
    """One evaluator at a time for a result; the lock lies in the cache, not beside the result."""
    locks = Path(cache_dir) / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return lock_at(locks / f"{hash_json(str(out_dir.resolve()))[:16]}.lock")
