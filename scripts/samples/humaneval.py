"""HumanEval: gzipped jsonl of prompt, canonical solution and test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from samples.files import TEXT, write_jsonl_gz


def problems() -> Iterator[dict[str, str]]:
    """Every function of the source with the `check_` that follows it."""
    source = (TEXT / "humaneval.py").read_text("utf-8")
    lines = source.splitlines(keepends=True)
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    for number, (function, check) in enumerate(zip(functions[::2], functions[1::2], strict=True)):
        head = function.body[0].end_lineno
        test = "".join(lines[check.lineno - 1 : check.end_lineno])
        yield {
            "task_id": f"Sample/{number}",
            "prompt": "".join(lines[function.lineno - 1 : head]),
            "entry_point": function.name,
            "canonical_solution": "".join(lines[head : function.end_lineno]),
            "test": test.replace(f"def check_{function.name}(", "def check("),
        }


def write(root: Path) -> None:
    write_jsonl_gz(root / "humaneval" / "HumanEval.jsonl.gz", problems())
