"""Scores that several benchmarks share: exact match, means and their standard errors."""

from __future__ import annotations

import math
import statistics
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.benchmark import Request, Score
from mos.errors import UserError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, target: str) -> float:
    """1.0 if both are equal without case and ASCII punctuation (protocol section 0).

    White space counts. Two strings of nothing but punctuation are equal: a quirk of `evaluate`
    0.4.1 that BBH's dyck_languages scores hang on.
    """
    return float(_bare(prediction) == _bare(target))


def _bare(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


def record(
    request: Request, output: Any, parsed: Any, target: Any, scores: dict[str, float]
) -> dict[str, Any]:
    """What is kept of one example; `scores` are in 0..1 under the metrics' names."""
    return {
        "id": request.id,
        "prompt_sha256": request.prompt_sha256,
        "output": output,
        "parsed": parsed,
        "target": target,
        "scores": scores,
    }


def check_outputs(
    requests: Sequence[Request], outputs: Sequence[Any], samples: int | None = None
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


def mean_score(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each metric over records, in 0..100, with `n`."""
    means = {
        metric: 100 * statistics.fmean(r["scores"][metric] for r in records)
        for metric in records[0]["scores"]
    }
    return {**means, "n": len(records)}


def micro(records: list[dict[str, Any]], breakdown: dict[str, dict[str, float]]) -> Score:
    """Mean over all examples, with its sample standard error (none for a single example)."""
    means = mean_score(records)
    metrics = {name: value for name, value in means.items() if name != "n"}
    errors = {name: _standard_error([r["scores"][name] for r in records]) for name in metrics}
    stderr = {name: 100 * error for name, error in errors.items() if error is not None}
    return Score(metrics, records, len(records), stderr, breakdown)


def macro(records: list[dict[str, Any]], group_of: Callable[[str], str]) -> Score:
    """Unweighted mean of the groups' means, as the reference averages tasks and languages.

    The groups are fixed and their examples sampled, so the standard error is that of a mean of
    independent means: sqrt(sum of squared errors) / number of groups. It is left out where a
    group has one example only, which tells nothing of its spread.

    Args:
        records: of all examples.
        group_of: an example's group, from its id.
    """
    grouped = group_records(records, [group_of(r["id"]) for r in records])
    breakdown = {group: mean_score(members) for group, members in grouped.items()}
    metrics, stderr = {}, {}
    for name in records[0]["scores"]:
        metrics[name] = statistics.fmean(means[name] for means in breakdown.values())
        errors = [_standard_error([r["scores"][name] for r in rs]) for rs in grouped.values()]
        known = [error for error in errors if error is not None]
        if len(known) == len(errors):
            stderr[name] = 100 * math.hypot(*known) / len(known)
    return Score(metrics, records, len(records), stderr, breakdown)


def group_records(
    records: Sequence[dict[str, Any]], groups: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Records under their group, the groups sorted."""
    grouped: dict[str, list[dict[str, Any]]] = {group: [] for group in sorted(set(groups))}
    for member, group in zip(records, groups, strict=True):
        grouped[group].append(member)
    return grouped


def _standard_error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return statistics.stdev(values) / math.sqrt(len(values))
