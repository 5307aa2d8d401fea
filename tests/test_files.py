"""Folders that are verified; outputs that replace only what is theirs; JSON that is strict."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mos.config import compose_config, resolved
from mos.errors import DataError, UserError
from mos.files import (
    MANIFEST,
    SEAL,
    SET_ASIDE,
    beside,
    build_once,
    damage,
    discard,
    hash_files,
    output,
    read_json,
    seal,
    set_aside,
    source_hash,
    write_json,
)


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
    ("name", "content", "reason"),
    [
        ("rows", bytes(200), "rows has changed since it was written"),
        ("rows", bytes(range(100)), "rows has changed since it was written"),
        ("rows", None, "rows is missing"),
        ("below/statistics.json", b"", "below/statistics.json has changed since it was written"),
        (SEAL, b"[1]", "its .seal is damaged"),
        (SEAL, b"[" * 100_000, "its .seal is damaged"),
        (SEAL, b"\xff", "its .seal is damaged"),
        (SEAL, b'{"rows": null}', "its .seal is damaged"),
        (SEAL, b"{}", "its .seal names no file"),
        (SEAL, None, "it was not finished"),
    ],
)
def test_a_damaged_folder_is_built_again(built, tmp_path, capsys, name, content, reason):
    assert built() == built() == 1
    file = tmp_path / "entry" / name
    file.write_bytes(content) if content is not None else file.unlink()
    assert built() == built() == 2
    said = capsys.readouterr().out
    assert f"{tmp_path / 'entry'}: " in said
    assert f"{reason}; it is made again" in said
    aside = [p for p in tmp_path.iterdir() if SET_ASIDE.search(p.name)]
    if content is not None:  # it may be somebody's work
        assert (aside[0] / name).read_bytes() == content


def test_a_file_that_a_user_put_into_a_cached_folder_survives(built, tmp_path):
    built()
    (tmp_path / "entry" / "below" / "mine.txt").write_text("mine")
    assert built() == 1
    assert (tmp_path / "entry" / "below" / "mine.txt").read_text() == "mine"
    (tmp_path / "entry" / "rows").write_bytes(b"edited")
    assert built() == 2
    (aside,) = (p for p in tmp_path.iterdir() if SET_ASIDE.search(p.name))
    left = {str(p.relative_to(aside)): p.read_bytes() for p in aside.rglob("*") if p.is_file()}
    del left[SEAL]
    assert left == {"below/mine.txt": b"mine", "rows": b"edited"}


def test_scratch_of_killed_builds_goes_and_other_folders_stay(built, tmp_path):
    with beside(tmp_path / "entry") as scratch:
        shutil.copytree(scratch.parent, tmp_path / ".entry.12345678.partial")
    for name in ("entry.partial", ".entry.partial", ".entry.other.12345678.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    built()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        "entry", "entry.lock", "entry.partial", ".entry.partial", ".entry.other.12345678.partial"
    }  # fmt: skip


def test_what_is_set_aside_has_a_name_of_its_own(tmp_path):
    kept = []
    for content in "abc":
        (tmp_path / "file").write_text(content)
        kept.append(set_aside(tmp_path / "file"))
    assert [path.read_text() for path in kept] == ["a", "b", "c"]
    assert all(SET_ASIDE.search(path.name) for path in kept)


def test_a_sealed_folder_is_discarded_without_what_is_not_in_its_seal(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in ("whole", "more"):
        folder = tmp_path / name
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "weights").write_text("weights")
        seal(folder)
    (folder / "below" / "mine").symlink_to(outside)
    discard(tmp_path / "whole")
    discard(tmp_path / "more")
    (kept,) = tmp_path.glob("*.old-*")
    assert sorted(path.name for path in kept.rglob("*")) == [SEAL, "below", "mine"]
    assert outside.read_text() == "mine"


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


def test_an_emptied_memo_is_not_a_hash(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("content")
    monkeypatch.setattr("time.time", lambda: file.stat().st_ctime + 3)
    first = hash_files([file], tmp_path)
    (memo,) = (tmp_path / "fingerprints").iterdir()
    for damaged in (b"", b"\xff\xfe", b"0" * 63):
        memo.write_bytes(damaged)
        assert hash_files([file], tmp_path) == first


def test_a_change_that_keeps_size_and_time_is_another_content(tmp_path, monkeypatch):
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    file = sealed / "weights"
    file.write_text("1.0")
    seal(sealed)
    os.utime(file, (1, 1))
    monkeypatch.setattr("time.time", lambda: file.stat().st_ctime + 3)
    before = source_hash(sealed, tmp_path)
    assert damage(sealed) == ""
    file.write_text("2.0")
    os.utime(file, (1, 1))
    assert source_hash(sealed, tmp_path) != before
    assert "weights has changed" in damage(sealed)


def test_files_that_are_no_data_change_no_content(tmp_path):
    data = tmp_path / "data"
    (data / "test").mkdir(parents=True)
    (data / "test" / "rows.csv").write_text("1")
    before = source_hash(data, tmp_path)
    for name in (".DS_Store", "test/.rows.csv.swp", "README.md", "test/rows.csv~", ".git/HEAD"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_text("2")
    assert source_hash(data, tmp_path) == before
    assert source_hash(data / "README.md", tmp_path)  # who names it, means it
    (data / "test" / "more.csv").write_text("2")
    assert source_hash(data, tmp_path) != before


def written(out, command="export", names=("*",), **files):
    with output(out, command, names) as folder:
        for name, content in files.items():
            file = folder / name.replace("__", "/").replace("_", ".")
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
    return contents(out)


def contents(out):
    files = (path for path in out.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(out)): path.read_text() for path in files}


def test_an_output_takes_the_place_of_its_earlier_files_and_of_no_others(tmp_path):
    out = tmp_path / "deep" / "out"
    written(out, a_txt="1", b_txt="1", below__c_txt="1", plots__d_txt="1")
    (out / "below" / "mine.txt").write_text("mine")
    new = {"a.txt": "2", "new.txt": "2", "below/mine.txt": "mine"}
    assert written(out, a_txt="2", new_txt="2") == new
    assert sorted(p.name for p in out.iterdir()) == [MANIFEST, "a.txt", "below", "new.txt"]
    with pytest.raises(ValueError), output(out, "export") as folder:
        (folder / "a.txt").write_text("\ud800")  # fails within
    assert contents(out) == new


def test_the_files_of_two_commands_in_one_folder_are_apart(tmp_path):
    written(tmp_path, "summarize", ["report.html"], report_html="1", old_csv="1")
    with pytest.raises(UserError, match=r"holds \S+, which mos did not write there"):
        written(tmp_path, a_txt="1")
    written(tmp_path, names=["a.txt"], a_txt="1")
    both = {"a.txt": "1", "report.html": "2"}
    assert written(tmp_path, "summarize", ["report.html"], report_html="2") == both
    with pytest.raises(UserError, match=r"a\.txt, which mos did not write there"):
        written(tmp_path, "summarize", ["report.html"], report_html="3", a_txt="3")
    assert contents(tmp_path) == both


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a.txt", "was edited since mos wrote it"), ("b.txt", "mos did not write there")],
)
def test_what_is_in_the_way_is_named_before_anything_is_computed(name, reason, tmp_path):
    out = tmp_path / "out"
    written(out, a_txt="1")
    (out / name).write_text("mine")
    before = contents(out)
    with (
        pytest.raises(UserError, match=f"{out} holds {name}, which {reason}"),
        output(out, "export"),
    ):
        raise AssertionError("computed")
    assert contents(out) == before


@pytest.mark.parametrize("name", ["a.txt", "below"])
def test_a_file_that_comes_while_an_output_is_computed_is_seen(name, tmp_path):
    def compute():
        with output(tmp_path, "export") as folder:
            (folder / name).write_text("1")
            (tmp_path / name / "mine").mkdir(parents=True)

    with pytest.raises(UserError, match=f"{name}, which mos did not write"):
        compute()
    assert (tmp_path / name / "mine").is_dir()


def test_after_a_kill_between_two_files_all_of_them_are_named(tmp_path, monkeypatch):
    written(tmp_path, a_txt="1", b_txt="1", c_txt="1")
    replace, replaced = Path.replace, []

    def killed(path, target):
        replaced.append(target)
        if len(replaced) == 3:  # the manifest is the first
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path, a_txt="2", b_txt="2")
    assert sorted(contents(tmp_path).values()) == ["1", "1", "2"]
    assert written(tmp_path, a_txt="3") == {"a.txt": "3"}


def test_a_manifest_that_names_files_elsewhere_removes_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    written(tmp_path / "out", a_txt="1")
    manifest = tmp_path / "out" / MANIFEST
    manifest.write_text(manifest.read_text().replace("a.txt", "../mine.txt"))
    (tmp_path / "out" / "a.txt").rename(tmp_path / "mine.txt")
    with pytest.raises(UserError, match=r"holds \.\./mine\.txt"):
        written(tmp_path / "out", b_txt="1")
    assert (tmp_path / "mine.txt").is_file()


def test_the_working_folder_may_be_written_to_and_keeps_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for content in "12":
        written(Path(), a_txt=content)
    assert contents(tmp_path) == {"a.txt": "2", "notes/mine.txt": "mine"}


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0o500)
    for place in ("file", "file/below", *(["closed/below"] if os.geteuid() else [])):
        with (
            pytest.raises(UserError, match=f"{place} cannot be written"),
            output(tmp_path / place, "export"),
        ):
            pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["closed", "file"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with output("~/out", "export") as folder:
        (folder / "file").write_text("")
    assert (tmp_path / "out" / "file").is_file()
    config = resolved(compose_config(["paths.output_dir='~/a'", "data.source='~'"]))
    assert config["paths"]["output_dir"] == f"{tmp_path}/a"
    assert config["data"]["source"] == str(tmp_path)


def test_json_is_strict_and_its_faults_name_the_file(tmp_path):
    write_json(tmp_path / "a.json", {"loss": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.5}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.5}
    for text in ("", "{", "[" * 100_000, "9" * 5000, '{"loss": 0.5}'[:-1]):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DataError, match=r"a\.json.*: not whole JSON"):
            read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(DataError, match=r"a\.json: not UTF-8 text \(byte 7\)"):
        read_json(tmp_path / "a.json")
