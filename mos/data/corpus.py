"""What a corpus is to the program."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mos.data.fetch import Original
from mos.data.rows import Example, Report


@dataclass(frozen=True)
class Corpus:
    """A training corpus. Its file in mos/data makes one; a line in `mos.data.corpora` names it.

    Attributes:
        files: the files that a source (a folder, or a file) is made of. Raises MissingFileError
            and DataError.
        rows: streams them as conversations. What is drawn is drawn from the given generator; bad
            rows and departures from the reference go to the report.
        where: where to get the originals, or what form own files have; ends messages.
        folder: where the originals are in `paths.data_dir`.
        originals: what scripts/prepare_train_data.py fetches into `folder`, which is its argument.
    """

    files: Callable[[Path], list[Path]]
    rows: Callable[[Path, random.Random, Report], Iterator[Example]]
    where: str
    folder: str
    originals: Callable[[Path], Sequence[Original]] | None = None
