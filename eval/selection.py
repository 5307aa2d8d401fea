"""Evaluating less than a whole benchmark: some tasks, a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mos.errors import UserError, unknown

T = TypeVar("T")


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

    def apply(self, examples: Sequence[T], group: Callable[[T], str]) -> tuple[list[T], str]:
        """Return the selected examples in their order, and why they are partial ("" if whole).

        Raises:
            UserError: an unknown task, or no task at all.
        """
        kept, reasons = list(examples), []
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


def _spread(examples: Sequence[T], group: Callable[[T], str], limit: int) -> list[T]:
    seen: Counter[str] = Counter()
    ranked = []
    for position, example in enumerate(examples):
        ranked.append((seen[group(example)], position))
        seen[group(example)] += 1
    positions = sorted(position for _, position in sorted(ranked)[:limit])
    return [examples[position] for position in positions]
