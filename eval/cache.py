"""Completions on disk: what an engine has answered is not asked again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eval.benchmark import Completion, Request
from eval.results import SEAL, is_edited, sealed
from mos.console import say
from mos.errors import UserError
from mos.files import hash_json, parse_json


class DiskError(UserError):
    """A result that cannot be written."""


def request_key(request: Request) -> str:
    """What determines an answer, for given weights and engine; the id seeds sampling."""
    said = f"{request.id}\0{request.prompt_sha256}\0{request.decoding}"
    return hashlib.sha256(said.encode()).hexdigest()


class CompletionStore:
    """A journal of the completions of one identity (weights, adapter, engine) for one benchmark.

    Requests have keys of their own, so a limit or a choice of tasks shares its answers with the
    whole. Use as a context manager: it holds a lock, so that a second evaluator waits and then
    finds the answers. Every line holds a batch and its hash. From the first line on that is
    damaged, or that a kill or a full disk cut short, the file is cut off when it is opened.

    Args:
        cache_dir: holds `completions/<identity>/<benchmark>.jsonl`.
        identity: everything but the requests that an answer depends on; the file's first line.
        benchmark: name of the file.
    """

    def __init__(self, cache_dir: str | Path, identity: Mapping[str, Any], benchmark: str) -> None:
        folder = Path(cache_dir) / "completions" / hash_json(identity)[:16]
        self.path = folder / f"{benchmark}.jsonl"
        self._header = json.dumps({"identity": identity}, sort_keys=True).encode() + b"\n"
        self._lock = FileLock(f"{self.path}.lock")
        self._found: dict[str, Completion] = {}
        self._file: int | None = None

    def __enter__(self) -> CompletionStore:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                say("another process evaluates the same weights; waiting for it")
                self._lock.acquire()
            self._open()
        except OSError as error:
            self.__exit__()
            raise unwritable(self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._lock.release()

    def get(self, request: Request) -> Completion | None:
        return self._found.get(request_key(request))

    def add(self, batch: Iterable[tuple[Request, Completion]]) -> None:
        """Keep a batch of answers: from now on they survive a kill.

        Raises:
            DiskError: the disk is full or read-only.
        """
        answers = {request_key(request): completion for request, completion in batch}
        line = json.dumps(
            sealed({"answers": {key: asdict(answer) for key, answer in answers.items()}})
        )
        try:
            self._append(line.encode() + b"\n")
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._found.update(answers)

    def _open(self) -> None:
        file = self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        content = self.path.read_bytes()
        good = self._take(content)
        if good < len(content):
            say(f"{self.path}: the end is broken and computed again")
            os.ftruncate(file, good)
        os.lseek(file, good, os.SEEK_SET)
        if good == 0:
            self._append(self._header)

    def _take(self, content: bytes) -> int:
        """Take the answers of a journal; returns the length of its sound part."""
        good = 0
        for line in content.splitlines(keepends=True):
            try:
                if not line.endswith(b"\n") or (good == 0 and line != self._header):
                    break
                if good:
                    self._found.update(_parse(line))
            except (ValueError, TypeError, AttributeError):
                break
            good += len(line)
        return good

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._file, rest) :]


def unwritable(path: Path, error: OSError) -> DiskError:
    """The error for a file that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DiskError(
        f"{path}: {'the disk is full' if full else error.strerror or error}."
        f" {'Free some space' if full else 'Make the folder writable'} and run the same command"
        " again: it continues where it was."
    )


def completion_from(values: Mapping[str, Any]) -> Completion:
    """A completion from its JSON form."""
    known = {field.name for field in fields(Completion)}
    if set(values) != known:
        raise ValueError(f"expected the keys {sorted(known)}, found {sorted(values)}")
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Completion(**{**values, **lists})


def _parse(line: bytes) -> dict[str, Completion]:
    batch = parse_json(line)
    if is_edited(batch):
        raise ValueError("the line is not what was written")
    answers = batch["answers"] if SEAL in batch else batch  # lines had no hash once
    return {key: completion_from(values) for key, values in answers.items()}
