"""A checkpoint is taken only if it is whole and unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from mos.files import SEAL, SET_ASIDE, damage, seal
from mos.training.checkpoints import newest_valid, rotate
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


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda c: (c / SEAL).unlink(), "not finished"),
        *(
            (lambda c, seal=seal: (c / SEAL).write_bytes(seal), "damaged")
            for seal in (b"{", b"[]", b"null", b'{"optimizer.pt": 1}', b"\xff")
        ),
        (lambda c: (c / SEAL).write_text("{}"), "names no file"),
        (lambda c: (c / "optimizer.pt").unlink(), "missing"),
        (lambda c: (c / "optimizer.pt").write_bytes(b"other"), "changed"),
        (lambda c: (c / "adapter_model.safetensors").write_bytes(b"\x0a" * 99), "changed"),
    ],
)
def test_a_damaged_one_is_named_and_passed_over(checkpoints, break_it, reason, capsys):
    broken = checkpoints / "checkpoint-10"
    break_it(broken)
    before = {path.name: path.read_bytes() for path in broken.iterdir()}
    assert reason in damage(broken, trust_times=False)
    assert newest_valid(checkpoints).name == "checkpoint-4"
    said = capsys.readouterr().out
    assert "checkpoint-10" in said
    assert reason in said
    assert not broken.exists()
    for aside in filter(Path.is_dir, checkpoints.iterdir()):  # what is not as it was written
        if SET_ASIDE.search(aside.name):
            assert {p.name: p.read_bytes() for p in aside.iterdir()}.items() <= before.items()


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


def test_what_a_user_put_into_a_checkpoint_survives(checkpoints):
    for step in (2, 4):
        (checkpoints / f"checkpoint-{step}" / "mine.txt").write_text("mine")
    (checkpoints / "checkpoint-10" / "optimizer.pt").write_bytes(b"edited")
    assert newest_valid(checkpoints).name == "checkpoint-4"
    rotate(checkpoints, 1)
    (edited,) = checkpoints.glob("checkpoint-10.old-*/optimizer.pt")
    assert edited.read_bytes() == b"edited"
    (note,) = checkpoints.glob("checkpoint-2.old-*/mine.txt")
    assert note.read_text() == "mine"
    assert not list(note.parent.glob("*.safetensors"))


def test_none_is_left(tmp_path):
    assert newest_valid(tmp_path) is None


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0), (1, 4), (2, 8), (3, 10), (4, 14), (6, 20), (7, 24)]
)
def test_examples_seen_counts_the_short_last_batch(step, expected):
    assert examples_seen(step, examples=10, batch=4) == expected
