"""Conversion to the byte, what partial sources do, and bad input."""

from __future__ import annotations

import hashlib
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mos.data import check_source, convert, cot
from mos.data.super_ni import WITH_INPUT, WITHOUT_INPUT
from mos.errors import DataError, MissingFileError, UserError


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def turn(content="a", **extra):
    return {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": content},
        ],
        **extra,
    }


@pytest.mark.parametrize("corpus", ["super_ni", "cot"])
def test_golden_conversion(corpus, golden, golden_dir, tmp_path):
    expected = golden("train_prep")["runs"]["synthetic_each_alone_seed42"][corpus]
    output = tmp_path / "rows.jsonl"
    report = convert(corpus, golden_dir / "prep_synthetic" / corpus, output, seed=42)
    text = output.read_text("utf-8")
    rows = read_jsonl(output)
    assert report["rows"] == len(rows) == expected["num_rows"]
    assert rows[: len(expected["first_rows"])] == expected["first_rows"]
    assert sha256(text) == expected["file_sha256"]
    assert [sha256(line) for line in text.splitlines()[:20]] == expected["row_sha256_first20"]


def test_templates_are_the_protocols(golden):
    strings = golden("templates")
    for templates, name in ((WITH_INPUT, "with_input"), (WITHOUT_INPUT, "without_input")):
        published = strings[f"instruction_templates_{name}"]
        assert list(templates.items()) == [(prompt, weight) for prompt, _, weight in published]
        for prompt, completion, _ in published:
            assert completion == ("\n{output}" if prompt == "{instruction}" else "{output}")


def test_code_alpaca_draws_one_template_a_row(tmp_path):
    items = [
        {"instruction": f" do {i} ", "input": ["", "  ", "in {x}\n", None][i % 4], "output": " o "}
        for i in range(40)
    ]
    (tmp_path / "code_alpaca_20k.json").write_text(json.dumps(items, indent=1))
    convert("code_alpaca", tmp_path, tmp_path / "out.jsonl", seed=7)
    rng = random.Random(7)
    for i, row in enumerate(read_jsonl(tmp_path / "out.jsonl")):
        context = (items[i]["input"] or "").strip()
        templates = WITH_INPUT if context else WITHOUT_INPUT
        (prompt,) = rng.choices(list(templates), weights=list(templates.values()))
        assert row["id"] == f"code_alpaca_{i}"
        user, assistant = (message["content"] for message in row["messages"])
        assert user == prompt.replace("{instruction}", f"do {i}").replace("{input}", context)
        assert assistant == ("\no" if prompt == "{instruction}" else "o")


def test_flan_v2_appends_a_line_feed_only_where_the_reference_does(tmp_path):
    prompts = ["a", "a\n", "a:", "a: ", "a:\t", "a \n", "a?\n\n", ""]
    source = write_jsonl(
        tmp_path / "tulu_v1_resampled_flan_100k.jsonl",
        [{"inputs": prompt, "targets": " t\n"} for prompt in prompts],
    )
    convert("flan_v2", source.parent, tmp_path / "out.jsonl")
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["messages"][0]["content"] for row in rows] == [
        "a\n", "a\n", "a:", "a: ", "a:\t", "a \n", "a?\n\n", "\n",
    ]  # fmt: skip
    assert {row["messages"][1]["content"] for row in rows} == {" t\n"}
    assert [row["id"] for row in rows] == [f"flan_v2_{i}" for i in range(len(prompts))]


def test_sampling_lines_draws_as_sampling_the_list_does(tmp_path, monkeypatch):
    monkeypatch.setattr(cot, "ROWS_PER_FILE", 60)
    rows = [{"inputs": f"{i}:", "targets": "t"} for i in range(500)]
    for name, some in (("cot_zsopt.jsonl", rows), ("cot_fsopt.jsonl", rows[:60])):
        write_jsonl(tmp_path / name, some)
    convert("cot", tmp_path, tmp_path / "out.jsonl", seed=42)
    asked = [row["messages"][0]["content"] for row in read_jsonl(tmp_path / "out.jsonl")]
    expected = random.Random(42).sample(rows, k=60) + rows[:60]
    assert asked == [row["inputs"] for row in expected]


