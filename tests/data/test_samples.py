"""The committed samples are in the originals' formats."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval import BENCHMARKS, build_benchmark
from mos.data import convert
from mos.data.corpora import CORPORA

ROWS = {"super_ni": 1807, "flan_v2": 776, "cot": 486, "code_alpaca": 366}
REQUESTS = {"mmlu": 84, "bbh": 120, "gsm8k": 50, "tydiqa": 48, "humaneval": 25}


class Characters:
    """Stands in for a tokenizer: a token a character, which makes a few passages too long."""

    def __call__(self, texts: list[str]) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[[ord(c) for c in text] for text in texts])

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def rows_of(path: Path) -> list[dict]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


@pytest.mark.parametrize("corpus", ROWS)
def test_corpora_convert(corpus, samples_dir, tmp_path):
    convert(corpus, samples_dir / CORPORA[corpus].folder, tmp_path / "rows.jsonl")
    rows = rows_of(tmp_path / "rows.jsonl")
    assert len(rows) == ROWS[corpus]
    assert len({row["messages"][0]["content"] for row in rows}) > 0.98 * len(rows)
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
    assert all(message["content"].strip() for row in rows for message in row["messages"])
    assert not any("task9050" in row["id"] for row in rows)  # made of MMLU's subjects


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_are_accepted(name, samples_dir):
    benchmark = build_benchmark(name, samples_dir / name, Characters())
    assert len(benchmark.requests) == REQUESTS[name]
    assert not benchmark.partial


def test_no_benchmark_problem_is_in_a_training_corpus(samples_dir):
    held_out = {row["question"] for row in rows_of(samples_dir / "gsm8k" / "test.jsonl")}
    for path in (samples_dir / "bbh" / "bbh").iterdir():
        held_out |= {e["input"] for e in json.loads(path.read_text("utf-8"))["examples"]}
    for corpus in ROWS:
        for path in (samples_dir / CORPORA[corpus].folder).rglob("*.*"):
            text = path.read_text("utf-8").replace("\\\\n", "\\n")
            assert not [q for q in held_out if json.dumps(q, ensure_ascii=False)[1:-1] in text]
