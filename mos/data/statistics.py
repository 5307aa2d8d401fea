"""What is in a corpus once it is encoded."""

from __future__ import annotations

from dataclasses import dataclass, field

from mos.data.chat import EncodedRow
from mos.data.rows import Example


@dataclass
class Statistics:
    """Counts over a corpus, as written to `statistics.json`.

    Attributes:
        read: rows of the source, bad ones and those beyond `max_rows` among them.
        rows: encoded and kept.
        tokens: of the kept rows, after truncation; `supervised_tokens` of them have a label.
        truncated: kept or dropped rows that were longer than the limit.
        dropped: rows left out because no label survived.
        empty_answers: rows of the reference's corpora with an empty assistant turn, kept.
        skipped: bad rows left out; the first are listed in `bad_rows`.
        notes: see `mos.data.rows.Report`.
        first_truncated, first_dropped, first_empty: where the first of each stand.
        lengths: rows by length before truncation, in bins of `LENGTH_BIN` tokens.
    """

    read: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    empty_answers: int = 0
    skipped: int = 0
    bad_rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first_truncated: list[str] = field(default_factory=list)
    first_dropped: list[str] = field(default_factory=list)
    first_empty: list[str] = field(default_factory=list)
    longest: int = 0
    lengths: dict[int, int] = field(default_factory=dict)

    LENGTH_BIN = 64
    SHOWN = 5

    def add(self, example: Example, row: EncodedRow) -> bool:
        """Count a row; whether it is kept."""
        place = f"{example.path.name}:{example.line or example.row['id']}"
        if row.full_length > len(row.input_ids):
            self.truncated += 1
            _first(self.first_truncated, place)
        if any(
            m["role"] == "assistant" and not m["content"].strip() for m in example.row["messages"]
        ):
            self.empty_answers += 1
            _first(self.first_empty, place)
        supervised = row.supervised
        self.longest = max(self.longest, row.full_length)
        bin_start = row.full_length // self.LENGTH_BIN * self.LENGTH_BIN
        self.lengths[bin_start] = self.lengths.get(bin_start, 0) + 1
        if supervised == 0:
            self.dropped += 1
            _first(self.first_dropped, place)
            return False
        self.rows += 1
        self.tokens += len(row.input_ids)
        self.supervised_tokens += supervised
        return True


def _first(places: list[str], place: str) -> None:
    if len(places) < Statistics.SHOWN:
        places.append(place)
