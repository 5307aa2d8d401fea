"""Evaluating many models: their benchmarks are built once, each base model starts one engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from eval import Benchmark
from eval.cache import DiskError
from eval.engines import EngineError, EngineSettings, NotFiniteError, engine_settings
from eval.results import read_result, results_entry
from eval.runner import Weights, merge_shards, result_lock, run_benchmark
from eval.selection import shard_name
from mos.card import write_card
from mos.console import logged_to, say, score_rows
from mos.data.tokenizer import check_tokenizer
from mos.errors import UserError
from mos.evaluation.benchmarks import build_benchmarks, has_all, recorded_options
from mos.evaluation.models import LORA, MERGED, Model, check_base, weights_of
from mos.evaluation.serving import Server
from mos.evaluation.subjects import Subject
from mos.files import hash_json
from mos.model_sources import resolve_model
from mos.modeling import load_tokenizer


@dataclass
class _Job:
    """A subject with all that is settled before an engine starts."""

    subject: Subject
    model: Model
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
    jobs = _prepare_all(subjects, Path(cache_dir), failures)
    started = 0
    for group in _by_engine(jobs):
        as_lora = [job.model for job in group if job.weights.adapter == LORA]
        with Server(group[0].settings, as_lora, group[0].tokenizer, cache_dir) as server:
            for job in group:
                started += 1
                run = job.subject.run
                try:
                    with logged_to(run.path / "train.log") if run else nullcontext():
                        said = f"{started} of {len(jobs)}, " if len(jobs) > 1 else ""
                        say(f"{said}{job.subject.name}: {_described(job)}")
                        _evaluate(job, server, cache_dir, overwrite)
                except (EngineError, DiskError):
                    raise
                except UserError as error:
                    if len(subjects) == 1:
                        raise
                    if isinstance(error, NotFiniteError):
                        server.stop()
                    failures[job.subject.name] = str(error)
    return failures


def shard_of(subject: Subject, shard: int, shards: int) -> Subject:
    """The subject with one of several shards of each of its benchmarks."""
    evaluation = subject.config["eval"]
    benchmarks = {
        name: {**options, "shard": [shard, shards]}
        for name, options in evaluation["benchmarks"].items()
    }
    config = {**subject.config, "eval": {**evaluation, "benchmarks": benchmarks}}
    return replace(subject, config=config, results={})


def merge_subject_shards(
    subjects: Sequence[Subject],
    cache_dir: str | Path,
    shards: int | None = None,
    overwrite: bool = False,
) -> dict[str, str]:
    """Make whole results from those of shards, `eval/<benchmark>.shard-*`, of each subject.

    Args:
        shards: into how many the benchmarks were cut: subjects some of whose shards are yet to be
            answered are left as they are. None takes what is there, which must make a whole.
        overwrite: also where the whole result is there.

    Returns:
        As `evaluate_subjects`.
    """
    failures: dict[str, str] = {}
    whole = [subject for subject in subjects if shards is None or _has_all_of(subject, shards)]
    for job in _prepare_all(whole, Path(cache_dir), failures):
        for name, benchmark in job.benchmarks.items():
            out_dir = _result_dir(job.subject, name, benchmark)
            parts = sorted(out_dir.parent.glob(shard_name(name, ("*", shards or "*"))))
            with result_lock(out_dir, cache_dir):  # several evaluators may find that all are there
                merged = merge_shards(benchmark, parts, out_dir, overwrite)
            _record(job, name, merged, cache_dir)
    return failures


def _has_all_of(subject: Subject, shards: int) -> bool:
    """Whether there are results of all shards, answered alike; earlier ones may lie there too."""
    for name in subject.config["eval"]["benchmarks"]:
        folders = [subject.out_dir / "eval" / shard_name(name, (k, shards)) for k in range(shards)]
        results = [read_result(folder) for folder in folders]
        if not all(results) or len({_asked(result) for result in results if result}) > 1:
            return False
    return True


def _asked(result: Mapping[str, Any]) -> str:
    options = {**result["options"], "shard": None}
    return hash_json([result["weights"], result["engine"], options])


def _prepare_all(
    subjects: Sequence[Subject], cache_dir: Path, failures: dict[str, str]
) -> list[_Job]:
    """The jobs of the subjects that can be evaluated; of several, the others go to `failures`."""
    built: dict[str, tuple[PreTrainedTokenizerBase, dict[str, Benchmark]]] = {}
    jobs = []
    for subject in subjects:
        try:
            jobs.append(_prepare(subject, cache_dir, built))
        except UserError as error:
            if len(subjects) == 1:
                raise
            failures[subject.name] = str(error)
    return jobs


def _prepare(
    subject: Subject,
    cache_dir: Path,
    built: dict[str, tuple[PreTrainedTokenizerBase, dict[str, Benchmark]]],
) -> _Job:
    """Settle all that a subject needs; `built` keeps tokenizers and benchmarks for the next."""
    model, evaluation = subject.config["model"], subject.config["eval"]
    folder = resolve_model(model["path"], cache_dir, model["revision"])
    served = Model(model["name"], folder, subject.config["quantization"], subject.adapter_dir)
    key = hash_json([str(served.tokenizer_dir), model["pad_token"], evaluation])
    if key not in built:
        tokenizer = load_tokenizer(served.tokenizer_dir, model["pad_token"])
        check_tokenizer(tokenizer)
        built[key] = tokenizer, build_benchmarks(evaluation, tokenizer)
    tokenizer, benchmarks = built[key]
    for benchmark in benchmarks.values():
        benchmark.check_ready()
    settings = engine_settings(
        evaluation["engine"],
        folder,
        device=subject.config["device"],
        dtype=evaluation["dtype"],
        stored=_stored(served, evaluation),
        max_model_len=evaluation["max_model_len"],
        gpu_memory_utilization=evaluation["gpu_memory_utilization"],
        tensor_parallel=evaluation["tensor_parallel"],
        batch_size=evaluation["batch_size"],
    )
    weights = weights_of(served, evaluation["weights"], settings, cache_dir)
    weights = check_base(served, weights, evaluation["base_mismatch"])
    _check_adapter_is_its_own(subject, weights)
    return _Job(subject, served, tokenizer, benchmarks, settings, weights)


def _check_adapter_is_its_own(subject: Subject, weights: Weights) -> None:
    """Refuse an adapter in a run's folder that is not the one that the run trained."""
    if subject.run is None or weights.adapter_sha256 is None:
        return
    manifest = subject.run.manifest
    evaluated = manifest.get("evaluation", {}).values()
    known = {entry["weights"]["adapter_sha256"] for entry in evaluated}
    known.add(manifest.get("adapter_sha256"))
    if known - {None, weights.adapter_sha256}:
        raise UserError(
            f"{subject.adapter_dir} is not the adapter that this run trained: its content is"
            " another than the manifest says. Put the run's own adapter back, or evaluate this one"
            f" as adapters=[{subject.adapter_dir}]."
        )


