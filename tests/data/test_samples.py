"""The committed samples are in the originals' formats, and their answers are right."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
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


def output_of(program: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})
    return printed.getvalue().rstrip("\n")


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


def test_tasks_and_split_lists_agree(samples_dir):
    folder = samples_dir / "natural-instructions"
    tasks = {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("tasks/*")}
    listed = [(folder / f"splits/xlingual/{s}_tasks.txt").read_text() for s in ("train", "test")]
    assert sorted(" ".join(listed).split()) == sorted(tasks)
    ids = [instance["id"] for task in tasks.values() for instance in task["Instances"]]
    assert len(set(ids)) == len(ids)
    assert all(task["Instance License"] == ["Apache 2.0"] for task in tasks.values())


def test_mmlu_tables_have_four_choices_and_a_letter(samples_dir, golden):
    published = golden("mmlu_categories")["subcategories"]
    for split, expected in (("dev", 5), ("test", 7)):
        for path in (samples_dir / "mmlu" / split).iterdir():
            assert path.stem.removesuffix(f"_{split}") in published
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
            assert len(rows) == expected
            assert all(len(set(row[1:5])) == 4 and row[5] in "ABCD" for row in rows)


def test_tydiqa_answers_are_where_they_say(samples_dir):
    for split in ("train", "dev"):
        table = json.loads((samples_dir / f"tydiqa/tydiqa-goldp-v1.1-{split}.json").read_text())
        languages = set()
        for paragraph in (p for entry in table["data"] for p in entry["paragraphs"]):
            for qa in paragraph["qas"]:
                languages.add(qa["id"].split("-")[0])
                for answer in qa["answers"]:
                    start = answer["answer_start"]
                    found = paragraph["context"][start : start + len(answer["text"])]
                    assert found == answer["text"]
        assert len(languages) == 9


def bbh_answer(task: str, question: str) -> str | None:
    """The target by another way than the generator's, for tasks where there is one."""
    if task in ("boolean_expressions", "multistep_arithmetic_two"):
        return str(eval(question.removesuffix(" is").removesuffix(" =")))
    if task == "word_sorting":
        return " ".join(sorted(question.split("List: ")[1].split()))
    if task == "navigate":
        moves = re.findall(r"(\d+) metres? (\w+)", question)
        total = {way: sum(int(n) for n, w in moves if w == way) for _, way in moves}
        both = (("north", "south"), ("east", "west"))
        return "Yes" if all(total.get(a, 0) == total.get(b, 0) for a, b in both) else "No"
    if task == "dyck_languages":
        text = question.split("Input: ")[1].replace(" ", "")
        while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)) != text:
            text = shorter
        return " ".join(text[::-1].translate(str.maketrans("([{<", ")]}>")))
    if task == "web_of_lies":
        lies = len(re.findall(r"\blies\b", question))
        return "No" if lies % 2 else "Yes"
    return None


def test_bbh_targets_are_right(samples_dir):
    checked = 0
    for path in sorted((samples_dir / "bbh" / "bbh").iterdir()):
        for example in json.loads(path.read_text("utf-8"))["examples"]:
            answer = bbh_answer(path.stem, example["input"])
            assert answer in (None, example["target"]), (path.stem, example)
            checked += answer is not None
            if example["target"].startswith("("):
                assert f"\n{example['target']} " in example["input"]
    assert checked >= 60


def test_gsm8k_sums_are_right(samples_dir):
    for name in ("train", "test"):
        for row in rows_of(samples_dir / "gsm8k" / f"{name}.jsonl"):
            steps, answer = row["answer"].rsplit("\n#### ", 1)
            marks = re.findall(r"<<([-+*/(). \d]+)=(\d+)>>", steps)
            assert all(eval(expression) == int(result) for expression, result in marks)
            assert int(answer.replace(",", "")) == int(marks[-1][1])


def test_humaneval_solutions_pass_and_the_prompts_alone_fail(samples_dir):
    for problem in rows_of(samples_dir / "humaneval" / "HumanEval.jsonl.gz"):
        end = f"\n{problem['test']}\ncheck({problem['entry_point']})"
        exec(problem["prompt"] + problem["canonical_solution"] + end, {})
        with pytest.raises(AssertionError):
            exec(problem["prompt"] + "    return 'no answer'" + end, {})


def test_programs_of_code_samples_run_and_print_what_is_said(samples_dir):
    for row in json.loads((samples_dir / "codealpaca" / "code_alpaca_20k.json").read_text("utf-8")):
        if row["instruction"].startswith("What does this program print"):
            assert output_of(row["input"]) == row["output"]
        elif row["output"].startswith("data = "):
            assert output_of(row["output"]) == row["output"].rsplit("  # ", 1)[1]
        elif re.match(r"def |class |import |from ", row["output"]):
            exec(row["output"], {})


def test_no_benchmark_problem_is_in_a_training_corpus(samples_dir):
    held_out = {row["question"] for row in rows_of(samples_dir / "gsm8k" / "test.jsonl")}
    for path in (samples_dir / "bbh" / "bbh").iterdir():
        held_out |= {e["input"] for e in json.loads(path.read_text("utf-8"))["examples"]}
    for corpus in ROWS:
        for path in (samples_dir / CORPORA[corpus].folder).rglob("*.*"):
            text = path.read_text("utf-8").replace("\\\\n", "\\n")
            assert not [q for q in held_out if json.dumps(q, ensure_ascii=False)[1:-1] in text]
