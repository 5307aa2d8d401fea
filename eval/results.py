"""A result on disk, `metrics.json` beside `records.jsonl`, and how a run's files are kept whole.

The one rule of integrity: a sealed file holds a hash of its content, and a `metrics.json` that of
its records. What does not agree with its hash is damaged: reading it says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mos.console import say
from mos.errors import DataError, UserError
from mos.files import hash_json, read_json, set_aside, write_atomically, write_json

M = TypeVar("M", bound=BaseModel)
Number = int | float  # a whole number is written as one

SCHEMA = 1
METRICS, RECORDS = "metrics.json", "records.jsonl"
SEAL = "sha256"  # key of the hash of everything else in a sealed file


class DamagedError(UserError):
    """A file of a run is not as it was written, or not what this version reads."""


class Saved(BaseModel):
    """The content of a JSON file; a key that this version does not know stays in it.

    Attributes:
        FILE: its name.
        SEALED: whether it holds a hash of its content. What earlier versions wrote has none.
        REMEDY: what to do where it is damaged.
    """

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=()
    )
    FILE: ClassVar[str]
    SEALED: ClassVar[bool] = False
    REMEDY: ClassVar[str] = "Restore it, or set overwrite=true."

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """The content of the file in `folder`; None where there is none.

        Raises:
            DamagedError: it cannot be read, a field has another type, or its seal is broken.
        """
        file = Path(folder) / cls.FILE
        try:
            content = read_json(file)
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            reason = error.reason if isinstance(error, DataError) else error
            raise DamagedError(f"{file} is damaged: {reason}. {cls.REMEDY}") from error
        if isinstance(content, dict):
            schema = content.get("schema", SCHEMA)
            if isinstance(schema, int) and schema > SCHEMA:
                raise DamagedError(
                    f"{file} has the newer schema {schema}, this program reads schema {SCHEMA}:"
                    " update it."
                )
            if cls.SEALED and is_edited(content):
                raise DamagedError(f"{file} was changed after it was written. {cls.REMEDY}")
            content = {k: v for k, v in content.items() if not cls.SEALED or k != SEAL}
        return validated(cls, content, str(file), cls.REMEDY)

    def save(self, folder: str | Path) -> None:
        """Write the file into `folder`."""
        write_json(Path(folder) / self.FILE, self.content())

    def content(self) -> dict[str, Any]:
        """What `save` writes."""
        content = self.model_dump(by_alias=True, exclude_unset=True)
        return sealed(content) if self.SEALED else content


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with a hash of it."""
    return {**content, SEAL: hash_json({k: v for k, v in content.items() if k != SEAL})}


def is_edited(content: Mapping[str, Any]) -> bool:
    """Whether sealed content is another than it was. What earlier versions wrote has no seal."""
    return SEAL in content and content != sealed(content)


def validated(model: type[M], content: Any, where: str, remedy: str) -> M:
    """The content as a model.

    Raises:
        DamagedError: the first field that is missing or of another type, with `where` it is.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        message = f"{where}: {field}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        if first["type"] != "missing":
            message += f", found {str(first['input'])[:60]!r}"
        raise DamagedError(f"{message}. {remedy}") from None


class Record(BaseModel):
    """A line of `records.jsonl`, one an example; benchmarks add to it.

    Attributes:
        scores: in 0..1 under the metrics' names. Of a held-out example: its summed negative
            log-likelihood `nll`, and `tokens`, how many were trained.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    id: str
    prompt_sha256: str | None = None
    output: Any = None
    parsed: Any = None
    target: Any = None
    scores: dict[str, float]


class ScoreRow(NamedTuple):
    """A metric of a benchmark, as tables show it.

    Attributes:
        error: its standard error over examples, where that is known.
        n: number of examples.
        note: why it is not of the whole benchmark, or "".
        text: value and error.
    """

    benchmark: str
    metric: str
    value: float
    error: float | None
    n: int | None
    note: str
    text: str


