"""Columns of tables, and the paper's Tables 1-3 as data: rows and figures (arXiv 2410.00938)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from eval import BENCHMARKS

MISSING = "–"
SCALE = "paper"
SETTINGS = {"trainer.learning_rate": 2e-4, "trainer.max_steps": 10_000, "data.max_seq_length": 512}
LLAMA2_7B, LLAMA2_13B = "LLaMA2-7B", "LLaMA2-13B"
DAGGER = "the paper copies this row's figures from PRoLoRA (arXiv 2402.16902)"

# What the paper trains on for each benchmark: experiment -> benchmarks.
PAIRS: Mapping[str, tuple[str, ...]] = {
    "superni_mmlu": ("mmlu", "tydiqa"),
    "flan_bbh": ("bbh",),
    "cot_gsm8k": ("gsm8k",),
    "codealpaca_humaneval": ("humaneval",),
}


@dataclass(frozen=True, order=True)
class Column:
    """A metric as a column of tables.

    Attributes:
        place: in the order of the columns.
        key: "<benchmark>.<metric>".
        name: the `column` of `Runs.long`: the key, with the experiment for held-out examples.
        title: what tables call it.
        lower_is_better: as for a loss, of which four decimals are shown.
    """

    place: int
    key: str
    name: str
    title: str
    lower_is_better: bool = False

    @property
    def benchmark(self) -> str:
        return self.key.partition(".")[0]

    @property
    def metric(self) -> str:
        return self.key.partition(".")[2]

    @property
    def unit(self) -> str:
        return "nats" if self.lower_is_better else "points"

    def gain(self, value: float) -> float:
        """How good a value is, as precisely as it is shown."""
        return value if value != value else float(self.text(value)) * (-1) ** self.lower_is_better

    def text(self, value: float, sign: bool = False) -> str:
        """A value of this column; "–" for NaN."""
        if value != value:
            return MISSING
        return f"{value:{'+' * sign}.4f}" if self.lower_is_better else points(value, sign)


def points(value: float, sign: bool = False) -> str:
    """Two decimals, halves rounded up, as the paper rounds its averages."""
    rounded = Decimal(repr(round(float(value), 9))).quantize(Decimal("0.01"), ROUND_HALF_UP)
    return f"{rounded or abs(rounded):{'+' * sign}}"


def column(key: str, name: str = "", lower_is_better: bool = False) -> Column:
    """The column of any metric, also of a benchmark that this installation does not know."""
    titles = _titles()
    place = list(titles).index(key) if key in titles else len(titles)
    title = titles.get(key, key.replace(".", " ", 1)) + name.removeprefix(key)
    return Column(place, key, name or key, title, lower_is_better)


def _titles() -> dict[str, str]:
    own = {f"{cls.name}.{m.name}": m.title for cls in BENCHMARKS.values() for m in cls.metrics}
    return {**own, "heldout.loss": "Held-out loss", "heldout.exact_match": "Held-out EM"}


HELDOUT = column("heldout.loss", lower_is_better=True)
AVERAGE = Column(99, "average", "average", "Avg.")


# Rank of the LoRA with as many trainable parameters (millions), on the table's model.
_EQUIVALENT_RANK = {5.00: 2, 7.82: 2, 19.99: 8, 39.98: 16, 159.91: 64}
_WITHOUT_EQUIVALENT = ("VeRA", "Tied LoRA", "PRoLoRA")
# The working rank is a free choice at the budget. (The paper prints 64 for subset selection too,
# where a strict subset needs less.)
_ANY_RANK = ("Pure Sharing", "+ Random Scaling", "+ Subset Selection")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: the method's row name, without the dagger.
        rank: as printed ("4/8").
        millions: trainable parameters as printed, in millions; None where nothing is trained.
        figures: the paper's values, in the order of the table's columns.
        average: the paper's Avg.
        dagger: whether the paper copies the row from PRoLoRA.
    """

    label: str
    rank: str
    millions: float | None
    figures: tuple[float, ...]
    average: float
    dagger: bool = False

    @property
    def ranks(self) -> list[str]:
        """Working ranks of a run that can fill the row; [] for any."""
        is_any = self.rank == "-" or self.label in _ANY_RANK
        return [] if is_any else [self.rank, *self.rank.split("/")]

    @property
    def equivalent_rank(self) -> int | None:
        """Rank of the LoRA with as many trainable parameters, where there is one."""
        if self.millions is None or self.label in _WITHOUT_EQUIVALENT:
            return None
        return _EQUIVALENT_RANK[self.millions]

    @property
    def name(self) -> str:
        """ "MoS 4/8", "Vanilla (chat)": unique in a table, and the same method across tables."""
        return self.label if self.rank == "-" else f"{self.label} {self.rank}"

    @property
    def shown(self) -> tuple[float, ...]:
        """The paper's figures, beside `Table.shown`."""
        return (*self.figures, self.average)

    @property
    def settings(self) -> dict[str, Any]:
        """What the config of its method must say, where it has such a key."""
        if not self.label.startswith("MoS"):
            return {}
        return {
            "shards_per_vector": 1 if "-vs" in self.label else 4,
            "private_rank": 0 if "-sp" in self.label else 1,
            "pair_dissociation": "-pd" not in self.label,
        }

    @property
    def small_budget(self) -> bool:
        """Whether the row competes for "best with 5.00M"."""
        return self.millions is not None and round(self.millions) == 5


