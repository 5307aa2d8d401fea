"""Folders that are written whole: built once and sealed, or replaced if this program wrote them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from mos.console import say
from mos.errors import UserError
from mos.files import hash_file, read_json, write_json

SEAL = ".seal"  # without .json, so that it is not taken for a part of a model
MARK = ".written-by-mos"
MARK_TEXT = "mos wrote this folder and may replace what is in it.\n"


def build_once(target: Path, build: Callable[[Path], object]) -> Path:
    """Return the folder `target`; the first process that asks for it calls `build` to fill it.

    `build` gets an empty folder beside `target`, which is renamed to it at the end, so that nobody
    sees a part of it. `.seal` holds the hashes of its files. If a file is not as it was written,
    the folder is built again, and a line says so.
    """
    if target.is_dir() and damage(target) is None:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            if (fault := damage(target)) is None:
                return target
            say(f"{target}: {fault}; it is made again")
        scratch = target.with_name(f"{target.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
        scratch.mkdir()
        try:
            build(scratch)
            seal(scratch)
            _put_in_place(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def seal(folder: Path) -> None:
    """Write `.seal`: size, modification time and sha256 of every file below `folder`."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        name = str(path.relative_to(folder))
        files[name] = [stat.st_size, stat.st_mtime_ns, hash_file(path)]
    write_json(folder / SEAL, files)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a sealed folder; None if they are as they were sealed.

    Only files whose size or modification time differs from the seal are read.
    """
    try:
        files = read_json(folder / SEAL)
        for name, (size, changed, sha256) in files.items():
            stat = (folder / name).stat()
            if (stat.st_size, stat.st_mtime_ns) == (size, changed):
                continue
            if stat.st_size != size or hash_file(folder / name) != sha256:
                return f"{name} is damaged"
    except OSError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError, AttributeError):
        return f"{SEAL} is damaged"
    return None


@contextmanager
def replaced(folder: str | Path, key: str = "out") -> Iterator[Path]:
    """Yield an empty folder to write into, which takes the place of `folder` when the block ends.

    The new folder gets a mark. An existing folder is replaced only if it is empty or has the mark.
    If the block raises, it stays as it was.

    Args:
        key: the option that named the folder, for messages.

    Raises:
        UserError: the folder holds files that this program did not write, is the working folder or
            a parent of it, is a file, or cannot be written.
    """
    target = check_own(folder, key)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(key, folder, error) from error
    try:
        yield scratch
        (scratch / MARK).write_text(MARK_TEXT)
        _put_in_place(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_own(folder: str | Path, key: str = "out") -> Path:
    """The absolute path of a folder that may be replaced: a new, an empty or a marked one.

    Raises:
        UserError: as `replaced`.
    """
    target = Path(folder).expanduser().resolve()
    if Path.cwd().is_relative_to(target):
        raise UserError(
            f"{key}={folder} is the working folder or a parent of it: give another folder."
        )
    try:
        if target.exists() and not target.is_dir():
            raise UserError(f"{key}={folder} is a file: give a folder.")
        if target.is_dir() and not (target / MARK).is_file() and any(target.iterdir()):
            raise UserError(
                f"{key}={folder} holds files that mos did not write there: give a new folder, or"
                " remove it first."
            )
    except OSError as error:
        raise _unwritable(key, folder, error) from error
    return target


def check_writable(folder: str | Path, key: str) -> None:
    """Check that a folder can be made, or written to, before something is computed for it.

    Raises:
        UserError: it cannot.
    """
    target = Path(folder).expanduser().absolute()
    place = next(path for path in (target, *target.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise _unwritable(key, folder, error) from error


def claim(folder: str | Path, names: Iterable[str], key: str = "out") -> Path:
    """Make a folder that files of these names can be written to, mark it, and return it.

    Raises:
        UserError: the folder has no mark but such a file, which this program did not write then;
            or it cannot be written.
    """
    target = Path(folder).expanduser()
    try:
        if not (target / MARK).is_file():
            if taken := [name for name in names if (target / name).exists()]:
                raise UserError(
                    f"{key}={folder} has a {taken[0]} that mos did not write: give another"
                    " folder, or remove it first."
                )
            target.mkdir(parents=True, exist_ok=True)
            (target / MARK).write_text(MARK_TEXT)
    except OSError as error:
        raise _unwritable(key, folder, error) from error
    return target


def _unwritable(key: str, folder: str | Path, error: OSError) -> UserError:
    return UserError(f"{key}={folder} cannot be written ({error.strerror}): give another folder.")


def _put_in_place(scratch: Path, target: Path) -> None:
    """Rename `scratch` to `target`, and delete what `target` was before."""
    former = scratch.with_name(f"{scratch.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        target.rename(former)
    scratch.rename(target)
    shutil.rmtree(former, ignore_errors=True)