class Scores(BaseModel):
    """What a benchmark came to.

    Attributes:
        metrics: 0..100, or a loss.
        stderr: standard errors over examples, as far as they are known.
        n: number of examples.
        partial: why these are not all examples of the benchmark, or None.
        lower_is_better: the metrics of which that is true.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    metrics: dict[str, Number]
    stderr: dict[str, Number | None] = {}
    n: int | None = None
    partial: str | None = None
    lower_is_better: list[str] = []

    def rows(self, benchmark: str) -> Iterator[ScoreRow]:
        for name, value in self.metrics.items():
            error = self.stderr.get(name)
            decimals = 4 if name in self.lower_is_better else 2
            text = " ± ".join(f"{x:.{decimals}f}" for x in (value, error) if x is not None)
            yield ScoreRow(benchmark, name, value, error, self.n, self.partial or "", text)


class Metrics(Saved):
    """`metrics.json`: a benchmark's scores, and how they came about.

    Attributes:
        prompts_sha256: of every id, prompt and decoding setting.
        options: the benchmark's; its files by content.
        weights: what answered.
        engine: what of the engine shapes an answer.
        key: a hash of what makes it the same result.
        breakdown: metrics by task, subject or language.
        step, tokens: of the held-out loss: optimizer steps of the weights, trained tokens.
        records_sha256: of `records.jsonl`.
    """

    FILE = METRICS
    SEALED = True
    REMEDY = "Evaluate again: what was answered is kept."

    schema_: int = Field(SCHEMA, alias="schema")
    benchmark: str = ""
    prompts_sha256: str | None = None
    partial: str | None = None
    options: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    key: str = ""
    n: int | None = None
    metrics: dict[str, Number]
    stderr: dict[str, Number | None] = {}
    lower_is_better: list[str] = []
    breakdown: dict[str, dict[str, Number]] = {}
    scoring: dict[str, str] = {}
    truncated: int = 0
    ties: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    timing: dict[str, Number] = {}
    step: int | None = None
    tokens: int | None = None
    records_sha256: str | None = None

    @property
    def scores(self) -> Scores:
        """What results.json has of it."""
        return Scores(
            metrics=self.metrics,
            stderr=self.stderr,
            n=self.n,
            partial=self.partial or None,
            lower_is_better=self.lower_is_better,
        )

    def write(self, folder: str | Path, records: Sequence[Mapping[str, Any]]) -> Self:
        """Write `records.jsonl`, and then `metrics.json` with the hash of it; returns the latter.

        A `metrics.json` is there only once both are whole.
        """
        folder = Path(folder)
        lines = "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in records)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / METRICS).exists() and type(self).whole(folder) is None:
            for file in filter(Path.exists, (folder / METRICS, folder / RECORDS)):
                set_aside(file)  # somebody's work, perhaps
        (folder / METRICS).unlink(missing_ok=True)
        write_atomically(folder / RECORDS, lines)
        sha256 = hashlib.sha256(lines.encode()).hexdigest()
        whole = self.model_copy(update={"records_sha256": sha256})
        whole.save(folder)
        return whole

    @classmethod
    def whole(cls, folder: str | Path) -> Self | None:
        """As `load`, and None too for a result that is damaged or lacks records: a line says so."""
        try:
            result = cls.load(folder)
            if result is not None:
                _records(Path(folder) / RECORDS, result.records_sha256)
        except DamagedError as error:
            say(f"{error} This result does not count.")
            return None
        return result


def read_records(folder: str | Path) -> list[Record]:
    """The records of a result.

    Raises:
        DamagedError: there are none, a line is no record, or they are not those of `metrics.json`.
    """
    result, file = Metrics.load(folder), Path(folder) / RECORDS
    lines = _records(file, result.records_sha256 if result else None).splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{file}:{number}: {error}. {Metrics.REMEDY}") from None
        records.append(validated(Record, content, f"{file}:{number}", Metrics.REMEDY))
    return records


def _records(file: Path, sha256: str | None) -> bytes:
    """The bytes of a `records.jsonl`, held against their hash if there is one."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DamagedError(f"{file}: {error.strerror}. {Metrics.REMEDY}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedError(f"{file} is not what {METRICS} was made of. {Metrics.REMEDY}")
    return content
