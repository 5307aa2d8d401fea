"""A checkpoint is taken only if it is whole and unchanged."""

from __future__ import annotations

import os

import pytest

from mos.training.checkpoints import SEAL, damage, newest_valid, rotate, seal
from mos.training.trainer import examples_seen


@pytest.fixture
def checkpoints(tmp_path):
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(bytes([step]) * 100)
        (folder / "optimizer.pt").write_bytes(b"state")
        seal(folder)
    return tmp_path


def test_the_newest_is_taken_by_step_not_by_name(checkpoints):
    assert newest_valid(checkpoints).name == "checkpoint-10"


def pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda c: (c / SEAL).unlink(), "not finished"),
        *(
            (lambda c, seal=seal: (c / SEAL).write_bytes(seal), "damaged")
            for seal in (b"{", b"[]", b"null", b"{}", b'{"sha256": 1}', b"\xff", b"[" * 100_000)
        ),
        (lambda c: (c / SEAL).write_text('{"sha256": {}}'), "names no file"),
        (lambda c: pipe(c / SEAL), f"{SEAL} is damaged (not a regular file"),
        (lambda c: pipe(c / "optimizer.pt"), "optimizer.pt is damaged (not a regular file"),
        (lambda c: (c / "optimizer.pt").unlink(), "missing"),
        (lambda c: (c / "optimizer.pt").write_bytes(b"other"), "changed"),
        (lambda c: (c / "adapter_model.safetensors").write_bytes(b"\x0a" * 99), "changed"),
    ],
)
def test_a_damaged_one_is_named_and_passed_over(checkpoints, break_it, reason, capsys):
    broken = checkpoints / "checkpoint-10"
    break_it(broken)
    assert reason in damage(broken)
    assert newest_valid(checkpoints).name == "checkpoint-4"
    said = capsys.readouterr().out
    assert "checkpoint-10" in said
    assert reason in said
    assert not broken.exists()


def test_odd_names_beside_are_left_alone(checkpoints):
    for name in ("checkpoint-11.bak", "checkpoint-old", "checkpoint-"):
        (checkpoints / name).mkdir()
    (checkpoints / "checkpoint-12").write_text("no folder")
    assert newest_valid(checkpoints).name == "checkpoint-10"
    assert (checkpoints / "checkpoint-11.bak").is_dir()


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [2, 4, 10]),
        (2, None, [4, 10]),
        (1, None, [10]),
        (1, 2, [2, 10]),
        (2, 2, [2, 10]),
    ],
)
def test_the_oldest_are_removed_and_odd_names_are_not_counted(checkpoints, limit, best, left):
    (checkpoints / "checkpoint-11.bak").mkdir()
    rotate(checkpoints, limit, best)
    assert sorted(int(path.name[11:]) for path in checkpoints.glob("checkpoint-*[0-9]")) == left
    assert (checkpoints / "checkpoint-11.bak").is_dir()


def test_none_is_left(tmp_path):
    assert newest_valid(tmp_path) is None


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0), (1, 4), (2, 8), (3, 10), (4, 14), (6, 20), (7, 24)]
)
def test_examples_seen_counts_the_short_last_batch(step, expected):
    assert examples_seen(step, examples=10, batch=4) == expected