def _stored(model: Model, evaluation: Mapping[str, Any]) -> str | None:
    """Dequantised bases are kept in bfloat16, whatever the original is in."""
    dequantised = model.quantization["bits"] is not None and evaluation["weights"] != "original"
    return "bfloat16" if dequantised else None


def _by_engine(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Groups that one engine serves, with room for their longest request, like weights together."""
    groups: dict[tuple[Path, Path, EngineSettings], list[_Job]] = defaultdict(list)
    for job in jobs:
        groups[job.model.path, job.model.tokenizer_dir, job.settings].append(job)
    for (_, _, settings), group in groups.items():
        longest = max(
            len(request.prompt.encode()) + 16 + request.decoding.max_tokens  # no token is empty
            for job in group
            for benchmark in job.benchmarks.values()
            for request in benchmark.requests
        )
        roomy = replace(settings, longest_request=longest)
        group.sort(key=lambda job: job.weights.adapter not in (None, LORA))
        yield [replace(job, settings=roomy) for job in group]


def _evaluate(job: _Job, server: Server, cache_dir: str | Path, overwrite: bool) -> None:
    subject = job.subject
    for name, benchmark in job.benchmarks.items():
        result = run_benchmark(
            benchmark,
            _result_dir(subject, name, benchmark),
            weights=job.weights,
            numerics=job.settings.numerics(),
            engine=lambda: server.serve(job.model, job.weights),
            cache_dir=cache_dir,
            options=recorded_options(subject.config["eval"], name, cache_dir),
            overwrite=overwrite,
        )
        _record(job, name, {**result, "settings": job.settings.describe()}, cache_dir)


def _result_dir(subject: Subject, name: str, benchmark: Benchmark) -> Path:
    """`eval/<benchmark>`; a shard has its own folder, and a part never takes the whole's place."""
    shard = subject.config["eval"]["benchmarks"][name].get("shard")
    folder = subject.out_dir / "eval" / shard_name(name, shard)
    if shard is not None:
        return folder
    earlier = read_result(folder)
    if benchmark.partial and earlier is not None and not earlier["partial"]:
        return folder.with_name(f"{name}.partial")
    return folder


def _record(job: _Job, name: str, result: dict[str, Any], cache_dir: str | Path) -> None:
    """Tell of a result, and put it into the run's results.json unless a whole one is there."""
    subject = job.subject
    subject.results[name] = result
    folder = _result_dir(subject, name, job.benchmarks[name])
    say(f"{name}: {_summary(result)}; {folder}")
    run = subject.run
    beside = read_result(subject.out_dir / "eval" / name)
    if run is None or beside is None or beside["key"] != result["key"]:
        return
    locks = Path(cache_dir) / "locks"
    with FileLock(locks / f"{hash_json(str(run.path.resolve()))[:16]}.run.lock"):
        kept = ("prompts_sha256", "options", "weights", "engine", "settings", "scoring", "timing")
        evaluation = run.manifest.get("evaluation", {})
        evaluation[name] = {key: result[key] for key in kept if key in result}
        run.update_manifest(evaluation=evaluation)
        run.write_results({name: results_entry(result)})
        write_card(run)
        if has_all(evaluation, run.config["eval"]):
            run.set_status("evaluated")


def _described(job: _Job) -> str:
    """The model, the weights and the benchmarks, in a few words."""
    how = {None: "no adapter", LORA: "the adapter as LoRA", MERGED: "the adapter merged"}
    weights = [how.get(job.weights.adapter, "fully fine-tuned")]
    if job.weights.quantization is not None:
        weights.append("on the dequantised base")
    return f"{job.model.name}, {' '.join(weights)}; {', '.join(job.benchmarks)}"


def _summary(result: Mapping[str, Any]) -> str:
    parts = [f"{row.metric} {row.text}" for row in score_rows({"": results_entry(result)})]
    seconds = sum(result["timing"].get(key, 0) for key in ("seconds", "scoring_seconds"))
    notes = [f"n={result['n']}", f"{seconds:.0f} s"]
    if cached := result["timing"].get("cached"):
        notes.append("all outputs from the cache" if cached == result["n"] else f"{cached} cached")
    if result["truncated"]:
        notes.append(f"{result['truncated']} outputs cut at the length limit")
    if result["ties"]:
        notes.append(f"{result['ties']} ties")
    if result["partial"]:
        notes.append(f"partial: {result['partial']}")
    return f"{', '.join(parts)} ({'; '.join(notes)})"
