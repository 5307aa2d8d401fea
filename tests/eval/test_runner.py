"""What was computed survives whatever stops it, is used again, and is never taken for more."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import eval.cache
import eval.results
from eval.benchmark import Benchmark, Completion, Decoding, Request
from eval.engines import EngineError, Prompt
from eval.results import Metrics
from eval.runner import Weights, run_benchmark
from eval.scoring import Score
from mos.errors import UserError

FORK = multiprocessing.get_context("fork")
WEIGHTS = Weights("tiny", "a1", adapter="merged", adapter_sha256="b2")
NUMERICS = {"engine": "fake", "seed": 0}


class Spelling(Benchmark):
    """Twelve questions, every third one a choice, every fourth with two outputs."""

    name = "spelling"

    def __init__(self, ids: Sequence[int] = range(12), partial: str = "") -> None:
        def decoding(i: int) -> Decoding:
            if i % 3 == 0:
                return Decoding(choices=(" A", " B"))
            return Decoding(max_tokens=5, n=2 if i % 4 == 0 else 1, temperature=0.5)

        self.requests = [Request(f"q{i}", f"prompt \u2028 {i}", decoding(i)) for i in ids]
        self.partial = partial

    def score(self, outputs):
        records = []
        for request, output in zip(self.requests, outputs, strict=True):
            assert isinstance(output, list) == (request.decoding.n > 1)
            records.append(
                {
                    "id": request.id,
                    "prompt_sha256": request.prompt_sha256,
                    "output": output,
                    "parsed": output,
                    "target": "A",
                    "scores": {"exact_match": float(output == "A")},
                }
            )
        mean = 100 * sum(r["scores"]["exact_match"] for r in records) / len(records)
        return Score({"exact_match": mean}, records, len(records), {"exact_match": 1.5})


class FakeEngine:
    """Answers two requests at a time, the last first; `before(k)` is called before batch k."""

    def __init__(self, before=lambda k: None) -> None:
        self.before = before
        self.asked: list[str] = []

    def __call__(self):
        return self, None

    def encode(self, requests: Sequence[Request]) -> list[Prompt]:
        return [Prompt(request, [1] * len(request.prompt)) for request in requests]

    def complete(self, prompts: Sequence[Prompt], adapter=None) -> Iterator:
        order = list(range(len(prompts)))[::-1]
        for k in range(0, len(order), 2):
            self.before(k // 2)
            self.asked += [prompts[i].request.id for i in order[k : k + 2]]
            yield [(i, self.answer(prompts[i])) for i in order[k : k + 2]]

    def answer(self, prompt: Prompt) -> Completion:
        n, choices = prompt.request.decoding.n, prompt.request.decoding.choices
        if choices:
            letter = "AB"[int(prompt.request.id[1:]) // 3 % 2]
            return Completion((letter,), ("choice",), 10, (1,), (-0.5, -0.5), letter == "A")
        texts = tuple(f"{prompt.request.id} out \u2028{k}" for k in range(n))
        return Completion(texts, ("length",) * n, 10, (5,) * n)


class NoEngine:
    def __call__(self):
        raise AssertionError("the engine was asked for")


def evaluate(folder: Path, engine, benchmark=None, weights=WEIGHTS, **options):
    return run_benchmark(
        benchmark or Spelling(),
        folder / options.pop("name", "eval"),
        weights=weights,
        numerics=NUMERICS,
        engine=engine,
        cache_dir=folder / "cache",
        **options,
    )


def content(folder: Path) -> tuple[str, dict]:
    assert Metrics.load(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["timing"], metrics["sha256"]
    return (folder / "records.jsonl").read_text(), metrics


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    evaluate(folder, FakeEngine())
    return content(folder / "eval")


def test_a_result_says_how_it_came_about(whole):
    records, metrics = whole
    assert metrics["metrics"] == {"exact_match": pytest.approx(100 / 6)}
    assert metrics["stderr"] == {"exact_match": 1.5}
    assert metrics["n"] == 12
    assert metrics["partial"] is None
    assert metrics["ties"] == 2
    assert metrics["truncated"] == 10  # 8 requests, two of them with two outputs
    assert metrics["engine"] == NUMERICS
    assert metrics["weights"]["adapter_sha256"] == "b2"
    assert metrics["prompts_sha256"] == Spelling().prompts_sha256()
    rows = [json.loads(line) for line in records.splitlines()]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(12)]
    assert rows[0]["finish_reason"] == "choice"
    assert rows[0]["tied"]
    assert rows[0]["logprobs"] == [-0.5, -0.5]
    assert rows[1]["output_tokens"] == 5
    assert rows[4]["finish_reasons"] == ["length", "length"]
    assert rows[4]["output_tokens"] == [5, 5]
    assert all(row["prompt_tokens"] == 10 for row in rows)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before_batch(count: int):
    def work(folder: Path) -> None:
        evaluate(folder, FakeEngine(lambda k: kill() if k == count else None))

    return work


def opened_with(prepare, monkeypatch=None) -> None:
    """Let `prepare(connection)` happen to each connection with a cache."""
    connect = sqlite3.connect

    def prepared(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        prepare(connection)
        return connection

    setting = setattr if monkeypatch is None else monkeypatch.setattr
    setting(eval.cache.sqlite3, "connect", prepared)


def kill_at(statement: str, count: int):
    def work(folder: Path) -> None:
        said = []

        def trace(text: str) -> None:
            said.append(text.startswith(statement))
            if sum(said) == count:
                kill()

        opened_with(lambda connection: connection.set_trace_callback(trace))
        evaluate(folder, FakeEngine())

    return work


def kill_before_file(name: str):
    def work(folder: Path) -> None:
        for function in ("write_atomically", "write_json"):
            write = getattr(eval.results, function)
            setattr(
                eval.results,
                function,
                lambda path, content, write=write: (
                    kill() if path.name == name else write(path, content)
                ),
            )
        evaluate(folder, FakeEngine())

    return work


KILLS = {
    "at once": (kill_before_batch(0), 12),
    "after one batch": (kill_before_batch(1), 10),
    "before the last batch": (kill_before_batch(5), 2),
    "before the table": (kill_at("CREATE", 1), 12),
    "within a batch": (kill_at("INSERT", 6), 8),
    "before a commit": (kill_at("COMMIT", 3), 8),
    "before the records": (kill_before_file("records.jsonl"), 0),
    "before the metrics": (kill_before_file("metrics.json"), 0),
}


@pytest.mark.parametrize("point", KILLS)
def test_a_kill_at_any_point_loses_nothing_finished(point, whole, tmp_path):
    work, left = KILLS[point]
    process = FORK.Process(target=work, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert Metrics.whole(tmp_path / "eval") is None
    engine = FakeEngine()
    result = evaluate(tmp_path, engine)
    assert len(engine.asked) == left
    assert result.timing["cached"] == 12 - left
    assert content(tmp_path / "eval") == whole


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.99])
def test_a_write_that_was_cut_off_loses_no_batch_before_it(share, whole, tmp_path):
    process = FORK.Process(target=kill_before_batch(4), args=(tmp_path,))
    process.start()
    process.join()
    (log,) = tmp_path.glob("cache/completions/*/spelling.sqlite-wal")
    content_before = log.read_bytes()
    log.write_bytes(content_before[: int(share * len(content_before))])
    engine = FakeEngine()
    evaluate(tmp_path, engine)
    assert len(engine.asked) in range(4 + (share < 0.99), 13)
    assert len(engine.asked) % 2 == 0
    assert content(tmp_path / "eval") == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text[:100] + bytes(len(text) - 100),
        lambda text: b"no database" * 100,
        lambda text: text.replace(b'"texts"', b'"tex\x00s"', 3),
        lambda text: text.replace(b'{"texts"', b' "texts"', 1),
    ],
)
def test_a_damaged_cache_is_set_aside(damage, whole, tmp_path, capsys):
    evaluate(tmp_path, FakeEngine())
    (cache,) = tmp_path.glob("cache/completions/*/spelling.sqlite")
    damaged = damage(cache.read_bytes())
    cache.write_bytes(damaged)
    (tmp_path / "eval" / "metrics.json").unlink()
    evaluate(tmp_path, FakeEngine())
    assert f"{cache} is damaged" in capsys.readouterr().out
    assert content(tmp_path / "eval") == whole
    assert next(cache.parent.glob("spelling.sqlite.old-*")).read_bytes() == damaged
    evaluate(tmp_path, NoEngine(), name="again")


def test_a_finished_result_is_read_and_a_damaged_one_is_scored_again(tmp_path, whole):
    evaluate(tmp_path, FakeEngine())
    evaluate(tmp_path, NoEngine())
    records = tmp_path / "eval" / "records.jsonl"
    records.write_text(records.read_text()[:-30])
    assert Metrics.whole(tmp_path / "eval") is None
    evaluate(tmp_path, NoEngine())
    assert content(tmp_path / "eval") == whole


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("metrics.json", lambda text: text.replace('"exact_match": 16.6', '"exact_match": 76.6')),
        ("metrics.json", lambda text: text.replace('"partial": null', '"partial": "limit=5"')),
        ("metrics.json", lambda text: "[" * 100_000),
        ("metrics.json", lambda text: "[]"),
        ("records.jsonl", lambda text: text.replace('"exact_match": 0.0', '"exact_match": 1.0')),
    ],
)
def test_an_edited_result_does_not_count(name, change, tmp_path, whole, capsys):
    evaluate(tmp_path, FakeEngine())
    file = tmp_path / "eval" / name
    text = file.read_text()
    file.write_text(change(text))
    assert file.read_text() != text
    evaluate(tmp_path, NoEngine())
    assert "This result does not count" in capsys.readouterr().out
    assert content(tmp_path / "eval") == whole
    (aside,) = (tmp_path / "eval").glob(f"{name}.old-*")  # it may be somebody's work
    assert aside.read_text() == change(text)


def test_equal_weights_share_answers_and_other_weights_do_not(tmp_path):
    evaluate(tmp_path, FakeEngine())
    evaluate(tmp_path, NoEngine(), weights=replace(WEIGHTS, model="other name"), name="same")
    for change in ({"model_sha256": "x"}, {"adapter_sha256": "x"}, {"adapter": "lora"}):
        engine = FakeEngine()
        evaluate(tmp_path, engine, weights=replace(WEIGHTS, **change), name=str(change))
        assert len(engine.asked) == 12
    engine = FakeEngine()
    benchmark = Spelling()
    first = benchmark.requests[1]
    benchmark.requests[1] = replace(first, decoding=replace(first.decoding, max_tokens=6))
    evaluate(tmp_path, engine, benchmark)
    assert engine.asked == [first.id]


def test_a_part_serves_the_whole_and_says_that_it_is_a_part(tmp_path, whole):
    part = evaluate(tmp_path, FakeEngine(), Spelling(range(5), partial="limit=5"))
    assert (part.n, part.partial) == (5, "limit=5")
    engine = FakeEngine()
    evaluate(tmp_path, engine)
    assert sorted(engine.asked) == sorted(f"q{i}" for i in range(5, 12))
    assert content(tmp_path / "eval") == whole


def test_an_engine_that_dies_says_what_is_kept(tmp_path, whole):
    def die(k: int) -> None:
        if k == 4:
            raise EngineError("vLLM died: out of memory.")

    with pytest.raises(EngineError, match=r"out of memory\. 8 of 12 outputs of spelling are kept"):
        evaluate(tmp_path, FakeEngine(die))
    engine = FakeEngine()
    evaluate(tmp_path, engine)
    assert len(engine.asked) == 4
    assert content(tmp_path / "eval") == whole


@pytest.mark.parametrize("answered", [0, 1])
def test_a_missing_output_is_named(answered, tmp_path):
    engine = FakeEngine()
    give = engine.answer

    def lacking(prompt: Prompt) -> Completion:
        answer = give(prompt)
        return (
            replace(answer, texts=answer.texts[:answered]) if prompt.request.id == "q4" else answer
        )

    engine.answer = lacking
    with pytest.raises(UserError, match=f"{answered} of 2 outputs for q4"):
        evaluate(tmp_path, engine)
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize("full_at", ["cache", "records"])
def test_a_full_disk_keeps_what_was_written(full_at, tmp_path, whole, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def small(connection):
        connection.execute("PRAGMA page_size=512")
        connection.execute("PRAGMA max_page_count=7")

    with monkeypatch.context() as patch:
        if full_at == "cache":
            opened_with(small, patch)
        else:
            patch.setattr(eval.results, "write_atomically", no_space)
        with pytest.raises(UserError, match=r"\((.*is full|No space left .*)\): free some space"):
            evaluate(tmp_path, FakeEngine())
    engine = FakeEngine()
    evaluate(tmp_path, engine)
    assert len(engine.asked) in (range(2, 11) if full_at == "cache" else [0])
    assert content(tmp_path / "eval") == whole


def test_evaluators_of_the_same_weights_share_the_work(tmp_path, whole):
    asked = FORK.Queue()

    def work(name: str) -> None:
        engine = FakeEngine(lambda k: time.sleep(0.05))
        evaluate(tmp_path, engine, name=name)
        asked.put(len(engine.asked))

    processes = [FORK.Process(target=work, args=(name,)) for name in ("eval", "eval", "other")]
    for process in processes:
        process.start()
    counts = sorted(asked.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert counts == [0, 0, 12]
    assert content(tmp_path / "eval") == whole


def test_readiness_is_checked_before_the_engine_is_asked(tmp_path):
    class Unready(Spelling):
        def check_ready(self) -> None:
            raise UserError("set eval.allow_code_execution=true")

    with pytest.raises(UserError, match="allow_code_execution"):
        evaluate(tmp_path, NoEngine(), Unready())
