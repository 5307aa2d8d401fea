"""Scores that several benchmarks share: exact match, means and their standard errors."""

from __future__ import annotations

import math
import statistics
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mos.errors import UserError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Score:
    """Metrics of one benchmark.

    Attributes:
        metrics: headline metrics, 0..100.
        records: one dict an example: `id, prompt_sha256, output, parsed, target, scores`, with
            scores in 0..1 under the metrics' names.
        n: number of examples.
        stderr: standard error of each metric, in points.
        breakdown: metrics per task, subject or language, 0..100, with `n`.
        scoring: what the scores rest on beside the outputs, in words (the walls of a sandbox).
    """

    metrics: dict[str, float]
    records: list[dict[str, Any]]
    n: int
    stderr: dict[str, float] = field(default_factory=dict)
    breakdown: dict[str, dict[str, float]] = field(default_factory=dict)
    scoring: dict[str, str] = field(default_factory=dict)


def bare(text: str) -> str:
    """Lower case, no ASCII punctuation."""
    return text.lower().translate(_NO_PUNCTUATION)


def exact_match(prediction: str, target: str) -> float:
    """1.0 if both are equal without case and ASCII punctuation (protocol section 0).

    White space counts. Two strings of nothing but punctuation are equal: a quirk of `evaluate`
    0.4.1 that BBH's dyck_languages scores hang on.
    """
    return float(bare(prediction) == bare(target))


def check_outputs(
    requests: Sequence[Any], outputs: Sequence[Any], samples: int | None = None
) -> None:
    """Raise a `UserError` unless there is a whole output for every request.

    Args:
        requests, outputs: in the same order.
        samples: texts per output; None if an output is a string.
    """
    if len(outputs) != len(requests):
        raise UserError(f"{len(outputs)} outputs for {len(requests)} requests.")
    expected = "a string" if samples is None else f"a list of {samples} strings"
    for request, output in zip(requests, outputs, strict=True):
        texts = [output] if samples is None else output
        whole = isinstance(texts, list | tuple) and len(texts) == (samples or 1)
        if not whole or not all(isinstance(text, str) for text in texts):
            raise UserError(f"Output of {request.id}: expected {expected}, found {output!r:.200}.")


def micro(records: list[dict[str, Any]], breakdown: Mapping[str, Any] | None = None) -> Score:
    """Mean over all examples, with its sample standard error (none for a single example)."""
    metrics, stderr = {}, {}
    for name in records[0]["scores"]:
        values = [record["scores"][name] for record in records]
        metrics[name] = 100 * statistics.fmean(values)
        if len(values) > 1:
            stderr[name] = 100 * (statistics.stdev(values) / math.sqrt(len(values)))
    return Score(metrics, records, len(records), stderr, dict(breakdown or {}))


def macro(records: list[dict[str, Any]], group_of: Callable[[str], str]) -> Score:
    """Unweighted mean of the groups' means, as the reference averages tasks and languages.

    The groups are fixed and their examples sampled, so the standard error is that of a mean of
    independent means: sqrt(sum of squared errors) / number of groups. It is left out where a
    group has one example only, which tells nothing of its spread.

    Args:
        records: of all examples.
        group_of: an example's group, from its id.
    """
    groups = by_group(records, group_of)
    metrics, stderr = {}, {}
    for name in records[0]["scores"]:
        metrics[name] = statistics.fmean(group.metrics[name] for group in groups.values())
        errors = [group.stderr[name] for group in groups.values() if name in group.stderr]
        if len(errors) == len(groups):
            stderr[name] = math.hypot(*errors) / len(groups)
    return Score(metrics, records, len(records), stderr, breakdown(groups))


def by_group(records: Sequence[dict[str, Any]], group_of: Callable[[str], str]) -> dict[str, Score]:
    """The scores of each group, the groups sorted; an example of the group "" has none."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        grouped.setdefault(group_of(record["id"]), []).append(record)
    return {group: micro(grouped[group]) for group in sorted(grouped) if group}


def breakdown(groups: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Metrics of groups as a result keeps them."""
    return {name: {**group.metrics, "n": group.n} for name, group in groups.items()}
