"""What holds for every benchmark: names, options, selecting less than all, outputs."""

import json
import shutil

import pytest

from eval import BENCHMARKS, build_benchmark, options_model
from eval.benchmark import may_exceed
from eval.selection import SIZES, Selection
from mos.errors import UserError

TASKS = [f"{task}{i}" for task, n in (("a", 5), ("b", 1), ("c", 3)) for i in range(n)]


def select(**selection):
    return Selection(**selection).apply(TASKS, lambda example: example[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mmlu", {"chat": True, "shots": 0, "answer_cue": "authors"}),
        ("bbh", {"chat": True, "cot": False}),
        ("gsm8k", {"chat": True, "shots": 8, "cot": True}),
        ("tydiqa", {"chat": True, "shots": 1, "context": True, "max_context_tokens": 512}),
        (
            "humaneval",
            {
                "chat": True,
                "samples": 20,
                "temperature": 0.1,
                "allow_code_execution": False,
                "sandbox": "namespaces",
            },
        ),
    ],
)
def test_options_have_the_paper_s_values(name, options):
    assert options_model(name)().model_dump() == options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mmul", {}, "Unknown benchmark 'mmul'. Did you mean 'mmlu'"),
        ("mmlu", {"shot": 1}, "Unknown key 'mmlu.shot'. Did you mean 'shots'"),
        ("mmlu", {"shots": -1}, "mmlu.shots=-1: expected greater than or equal to 0"),
        ("mmlu", {"shots": 1.0}, "mmlu.shots=1.0: expected a valid integer"),
        ("mmlu", {"shots": True}, "mmlu.shots=true: expected a valid integer"),
        ("mmlu", {"chat": "no"}, 'mmlu.chat="no": expected a valid boolean'),
        ("mmlu", {"answer_cue": "x"}, "expected 'authors' or 'open_instruct'"),
        ("humaneval", {"temperature": "hot"}, 'humaneval.temperature="hot"'),
        ("mmlu", {"tasks": ["anatomi"]}, "Did you mean 'anatomy'"),
        ("gsm8k", {"tasks": ["x"]}, "gsm8k has no tasks"),
        ("mmlu", {"tasks": "anatomy"}, r"expected a list of names, \[anatomy\]"),
        ("mmlu", {"limit": 0}, "limit=0"),
        ("mmlu", {"limit": "5"}, "limit='5'"),
    ],
)
def test_wrong_requests_are_named(samples_dir, name, options, message):
    with pytest.raises(UserError, match=message):
        build_benchmark(name, samples_dir / name.replace("mmul", "mmlu"), **options)


def test_limit_is_spread_over_the_groups():
    assert select(limit=5) == (["a0", "a1", "b0", "c0", "c1"], "limit=5")
    assert select(limit=2) == (["a0", "b0"], "limit=2")
    assert select(limit=9) == (TASKS, "")


def test_tasks_are_kept_in_their_order():
    assert select(tasks=("c", "b")) == (["b0", "c0", "c1", "c2"], "tasks=c,b")
    assert select(tasks=("a", "b", "c")) == (TASKS, "")
    assert select(tasks=("a",), limit=2) == (["a0", "a1"], "tasks=a; limit=2")
    with pytest.raises(UserError, match="no example is left"):
        select(tasks=())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_selected_has_the_prompts_of_the_whole(samples_dir, name):
    def build(**selection):
        return build_benchmark(name, samples_dir / name, ByteTokenizer(), **selection)

    whole = build()
    assert whole.partial == ""
    assert len({request.id for request in whole.requests}) == len(whole.requests)
    limited = build(limit=7)
    assert set(limited.requests) < set(whole.requests)
    assert len(limited.requests) == 7
    assert limited.partial == "limit=7"


@pytest.mark.parametrize("name", ["mmlu", "bbh", "gsm8k", "tydiqa"])
@pytest.mark.parametrize("outputs", [[], ["A"], [None, "A"], ["A", 3], ["A", ["A"]]])
def test_missing_outputs_are_errors(samples_dir, name, outputs):
    benchmark = build_benchmark(name, samples_dir / name, ByteTokenizer(), limit=2)
    message = "2 requests" if len(outputs) < 2 else benchmark.requests[outputs[0] is not None].id
    with pytest.raises(UserError, match=message):
        benchmark.score(outputs)


