"""Folders that are verified, or replaced only if ours; JSON that is strict and bounded."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest

from mos.config import compose_config, resolved
from mos.errors import UserError
from mos.files import MAX_LINE, bounded_lines, hash_files, parse_json, write_json
from mos.folders import SEAL, build_once, claim, replaced


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


def test_a_folder_is_replaced_only_if_it_is_new_empty_or_ours(tmp_path):
    out = tmp_path / "out"
    for content in ("first", "second"):
        with replaced(out) as folder:
            (folder / content).write_text(content)
        assert sorted(path.name for path in out.iterdir()) == [".written-by-mos", content]
    with pytest.raises(ZeroDivisionError), replaced(out):
        1 / 0  # noqa: B018
    assert (out / "second").is_file()
    (out / ".written-by-mos").unlink()
    with pytest.raises(UserError, match="did not write"), replaced(out):
        pass
    assert (out / "second").is_file()
    (out / "second").unlink()
    with replaced(out) as folder:
        (folder / "third").write_text("")
    assert (out / "third").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_places_that_cannot_be_replaced_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for place, message in {
        ".": "out=. is the working folder",
        "..": "out=.. is the working folder or a parent",
        "file": "is a file",
        "file/below": "cannot be written",
    }.items():
        with pytest.raises(UserError, match=message), replaced(place):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_of_others_are_never_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        assert claim(tmp_path, ["report.html"]) == tmp_path
        (tmp_path / "report.html").write_text("ours")
    (tmp_path / ".written-by-mos").unlink()
    with pytest.raises(UserError, match=r"has a report\.html that mos did not write"):
        claim(tmp_path, ["runs.csv", "report.html"])


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with replaced("~/out"):
        pass
    claim("~/tables", [])
    assert (tmp_path / "out").is_dir()
    assert (tmp_path / "tables").is_dir()
    config = resolved(compose_config(["paths.output_dir='~/a'", "data.source='~'"]))
    assert config["paths"]["output_dir"] == f"{tmp_path}/a"
    assert config["data"]["source"] == str(tmp_path)


def test_json_is_strict_and_its_faults_are_value_errors(tmp_path):
    write_json(tmp_path / "a.json", {"loss": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.5}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.5}
    for text, message in {
        "[" * 100_000: "nested too deeply",
        "9" * 5000: "too many digits",
        "{": "Expecting",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_json(text)


def test_a_long_line_is_cut_and_the_next_is_whole():
    file = io.BytesIO(b"short\n" + b"x" * (3 * MAX_LINE) + b"\nlast")
    assert [len(line) for line in bounded_lines(file)] == [6, MAX_LINE + 1, 4]
