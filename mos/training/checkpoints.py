"""Checkpoints that are whole or not taken: hashes of every file, written last.

A checkpoint is sealed once all its files are on disk. A kill at any moment leaves either a sealed
checkpoint or one that is recognised as unfinished; bytes that change later no longer match.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mos.console import say
from mos.files import hash_file, parse_json, write_json

SEAL = "complete.json"


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint folder as complete: flush every file, then write their hashes."""
    hashes = {}
    for file in sorted(f for f in checkpoint.rglob("*") if f.is_file() and f.name != SEAL):
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
            hashes[str(file.relative_to(checkpoint))] = hash_file(file)
    write_json(checkpoint / SEAL, {"sha256": hashes})


def damage(checkpoint: Path) -> str:
    """Why a checkpoint cannot be trusted, or "" if it is as it was sealed."""
    try:
        sealed = parse_json((checkpoint / SEAL).read_text("utf-8"))["sha256"]
        if not sealed:
            return f"its {SEAL} names no file"
        for name, expected in sealed.items():
            if hash_file(checkpoint / name) != expected:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        name = Path(error.filename).name
        return "it was not finished" if name == SEAL else f"{name} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"its {SEAL} is damaged"
    return ""


def newest_valid(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those past it are named, and removed.

    They are removed because the run will write checkpoints of the same names again. What has
    another name is not looked at.
    """
    named = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    checkpoints = [path for path in folder.glob("*") if named.fullmatch(path.name)]
    for checkpoint in sorted(checkpoints, key=step_of, reverse=True):
        reason = damage(checkpoint)
        if not reason:
            return checkpoint
        say(f"{checkpoint.name} is not used: {reason}")
        if checkpoint.is_dir() and not checkpoint.is_symlink():
            shutil.rmtree(checkpoint)
        else:
            checkpoint.unlink()
    return None


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps after which a checkpoint was taken."""
    return int(checkpoint.name.rsplit("-", 1)[1])
