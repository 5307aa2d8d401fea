"""Files by content: hashes that identify runs, caches and models, and writes that are whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from mos.console import say
from mos.errors import DataError, UserError

WEIGHT_FILES = ("*.safetensors", "*.bin")
SEAL = ".seal"  # no .json: it is no part of a model
MARK = ".written-by-mos"
MARK_TEXT = "mos wrote this folder and may replace what is in it.\n"
MAX_LINE = 16 * 2**20  # bytes


def hash_json(value: Any) -> str:
    """sha256 of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_files(files: Iterable[str | Path], cache_dir: str | Path) -> str:
    """sha256 over the names and contents of files, in order.

    Hashing gigabytes takes seconds, so a result is remembered in `cache_dir` under the files'
    paths, sizes and modification times.
    """
    paths = [Path(file) for file in files]
    seen = hash_json([(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths])
    memo = Path(cache_dir) / "fingerprints" / seen
    if memo.is_file() and re.fullmatch(r"[0-9a-f]{64}", known := memo.read_text("latin-1")):
        return known
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{hash_file(path)}\n".encode())
    with suppress(OSError):  # a cache that cannot be written is of use all the same
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, digest.hexdigest())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def source_hash(source: str | Path, cache_dir: str | Path) -> str | None:
    """Content of a file or of all files below a folder; None where there is nothing yet."""
    path = Path(source)
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return hash_files(files, cache_dir) if files else None


def fingerprint(path: str | Path, cache_dir: str | Path) -> str:
    """Content hash of a model folder: config, tokenizer and weights."""
    patterns = ("*.json", *WEIGHT_FILES)
    files = sorted(f for pattern in patterns for f in Path(path).glob(pattern))
    return hash_files(files, cache_dir)


def build_once(target: Path, build: Callable[[Path], object]) -> Path:
    """The folder `target`, made by the first process that asks for it, whole or not at all.

    It is built under a lock in a folder beside and renamed into place, with the hashes of its files
    in `.seal`. A folder whose files are no longer those that were written is built again, and a
    line says so.
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
    """Write `.seal`: size, time of change and sha256 of every file below `folder`."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        name = str(path.relative_to(folder))
        files[name] = [stat.st_size, stat.st_mtime_ns, hash_file(path)]
    write_json(folder / SEAL, files)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a sealed folder; None if they are those that were sealed.

    A file is read only if its size or time of change is not the seal's.
    """
    try:
        files = parse_json((folder / SEAL).read_text("utf-8"))
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
    """An empty folder to write into, which takes the place of `folder` when the block ends.

    It carries a mark. What is there already is replaced only if it is empty or carries the mark;
    if the block raises, it is left as it was.

    Args:
        key: the option that named the folder, for messages.

    Raises:
        UserError: the folder holds what this program did not write, is the working folder or one
            above it, is a file, or cannot be written.
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
    """The absolute path of a folder that may be replaced: new, empty, or marked by `replaced`.

    Raises:
        UserError: as `replaced`.
    """
    target = Path(folder).expanduser().resolve()
    if Path.cwd().is_relative_to(target):
        raise UserError(f"{key}={folder} is the working folder or above it: give a folder below.")
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


def claim(folder: str | Path, names: Iterable[str], key: str = "out") -> Path:
    """Make a folder to write files of these names into, and mark it.

    Raises:
        UserError: it holds one of them without the mark, so that mos did not write it; or it cannot
            be written.
    """
    target = Path(folder).expanduser()
    try:
        if not (target / MARK).is_file():
            if taken := [name for name in names if (target / name).exists()]:
                raise UserError(
                    f"{key}={folder} holds a {taken[0]} that mos did not write: give another"
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
    """Rename a folder to `target`; what is there goes once it is out of the way."""
    former = scratch.with_name(f"{scratch.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        target.rename(former)
    scratch.rename(target)
    shutil.rmtree(former, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write strict JSON, whole or not at all.

    Raises:
        ValueError: a number that is not finite, which JSON cannot hold.
    """
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, with a ValueError for each kind of fault.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, or a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("a number has too many digits") from None


def bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file in bounded memory: of a line above `MAX_LINE` bytes, one byte more."""
    while line := file.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
        yield line


def write_atomically(path: str | Path, text: str) -> None:
    """Write a file that a reader sees whole or not at all, also after a crash."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def read_text(file: Path, limit: int = 4_000_000) -> str:
    """The text of a small file that somebody else may have made.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it is no regular file (a pipe would be waited for), is larger than `limit` bytes,
            or is not UTF-8.
    """
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise DataError(file, None, "not a regular file.")
    if about.st_size > limit:
        raise DataError(file, None, f"{about.st_size:,} bytes; expected at most {limit:,}.")
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(file, None, f"not UTF-8 text (byte {error.start}).") from None


def read_json(file: Path, limit: int = 4_000_000) -> Any:
    """The value in a small JSON file, read as `read_text` does.

    Raises:
        FileNotFoundError: it is not there.
        DataError: as `read_text`; or it is empty, not whole, not JSON, or nested beyond reason.
    """
    text = read_text(file, limit)
    if not text.strip():
        raise DataError(file, None, "is empty (half-written?).")
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
    except (ValueError, RecursionError) as error:
        raise DataError(file, None, f"not whole JSON (half-written?): {error}") from None
    return value
