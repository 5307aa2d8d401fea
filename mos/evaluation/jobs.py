"""How subjects are evaluated: benchmarks, weights and engine settled first, then one engine each
base model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from eval import BENCHMARKS, Benchmark, build_benchmark
from eval.cache import DiskError
from eval.engines import EngineError, EngineSettings, NotFiniteError, engine_settings
from eval.results import Metrics
from eval.runner import Weights, run_benchmark
from mos.config import Evaluation, Quantization
from mos.console import logged_to, say
from mos.data.tokenizer import check_tokenizer
from mos.errors import UserError
from mos.evaluation.serving import FULL, LORA, MERGED, Server
from mos.evaluation.subjects import CONSENT, Subject, adapter_hash, left_out, read_origin
from mos.files import fingerprint, hash_json, lock_at, source_hash
from mos.models.card import write_card
from mos.models.loading import load_tokenizer
from mos.models.sources import resolve_model
from mos.records import Evaluated


@dataclass
class Job:
    """A subject with all that is settled before an engine starts."""

    subject: Subject
    base_dir: Path
    tokenizer: PreTrainedTokenizerBase
    benchmarks: dict[str, Benchmark]
    settings: EngineSettings
    weights: Weights


def evaluate_subjects(
    subjects: Sequence[Subject], cache_dir: str | Path, overwrite: bool = False
) -> dict[str, str]:
    """Evaluate all benchmarks of all subjects, filling their `results`.

    Returns:
        Of several subjects, the names of those that were left out, each with the reason.

    Raises:
        UserError: a single subject cannot be evaluated; the disk is full; an engine that died.
    """
    failures: dict[str, str] = {}
    alone = len(subjects) == 1
    built: dict[str, tuple[PreTrainedTokenizerBase, dict[str, Benchmark]]] = {}
    jobs = []
    for subject in subjects:
        with left_out(subject.name, failures, alone):
            jobs.append(_prepare(subject, Path(cache_dir), built))
    started = 0
    for group in _by_engine(jobs):
        riding = [job.subject.adapter_dir for job in group if job.weights.adapter == LORA]
        adapters = [folder for folder in riding if folder is not None]
        with Server(group[0].settings, adapters, group[0].tokenizer, cache_dir) as server:
            for job in group:
                started += 1
                run = job.subject.run
                log = logged_to(run.path / "train.log") if run else nullcontext()
                fatal = EngineError, DiskError
                with left_out(job.subject.name, failures, alone, fatal), log:
                    said = f"{started} of {len(jobs)}, " if len(jobs) > 1 else ""
                    say(f"{said}{job.subject.name}: {_described(job)}")
                    _evaluate(job, server, cache_dir, overwrite)
    return failures


def build_benchmarks(evaluation: Evaluation, tokenizer: Any) -> dict[str, Benchmark]:
    """The benchmarks of an `eval` config group, by name.

    Args:
        tokenizer: of the model that is evaluated.
    """
    return {
        name: build_benchmark(name, tokenizer=tokenizer, **build_options(evaluation, name))
        for name in evaluation.benchmarks
    }


def build_options(evaluation: Evaluation, name: str) -> dict[str, Any]:
    """The keyword arguments of `build_benchmark` that an `eval` config group gives."""
    options = {
        "chat": evaluation.chat,
        "limit": evaluation.limit,
        **evaluation.benchmarks[name].dump(),
    }
    if BENCHMARKS[name].runs_code:  # how, is not for a benchmark's own settings to say
        options |= {key: getattr(evaluation, key) for key in CONSENT}
    return options


def settings_for(
    evaluation: Evaluation, quantization: Quantization, device: str, base_dir: Path
) -> EngineSettings:
    """The engine's settings for a base model; raises as `engine_settings`."""
    # Dequantised bases are kept in bfloat16, whatever the original is in.
    dequantised = quantization.bits is not None and evaluation.weights != "original"
    shared = ("dtype", "max_model_len", "gpu_memory_utilization", "tensor_parallel", "batch_size")
    return engine_settings(
        evaluation.engine,
        base_dir,
        device=device,
        stored="bfloat16" if dequantised else None,
        **evaluation.model_dump(include=set(shared)),
    )


