"""Own files as people have them: every form is read right, or refused or counted by name."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from mos.data import convert, load_training_data
from mos.data.chat import IGNORE_INDEX
from mos.errors import DataError, UserError
from mos.files import source_hash

PLUM = [{"role": "user", "content": "Name a fruit"}, {"role": "assistant", "content": "Plum"}]
ELM = [{"role": "user", "content": "Name a tree"}, {"role": "assistant", "content": "Elm"}]
LINE = json.dumps({"messages": PLUM}).encode() + b"\n"
OTHER = json.dumps({"messages": ELM}).encode() + b"\n"


def gz(data):
    return gzip.compress(data, mtime=0)  # the same bytes in every worker: they name the test


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


def lz4(data):
    return pa.compress(data, codec="lz4", asbytes=True)


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def alpaca(instruction, output):
    return {"instruction": instruction, "input": "", "output": output}


def sharegpt(messages):
    names = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages]}


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
        ("rows.json", b"[" + LINE + b"]\n[" + OTHER + b"]"),  # several lists
        ("rows.json", json.dumps(json.loads(LINE), indent=1).encode() + b"\n" + OTHER),
        ("rows.jsonl.lz4", lz4(LINE) + lz4(OTHER)),
        ("rows.jsonl.zst", b"\x50\x2a\x4d\x18\x01\0\0\0x" + zstd(LINE + OTHER)),  # as of pzstd
        ("rows.jsonl", jsonl(alpaca("Name a fruit", "Plum"), alpaca("Name a tree", "Elm"))),
        ("rows.json", json.dumps([sharegpt(PLUM), sharegpt(ELM)]).encode()),
        ("rows.csv", b"prompt,completion\nName a fruit,Plum\nName a tree,Elm\n"),
        (
            "rows.tsv",
            b"\xef\xbb\xbfid\tprompt\tcompletion\r\n\tName a fruit\tPlum\r\n"
            b'\t"Name a tree"\tElm\r\n',
        ),
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
    [note] = report["notes"]
    assert note.endswith("._train.jsonl, README.md, x.parquet/_SUCCESS.")


@pytest.mark.parametrize(
    ("files", "train", "held_out", "left_out"),
    [
        (
            ["train.jsonl", "validation.jsonl", "test.jsonl"],
            "train.jsonl",
            "validation.jsonl",
            "test.jsonl",
        ),
        (
            ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"],
            "data/train-00000-of-00001.jsonl",
            "none",
            "data/test-00000-of-00001.jsonl",
        ),
        (["train/part.jsonl", "dev/part.jsonl"], "train/part.jsonl", "dev/part.jsonl", "none"),
        (["mine.jsonl", "mine_eval.jsonl"], "mine.jsonl", "mine_eval.jsonl", "none"),
    ],
)
def test_of_splits_train_is_trained_on_and_validation_held_out(
    files, train, held_out, left_out, tiny_tokenizer, tmp_path
):
    for name in files:
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jsonl(*({"prompt": name, "completion": f"{i}"} for i in range(3))))
    data = load_training_data(
        tiny_tokenizer,
        corpus="messages",
        source=tmp_path / "source",
        cache_dir=tmp_path / "cache",
        eval_size=2,
    )
    asked = [
        {text_of_ids(tiny_tokenizer, row).split("\n")[1] for row in part}
        for part in (data.train, data.eval)
    ]
    assert asked == [{train}, {held_out if held_out != "none" else train}]
    assert (len(data.train), len(data.eval)) == ((3, 2) if held_out != "none" else (1, 2))
    assert data.summary()[-1] == (
        f"messages: trained on {train}; held out: {held_out}; not used: {left_out}."
    )


def text_of_ids(tokenizer, row):
    return tokenizer.decode(row["input_ids"])


def test_the_test_split_alone_is_data_and_test_rows_must_be_left(tiny_tokenizer, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "test.jsonl").write_bytes(LINE)
    rows, _ = converted(source, tmp_path)
    assert [row["messages"] for row in rows] == [PLUM]
    for name in ("train", "validation"):
        (source / f"{name}.jsonl").write_bytes(LINE + OTHER)
    options = {"corpus": "messages", "source": source, "cache_dir": tmp_path / "cache"}
    with pytest.raises(
        UserError, match=r"eval_size=2 takes all of the 2 rows of validation\.jsonl"
    ):
        load_training_data(tiny_tokenizer, **options, eval_size=2, test_size=1)
    data = load_training_data(tiny_tokenizer, **options, eval_size=1, test_size=1)
    assert (len(data.train), len(data.eval), len(data.test)) == (2, 1, 1)


@pytest.mark.parametrize("splits", [False, True])
def test_what_datasets_saves_is_read(splits, tmp_path):
    rows = Dataset.from_list([{"messages": PLUM}])
    saved = DatasetDict(train=rows, test=Dataset.from_list([{"messages": ELM}]))
    (saved if splits else rows).save_to_disk(tmp_path / "saved")
    Dataset.load_from_disk(tmp_path / "saved" / ("train" if splits else "")).map(lambda row: row)
    found, _ = converted(tmp_path / "saved", tmp_path)
    assert [row["messages"] for row in found] == [PLUM]
    (tmp_path / "x.arrow").write_bytes(LINE)
    with pytest.raises(DataError, match="not a readable arrow file"):
        converted(tmp_path / "x.arrow", tmp_path)


def test_linked_folders_are_read_once(tmp_path):
    for folder, line in (("source", LINE), ("elsewhere", OTHER)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_bytes(line)
    before = source_hash(tmp_path / "source", tmp_path / "cache")
    (tmp_path / "source" / "more").symlink_to("../elsewhere")
    (tmp_path / "source" / "loop").symlink_to("../source")
    rows, _ = converted(tmp_path / "source", tmp_path)
    assert [row["messages"] for row in rows] == [ELM, PLUM]
    assert source_hash(tmp_path / "source", tmp_path / "cache") != before


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
        ({"instruction": "Add", "input": "1 1", "output": "2"}, "user: Add\n\n1 1 | assistant: 2"),
        (
            {"conversations": [{"from": "system", "value": "s"}, *sharegpt(PLUM)["conversations"]]},
            "system: s | user: Name a fruit | assistant: Plum",
        ),
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
        (with_turn(loss_mask=[0, 1]), "message 1: 'loss_mask' may say what is trained on"),
        (with_turn(is_trained=0), "message 1: 'is_trained' may say what is trained on"),
        ({"messages": PLUM, "mask": True}, "'mask' may say what is trained on"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "message 0: unknown role 'tool'"),
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
        ("a.jsonl.gz", LINE, "damaged or cut off: .*incorrect header"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", ":1: broken JSON at column 1"),
        ("a.json", b'[\n{"a": 1},\n', ":3: broken JSON"),
        ("a.json", b"[" + LINE + b"] garbage {", ":2: broken JSON at column 3"),
        ("a.jsonl", LINE[:-1] + b",\n", ":1: broken JSON at column"),
        ("a.jsonl", LINE[:-1] + LINE, ":1: expected a JSON object, found"),
        ("a.jsonl.tar.gz", gz(LINE), "an archive. Unpack it"),
        ("a.jsonl.lz4", LINE, "damaged or cut off"),
        ("a.csv", b"prompt,completion\np,c,d\n", ":2: more cells than columns"),
        ("a.csv", b"prompt,completion\np,\xe9\n", "not UTF-8 csv"),
        (
            "a.tsv",
            b"prompt,completion\np,c\n",
            ":2: neither 'messages' nor .*found prompt,completion",
        ),
        ("a.json", b'[{"a": ' + b"[" * 100_000, "unusable JSON: maximum recursion"),
        ("a.json", b'[\n{"a": "\xe9"}]', ":2: not UTF-8: byte 0xe9"),
    ],
)
def test_files_that_hold_no_rows_are_refused_by_name(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{reason}"):
        converted(tmp_path / name, tmp_path)


UNWEIGHTED = [{"weight": 0}, {"masked": True}, *({"train": v} for v in (False, 0, 0.0))]
UNWEIGHTED += [{n: 0} for n in ("loss_mask", "loss", "trainable", "training")]


@pytest.mark.parametrize("unweighted", UNWEIGHTED)
def test_turns_and_rows_are_masked_by_the_names_that_people_use(unweighted, tmp_path):
    [name] = unweighted
    draft, final = {**PLUM[1], **unweighted}, {**ELM[1], name: not unweighted[name]}
    rows = [
        {"messages": [PLUM[0], draft, ELM[0], final]},
        {"prompt": "a", "completion": "b", **unweighted},
    ]
    rows += [{"prompt": "a", "completion": "b", "label": label} for label in (False, True)]
    rows += [{"prompt": [*PLUM, ELM[0]], "completion": ELM[1:]}]  # of TRL: completions alone
    rows += [{"messages": [*PLUM, ELM[0], ELM[1]]}]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows))
    found, _ = converted(tmp_path / "rows.jsonl", tmp_path)
    assert [trained(row) for row in found] == [["Elm"], [], [], ["b"], ["Elm"], ["Plum", "Elm"]]


def trained(row):
    assistant = (m for m in row["messages"] if m["role"] == "assistant")
    return [message["content"] for message in assistant if message.get("train", True)]


def test_zeros_that_pandas_makes_floats_or_texts_are_still_false(tmp_path):
    turns = [PLUM[0], {**PLUM[1], "train": 0.0}, ELM[0], {**ELM[1], "train": 1.0}]
    rows = [{"messages": turns, "weight": float("nan")}, {"messages": PLUM, "weight": 0.0}]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    found, _ = converted(tmp_path / "rows.parquet", tmp_path)
    assert [trained(row) for row in found] == [["Elm"], []]
    (tmp_path / "rows.csv").write_text("prompt,completion,train\np,c,False\np,d,\np,e,1\n")
    found, _ = converted(tmp_path / "rows.csv", tmp_path)
    assert [trained(row) for row in found] == [[], ["d"], ["e"]]


@pytest.mark.parametrize("label_mask", ["reference", "clean"])
def test_turns_and_rows_without_weight_are_not_trained_on(label_mask, tiny_tokenizer, tmp_path):
    unweighted = {"weight": 0}
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
