"""A program's working folder; os is several times as fast as pathlib where there are very many."""

# ruff: noqa: PTH101, PTH104, PTH106, PTH108

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count


@contextmanager
def emptied(folder: str) -> Iterator[str]:
    """A folder of which nothing is left in the end, whatever was put there.

    It stays: what is above it is not writable for programs, who can neither fill nor rename that.
    """
    try:
        yield folder
    finally:
        _empty(folder)


def _empty(folder: str) -> None:
    """For any depth: shutil.rmtree's recursion ends before a program's nesting."""
    numbers = count()
    with suppress(PermissionError):  # not ours, and nobody can have changed it
        os.chmod(folder, 0o700)
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            with suppress(OSError):  # most are empty where there are very many
                os.rmdir(entry.path)
                continue
            # Its content moves up, so that no path ever gets long.
            os.chmod(entry.path, 0o700)
            for child in list(os.scandir(entry.path)):
                if child.is_dir(follow_symlinks=False):
                    os.chmod(child.path, 0o700)
                while os.path.lexists(target := f"{folder}/{next(numbers)}"):
                    pass
                os.rename(child.path, target)
            os.rmdir(entry.path)
