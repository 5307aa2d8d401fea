"""Completions on disk: what an engine has answered is not asked again."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout

from eval.benchmark import Completion, Request
from mos.console import say
from mos.errors import UserError
from mos.files import hash_json, lock_at, set_aside


class DiskError(UserError):
    """A result that cannot be written."""


def request_key(request: Request) -> str:
    """What determines an answer, for given weights and engine; the id seeds sampling."""
    said = f"{request.id}\0{request.prompt_sha256}\0{request.decoding}"
    return hashlib.sha256(said.encode()).hexdigest()


class CompletionStore:
    """The completions of one identity (weights, adapter, engine) for one benchmark, in SQLite.

    Requests have keys of their own, so a limit or a choice of tasks shares its answers with the
    whole. Use as a context manager: it holds a lock, so that a second evaluator waits and then
    finds the answers. A file that is damaged is set aside.

    Args:
        cache_dir: holds `completions/<identity>/<benchmark>.sqlite`.
        identity: everything but the requests that an answer depends on.
        benchmark: name of the file.
    """

    def __init__(self, cache_dir: str | Path, identity: Mapping[str, Any], benchmark: str) -> None:
        folder = Path(cache_dir) / "completions" / hash_json(identity)[:16]
        self.path = folder / f"{benchmark}.sqlite"
        self._lock: BaseFileLock | None = None
        self._found: dict[str, Completion] = {}
        self._file: sqlite3.Connection | None = None

    def __enter__(self) -> CompletionStore:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = lock_at(Path(f"{self.path}.lock"))
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                say("another process evaluates the same weights; waiting for it")
                self._lock.acquire()
            self._open()
        except (OSError, sqlite3.Error) as error:
            self.__exit__()
            raise unwritable(self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()

    def get(self, request: Request) -> Completion | None:
        return self._found.get(request_key(request))

    def add(self, batch: Iterable[tuple[Request, Completion]]) -> None:
        """Keep a batch of answers: from now on they survive a kill.

        Raises:
            DiskError: the disk is full or read-only.
        """
        assert self._file is not None
        answers = {request_key(request): completion for request, completion in batch}
        rows = [(key, json.dumps(asdict(answer))) for key, answer in answers.items()]
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise unwritable(self.path, error) from error
        self._found.update(answers)

    def _open(self) -> None:
        file = self._file = sqlite3.connect(self.path)
        try:
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT)")
            rows = file.execute("SELECT key, answer FROM answers")
            self._found = {key: completion_from(json.loads(answer)) for key, answer in rows}
        except sqlite3.OperationalError:  # of the disk, not of what is on it
            raise
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            say(f"{self.path} is damaged ({error}): its answers are asked for again")
            file.close()
            for part in ("", "-wal", "-shm"):
                if (path := self.path.with_name(self.path.name + part)).exists():
                    set_aside(path)
            self._open()


def unwritable(path: Path, error: OSError | sqlite3.Error) -> DiskError:
    """The error for a file that cannot be written."""
    return DiskError(
        f"{path} cannot be written ({getattr(error, 'strerror', None) or error}): free some space,"
        " or make the folder writable, and run the same command again. It continues where it was."
    )


def completion_from(values: Mapping[str, Any]) -> Completion:
    """A completion from its JSON form."""
    known = {field.name for field in fields(Completion)}
    if set(values) != known:
        raise ValueError(f"expected the keys {sorted(known)}, found {sorted(values)}")
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Completion(**{**values, **lists})