@dataclass(frozen=True)
class Table:
    """A table's layout. `underline` marks the best rows with 5.00M besides the best overall."""

    name: str
    title: str
    model: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    show_parameters: bool = True
    underline: bool = False

    @property
    def shown(self) -> list[Column]:
        """The columns, with their average if there are several."""
        return [*self.columns, *([AVERAGE] if len(self.columns) > 1 else [])]


# The paper's columns: all metrics of the benchmarks of its pairs.
COLUMNS = tuple(
    column(f"{benchmark}.{metric.name}")
    for benchmark, cls in BENCHMARKS.items()
    if any(benchmark in benchmarks for benchmarks in PAIRS.values())
    for metric in cls.metrics
)


def _with_settings() -> tuple[Column, ...]:
    """The columns with how the examples are asked behind each benchmark's first title."""
    firsts = {column.benchmark: column.key for column in reversed(COLUMNS)}
    return tuple(
        replace(c, title=f"{c.title} ({BENCHMARKS[c.benchmark].setting})")
        if firsts[c.benchmark] == c.key
        else c
        for c in COLUMNS
    )


def _rows(text: str) -> tuple[Row, ...]:
    """Rows from lines of "method | rank | millions | figures | average"."""
    rows = []
    for line in text.strip().splitlines():
        name, rank, millions, figures, average = (part.strip() for part in line.split("|"))
        label = name.removesuffix(" †")
        size = None if millions == "-" else float(millions)
        values = tuple(map(float, figures.split()))
        rows.append(Row(label, rank, size, values, float(average), dagger=name != label))
    return tuple(rows)


# Averages are the paper's own: two of them (34.77 and 36.54 of MoS -sp) are 0.01 below the rounded
# mean of the printed figures, because the paper averaged before rounding.
TABLE1 = Table(
    "table1",
    "Sharing and differentiation",
    LLAMA2_7B,
    COLUMNS,
    _rows("""
    LoRA               | 2  | 5.00 | 44.77 36.22 26.28 48.67 35.70 18.24 | 34.98
    Pure Sharing       | 64 | 5.00 | 43.61 35.15 26.54 49.12 36.04 15.53 | 34.33
    + Random Scaling   | 64 | 5.00 | 43.98 35.30 29.04 49.03 35.73 15.58 | 34.77
    + Subset Selection | 64 | 5.00 | 45.56 36.76 28.18 50.33 37.22 18.64 | 36.12
    """),
)

TABLE2 = Table(
    "table2",
    "Main results and ablations",
    LLAMA2_7B,
    _with_settings(),
    _rows("""
    Vanilla (chat) †    | -     | -      | 41.18  0.00  3.03 17.40  0.10  0.64 | 10.39
    Vanilla (no-chat) † | -     | -      | 41.53 33.43 15.47 49.18 35.35 13.57 | 31.42
    LoRA †              | 2     | 5.00   | 44.77 36.22 26.28 48.67 35.70 18.24 | 34.98
    LoRA †              | 8     | 19.99  | 46.55 36.92 31.11 50.50 36.89 19.37 | 36.89
    LoRA †              | 16    | 39.98  | 46.70 36.43 31.34 50.97 37.64 18.73 | 36.97
    LoRA                | 64    | 159.91 | 47.10 37.78 31.43 51.65 38.07 19.12 | 37.53
    VeRA †              | 256   | 1.42   | 42.51 35.10 22.69 48.39 36.38 18.90 | 34.00
    Tied LoRA †         | 280   | 4.99   | 44.36 35.76 25.47 50.16 37.15 18.68 | 35.26
    PRoLoRA †           | 4/8   | 5.00   | 45.85 36.45 27.57 49.94 36.59 19.75 | 36.03
    MoS                 | 4/8   | 5.00   | 46.09 37.29 28.43 50.21 37.19 19.12 | 36.39
    MoS                 | 16/32 | 19.99  | 47.01 37.79 30.93 51.71 38.34 20.00 | 37.63
    MoS -sp             | 16/32 | 19.99  | 46.64 36.69 30.17 50.27 36.90 18.60 | 36.54
    MoS -vs             | 16/32 | 19.99  | 46.47 37.52 31.77 50.90 37.98 18.69 | 37.22
    MoS -pd             | 16/32 | 19.99  | 46.23 36.17 30.71 51.40 37.94 16.77 | 36.54
    """),
    underline=True,
)

TABLE3 = Table(
    "table3",
    LLAMA2_13B,
    LLAMA2_13B,
    tuple(replace(c, title=t) for c, t in zip(COLUMNS, ("MMLU", "BBH", "GSM"), strict=False)),
    _rows("""
    Vanilla (chat) †    | -   | -    | 50.05  0.00  2.12 | 17.39
    Vanilla (no-chat) † | -   | -    | 52.04 39.67 27.82 | 39.84
    LoRA †              | 2   | 7.82 | 52.78 42.50 36.47 | 43.92
    PRoLoRA †           | 4/8 | 7.82 | 53.27 43.12 38.72 | 45.04
    MoS                 | 4/8 | 7.82 | 53.51 43.65 40.79 | 45.98
    """),
    show_parameters=False,
)

TABLES = (TABLE1, TABLE2, TABLE3)


def model_key(name: str) -> str:
    """The paper's name for a model that it uses, whatever it was called; others stay as they are.

    >>> model_key("meta-llama/Llama-2-7b-hf"), model_key("llama2_13b")
    ('LLaMA2-7B', 'LLaMA2-13B')
    """
    flat = re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].lower())
    found = re.match(r"(?:meta)?llama2(7|13)b(?:hf)?$", flat)
    return f"LLaMA2-{found[1]}B" if found else name
