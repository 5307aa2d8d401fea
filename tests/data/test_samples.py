"""The committed samples: in the originals' formats, right, and varied."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval import build_benchmark
from mos.data import convert

LANGUAGES = [
    "arabic",
    "bengali",
    "english",
    "finnish",
    "indonesian",
    "korean",
    "russian",
    "swahili",
    "telugu",
]
CORPORA = {
    "super_ni": "natural-instructions",
    "flan_v2": "flan_v2",
    "cot": "cot",
    "code_alpaca": "codealpaca",
}
BENCHMARKS = {"mmlu": 84, "bbh": 120, "gsm8k": 50, "tydiqa": 48, "humaneval": 25}


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
    """What a program of the samples prints, in a scope of its own."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})
    return printed.getvalue().rstrip("\n")


@pytest.fixture(scope="module")
def tasks(samples_dir) -> dict[str, dict]:
    folder = samples_dir / "natural-instructions" / "tasks"
    return {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def tydiqa(samples_dir) -> dict[str, list[dict]]:
    files = {s: samples_dir / "tydiqa" / f"tydiqa-goldp-v1.1-{s}.json" for s in ("train", "dev")}
    return {split: json.loads(path.read_text("utf-8"))["data"] for split, path in files.items()}


@pytest.fixture(scope="module")
def code(samples_dir) -> list[dict]:
    return json.loads((samples_dir / "codealpaca" / "code_alpaca_20k.json").read_text("utf-8"))


def test_instruction_tasks_are_many_and_complete(tasks, samples_dir):
    assert len({task["Categories"][0] for task in tasks.values()}) >= 12
    assert sum(len(task["Instances"]) >= 40 for task in tasks.values()) >= 14
    ids, inputs = Counter(), Counter()
    for name, task in tasks.items():
        assert len(task["Definition"]) == 1
        assert len(task["Positive Examples"]) >= 2
        assert task["Instance License"] == ["Apache 2.0"]
        for example in task["Positive Examples"] + task["Negative Examples"]:
            assert all(example[key].strip() for key in ("input", "output", "explanation"))
        for instance in task["Instances"]:
            assert instance["id"].startswith(name.split("_")[0] + "-")
            assert instance["input"].strip()
            assert all(output.strip() for output in instance["output"])
            ids[instance["id"]] += 1
            inputs[name, instance["input"]] += 1
    assert max(ids.values()) == max(inputs.values()) == 1


def test_split_lists_name_every_task_once(tasks, samples_dir):
    splits = samples_dir / "natural-instructions" / "splits"
    lists = {
        (track, split): (splits / track / f"{split}_tasks.txt").read_text("utf-8").split()
        for track in ("default", "xlingual")
        for split in ("train", "test")
    }
    everything = lists["xlingual", "train"] + lists["xlingual", "test"]
    assert sorted(everything) == sorted(tasks)
    english = [name for name in everything if tasks[name]["Input_language"] == ["English"]]
    assert sorted(lists["default", "train"] + lists["default", "test"]) == sorted(english)
    assert any("_mmmlu_" in name for name in lists["default", "train"])


def test_multiple_choice_letters_are_balanced(tasks):
    for name in ("science", "humanities"):
        task = next(task for key, task in tasks.items() if f"{name}_multiple_choice" in key)
        letters = Counter(instance["output"][0] for instance in task["Instances"])
        assert set(letters) == set("ABCD")
        assert max(letters.values()) - min(letters.values()) <= 4


def test_every_language_has_passages_that_hold_their_answers(tasks):
    for language in LANGUAGES:
        task = next(task for name, task in tasks.items() if f"_{language}_passage" in name)
        for instance in task["Instances"]:
            passage, question = instance["input"].split("\nQuestion: ")
            assert instance["output"][0] in passage
            assert question.endswith(("?", "؟"))


@pytest.mark.parametrize("corpus", CORPORA)
def test_corpora_convert_to_hundreds_of_conversations(corpus, samples_dir, tmp_path):
    convert(corpus, samples_dir / CORPORA[corpus], tmp_path / "rows.jsonl")
    rows = rows_of(tmp_path / "rows.jsonl")
    assert len(rows) >= 300
    assert len({row["messages"][0]["content"] for row in rows}) > 0.98 * len(rows)
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
    assert all(message["content"].strip() for row in rows for message in row["messages"])
    assert not any("mmmlu" in row["id"] or "task9050" in row["id"] for row in rows)


def test_raw_rationales_convert_where_the_sampled_files_are_missing(samples_dir, tmp_path):
    for path in (samples_dir / "cot").glob("*_train.tsv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        with path.open(encoding="utf-8") as lines:
            table = [line.rstrip("\n").split("\t") for line in lines]
        assert all(len(row) == 3 and all(row) for row in table)
    convert("cot", tmp_path, tmp_path / "rows.jsonl")
    rows = rows_of(tmp_path / "rows.jsonl")
    assert len(rows) == 120
    assert any("\n" in row["messages"][1]["content"] for row in rows)  # \n escapes were read


def test_flan_mixture_has_many_tasks_and_both_kinds_of_prompts(samples_dir):
    rows = rows_of(samples_dir / "flan_v2" / "tulu_v1_resampled_flan_100k.jsonl")
    assert all(set(row) == {"inputs", "targets", "task"} for row in rows)
    kinds = [re.fullmatch(r"(\w+)_([zf]s)_(opt|noopt)", row["task"]).groups() for row in rows]
    assert len({task for task, _, _ in kinds}) >= 20
    assert Counter(shots for _, shots, _ in kinds)["fs"] >= 200
    with_options = [row for row in rows if row["task"].endswith("_opt")]
    assert all(f"- {row['targets']}" in row["inputs"] for row in with_options)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_are_accepted(name, samples_dir):
    benchmark = build_benchmark(name, samples_dir / name, Characters())
    assert len(benchmark.requests) == BENCHMARKS[name]
    assert len({request.prompt for request in benchmark.requests}) >= 0.95 * BENCHMARKS[name]
    assert not benchmark.partial


def test_mmlu_tables_have_their_columns_and_balanced_letters(samples_dir):
    subjects = sorted(p.stem.removesuffix("_test") for p in (samples_dir / "mmlu/test").iterdir())
    assert len(subjects) >= 10
    for split, rows_wanted in (("dev", 5), ("test", 7)):
        letters = Counter()
        for subject in subjects:
            path = samples_dir / "mmlu" / split / f"{subject}_{split}.csv"
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
            assert len(rows) == rows_wanted
            for question, *choices, letter in rows:
                assert question
                assert len(set(choices)) == 4
                letters[letter] += 1
        assert set(letters) == set("ABCD")
        assert max(letters.values()) - min(letters.values()) <= 8


def test_mmlu_subjects_are_the_published_ones(samples_dir, golden):
    published = golden("mmlu_categories")["subcategories"]
    subjects = {p.stem.removesuffix("_test") for p in (samples_dir / "mmlu" / "test").iterdir()}
    assert subjects <= set(published)


def test_tydiqa_answers_are_where_they_say(tydiqa):
    ids = Counter()
    for split, least in (("train", 3), ("dev", 4)):
        questions = Counter()
        for entry in tydiqa[split]:
            (paragraph,) = entry["paragraphs"]
            (qa,) = paragraph["qas"]
            ids[qa["id"]] += 1
            questions[qa["id"].split("-")[0]] += 1
            for answer in qa["answers"]:
                start = answer["answer_start"]
                span = paragraph["context"][start : start + len(answer["text"])]
                assert span == answer["text"]
        assert sorted(questions) == LANGUAGES
        assert min(questions.values()) >= least
    assert max(ids.values()) == 1


def test_a_tydiqa_passage_is_truncated(tydiqa):
    # Byte-pair tokenizers need about 4.5 characters of English a token.
    assert max(len(e["paragraphs"][0]["context"]) for e in tydiqa["dev"]) > 512 * 4.9


def test_bbh_prompts_have_three_worked_examples(samples_dir):
    tasks = sorted(path.stem for path in (samples_dir / "bbh" / "bbh").iterdir())
    assert len(tasks) >= 8
    for task in tasks:
        prompt = (samples_dir / "bbh" / "cot-prompts" / f"{task}.txt").read_text("utf-8")
        _, dashes, rest = prompt.split("\n", 2)
        assert dashes == "-----"
        _, *shots = rest.split("\n\n")
        assert len(shots) == 3
        for shot in shots:
            assert re.fullmatch(
                r"Q: .+\nA: Let's think step by step\.\n.+ So the answer is .+\.", shot, re.DOTALL
            )


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


def test_gsm8k_calculations_are_right(samples_dir):
    for split in ("train", "test"):
        for row in rows_of(samples_dir / "gsm8k" / f"{split}.jsonl"):
            steps, answer = row["answer"].split("\n#### ")
            marks = re.findall(r"<<(.+?)=(\d+)>>", steps)
            assert marks
            assert all(eval(expression) == int(result) for expression, result in marks)
            assert int(answer.replace(",", "")) == int(marks[-1][1])


def test_no_benchmark_problem_is_in_a_training_corpus(samples_dir):
    held_out = {row["question"] for row in rows_of(samples_dir / "gsm8k" / "test.jsonl")}
    for path in (samples_dir / "bbh" / "bbh").iterdir():
        held_out |= {e["input"] for e in json.loads(path.read_text("utf-8"))["examples"]}
    training = [path for name in CORPORA.values() for path in (samples_dir / name).rglob("*.*")]
    for path in training:
        text = path.read_text("utf-8").replace("\\\\n", "\\n")
        leaks = [q for q in held_out if json.dumps(q, ensure_ascii=False)[1:-1] in text]
        assert not leaks, (path, leaks)


def test_humaneval_solutions_pass_and_the_prompts_alone_fail(samples_dir):
    problems = rows_of(samples_dir / "humaneval" / "HumanEval.jsonl.gz")
    assert [p["task_id"] for p in problems] == [f"Sample/{i}" for i in range(len(problems))]
    for problem in problems:
        end = f"\n{problem['test']}\ncheck({problem['entry_point']})"
        exec(problem["prompt"] + problem["canonical_solution"] + end, {})
        with pytest.raises(AssertionError):
            exec(problem["prompt"] + "    return 'no answer'" + end, {})


def test_humaneval_examples_in_the_prompts_hold(repo_dir):
    for name in ("humaneval.py", "functions.py"):
        source = repo_dir / "scripts" / "samples" / "text" / name
        subprocess.run([sys.executable, "-m", "doctest", source], check=True)


def test_python_of_code_samples_runs_and_prints_what_is_said(code):
    assert len(code) >= 300
    kinds = Counter()
    for row in code:
        assert set(row) == {"instruction", "input", "output"}
        if row["input"].startswith("Table "):
            kinds["query"] += 1
        elif row["instruction"].startswith("What does this program print"):
            kinds["print"] += 1
            assert output_of(row["input"]) == row["output"]
        elif row["output"].startswith("data = "):
            kinds["expression"] += 1
            assert output_of(row["output"]) == row["output"].rsplit("  # ", 1)[1]
        elif re.match(r"def |class |import |from ", row["output"]):
            kinds["definition"] += 1
            exec(row["output"], {})
        else:
            kinds["explanation"] += 1
            assert re.match(r"The (function|class) ", row["output"])
    assert len(kinds) == 5
    assert min(kinds.values()) >= 30


def test_queries_of_code_samples_run(code, repo_dir):
    source = (repo_dir / "scripts" / "samples" / "text" / "sql.txt").read_text("utf-8")
    with sqlite3.connect(":memory:") as database:
        for table, columns in re.findall(r"^== (\w+) \| (.+)$", source, re.MULTILINE):
            database.execute(f"CREATE TABLE {table} ({columns})")
        for row in code:
            if row["input"].startswith("Table "):
                database.execute(row["output"])


def test_nothing_is_copied_from_the_real_benchmarks(samples_dir, shared_dir):
    """No nine words in a row are those of a real question of the same subject or task."""

    def runs(text: str) -> set[str]:
        words = re.findall(r"\w+", text.lower())
        return {" ".join(words[i : i + 9]) for i in range(len(words) - 8)}

    def texts(root: Path):
        for path in sorted((samples_dir / "mmlu" / "test").iterdir()):
            yield from (root / "mmlu" / "test" / path.name).read_text("utf-8").splitlines()
        for path in sorted((samples_dir / "bbh" / "bbh").iterdir()):
            table = json.loads((root / "bbh" / "bbh" / path.name).read_text("utf-8"))
            yield from (example["input"] for example in table["examples"])
        yield from (row["question"] for row in rows_of(root / "gsm8k" / "test.jsonl"))
        for row in rows_of(root / "humaneval" / "HumanEval.jsonl.gz"):
            yield row["prompt"] + row["canonical_solution"]

    ours = set().union(*map(runs, texts(samples_dir)))
    for text in texts(shared_dir / "data"):
        assert not ours & runs(text), text