def recorded_options(evaluation: Evaluation, name: str, cache_dir: str | Path) -> dict[str, Any]:
    """What shapes a benchmark, its files by content: targets are not in the prompts' hash."""
    options = build_options(evaluation, name)
    options.pop("sandbox", None)  # the result's `scoring` says it
    options["shard"] = None  # of earlier versions, whose results stay valid
    return {**options, "data_dir": source_hash(options["data_dir"], cache_dir)}


def has_all(evaluated: Mapping[str, Evaluated], wanted: Evaluation) -> bool:
    """Whether a run has the results that its config asks for, and not just parts of them."""

    def options(of: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in of.items() if k not in ("data_dir", *CONSENT) and v is not None}

    return all(
        name in evaluated
        and options(evaluated[name].options) == options(build_options(wanted, name))
        for name in wanted.benchmarks
    )


def weights_of(
    subject: Subject, base_dir: Path, settings: EngineSettings, cache_dir: str | Path
) -> Weights:
    """Settle which weights answer for a subject; no model is loaded, nothing is computed.

    `eval.weights=auto` is the adapter as LoRA on a GPU's vLLM, merged weights elsewhere.

    Args:
        base_dir: folder of the original base model.
        settings: of the engine.
        cache_dir: remembers hashes.

    Raises:
        UserError: an adapter that is not there, is not LoRA's shape where "adapter" asks for it, or
            was trained on another base.
    """
    choice, adapter_dir = subject.evaluation.weights, subject.adapter_dir
    quantized = subject.quantization.bits is not None and choice != "original"
    weights = Weights(
        model=subject.model.name,
        model_sha256=fingerprint(base_dir, cache_dir),
        # The norms are the same weights in either type.
        quantization=subject.quantization.dump(exclude={"norms"}) if quantized else None,
    )
    if adapter_dir is None:
        return weights
    sha256 = adapter_hash(adapter_dir, cache_dir)
    config = subject.adapter_config
    if not config:
        return replace(weights, quantization=None, adapter=FULL, adapter_sha256=sha256)
    from mos.models.interchange import has_lora_form  # imports PEFT, which takes seconds

    on_gpu = settings.engine == "vllm" and settings.device == "cuda"
    low_rank = (on_gpu or choice == "adapter") and has_lora_form(config)
    if choice == "adapter" and not low_rank:
        raise UserError(
            f"eval.weights=adapter: {adapter_dir} is a {config['peft_type']} adapter or trains"
            " whole rows or modules, which is not of LoRA's shape; use eval.weights=merged."
        )
    as_lora = choice == "adapter" or (choice != "merged" and on_gpu and low_rank)
    read_origin(adapter_dir, base_dir, cache_dir)
    return replace(weights, adapter=LORA if as_lora else MERGED, adapter_sha256=sha256)


def _prepare(
    subject: Subject,
    cache_dir: Path,
    built: dict[str, tuple[PreTrainedTokenizerBase, dict[str, Benchmark]]],
) -> Job:
    """Settle all that a subject needs; `built` keeps tokenizers and benchmarks for the next."""
    model, evaluation = subject.model, subject.evaluation
    folder = resolve_model(model.path, cache_dir, model.revision)
    key = hash_json([str(folder), model.pad_token, evaluation.dump()])
    if key not in built:
        tokenizer = load_tokenizer(folder, model.pad_token)
        check_tokenizer(tokenizer)
        built[key] = tokenizer, build_benchmarks(evaluation, tokenizer)
    tokenizer, benchmarks = built[key]
    for benchmark in benchmarks.values():
        benchmark.check_ready()
    settings = settings_for(evaluation, subject.quantization, subject.device, folder)
    weights = weights_of(subject, folder, settings, cache_dir)
    _check_adapter_is_its_own(subject, weights)
    return Job(subject, folder, tokenizer, benchmarks, settings, weights)


def _check_adapter_is_its_own(subject: Subject, weights: Weights) -> None:
    """Refuse an adapter in a run's folder that is not the one that the run trained."""
    if subject.run is None or weights.adapter_sha256 is None:
        return
    manifest = subject.run.manifest
    known = {entry.weights.get("adapter_sha256") for entry in manifest.evaluation.values()}
    known.add(manifest.adapter_sha256)
    if known - {None, weights.adapter_sha256}:
        raise UserError(
            f"{subject.adapter_dir} is not the adapter that this run trained: its content is"
            " another than the manifest says. Put the run's own adapter back, or evaluate this one"
            f" as adapters=[{subject.adapter_dir}]."
        )