def super_ni(folder, tasks, present=None, split="xlingual", instances=3):
    (folder / "splits" / split).mkdir(parents=True)
    (folder / "splits" / split / "train_tasks.txt").write_text("\n".join(tasks) + "\n")
    (folder / "tasks").mkdir()
    for task in tasks if present is None else present:
        (folder / "tasks" / f"{task}.json").write_text(
            json.dumps(
                {
                    "Definition": ["Do it."],
                    "Positive Examples": [{"input": "i", "output": "o"}],
                    "Instances": [
                        {"id": f"{task}-{i}", "input": f"in {i}", "output": [f"out {i}"]}
                        for i in range(instances)
                    ],
                },
                indent=1,
            )
        )
    return folder


def test_partial_checkout_converts_what_is_there_and_says_so(tmp_path):
    folder = super_ni(tmp_path / "ni", ["t1", "t2", "t3_mmmlu_x"], present=["t2", "t3_mmmlu_x"])
    report = convert("super_ni", folder, tmp_path / "out.jsonl")
    assert report["rows"] == 3
    assert any("1 of 2 training tasks" in note and "t1" in note for note in report["notes"])
    (folder / "tasks" / "t2.json").unlink()
    with pytest.raises(MissingFileError, match="none of the 2 tasks"):
        check_source("super_ni", folder)


def test_default_split_serves_where_there_is_no_xlingual(tmp_path):
    folder = super_ni(tmp_path / "ni", ["t1"], split="default")
    report = convert("super_ni", folder, tmp_path / "out.jsonl")
    assert any("splits/xlingual" in note for note in report["notes"])
    available = folder / "splits" / "default" / "train_tasks_available.txt"
    available.write_text("t1\nt9\n")
    with pytest.raises(MissingFileError, match=r"t9\.json"):
        check_source("super_ni", folder)


def test_raw_cot_is_rendered_where_the_sampled_files_are_missing(tmp_path):
    (tmp_path / "gsm8k_train.tsv").write_text("1 + 1?\t2\tOne and one.\\nThat is two.\n")
    report = convert("cot", tmp_path, tmp_path / "out.jsonl")
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert row["messages"][0]["content"] == "1 + 1?\nLet's think step by step.\n"
    assert row["messages"][1]["content"] == "One and one.\nThat is two. So the answer is 2."
    assert report["notes"]
    (tmp_path / "cot_zsopt.jsonl").write_text("{}")
    with pytest.raises(MissingFileError, match=r"cot_fsopt\.jsonl"):
        check_source("cot", tmp_path)


def test_another_file_in_the_place_of_the_output_is_kept(tmp_path):
    write_jsonl(tmp_path / "own.jsonl", [turn()])
    (tmp_path / "out.jsonl").write_text("mine")
    for _ in range(2):
        convert("messages", tmp_path / "own.jsonl", tmp_path / "out.jsonl")
    (kept,) = tmp_path.glob("out.jsonl.old-*")
    assert kept.read_text() == "mine"


def test_tulu_mixture_in_parquet_gives_the_rows_of_one_corpus(tmp_path):
    rows = [turn(dataset=name, id=f"{name}_{i}") for i in range(3) for name in ("cot", "flan_v2")]
    source = tmp_path / "source"
    source.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), source / "train-00000-of-00001.parquet")
    output = tmp_path / "out" / "rows.jsonl"
    report = convert("cot", source, output)
    assert [row["id"] for row in read_jsonl(output)] == ["cot_0", "cot_1", "cot_2"]
    assert report["notes"]
    assert convert("messages", source, output)["rows"] == 6


