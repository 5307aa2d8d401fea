# ruff: noqa: RUF012  (pydantic copies defaults)
"""What a run leaves on disk beside its config: each file has a class that saves and loads it.

A benchmark's `metrics.json` and `records.jsonl` are the evaluation's (eval/results.py), and are
written and read by the same rule: what is sealed is held against its seal by `load`, nowhere else.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from eval.results import (
    SCHEMA,
    DamagedError,
    Metrics,
    Number,
    Record,
    Saved,
    ScoreRow,
    Scores,
    read_records,
)

__all__ = [
    "SCHEMA", "DamagedError", "Evaluated", "Manifest", "Method", "Metrics", "Record", "Results",
    "ScoreRow", "Scores", "Stage", "Status", "Train", "read_records",
]  # fmt: skip


Stage = Literal["new", "running", "interrupted", "trained", "evaluated", "failed"]


class Status(Saved):
    """`status.json`: how far a run is.

    Attributes:
        reason: why it failed or stopped, or what is left to do; may be empty.
    """

    FILE = "status.json"

    status: Stage
    reason: str = ""
    host: str = ""
    pid: int = 0
    time: str = ""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class Method(_Part):
    """What was trained.

    Attributes:
        name: in `mos.adapters.METHODS`.
        label: the paper's name of its row.
        adapter_bytes: of its files.
        config: the `adapter` config group.
    """

    name: str
    label: str
    rank: int | str | None = None
    trainable_parameters: int
    adapter_bytes: int | None = None
    config: dict[str, Any] = {}


class Train(_Part):
    """What the training came to. Losses are in nats per trained token.

    Attributes:
        eval_loss: of the validation examples, at the end.
        peak_memory_bytes: of the GPU if there is one, else of the process.
        examples: how many were seen.
    """

    steps: int
    train_loss: float | None = None
    eval_loss: float | None = None
    eval_loss_before: float | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    examples: int | None = None


class Data(_Part):
    """The training data.

    Attributes:
        sha256: of the encoded rows.
        statistics: counts and first places of what `mos inspect` shows.
    """

    sha256: str
    statistics: dict[str, Any]


class Evaluated(_Part):
    """How a benchmark in results.json was evaluated: a part of its metrics.json."""

    prompts_sha256: str | None = None
    options: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    scoring: dict[str, str] = {}
    timing: dict[str, Number] = {}


class Manifest(Saved):
    """`manifest.json`: what a run was made with, as far as it has come.

    Attributes:
        run: its `Run.id`; another one's in a folder that was copied or renamed.
        code: `mos.run.code_identity`.
        logs: files that the output of its processes went to.
        git: the commit of mos, if it ran from a checkout.
        model: `path` and `identity` of the base.
        prompts_sha256, benchmarks_sha256: by benchmark, as the run was set up.
        products: the type of matrix products in training.
        method: None as long as the run is not trained.
        train: None for a model that was not trained, too.
        adapter_sha256: content of the adapter.
    """

    FILE = "manifest.json"

    run: str | None = None
    code: str | None = None
    logs: list[str] = []
    versions: dict[str, str] = {}
    git: str | None = None
    command: list[str] = []
    hardware: dict[str, Any] = {}
    model: dict[str, Any] = {}
    prompts_sha256: dict[str, str] = {}
    benchmarks_sha256: dict[str, str | None] = {}
    data: Data | None = None
    products: str | None = None
    train: Train | None = None
    method: Method | None = None
    adapter_sha256: str | None = None
    finished: str | None = None
    evaluation: dict[str, Evaluated] = {}


class Results(Saved):
    """`results.json`: what a run has come to, for tables."""

    FILE = "results.json"
    SEALED = True
    REMEDY = "Remove it: the same command makes it again from the rest of the run."

    schema_: int = Field(alias="schema")
    run_id: str
    experiment: str
    scale: str
    model: str
    method: Method
    seed: int
    train: Train | None = None
    metrics: dict[str, Scores]

    # On disk, a benchmark's metrics stand beside "stderr" and "n"; the only metric's error is a
    # number.
    @field_validator("metrics", mode="before")
    @classmethod
    def _nested(cls, entries: Any) -> Any:
        if not isinstance(entries, dict):
            return entries
        return {k: _nested(v) if isinstance(v, dict) else v for k, v in entries.items()}

    @field_serializer("metrics")
    def _flat(self, entries: dict[str, Scores]) -> dict[str, Any]:
        return {name: _flat(scores) for name, scores in entries.items()}

    def rows(self) -> list[ScoreRow]:
        """The metrics of all benchmarks."""
        return [row for name, scores in self.metrics.items() for row in scores.rows(name)]


def _nested(entry: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {k: entry[k] for k in ("n", "partial", "lower_is_better") if k in entry}
    metrics = {k: v for k, v in entry.items() if k not in ("stderr", *about)}
    errors = entry.get("stderr")
    if not isinstance(errors, dict):
        errors = {} if errors is None else dict.fromkeys(metrics, errors)
    return {"metrics": metrics, "stderr": errors, **about}


def _flat(scores: Scores) -> dict[str, Any]:
    errors: Any = scores.stderr
    if len(scores.metrics) == 1:
        errors = next(iter(errors.values()), None)
    entry = {**scores.metrics, "stderr": errors, "n": scores.n}
    if scores.partial:
        entry["partial"] = scores.partial
    if scores.lower_is_better:
        entry["lower_is_better"] = scores.lower_is_better
    return entry
