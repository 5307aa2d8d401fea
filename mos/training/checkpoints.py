"""Checkpoints that are whole or not taken: hashes of every file, written last.

A checkpoint is sealed once all its files are on disk. A kill at any moment leaves either a sealed
checkpoint or one that is recognised as unfinished; bytes that change later no longer match.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mos.files import write_json

SEAL = "complete.json"
logger = logging.getLogger(__name__)


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint folder as complete: flush every file, then write their hashes."""
    hashes = {}
    for file in sorted(f for f in checkpoint.rglob("*") if f.is_file() and f.name != SEAL):
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
            hashes[str(file.relative_to(checkpoint))] = _sha256(file)
    write_json(checkpoint / SEAL, {"sha256": hashes})


def damage(checkpoint: Path) -> str:
    """Why a checkpoint cannot be trusted, or "" if it is as it was sealed."""
    try:
        sealed = json.loads((checkpoint / SEAL).read_text("utf-8"))["sha256"]
    except FileNotFoundError:
        return "it was not finished"
    except (json.JSONDecodeError, KeyError):
        return f"its {SEAL} is damaged"
    for name, expected in sealed.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if _sha256(file) != expected:
            return f"{name} has changed since it was written"
    return ""


def newest_valid(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those past it are named, and removed.

    They are removed because the run will write checkpoints of the same names again.
    """
    for checkpoint in sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=step_of, reverse=True):
        reason = damage(checkpoint)
        if not reason:
            return checkpoint
        logger.warning("%s is not used: %s", checkpoint.name, reason)
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
