import hashlib
import math
from types import SimpleNamespace

import pytest

from eval import build_benchmark
from eval.mmlu import CATEGORY_OF, SUBCATEGORY_OF
from mos.errors import DataError, MissingFileError, UserError


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


class ByteTokenizer:
    """One token a byte."""

    def __call__(self, text, truncation=False, add_special_tokens=False):
        return SimpleNamespace(input_ids=list(text.encode()))


@pytest.fixture
def folder(tmp_path):
    """Two subjects; the second one is in none of the published categories."""
    for part in ("test", "dev"):
        (tmp_path / part).mkdir()
    (tmp_path / "test/high_school_physics_test.csv").write_text(
        "Which is fastest?,05,3.50,None,light,D\nWhich is slowest?,10,2.25,a snail,light,C\n"
    )
    (tmp_path / "test/tea_test.csv").write_text('"Green,\nor black?",a,b,,d,A\n')
    (tmp_path / "dev/high_school_physics_dev.csv").write_text(
        "First?,a,b,c,d,A\nSecond?,e,f,g,h,B\nThird?,i,j,k,l,C\n"
    )
    (tmp_path / "dev/tea_dev.csv").write_text("One?,a,b,c,d,A\nTwo?,e,f,g,h,B\n")
    return tmp_path


INTRO = "The following are multiple choice questions (with answers) about  high school physics.\n\n"


@pytest.mark.parametrize(
    ("vectors", "cue"),
    [("mmlu_authors_prompts", "authors"), ("mmlu_openinstruct_prompts", "open_instruct")],
)
def test_prompts_are_the_reference_s(golden, golden_dir, vectors, cue):
    benchmark = build_benchmark("mmlu", golden_dir / "mmlu_synthetic", answer_cue=cue)
    expected = golden(vectors)
    config = expected["configs"]["zero_shot_chat"]
    prompts = [request.prompt for request in benchmark.requests]
    assert len(prompts) == config["num_prompts"]
    assert sum(map(len, prompts)) == config["total_chars"]
    first = config["sha256_first20"]
    assert [sha(prompt) for prompt in prompts[: len(first)]] == first
    subjects = list(dict.fromkeys(request.id.split("/")[0] for request in benchmark.requests))
    assert subjects == expected["subject_order"]
    for subject, vector in config["per_subject"].items():
        own = [r.prompt for r in benchmark.requests if r.id.startswith(f"{subject}/")]
        assert sha("\0".join(own)) == vector["sha256_all_joined_nul"]


def test_categories_are_the_published_ones(golden):
    published = golden("mmlu_categories")
    assert {s: [sub] for s, sub in SUBCATEGORY_OF.items()} == published["subcategories"]
    of_categories = {sub: c for c, subs in published["categories"].items() for sub in subs}
    assert of_categories == CATEGORY_OF
    assert set(SUBCATEGORY_OF.values()) == set(CATEGORY_OF)


def test_pandas_inference_is_part_of_the_prompt(folder):
    requests = build_benchmark("mmlu", folder, chat=False).requests
    assert [request.id for request in requests] == [
        "high_school_physics/0",
        "high_school_physics/1",
        "tea/0",
    ]
    assert requests[0].prompt == (
        f"{INTRO}Which is fastest?\nA. 5\nB. 3.5\nC. nan\nD. light\nAnswer:"
    )
    assert "Green,\nor black?\nA. a\nB. b\nC. nan\nD. d\nAnswer:" in requests[2].prompt


def test_shots_come_from_the_first_dev_rows(folder):
    chat, plain = (
        build_benchmark("mmlu", folder, shots=2, chat=chat).requests[1].prompt
        for chat in (True, False)
    )
    assert plain == (
        f"{INTRO}First?\nA. a\nB. b\nC. c\nD. d\nAnswer: A\n\n"
        "Second?\nA. e\nB. f\nC. g\nD. h\nAnswer: B\n\n"
        "Which is slowest?\nA. 10\nB. 2.25\nC. a snail\nD. light\nAnswer:"
    )
    assert chat == f"<|user|>\n{plain}\n<|assistant|>\nThe answer is "


def test_the_answer_is_one_of_four_candidates_at_one_position(folder):
    decoding = build_benchmark("mmlu", folder).requests[0].decoding
    assert decoding.choices == (" A", " B", " C", " D")
    assert (decoding.max_tokens, decoding.temperature) == (1, 0.0)


