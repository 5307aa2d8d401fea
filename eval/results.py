"""A result on disk, `metrics.json` beside `records.jsonl`: written whole, and checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import BENCHMARKS
from eval.scoring import macro
from mos.console import say
from mos.files import hash_json, parse_json, read_json, write_atomically, write_json

METRICS, RECORDS = "metrics.json", "records.jsonl"
SEAL = "sha256"  # key of the hash of everything else in a JSON file


def write_result(
    out_dir: Path, result: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write `records.jsonl` and then `metrics.json`, which says what it was made of.

    Args:
        out_dir: receives the two files.
        result: what `metrics.json` says: the benchmark, its metrics, weights, options.
        records: one an example.

    Returns:
        The content of `metrics.json`: `result`, `records_sha256`, and a hash of it all.
    """
    lines = "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in records)
    content = sealed({**result, "records_sha256": hashlib.sha256(lines.encode()).hexdigest()})
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / METRICS).unlink(missing_ok=True)
    write_atomically(out_dir / RECORDS, lines)
    write_json(out_dir / METRICS, content)
    return content


def read_result(out_dir: str | Path) -> dict[str, Any] | None:
    """The content of `metrics.json`; None if there is no result, or none that can be trusted.

    A result that was changed after it was written does not count, and a line says so.
    """
    file = Path(out_dir) / METRICS
    try:
        result = read_json(file)
        records = file.with_name(RECORDS)
        fault = _fault(result, records.read_bytes()) if records.is_file() else "has no records"
    except FileNotFoundError:
        return None
    except (ValueError, OSError, LookupError, TypeError, AttributeError):
        fault = "is damaged"
    if fault:
        say(f"{file} {fault}: this result does not count")
        return None
    return result


def results_entry(result: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json says of a result: its metrics, their errors, the number of examples."""
    errors = result["stderr"]
    if len(result["metrics"]) == 1:
        errors = next(iter(errors.values()), None)
    entry = {**result["metrics"], "stderr": errors, "n": result["n"]}
    more = {key: result[key] for key in ("partial", "lower_is_better") if result.get(key)}
    return {**entry, **more}


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with a hash of it."""
    return {**content, SEAL: hash_json({k: v for k, v in content.items() if k != SEAL})}


def is_edited(content: Mapping[str, Any]) -> bool:
    """Whether sealed content was changed. What earlier versions wrote has no seal."""
    return SEAL in content and content != sealed(content)


def _fault(result: dict[str, Any], records: bytes) -> str | None:
    if hashlib.sha256(records).hexdigest() != result.get("records_sha256"):
        return f"was not made of the {RECORDS} beside it"
    if is_edited(result):
        return "was edited"
    if result["benchmark"] in BENCHMARKS:
        rows = [parse_json(line) for line in records.splitlines()]
        means = macro(rows, BENCHMARKS[result["benchmark"]].group_of).metrics
        if any(abs(means[name] - value) > 1e-6 for name, value in result["metrics"].items()):
            return f"does not say what the {RECORDS} beside it gives"
    return None
