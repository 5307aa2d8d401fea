"""A program's working folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path


@contextmanager
def fresh(path: str) -> Iterator[str]:
    """A new folder; deleted in the end, whatever is in it."""
    folder = Path(path)
    folder.mkdir(mode=0o700)
    try:
        yield path
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Delete a folder, of any depth: shutil.rmtree's recursion ends before a program's nesting."""
    numbers = count()
    folder.chmod(0o700)
    while entries := list(folder.iterdir()):
        for entry in entries:
            if not _is_folder(entry):
                entry.unlink()
                continue
            # Its content moves up, so that no path ever gets long.
            entry.chmod(0o700)
            for child in entry.iterdir():
                if _is_folder(child):
                    child.chmod(0o700)
                while os.path.lexists(target := folder / str(next(numbers))):
                    pass
                child.rename(target)
            entry.rmdir()
    folder.rmdir()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