BAD_LINES = {
    "broken JSON": (b'{"messages": [', r"own\.jsonl:2: broken JSON at column"),
    "latin-1": ('{"prompt": "é"}'.encode("latin-1"), r"own\.jsonl:2: not UTF-8: byte 0xe9"),
    "nested": (b'{"a":' * 100_000, r"own\.jsonl:2: unusable JSON: maximum recursion"),
    "digits": (b"9" * 5000, r"own\.jsonl:2: unusable JSON: Exceeds the limit"),
    "not an object": (b"[1]", r"own\.jsonl:2: expected a JSON object, found .1."),
    "no fields": (b'{"text": "x"}', r"own\.jsonl:2: neither 'messages' nor .*found text"),
    "no messages": (b'{"messages": []}', r"own\.jsonl:2: .*at least one message"),
    "null content": (
        b'{"messages": [{"role": "user", "content": null}]}',
        r"own\.jsonl:2: message 0: content must be a string, found None",
    ),
    "number content": (b'{"prompt": 3, "completion": "x"}', r"own\.jsonl:2: message 0: content"),
    "unknown role": (
        b'{"messages": [{"role": "tool", "content": "x"}]}',
        r"own\.jsonl:2: message 0: unknown role 'tool'",
    ),
    "message is a string": (b'{"messages": ["x"]}', r"own\.jsonl:2: message 0 must be an object"),
    "empty assistant": (json.dumps(turn(" \n")).encode(), r"own\.jsonl:2: .*turn is empty"),
    "duplicate id": (json.dumps(turn(id="first")).encode(), r"own\.jsonl:2: the id 'first'"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_rows_are_refused_or_skipped_by_place(kind, tmp_path):
    line, message = BAD_LINES[kind]
    good = [json.dumps(turn(id=i)).encode() for i in ("first", "last")]
    (tmp_path / "own.jsonl").write_bytes(b"\n".join([good[0], line, b"", good[1]]))
    output = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=message):
        convert("messages", tmp_path, output)
    assert not output.exists()
    report = convert("messages", tmp_path / "own.jsonl", output, on_bad_row="skip")
    assert (report["rows"], report["skipped"]) == (2, 1)
    assert [row["id"] for row in read_jsonl(output)] == ["first", "last"]
    assert "own.jsonl:2" in report["bad_rows"][0]
    with pytest.raises(UserError, match="on_bad_row"):
        convert("messages", tmp_path, output, on_bad_row="ignore")


@pytest.mark.parametrize(
    ("corpus", "name", "content", "message"),
    [
        ("flan_v2", "tulu_v1_resampled_flan_100k.jsonl", b"", "the file is empty"),
        ("flan_v2", "tulu_v1_resampled_flan_100k.jsonl", b"\n", "no row is left"),
        ("flan_v2", "tulu_v1_resampled_flan_100k.jsonl", b'{"inputs": "x"}', ":1: field 'targets'"),
        (
            "code_alpaca",
            "code_alpaca_20k.json",
            b'[\n{"instruction": "i", "output": "o"},\n',
            ":3: broken",
        ),
        ("code_alpaca", "code_alpaca_20k.json", b"{}", ":1: field 'instruction' is missing"),
        (
            "code_alpaca",
            "code_alpaca_20k.json",
            b'[\n\n{"instruction": 1}]',
            ":1: .*must be a string, found 1",
        ),
        ("code_alpaca", "code_alpaca_20k.json", b"\xff\xfe[\x00]\x00", ":1: not UTF-8"),
        ("cot", "x_train.tsv", b"a\tb\n", ":1: expected 3 columns"),
        ("messages", "x.parquet", b"PAR1", "not a readable parquet"),
    ],
)
def test_bad_files(corpus, name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        convert(corpus, tmp_path, tmp_path / "out.jsonl")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("corpus", ["super_ni", "flan_v2", "cot", "code_alpaca", "messages"])
def test_missing_sources_say_where_to_get_them(corpus, tmp_path):
    for source in (tmp_path / "absent", tmp_path):
        with pytest.raises(MissingFileError, match=r"prepare_train_data|\*\.jsonl"):
            check_source(corpus, source)
    with pytest.raises(UserError, match=r"Unknown corpus .alpaca.. Did you mean .code_alpaca"):
        check_source("alpaca", tmp_path)


def test_bad_instance_is_named_by_its_index(tmp_path):
    folder = super_ni(tmp_path / "ni", ["t1"])
    path = folder / "tasks" / "t1.json"
    task = json.loads(path.read_text())
    task["Instances"][1]["output"] = 3
    path.write_text(json.dumps(task, indent=1))
    with pytest.raises(DataError, match=r"t1\.json: instance 1 must have"):
        convert("super_ni", folder, tmp_path / "out.jsonl")
    assert convert("super_ni", folder, tmp_path / "out.jsonl", on_bad_row="skip")["rows"] == 2