def _by_engine(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Groups that one engine serves, with room for their longest request, like weights together."""
    groups: dict[tuple[Path, EngineSettings], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.base_dir, job.settings].append(job)
    for (_, settings), group in groups.items():
        longest = max(
            len(request.prompt.encode()) + 16 + request.decoding.max_tokens  # no token is empty
            for job in group
            for benchmark in job.benchmarks.values()
            for request in benchmark.requests
        )
        roomy = replace(settings, longest_request=longest)
        group.sort(key=lambda job: job.weights.adapter not in (None, LORA))
        yield [replace(job, settings=roomy) for job in group]


def _evaluate(job: Job, server: Server, cache_dir: str | Path, overwrite: bool) -> None:
    subject = job.subject
    for name, benchmark in job.benchmarks.items():
        try:
            result = run_benchmark(
                benchmark,
                _result_dir(subject, benchmark),
                weights=job.weights,
                numerics=job.settings.numerics(),
                engine=lambda: server.serve(job.base_dir, subject.adapter_dir, job.weights),
                cache_dir=cache_dir,
                options=recorded_options(subject.evaluation, name, cache_dir),
                overwrite=overwrite,
            )
        except NotFiniteError:
            server.stop()
            raise
        _record(job, name, result, cache_dir)


def _result_dir(subject: Subject, benchmark: Benchmark) -> Path:
    """`eval/<benchmark>`; a part never takes the whole's place."""
    folder = subject.out_dir / "eval" / benchmark.name
    earlier = Metrics.whole(folder)
    if benchmark.partial and earlier is not None and not earlier.partial:
        return folder.with_name(f"{benchmark.name}.partial")
    return folder


def _record(job: Job, name: str, result: Metrics, cache_dir: str | Path) -> None:
    """Tell of a result, and put it into the run's results.json unless a whole one is there."""
    subject = job.subject
    subject.results[name] = result
    folder = _result_dir(subject, job.benchmarks[name])
    say(f"{name}: {_summary(result)}; {folder}")
    run = subject.run
    beside = Metrics.whole(subject.out_dir / "eval" / name)
    if run is None or beside is None or beside.key != result.key:
        return
    locks = Path(cache_dir) / "locks"
    with lock_at(locks / f"{hash_json(str(run.path.resolve()))[:16]}.run.lock"):
        kept = {"prompts_sha256", "options", "weights", "engine", "scoring", "timing"}
        settings = asdict(job.settings) | job.settings.numerics() | {"window": job.settings.window}
        how = {**result.model_dump(include=kept), "settings": settings}
        evaluation = {**run.manifest.content().get("evaluation", {}), name: how}
        run.update_manifest(evaluation=evaluation)
        run.write_results()
        write_card(run)
        if has_all(run.manifest.evaluation, run.config.eval):
            run.set_status("evaluated")


def _described(job: Job) -> str:
    """The model, the weights and the benchmarks, in a few words."""
    how = {None: "no adapter", LORA: "the adapter as LoRA", MERGED: "the adapter merged"}
    weights = [how.get(job.weights.adapter, "fully fine-tuned")]
    if job.weights.quantization is not None:
        weights.append("on the dequantised base")
    return f"{job.subject.model.name}, {' '.join(weights)}; {', '.join(job.benchmarks)}"


def _summary(result: Metrics) -> str:
    parts = [f"{row.metric} {row.text}" for row in result.scores.rows("")]
    seconds = sum(result.timing.get(key, 0) for key in ("seconds", "scoring_seconds"))
    notes = [f"n={result.n}", f"{seconds:.0f} s"]
    if cached := result.timing.get("cached"):
        notes.append("all outputs from the cache" if cached == result.n else f"{cached} cached")
    if result.truncated:
        notes.append(f"{result.truncated} outputs cut at the length limit")
    if result.ties:
        notes.append(f"{result.ties} ties")
    if result.partial:
        notes.append(f"partial: {result.partial}")
    return f"{', '.join(parts)} ({'; '.join(notes)})"
