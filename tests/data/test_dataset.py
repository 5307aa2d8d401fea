"""The cached, split and batched corpus."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import DataCollatorForSeq2Seq

from mos.data import check_source, load_training_data
from mos.data import dataset as module
from mos.data.chat import encode_messages
from mos.data.dataset import Collator, split_indices
from mos.errors import DataError, MissingFileError, UserError


def own_rows(path, count=40, width=8, start=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for i in range(start, start + count):
            row = {"id": f"r{i}", "prompt": f"question {i}", "completion": f"a{i} " * (i % width)}
            row["completion"] += "end"
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def load(tiny_tokenizer, tmp_path):
    def run(source=None, **options):
        defaults = {
            "corpus": "messages",
            "source": source or own_rows(tmp_path / "rows.jsonl"),
            "cache_dir": tmp_path / "cache",
            "eval_size": 10,
        }
        return load_training_data(tiny_tokenizer, **(defaults | options))

    return run


def test_rows_are_the_encoded_conversations(load, tiny_tokenizer, tmp_path):
    data = load(max_seq_length=70, test_size=5)
    assert (len(data.train), len(data.eval), len(data.test)) == (25, 10, 5)
    assert set(data.train.column_names) == {"input_ids", "attention_mask", "labels", "length"}
    expected = {}
    for line in (tmp_path / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        encoded = encode_messages(messages, tiny_tokenizer, 70)
        expected[tuple(encoded["input_ids"])] = encoded
    for row in [*data.train, *data.eval, *data.test]:  # none of them in two parts
        encoded = expected.pop(tuple(row["input_ids"]))
        assert row["labels"] == encoded["labels"]
        assert row["attention_mask"] == encoded["attention_mask"]
        assert row["length"] == len(row["input_ids"])
    assert not expected or data.statistics["dropped"] == len(expected)


def test_statistics(load, tmp_path):
    rows = [
        {"id": "a", "prompt": "q" * 100, "completion": "cut away"},
        {"id": "b", "prompt": "q", "completion": "x" * 100},
        {"id": "c", "prompt": "q", "completion": "y"},
        {"id": "d", "prompt": "q", "completion": " "},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load(source, max_seq_length=64, eval_size=0, on_bad_row="skip")
    statistics = data.statistics
    assert data.eval is None
    assert (statistics["rows"], statistics["train_rows"], statistics["eval_rows"]) == (2, 2, 0)
    assert (statistics["truncated"], statistics["dropped"], statistics["skipped"]) == (2, 1, 1)
    assert statistics["first_dropped"] == ["rows.jsonl:1"]
    assert statistics["first_truncated"] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert statistics["tokens"] == sum(data.train["length"])
    labels = [label for row in data.train for label in row["labels"]]
    assert statistics["supervised_tokens"] == sum(label != -100 for label in labels)
    assert "rows.jsonl:4" in statistics["bad_rows"][0]


def test_golden_split(golden):
    vectors = golden("train_encoding_smollm2")["train_eval_split"]
    train, held_out, _ = split_indices(50, 10, 0, 42)
    assert held_out.tolist() == vectors["n50_test10_seed42"]["test"]
    assert train.tolist() == vectors["n50_test10_seed42"]["train"]
    train, held_out, _ = split_indices(3000, 1024, 0, 42)
    for part, name in ((held_out, "test"), (train, "train")):
        digest = hashlib.sha256(",".join(map(str, part)).encode()).hexdigest()
        assert digest == vectors["n3000_test1024_seed42"][f"{name}_sha256_csv"]


def test_split_is_that_of_datasets():
    theirs = Dataset.from_dict({"i": range(77)}).train_test_split(test_size=13, seed=5)
    train, *held_out = split_indices(77, 10, 3, 5)
    assert train.tolist() == theirs["train"]["i"][:]
    assert [*held_out[0], *held_out[1]] == theirs["test"]["i"][:]


def test_golden_collator(golden, smollm2_tokenizer):
    vectors = golden("train_encoding_smollm2")["collator"]
    names = ("input_ids", "labels", "attention_mask")
    lengths = list(map(sum, vectors["attention_mask"]))
    features = [
        {name: vectors[name][i][:length] for name in names} for i, length in enumerate(lengths)
    ]
    batch = Collator(vectors["pad_token_id"])(features)
    for name, values in batch.items():
        assert values.tolist() == vectors[name], name
    theirs = DataCollatorForSeq2Seq(smollm2_tokenizer, padding="longest")(features)
    for name, values in batch.items():
        torch.testing.assert_close(values, theirs[name])


def test_eos_stays_supervised_where_it_is_the_pad_token():
    rows = [
        {"input_ids": [5, 2], "labels": [-100, 2], "attention_mask": [1, 1]},
        {"input_ids": [5, 6, 2], "labels": [-100, 6, 2], "attention_mask": [1, 1, 1]},
    ]
    batch = Collator(pad_token_id=2)(rows)
    assert batch["labels"].tolist() == [[-100, 2, -100], [-100, 6, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_small_corpora_name_the_option(load):
    with pytest.raises(UserError, match=r"eval_size=40, but the corpus has 40 rows.*at most 39"):
        load(eval_size=40)
    with pytest.raises(UserError, match="max_rows=0"):
        load(max_rows=0)


def test_a_corpus_of_which_nothing_is_left(load, tmp_path):
    with pytest.raises(DataError, match=r"all 40 rows were dropped.*cut before their answer"):
        load(max_seq_length=8)
    source = tmp_path / "bad.jsonl"
    source.write_text("{}\n{}\n")
    with pytest.raises(DataError, match=r"no row is left; 2 bad rows.*bad\.jsonl:1"):
        load(source, on_bad_row="skip")
    with pytest.raises(MissingFileError):
        load(tmp_path / "absent")


def test_half_a_surrogate_pair_is_a_bad_row(load, tmp_path):
    source = own_rows(tmp_path / "rows.jsonl")
    with source.open("a") as file:
        file.write('{"prompt": "q", "completion": "\\ud83d"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:41: .*ud83d"):
        load(source)
    assert load(source, on_bad_row="skip").statistics["skipped"] == 1


def test_max_rows_samples_over_the_whole_corpus_in_order(load):
    everything = load(eval_size=0).train
    some = load(eval_size=0, max_rows=15).train
    position = {tuple(ids): i for i, ids in enumerate(everything["input_ids"])}
    chosen = [position[tuple(ids)] for ids in some["input_ids"]]
    assert len(chosen) == 15
    assert chosen == sorted(chosen)
    assert max(chosen) >= 25
    assert load(eval_size=0, max_rows=1000).train.num_rows == 40


def asked(part, tokenizer):
    return [tokenizer.decode(row["input_ids"]).split("\n")[1] for row in part]


def test_sources_are_taken_whole_or_mixed_by_weight(load, tiny_tokenizer, tmp_path):
    few = own_rows(tmp_path / "few.jsonl", count=30)
    many = own_rows(tmp_path / "many.jsonl", count=200, start=100)
    whole = load([few, many], eval_size=0)
    assert asked(whole.train, tiny_tokenizer) == [
        *(f"question {i}" for i in range(30)),
        *(f"question {i}" for i in range(100, 300)),
    ]
    assert whole.statistics["read"] == 230
    assert whole.fingerprint != load([many, few], eval_size=0).fingerprint
    mixed = load([few, many], weights=[1, 3])
    rows = asked(mixed.train, tiny_tokenizer) + asked(mixed.eval, tiny_tokenizer)
    assert len(set(rows)) == len(rows) == len(mixed.train) + 10  # no row twice
    of_many = sum(int(row.split()[1]) >= 100 for row in rows)
    assert 0.6 < of_many / len(rows) < 0.9
    assert asked(load([few, many], weights=[2, 6]).train, tiny_tokenizer) == rows[:-10]


@pytest.mark.parametrize("split", [None, "train[:3]"])
def test_data_sets_of_the_hub_come_once_by_name_and_split(
    split, load, tiny_tokenizer, tmp_path, monkeypatch
):
    rows = [{"instruction": f"question {i}", "output": "o"} for i in range(5)]
    calls = []

    def load_dataset(name, split, revision):
        calls.append((name, split, revision))
        parts = DatasetDict(train=Dataset.from_list(rows[:4]), test=Dataset.from_list(rows[4:]))
        return parts["train"].select(range(3)) if split else parts

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for _ in range(2):
        data = load("owner/alpaca@v1", split=split, eval_size=0)
        expected = [row["instruction"] for row in rows[: 3 if split else 4]]
        assert asked(data.train, tiny_tokenizer) == expected
    assert calls == [("owner/alpaca", split, "v1")]
    check_source("messages", "owner/alpaca@v1")


def test_what_the_hub_does_not_give_is_said_in_a_line(load, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="owner/name: no such file or folder here, and no data set"):
        load("owner/name")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(MissingFileError, match=r"no data/mine\. Expected rows"):
        load("data/mine")
    with pytest.raises(UserError, match=r"data\.split=train: .*rows\.jsonl is not of the hub"):
        load(split="train")


def test_cache_is_found_again_and_never_stale(load, tmp_path, monkeypatch):
    built = []
    write = module.write_arrow
    monkeypatch.setattr(module, "write_arrow", lambda *a: (built.append(a[0]), write(*a)))
    source = own_rows(tmp_path / "rows.jsonl")
    first = load(source)
    again = load(source)
    assert len(built) == 1
    assert again.fingerprint == first.fingerprint
    assert again.train["input_ids"][:] == first.train["input_ids"][:]
    assert load(source, eval_size=5).fingerprint != first.fingerprint
    assert len(built) == 1  # the encoded rows are the same, only the split is another
    fingerprints = {first.fingerprint}
    for change in ({"max_seq_length": 60}, {"label_mask": "clean"}, {"seed": 1}, {"max_rows": 30}):
        fingerprints.add(load(source, **change).fingerprint)
    stat = source.stat()
    source.write_text(source.read_text().replace("question 7", "question X"))
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    fingerprints.add(load(source).fingerprint)
    assert len(fingerprints) == 6
    assert len(built) == 6
    monkeypatch.setattr(module, "code_hash", lambda corpus: "another version")
    assert load(source).fingerprint not in fingerprints


def test_two_processes_build_once_and_read_the_same(load, tmp_path, monkeypatch):
    source = own_rows(tmp_path / "rows.jsonl", count=400)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    log = tmp_path / "builds"
    write = module.write_arrow

    def logged(path, schema, batches):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        write(path, schema, batches)

    monkeypatch.setattr(module, "write_arrow", logged)

    def work():
        barrier.wait()
        data = load(source)
        results.put((data.fingerprint, sum(map(sum, data.train["input_ids"])), len(data.eval)))

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = (results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert first == second
    assert len(log.read_text().splitlines()) == 1


MEMORY = """
import resource, sys
from transformers import AutoTokenizer
from mos.data import check_source, load_training_data

tokenizer, source, cache = sys.argv[1:]
load_training_data(
    AutoTokenizer.from_pretrained(tokenizer), corpus="messages", source=source, cache_dir=cache
)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_at_a_million_rows(tiny_model_dir, tmp_path, repo_dir):
    peaks = {}
    for count in (20_000, 1_000_000):
        source = own_rows(tmp_path / f"{count}.jsonl", count=count, width=60)
        result = subprocess.run(
            [sys.executable, "-c", MEMORY, tiny_model_dir, source, tmp_path / "cache"],
            capture_output=True,
            text=True,
            cwd=repo_dir,
            check=True,
        )
        peaks[count] = int(result.stdout.split()[-1])
    print("peak MiB by rows:", peaks)
    assert peaks[1_000_000] < peaks[20_000] + 150
