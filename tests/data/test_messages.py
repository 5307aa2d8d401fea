"""Own files as people have them: every form is read right, or refused or counted by name."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mos.data import convert, load_training_data
from mos.data.chat import IGNORE_INDEX
from mos.errors import DataError

PLUM = [{"role": "user", "content": "Name a fruit"}, {"role": "assistant", "content": "Plum"}]
ELM = [{"role": "user", "content": "Name a tree"}, {"role": "assistant", "content": "Elm"}]
LINE = json.dumps({"messages": PLUM}).encode() + b"\n"
OTHER = json.dumps({"messages": ELM}).encode() + b"\n"


def gz(data):
    return gzip.compress(data, mtime=0)  # the same bytes in every worker: they name the test


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


def converted(source, tmp_path, **options):
    output = tmp_path / "converted.jsonl"
    report = convert("messages", source, output, **options)
    return [json.loads(line) for line in output.read_text().splitlines()], report


def text_of(row):
    return " | ".join(f"{m['role']}: {m['content']}" for m in row["messages"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl.gz", gz(LINE) + gz(OTHER)),  # two members
        ("rows.jsonl.zst", zstd(LINE + OTHER)),
        ("rows.jsonl.bz2", bz2.compress(LINE + OTHER)),
        ("rows.jsonl.xz", lzma.compress(LINE + OTHER)),
        ("rows.json", json.dumps([{"messages": PLUM}, {"messages": ELM}], indent=1).encode()),
        ("rows.json.gz", gz(json.dumps([json.loads(LINE), json.loads(OTHER)]).encode())),
        ("rows.jsonl", b"[" + LINE + b"," + OTHER + b"]"),
        ("rows.json", LINE + OTHER),
        ("rows.jsonl", b"\xef\xbb\xbf" + LINE + OTHER),
        ("rows.json", b"\xef\xbb\xbf[" + LINE + b"," + OTHER + b"]"),
        ("rows.jsonl", LINE.replace(b"\n", b"\r\n") + b"\n" + OTHER),
    ],
)
def test_files_are_read_as_what_they_are(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    rows, _ = converted(tmp_path / name, tmp_path)
    assert [row["messages"] for row in rows] == [PLUM, ELM]
    assert len({row["id"] for row in rows}) == 2


def test_folders_are_read_whole(tmp_path):
    source = tmp_path / "source"
    (source / "more").mkdir(parents=True)
    (source / "x.parquet").mkdir()
    (source / "train.jsonl").write_bytes(LINE)
    (source / "more" / "train.jsonl.gz").write_bytes(gz(OTHER))
    (source / "part.json").write_bytes(b"[" + LINE + b"]")
    pq.write_table(pa.table({"messages": [ELM]}), source / "x.parquet" / "part-0.parquet")
    (source / "x.parquet" / "_SUCCESS").touch()
    (source / "._train.jsonl").write_bytes(b"\x00\x05\x16\x07\x00\x02")
    (source / "README.md").write_text("about")
    rows, report = converted(source, tmp_path)
    assert [row["messages"] for row in rows] == [ELM, PLUM, PLUM, ELM]
    assert [row["id"] for row in rows] == [
        "more/train_1",
        "part_1",
        "train_1",
        "x.parquet/part-0_1",
    ]
    assert "3 files in" in report["notes"][0]
    assert "._train.jsonl, README.md, x.parquet/_SUCCESS" in report["notes"][0]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {"system": "In French.", "prompt": "Hello", "completion": "Bonjour"},
            "system: In French. | user: Hello | assistant: Bonjour",
        ),
        (
            {"prompt": "Translate", "input": "the tree", "completion": "der Baum"},
            "user: Translate\n\nthe tree | assistant: der Baum",
        ),
        (
            {"prompt": "Peru?", "completion": "Lima", "history": [["Chile?", "Santiago"]]},
            "user: Chile? | assistant: Santiago | user: Peru? | assistant: Lima",
        ),
        ({"messages": None, "prompt": "p", "completion": "c"}, "user: p | assistant: c"),
        ({"messages": PLUM, "prompt": None, "tools": []}, "user: Name a fruit | assistant: Plum"),
        ({"prompt": PLUM[:1], "completion": PLUM[1:]}, "user: Name a fruit | assistant: Plum"),
        ({"id": 0, "prompt": "p", "completion": "c"}, "user: p | assistant: c"),
    ],
)
def test_fields_beside_become_part_of_the_conversation(row, text, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    rows, report = converted(tmp_path / "rows.jsonl", tmp_path)
    assert text_of(rows[0]) == text
    assert rows[0]["id"] == str(row.get("id", "rows_1"))
    assert not [note for note in report["notes"] if "not used" in note and "prompt" not in note]


def with_turn(**fields):
    return {"messages": [PLUM[0], {**PLUM[1], **fields}]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tools": [{"type": "function"}], "messages": PLUM}, "field 'tools' cannot"),
        (with_turn(tool_calls=[{"id": 1}]), "message 1: 'tool_calls' would be lost"),
        (with_turn(reasoning_content="two and two"), "message 1: 'reasoning_content' would be"),
        (with_turn(weight=0.5), "message 1: weight must be 0 or 1, found 0.5"),
        (with_turn(train="no"), "message 1: train must be true or false"),
        (
            {"messages": [{**PLUM[0], "weight": 1}, PLUM[1]]},
            "message 0: a user turn cannot",
        ),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}, *PLUM]}, "'system' bes"),
        (
            {"history": [["a"]], "prompt": "p", "completion": "c"},
            "'history' must be a list",
        ),
        ({"messages": PLUM, "input": "x"}, "'input' beside 'messages'"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(row, reason, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(LINE + json.dumps(row).encode())
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {reason}"):
        converted(tmp_path, tmp_path)
    rows, report = converted(tmp_path / "rows.jsonl", tmp_path, on_bad_row="skip")
    assert (len(rows), report["skipped"]) == (1, 1)


def test_other_fields_are_counted_by_name(tmp_path):
    rows = [{"messages": PLUM, "source": "a"}, {"messages": [{**ELM[0], "name": "x"}, ELM[1]]}] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, report = converted(tmp_path / "rows.jsonl", tmp_path)
    [note] = report["notes"]
    assert note.endswith("not used: source (2 times), messages.name (2 times).")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl.zst", zstd(LINE * 99)[:40], "damaged or cut off"),
        ("a.jsonl.gz", gz(LINE * 99)[:40], "damaged or cut off"),
        ("a.jsonl.gz", LINE, "damaged or cut off: Not a gzipped file"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", ":1: broken JSON at column 1"),
        ("a.json", b'[\n{"a": 1},\n', ":3: broken JSON"),
        ("a.json", b'[{"a": ' + b"[" * 100_000, "unusable JSON: maximum recursion"),
        ("a.json", b'[\n{"a": "\xe9"}]', ":2: not UTF-8: byte 0xe9"),
    ],
)
def test_files_that_hold_no_rows_are_refused_by_name(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{reason}"):
        converted(tmp_path / name, tmp_path)


@pytest.mark.parametrize("label_mask", ["reference", "clean"])
@pytest.mark.parametrize("unweighted", [{"weight": 0}, {"train": False}])
def test_turns_and_rows_without_weight_are_not_trained_on(
    unweighted, label_mask, tiny_tokenizer, tmp_path
):
    turns = [
        {"role": "user", "content": "Capital of Norway?"},
        {"role": "assistant", "content": "Bergen", **unweighted},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Oslo"},
    ]
    rows = [{"messages": turns}, {"prompt": "a", "completion": "b", **unweighted}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_training_data(
        tiny_tokenizer,
        corpus="messages",
        source=tmp_path / "rows.jsonl",
        cache_dir=tmp_path / "cache",
        eval_size=0,
        label_mask=label_mask,
    )
    [row] = data.train
    kept = [label for label in row["labels"] if label != IGNORE_INDEX]
    assert tiny_tokenizer.decode(kept) == "Oslo</s>"
    assert tiny_tokenizer.decode(row["input_ids"]) == (
        "<s><|user|>\nCapital of Norway?\n<|assistant|>\nBergen</s>\n"
        "<|user|>\nSure?\n<|assistant|>\nOslo</s>"
    )
    assert data.summary() == [
        "2 rows read, 0 bad ones skipped, 1 dropped with nothing left to train on, 0 truncated;"
        " tokenised now",
        "1 training examples, 0 held out",
        "dropped, first: rows.jsonl:2",
    ]