@pytest.mark.parametrize("chat", [True, False])
def test_shots_are_dropped_until_the_prompt_fits(folder, chat):
    shots = ["y" * 120, "z" * 80, "last"]
    (folder / "dev/tea_dev.csv").write_text("".join(f"{shot},a,b,c,d,A\n" for shot in shots))
    texts = [f"{shot}\nA. a\nB. b\nC. c\nD. d\nAnswer: A\n\n" for shot in shots]
    kept = set()
    for length in range(1500, 1900, 29):
        (folder / "test/tea_test.csv").write_text(f"{'x' * length},a,b,c,d,A\n")
        options = {"tasks": ["tea"], "chat": chat}
        bare = build_benchmark("mmlu", folder, **options).requests[0].prompt
        before, intro, after = bare.partition("about  tea.\n\n")
        prompts = [before + intro + "".join(texts[:k]) + after for k in range(4)]
        k = max(k for k in range(4) if len(prompts[k].encode()) <= 2048)
        benchmark = build_benchmark("mmlu", folder, ByteTokenizer(), shots=3, **options)
        assert benchmark.requests[0].prompt == prompts[k]
        kept.add(k)
    assert kept == {0, 1, 2, 3}


def test_overlong_question_is_an_error_and_not_an_endless_loop(folder):
    (folder / "test/tea_test.csv").write_text(f"{'x' * 2100},a,b,c,d,A\n")
    for shots in (0, 2):
        with pytest.raises(UserError, match=r"tea/0 has more than 2048 tokens"):
            build_benchmark("mmlu", folder, ByteTokenizer(), shots=shots)
    with pytest.raises(UserError, match="tokenizer"):
        build_benchmark("mmlu", folder, shots=2)


def test_scores(folder):
    score = build_benchmark("mmlu", folder).score(["D", "A", " A"])
    assert score.metrics == {"exact_match": pytest.approx(200 / 3)}
    assert score.stderr == {"exact_match": pytest.approx(100 * math.sqrt(2 / 9 / 2))}
    assert score.n == 3
    assert [r["scores"]["exact_match"] for r in score.records] == [1.0, 0.0, 1.0]
    assert set(score.records[0]) == {"id", "prompt_sha256", "output", "parsed", "target", "scores"}
    half, whole = {"exact_match": 50.0, "n": 2}, {"exact_match": 100.0, "n": 1}
    assert score.breakdown == {
        "high_school_physics": half,
        "tea": whole,
        "category/STEM": half,
        "subcategory/physics": half,
    }


@pytest.mark.parametrize("output", ["E", "", "AB", None])
def test_what_is_no_letter_is_an_error(folder, output):
    with pytest.raises(UserError, match="high_school_physics/1"):
        build_benchmark("mmlu", folder).score(["A", output, "A"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q,a,b,c,d\n", r"tea_test.csv: 5 columns; expected question"),
        ("q,a,b,c,d,A\nq,a,b,c,d,E\n", r"tea_test.csv:2: the answer is 'E'"),
        ("q,a,b,c,d,A\nq,a,b\n", r"tea_test.csv:2: the answer is nan"),
        ("q,a,b,c,d,A\nNone,a,b,c,d,A\n", r"tea_test.csv:2: the question reads as nan"),
        ("q,a,b,c,d,A\nq,a,b,c,d,A,more\n", r"tea_test.csv: not a CSV file"),
        ("", r"tea_test.csv: not a CSV file"),
    ],
)
def test_malformed_files(folder, text, message):
    (folder / "test/tea_test.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        build_benchmark("mmlu", folder)


def test_missing_files(folder, tmp_path):
    with pytest.raises(MissingFileError, match="prepare_eval_data"):
        build_benchmark("mmlu", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"2 rows for mmlu\.shots=3"):
        build_benchmark("mmlu", folder, shots=3)
    (folder / "dev/tea_dev.csv").unlink()
    with pytest.raises(MissingFileError, match=r"tea_dev\.csv"):
        build_benchmark("mmlu", folder, shots=1)


def test_samples(samples_dir):
    benchmark = build_benchmark("mmlu", samples_dir / "mmlu")
    score = benchmark.score([question.answer for question in benchmark.examples])
    assert score.metrics["exact_match"] == 100
    assert {f"category/{name}" for name in CATEGORY_OF.values()} <= set(score.breakdown)
