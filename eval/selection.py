"""Evaluating less than a whole benchmark: files that lack some of it, some tasks, a limit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mos.errors import UserError, unknown

T = TypeVar("T")

# Benchmark -> examples by group, as published and in data/samples; "" where there are no groups.
SIZES: dict[str, list[dict[str, int]]]
SIZES = json.loads(Path(__file__).with_name("sizes.json").read_text())


@dataclass(frozen=True)
class Selection:
    """Which examples of a benchmark are evaluated; applied in the order of the fields.

    Few-shot examples never depend on it: what is selected has the prompts of the whole.

    Attributes:
        tasks: groups to keep (MMLU subjects, BBH tasks, TyDiQA languages, HumanEval problems).
        limit: most examples in all, spread evenly over the groups, the first of each.
    """

    tasks: tuple[str, ...] | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and not (isinstance(self.limit, int) and self.limit > 0):
            raise UserError(
                f"limit={self.limit!r}: expected a whole number from 1 on, or null for all."
            )

    def apply(
        self, examples: Sequence[T], group: Callable[[T], str], benchmark: str = ""
    ) -> tuple[list[T], str]:
        """Return the selected examples in their order, and why they are partial ("" if whole).

        Args:
            examples: all that the benchmark's files hold.
            benchmark: its name, where `SIZES` knows how many they should be.

        Raises:
            UserError: an unknown task, or no task at all.
        """
        kept, difference = list(examples), _difference(benchmark, Counter(map(group, examples)))
        reasons = [difference] if difference else []
        if self.tasks is not None:
            known = dict.fromkeys(group(example) for example in kept)
            for task in self.tasks:
                if task not in known:
                    raise unknown("task", task, known)
            kept = [example for example in kept if group(example) in self.tasks]
            if len(kept) < len(examples):
                reasons.append(f"tasks={','.join(self.tasks)}")
        if self.limit is not None and self.limit < len(kept):
            kept = _spread(kept, group, self.limit)
            reasons.append(f"limit={self.limit}")
        if not kept:
            raise UserError(f"tasks={self.tasks}: no example is left.")
        return kept, "; ".join(reasons)


ALL = Selection()


def _difference(benchmark: str, counts: Counter[str]) -> str:
    """How examples differ from the nearest known set, by name; "" if they are one, or none is."""
    known = SIZES.get(benchmark, [])
    if known and "" in known[0]:
        counts = Counter({"": counts.total()})
    if not known or counts in known:
        return ""

    def distance(sizes: Mapping[str, int]) -> tuple[int, int]:
        apart = [abs(sizes.get(name, 0) - counts[name]) for name in {*sizes, *counts}]
        return -apart.count(0), sum(apart)

    whole = min(known, key=distance)
    wrong = [
        f"{counts[name]} of {whole.get(name, 0)} {name}".rstrip()
        for name in sorted({*whole, *counts})
        if counts[name] != whole.get(name, 0)
    ]
    return f"files hold {', '.join(wrong[:5])}" + (", ..." if len(wrong) > 5 else "")


def _spread(examples: Sequence[T], group: Callable[[T], str], limit: int) -> list[T]:
    seen: Counter[str] = Counter()
    ranked = []
    for position, example in enumerate(examples):
        ranked.append((seen[group(example)], position))
        seen[group(example)] += 1
    positions = sorted(position for _, position in sorted(ranked)[:limit])
    return [examples[position] for position in positions]