def test_ids_are_unique(tmp_path):
    problem = {"task_id": "X/0", "prompt": "def f():\n", "test": "", "entry_point": "f"}
    (tmp_path / "HumanEval.jsonl").write_text(f"{json.dumps(problem)}\n" * 2)
    with pytest.raises(UserError, match="same id: X/0"):
        build_benchmark("humaneval", tmp_path)


@pytest.mark.parametrize("text", ["", "abc", "é" * 3, "語" * 5, "a b\n\n", "\udc80"])
def test_short_texts_cannot_exceed(text):
    tokens = len(text.encode("utf-8", "surrogatepass")) + 3  # bytes, BOS, EOS, a leading space
    assert not may_exceed(text, tokens)
    assert may_exceed(text, tokens - 1)


class ByteTokenizer:
    """One token a byte, and a BOS."""

    def __call__(self, text, truncation=False, add_special_tokens=True):
        class Encoded:
            input_ids = (
                [[0, *t.encode()] for t in text] if isinstance(text, list) else list(text.encode())
            )

        return Encoded

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


DEV = "tydiqa-goldp-v1.1-dev.json"


def doubled_examples(lines):
    table = json.loads("".join(lines))
    return [json.dumps({"examples": table["examples"] * 2})]


def doubled_finnish(lines):
    """The Finnish questions again, under ids of their own."""
    table = json.loads("".join(lines))
    again = json.loads("".join(lines).replace('"finnish-', '"finnish-again-'))["data"]
    for article in again:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [qa for qa in paragraph["qas"] if "-again-" in qa["id"]]
    return [json.dumps({"data": table["data"] + again})]


@pytest.mark.parametrize(
    ("name", "file", "change", "partial"),
    [
        ("mmlu", "test/anatomy_test.csv", None, "files hold 0 of 7 anatomy"),
        ("bbh", "bbh/navigate.json", None, "files hold 0 of 10 navigate"),
        ("gsm8k", "test.jsonl", lambda lines: lines[3:], "files hold 47 of 50"),
        ("gsm8k", "test.jsonl", lambda lines: lines * 2, "files hold 100 of 50"),
        ("mmlu", "test/anatomy_test.csv", lambda lines: lines * 2, "files hold 14 of 7 anatomy"),
        ("bbh", "bbh/navigate.json", doubled_examples, "files hold 20 of 10 navigate"),
        ("tydiqa", DEV, doubled_finnish, "files hold 10 of 5 finnish"),
    ],
)
def test_a_copy_that_is_not_whole_or_holds_something_twice_is_partial_by_name(
    name, file, change, partial, samples_dir, tmp_path
):
    shutil.copytree(samples_dir / name, tmp_path / name)
    file = tmp_path / name / file
    if change is None:
        file.unlink()
    else:
        file.write_text("".join(change(file.read_text().splitlines(keepends=True))))
    benchmark = build_benchmark(name, tmp_path / name, ByteTokenizer())
    assert benchmark.partial == partial
    limited = build_benchmark(name, tmp_path / name, ByteTokenizer(), limit=2)
    assert limited.partial == f"{partial}; limit=2"


def test_a_subject_that_lies_there_twice_is_partial_by_name(samples_dir, tmp_path):
    shutil.copytree(samples_dir / "mmlu", tmp_path / "mmlu")
    test = tmp_path / "mmlu" / "test"
    shutil.copy(test / "anatomy_test.csv", test / "anatomy_backup_test.csv")
    partial = build_benchmark("mmlu", tmp_path / "mmlu").partial
    assert partial == "files hold 7 of 0 anatomy_backup"


def test_sizes_are_those_that_were_published():
    published = {name: sum(sets[0].values()) for name, sets in SIZES.items()}
    assert published == {
        "mmlu": 14_042, "bbh": 6_511, "gsm8k": 1_319, "tydiqa": 5_077, "humaneval": 164
    }  # fmt: skip
    assert [len(SIZES[name][0]) for name in ("mmlu", "bbh", "tydiqa")] == [57, 27, 9]
