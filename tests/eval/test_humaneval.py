import contextlib
import gzip
import hashlib
import json
import math
from itertools import chain
from types import SimpleNamespace

import pytest

from eval import build_benchmark
from eval.humaneval import pass_at_k, read_problems, run
from eval.sandbox import Verdict
from mos.errors import DataError, MissingFileError, UserError

PROMPT = 'def double(x):\n    """Twice x."""\n'
TEST = "def check(candidate):\n    assert candidate(2) == 4\n"


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def problem(i, **changed):
    row = {"task_id": f"T/{i}", "prompt": PROMPT, "test": TEST, "entry_point": "double"}
    return {**row, **changed}


@pytest.fixture
def folder(tmp_path):
    with gzip.open(tmp_path / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(f"{json.dumps(problem(i))}\n" for i in range(3))
    return tmp_path


@pytest.fixture
def verdicts(monkeypatch):
    """A sandbox that passes what says so, and answers from a queue where there is one."""
    seen, queue = [], []

    class FakeSandbox(contextlib.nullcontext):
        isolation = "nothing"

        def __init__(self, isolation):
            super().__init__(self)

        def check(self, program):
            return self.check_many([program])[0]

        def check_many(self, programs):
            seen.extend(programs)
            if queue and programs:
                return queue.pop(0)
            return [verdict("passed" if "pass" in p.completion else "failed: ") for p in programs]

    monkeypatch.setattr("eval.humaneval.Sandbox", FakeSandbox)
    return SimpleNamespace(seen=seen, queue=queue)


def verdict(result, infrastructure_error=False):
    return Verdict(result == "passed", result, 0.0, infrastructure_error)


def test_prompts_are_the_reference_s(golden, humaneval_dir):
    config = golden("humaneval_prompts")["configs"]["chat"]
    requests = build_benchmark("humaneval", humaneval_dir).requests
    assert len(requests) == config["num_prompts"]
    assert sum(len(request.prompt) for request in requests) == config["total_chars"]
    first = config["sha256_first20"]
    assert [sha(request.prompt) for request in requests[: len(first)]] == first
    decoding, expected = requests[0].decoding, config["sampling_params"]
    assert (decoding.n, decoding.temperature, decoding.top_p, decoding.max_tokens) == (
        expected["n"],
        expected["temperature"],
        expected["top_p"],
        expected["max_tokens"],
    )
    assert list(decoding.stop) == expected["stop"]


def test_pass_at_k_is_the_reference_s(golden):
    for row in golden("humaneval_scoring")["pass_at_k_table"]:
        assert pass_at_k(row["n"], row["c"], row["k"]) == row["pass_at_k"]


@pytest.mark.parametrize("n", [1, 5, 20])
def test_pass_at_k_counts_draws(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            expected = 1 - math.comb(n - c, k) / math.comb(n, k)
            assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_verdicts_are_the_reference_s(golden, humaneval_dir):
    problems = {p.task_id: p for p in read_problems(humaneval_dir)}
    cases = golden("humaneval_scoring")["cases"]
    cases = [case for case in cases if "{canonical_solution}" not in case["completion"]]
    judged, isolation = run(
        [problems[c["task_id"]] for c in cases], [[c["completion"]] for c in cases]
    )
    assert "list of allowed system calls" in isolation
    for case, [found] in zip(cases, judged, strict=True):
        assert found.passed == case["passed"], case
        assert (found.result == "timed out") == (case["result"] == "timed out"), case


def test_plain_prompts_are_the_problems(folder):
    chat, plain = (build_benchmark("humaneval", folder, chat=c).requests[1] for c in (True, False))
    assert plain.prompt == PROMPT
    assert chat.prompt == (
        f"<|user|>\nComplete the following python function.\n\n\n{PROMPT}\n"
        f"<|assistant|>\nHere is the completed function:\n\n\n{PROMPT}"
    )
    assert plain.decoding == chat.decoding
    assert (plain.id, plain.decoding.n) == ("T/1", 20)


def test_nothing_runs_unless_allowed(folder, verdicts):
    benchmark = build_benchmark("humaneval", folder, samples=1)
    with pytest.raises(UserError, match="allow_code_execution"):
        benchmark.check_ready()
    with pytest.raises(UserError, match="allow_code_execution"):
        benchmark.score(["pass"] * 3)
    assert verdicts.seen == []


def test_score(folder, verdicts):
    benchmark = build_benchmark("humaneval", folder, samples=5, allow_code_execution=True)
    benchmark.check_ready()
    outputs = [["pass"] * 5, ["pass", "", " no\n", "", ""], [""] * 5]
    score = benchmark.score(outputs)
    assert score.metrics == {
        "pass@1": pytest.approx((100 + 20 + 0) / 3),
        "pass@5": pytest.approx(200 / 3),
    }
    spread = math.sqrt(sum((p - 0.4) ** 2 for p in (1, 0.2, 0)) / 2 / 3)
    assert score.stderr["pass@1"] == pytest.approx(100 * spread)
    assert score.n == 3
    record = score.records[1]
    assert record["output"] == outputs[1]
    assert record["parsed"] == ["passed", *["failed: "] * 4]
    assert record["scores"] == {"pass@1": pytest.approx(0.2), "pass@5": 1.0}
    assert [program.completion for program in verdicts.seen] == list(chain(*outputs))


def test_one_sample_may_be_a_string(folder, verdicts):
    benchmark = build_benchmark("humaneval", folder, samples=1, allow_code_execution=True)
    assert benchmark.score(["pass", ["pass"], "no"]).metrics == {"pass@1": pytest.approx(200 / 3)}


@pytest.mark.parametrize("outputs", [["a", "b"], [["a", "b"], ["a"]], [["a", "b"], ["a", None]]])
def test_missing_samples_are_errors(folder, verdicts, outputs):
    benchmark = build_benchmark("humaneval", folder, samples=2, limit=2, allow_code_execution=True)
    with pytest.raises(UserError, match=r"Output of T/[01]: expected a list of 2 strings"):
        benchmark.score(outputs)
    assert verdicts.seen == []


def test_a_program_that_is_not_judged_twice_fails_alone(folder, verdicts, caplog):
    benchmark = build_benchmark("humaneval", folder, samples=1, allow_code_execution=True)
    passed, failed = verdict("passed"), verdict("failed: ")
    broken = verdict("the system killed it", infrastructure_error=True)
    verdicts.queue[:] = [[passed, broken, failed], [passed]]
    assert benchmark.score(["a", "b", "c"]).metrics == {"pass@1": pytest.approx(200 / 3)}
    assert [program.completion for program in verdicts.seen] == ["a", "b", "c", "b"]
    verdicts.queue[:] = [[passed, broken, failed], [broken], [passed]]
    score = benchmark.score(["a", "b", "c"])
    assert score.metrics == {"pass@1": pytest.approx(100 / 3)}
    reason = "failed: not judged: the system killed it"
    assert [record["parsed"] for record in score.records] == [["passed"], [reason], ["failed: "]]
    assert "a program of T/1 was not judged and counts as failed" in caplog.text
    # That the sandbox itself no longer works is no verdict.
    verdicts.queue[:] = [[passed, broken, passed], [broken], [broken]]
    with pytest.raises(UserError, match="the sandbox cannot run programs: the system killed it"):
        benchmark.score(["a", "b", "c"])


def test_problems_can_be_chosen(folder):
    benchmark = build_benchmark("humaneval", folder, tasks=["T/2"])
    assert [request.id for request in benchmark.requests] == ["T/2"]
    assert benchmark.partial == "files hold 3 of 25; tasks=T/2"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (problem(1, entry_point="triple"), r"jsonl:2: the prompt does not define .* 'triple'"),
        (problem(1, test=None), r"jsonl:2: expected a string under 'test', found None"),
    ],
)
def test_malformed_rows(tmp_path, row, message):
    path = tmp_path / "HumanEval.jsonl"
    path.write_text(f"{json.dumps(problem(0))}\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=message):
        build_benchmark("humaneval", tmp_path)


def test_unreadable_files(tmp_path):
    with pytest.raises(MissingFileError, match="problems of HumanEval"):
        build_benchmark("humaneval", tmp_path)
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(b"not gzipped")
    with pytest.raises(DataError, match=r"HumanEval\.jsonl\.gz:1: unreadable"):
        build_benchmark("humaneval", tmp_path)
    text = "".join(f"{json.dumps(problem(i))}\n" for i in range(50))
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(DataError, match=r"unreadable"):
        build_benchmark("humaneval", tmp_path)


def test_samples(samples_dir):
    benchmark = build_benchmark(
        "humaneval", samples_dir / "humaneval", samples=2, limit=4, allow_code_execution=True
    )
    with gzip.open(samples_dir / "humaneval/HumanEval.jsonl.gz", "rt") as file:
        solutions = {r["task_id"]: r["canonical_solution"] for r in map(json.loads, file)}
    score = benchmark.score([[solutions[r.id], "    return None\n"] for r in benchmark.requests])
    assert score.metrics == {"pass@1": 50}
    assert "resource limits" in score.scoring["sandbox"]
    assert [record["parsed"][0] for record in score.records] == ["passed"] * 4
