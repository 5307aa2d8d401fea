import math

import pytest

from eval import build_benchmark
from eval.bbh import parse_answer
from eval.scoring import exact_match
from mos.errors import DataError, MissingFileError

DEMONSTRATIONS = """canary
-----
Sort the words.

Q: Sort: b a
A: Let's think step by step.
First a, then b. So the answer is not yet clear. So the answer is a b.

Q: Sort: d c

A: Let's think step by step.
So the answer is c d."""


@pytest.fixture
def folder(tmp_path):
    for part in ("bbh", "cot-prompts"):
        (tmp_path / part).mkdir()
    (tmp_path / "bbh/sorting.json").write_text(
        '{"canary": "", "examples": [{"input": "Sort: f e ", "target": "e f"},'
        ' {"input": "Sort: z", "target": "z"}, {"input": "Sort: y", "target": "y"}]}'
    )
    (tmp_path / "bbh/brackets.json").write_text(
        '{"examples": [{"input": "[", "target": "]"}, {"input": "[[", "target": "] ]"}]}'
    )
    (tmp_path / "cot-prompts/sorting.txt").write_text(DEMONSTRATIONS.replace("d c\n\nA", "d c\nA"))
    (tmp_path / "cot-prompts/brackets.txt").write_text(
        "canary\n-----\nClose.\n\nQ: (\nA: So the answer is ).\n"
    )
    return tmp_path


def test_scores_are_the_reference_s(golden):
    for case in golden("bbh_scoring")["cases"]:
        assert parse_answer(case["raw_output"]) == case["prediction"]
        assert exact_match(case["prediction"], case["target"]) == case["score"]


def test_chain_of_thought_and_plain_prompts(folder):
    def first(**options):
        return build_benchmark("bbh", folder, tasks=["sorting"], **options).requests[0]

    direct = "Sort the words.\n\nQ: Sort: b a\nA: a b.\n\nQ: Sort: d c\nA: c d.\n\nQ: Sort: f e "
    assert first().prompt == f"<|user|>\n{direct}\n<|assistant|>\nA:"
    assert first(chat=False).prompt == f"{direct}\nA:"
    with_reasoning = (
        "Sort the words.\n\nQ: Sort: b a\nA: Let's think step by step.\n"
        "First a, then b. So the answer is not yet clear. So the answer is a b.\n\n"
        "Q: Sort: d c\nA: Let's think step by step.\nSo the answer is c d.\n\nQ: Sort: f e "
    )
    assert first(cot=True).prompt == f"<|user|>\n{with_reasoning}\n<|assistant|>\nA:"
    assert first(cot=True, chat=False).prompt == f"{with_reasoning}\nA:"


def test_decoding_stops_at_an_empty_line_without_chat_only(folder):
    chat, plain = (
        build_benchmark("bbh", folder, chat=c).requests[0].decoding for c in (True, False)
    )
    assert (chat.max_tokens, chat.temperature, chat.stop) == (512, 0.0, ())
    assert (plain.max_tokens, plain.stop) == (512, ("\n\n",))


def test_average_weighs_tasks_alike(folder):
    benchmark = build_benchmark("bbh", folder)
    assert [r.id for r in benchmark.requests] == [
        "brackets/0",
        "brackets/1",
        "sorting/0",
        "sorting/1",
        "sorting/2",
    ]
    outputs = ["}", "x", "So the answer is e f. Done", "no", "no"]
    score = benchmark.score(outputs)
    assert score.metrics["exact_match"] == pytest.approx((50 + 100 / 3) / 2)
    assert score.breakdown == {
        "brackets": {"exact_match": 50.0, "n": 2},
        "sorting": {"exact_match": pytest.approx(100 / 3), "n": 3},
    }
    errors = math.sqrt(0.5 / 2), math.sqrt((2 / 3) / 2 / 3)
    assert score.stderr["exact_match"] == pytest.approx(100 * math.hypot(*errors) / 2)
    assert [r["parsed"] for r in score.records] == ["}", "x", "e f", "no", "no"]
    assert score.records[2]["output"] == outputs[2]


def test_no_standard_error_from_single_examples(folder):
    score = build_benchmark("bbh", folder, limit=3).score(["]", "] ]", "e f"])
    assert score.n == 3
    assert score.stderr == {}


def test_malformed_files(folder):
    (folder / "bbh/sorting.json").write_text('{"examples": [{"input": "a", "target": "a"}, {}]}')
    with pytest.raises(DataError, match=r"sorting\.json:2: expected a string under 'input'"):
        build_benchmark("bbh", folder)
    (folder / "bbh/sorting.json").write_text('{"examples": []}')
    with pytest.raises(DataError, match=r"sorting\.json: expected an object with a list"):
        build_benchmark("bbh", folder)
    (folder / "bbh/sorting.json").write_text('{"examples":\n [}')
    with pytest.raises(DataError, match=r"sorting\.json:2: not whole JSON"):
        build_benchmark("bbh", folder)


def test_demonstrations_without_an_answer(folder):
    (folder / "cot-prompts/brackets.txt").write_text("canary\n-----\nClose.\n\nQ: (\nA: ).")
    build_benchmark("bbh", folder, cot=True)
    with pytest.raises(DataError, match=r"brackets\.txt: a block without"):
        build_benchmark("bbh", folder)
    (folder / "cot-prompts/brackets.txt").write_text("canary\n-----\n")
    with pytest.raises(DataError, match="no text after the first two lines"):
        build_benchmark("bbh", folder)


def test_no_demonstrations_anywhere(folder):
    (folder / "cot-prompts/brackets.txt").unlink()
    with pytest.raises(
        MissingFileError, match=r"cot-prompts/brackets\.txt does not exist.*lm-eval"
    ):
        build_benchmark("bbh", folder)


def test_samples(samples_dir):
    for cot in (False, True):
        benchmark = build_benchmark("bbh", samples_dir / "bbh", cot=cot)
        score = benchmark.score([f"So the answer is {q.target}." for q in benchmark.examples])
        dotted = [q for q in benchmark.examples if "." in q.target]
        assert not dotted
        assert score.metrics["exact_match"] == 100
