"""Folders that are built once are verified by content before they are used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mos.files import SEAL, build_once, hash_files


@pytest.fixture
def built(tmp_path):
    """Ask for a folder with two files; says how often it was built."""
    builds: list[Path] = []

    def build(folder: Path) -> None:
        builds.append(folder)
        (folder / "below").mkdir()
        (folder / "rows").write_bytes(bytes(range(200)))
        (folder / "below" / "statistics.json").write_text('{"n": 200}')

    def ask() -> int:
        assert build_once(tmp_path / "entry", build) == tmp_path / "entry"
        assert (tmp_path / "entry" / "rows").read_bytes() == bytes(range(200))
        assert (tmp_path / "entry" / "below" / "statistics.json").read_text() == '{"n": 200}'
        return len(builds)

    return ask


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows", bytes(200)),
        ("rows", bytes(range(100))),
        ("rows", None),
        ("below/statistics.json", b""),
        (SEAL, b"[1]"),
        (SEAL, b"[" * 100_000),
        (SEAL, b"\xff"),
        (SEAL, b'{"rows": null}'),
        (SEAL, None),
    ],
)
def test_a_damaged_folder_is_built_again_with_a_word(built, tmp_path, capsys, name, content):
    assert built() == built() == 1
    file = tmp_path / "entry" / name
    file.write_bytes(content) if content is not None else file.unlink()
    assert built() == built() == 2
    said = capsys.readouterr().out
    assert f"{file.name} is {'missing' if content is None else 'damaged'}; it is made again" in said


def test_a_copied_and_read_only_folder_is_used(built, tmp_path):
    built()
    shutil.move(tmp_path / "entry", tmp_path / "original")
    shutil.copytree(tmp_path / "original", tmp_path / "entry")
    for file in (tmp_path / "entry").rglob("*"):
        os.utime(file, (1, 1))
    (tmp_path / "entry.lock").unlink(missing_ok=True)
    tmp_path.chmod(0o555)
    try:
        assert built() == 1
    finally:
        tmp_path.chmod(0o755)


def test_an_emptied_memo_is_not_a_hash(tmp_path):
    file = tmp_path / "file"
    file.write_text("content")
    first = hash_files([file], tmp_path)
    (memo,) = (tmp_path / "fingerprints").iterdir()
    for damaged in (b"", b"\xff\xfe", b"0" * 63):
        memo.write_bytes(damaged)
        assert hash_files([file], tmp_path) == first
