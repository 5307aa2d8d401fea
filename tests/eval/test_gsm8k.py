import hashlib
import json
import math
import random

import pytest

from eval import build_benchmark
from eval.gsm8k import parse_answer, parse_target, prompt_intro, read_exemplars
from eval.scoring import exact_match
from mos.errors import DataError, MissingFileError, UserError


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path):
    problems = [
        {"question": " How many?\n", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
        {"question": "How much?", "answer": "#### 1,234"},
        {"question": "How far?", "answer": "#### -5"},
    ]
    exemplars = [
        {
            "question": f"Q{i}?",
            "cot_answer": f"It is {i}. So the answer is {i}.",
            "short_answer": f"{i}",
        }
        for i in range(8)
    ]
    for name, rows in (("test", problems), ("exemplars", exemplars)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def test_the_shots_are_the_reference_s(golden, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    vectors = golden("gsm_prompts")
    prefix = "<|user|>\n" + prompt_intro(read_exemplars(tmp_path), 8, cot=True)
    assert (len(prefix), sha(prefix)) == (vectors["prefix_chars"], vectors["prefix_sha256"])


def test_scores_are_the_reference_s(golden):
    vectors = golden("gsm_scoring")
    for case in vectors["cases"]:
        assert parse_target(case["answer_field"]) == case["target"]
        assert parse_answer(case["raw_output"]) == case["prediction"]
        assert exact_match(case["prediction"], case["target"]) == case["score"]
    for case in vectors["target_parsing"]:
        assert parse_target(case["answer_field"]) == case["target"]


def test_short_answers_of_the_shipped_exemplars(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    exemplars = read_exemplars(tmp_path)
    assert [e.short_answer for e in exemplars] == ["6", "5", "39", "8", "9", "29", "33", "8"]
    assert all(e.cot_answer.endswith(f"So the answer is {e.short_answer}.") for e in exemplars)


def test_eight_shots_keep_their_order(folder):
    shots = "\n\n".join(
        f"Question: Q{i}?\nAnswer: It is {i}. So the answer is {i}." for i in range(8)
    )
    plain = f"Answer the following questions.\n\n{shots}\n\nQuestion: How many?"
    requests = build_benchmark("gsm8k", folder).requests
    assert [request.id for request in requests] == ["test/0", "test/1", "test/2"]
    assert requests[0].prompt == f"<|user|>\n{plain}\n<|assistant|>\nAnswer:"
    requests = build_benchmark("gsm8k", folder, chat=False).requests
    assert requests[0].prompt == f"{plain}\nAnswer:"


@pytest.mark.parametrize("shots", [1, 4, 7])
def test_fewer_shots_are_drawn_with_the_reference_s_seed(folder, shots):
    random.seed(42)
    drawn = random.sample(range(8), shots)
    texts = [f"Quesion: Q{i}?\nAnswer: {i}" for i in drawn]
    plain = "Answer the following questions.\n\n" + "\n\n".join(texts) + "\n\nQuestion: How many?"
    for limit in (None, 1):
        benchmark = build_benchmark(
            "gsm8k", folder, shots=shots, cot=False, chat=False, limit=limit
        )
        assert benchmark.requests[0].prompt == f"{plain}\nAnswer:"


def test_no_shots(folder):
    (folder / "exemplars.jsonl").unlink()
    prompt = "Answer the following question.\n\nQuestion: How many?"
    for cot in (True, False):
        requests = build_benchmark("gsm8k", folder, shots=0, cot=cot).requests
        assert requests[0].prompt == f"<|user|>\n{prompt}\n<|assistant|>\nAnswer:"


def test_decoding_stops_at_a_line_break_without_chat_only(folder):
    chat, plain = (
        build_benchmark("gsm8k", folder, chat=c).requests[0].decoding for c in (True, False)
    )
    assert (chat.max_tokens, chat.temperature, chat.stop) == (512, 0.0, ())
    assert (plain.max_tokens, plain.stop) == (512, ("\n",))


def test_score(folder):
    score = build_benchmark("gsm8k", folder).score(["It is 2.", "$1,234.0", "no number "])
    assert score.metrics == {"exact_match": pytest.approx(100 / 3)}
    assert score.stderr == {"exact_match": pytest.approx(100 * math.sqrt(2 / 9 / 2))}
    assert [r["parsed"] for r in score.records] == ["2", "1234.0", "no number "]
    assert [r["target"] for r in score.records] == ["2", "1234", "-5"]
    assert score.breakdown == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q", "answer": "5"}', r"test\.jsonl:2: no '####' in the answer"),
        ('{"question": "q", "answer": "#### five"}', r"test\.jsonl:2: could not convert"),
        ('{"question": "q", "answer": "#### 0"}', r"test\.jsonl:2: the answer is 0"),
        ('{"question": "q"}', r"test\.jsonl:2: expected a string under 'answer', found no such"),
        ('{"question": 3, "answer": "#### 1"}', r"test\.jsonl:2: expected a string .* found 3"),
        ('["q"]', r"test\.jsonl:2: expected an object, found list"),
        ('{"question": ', r"test\.jsonl:2: not valid JSON"),
        ("[" * 100_000, r"test\.jsonl:2: not valid JSON: maximum recursion"),
        ('"\udcff"', r"test\.jsonl:\d: not valid JSON"),
    ],
)
def test_malformed_rows(folder, line, message):
    path = folder / "test.jsonl"
    text = '{"question": "q", "answer": "#### 1"}\n' + line + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        build_benchmark("gsm8k", folder)


def test_empty_and_missing_files(folder):
    with pytest.raises(UserError, match=r"gsm8k\.shots=9: there are 8 exemplars"):
        build_benchmark("gsm8k", folder, shots=9)
    (folder / "test.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no problems in it"):
        build_benchmark("gsm8k", folder)
    (folder / "test.jsonl").unlink()
    with pytest.raises(MissingFileError, match=r"test\.jsonl does not exist"):
        build_benchmark("gsm8k", folder)


def test_no_exemplars_anywhere(folder, monkeypatch):
    (folder / "exemplars.jsonl").unlink()
    monkeypatch.setattr("eval.files.find_spec", lambda name: None)
    with pytest.raises(MissingFileError, match=r"exemplars\.jsonl does not exist, and lm-eval"):
        build_benchmark("gsm8k", folder)


def test_another_release_of_lm_eval_is_not_trusted(folder, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    (folder / "exemplars.jsonl").unlink()
    monkeypatch.setattr("eval.files.version", lambda name: "9.9")
    with pytest.raises(UserError, match=r"lm-eval 9\.9 is installed"):
        build_benchmark("gsm8k", folder)


def test_samples(samples_dir):
    benchmark = build_benchmark("gsm8k", samples_dir / "gsm8k")
    score = benchmark.score([f"So the answer is {p.answer}." for p in benchmark.examples])
    assert score.metrics["exact_match"] == 100
