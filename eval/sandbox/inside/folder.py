"""A program's working folder: what is above it is not writable for programs."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from itertools import count
from pathlib import Path

from .confine import Limits

_GONE = (FileNotFoundError, NotADirectoryError)  # since it was listed


def overfull(folder: str, limits: Limits) -> bool:
    """Whether more lies below `folder` than a program may keep there.

    So does what hides: folders that cannot be listed, or lie deeper than a path can say.
    """
    entries, size, folders = 0, 0, [folder]
    try:
        while folders:
            with suppress(*_GONE), os.scandir(folders.pop()) as listing:
                for entry in listing:
                    entries += 1
                    with suppress(*_GONE):
                        about = entry.stat(follow_symlinks=False)
                        size += 512 * about.st_blocks
                        folders += [entry.path] if stat.S_ISDIR(about.st_mode) else []
                    if entries > limits.entries or size > limits.folder_mb << 20:
                        return True
    except OSError:
        return True
    return False


def empty(folder: Path) -> None:
    """Leave nothing in `folder`, at any depth: shutil.rmtree recurses, a program nests deeper."""
    numbers = count()
    while entries := list(folder.iterdir()):
        for entry in entries:
            if entry.is_symlink() or not entry.is_dir():
                entry.unlink()
                continue
            # Its content moves up, so that no path ever gets long.
            entry.chmod(0o700)
            for child in list(entry.iterdir()):
                if not child.is_symlink():
                    child.chmod(0o700)
                while os.path.lexists(target := folder / str(next(numbers))):
                    pass
                child.rename(target)
            entry.rmdir()


def remove(folder: str) -> None:
    """Remove `folder`, if it is there still, and all in it."""
    with suppress(FileNotFoundError):
        empty(Path(folder))
        Path(folder).rmdir()
