"""Errors that a user can mend: what was found, where, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# More names than this are not listed.
LISTED = 40


class UserError(ValueError):
    """What the user asked for or supplied is wrong. Entry points print it without a traceback."""


class DataError(UserError):
    """A row of a data file is unusable.

    Args:
        path: the file.
        line: 1-based line (or row) number, or None where the whole file is at fault.
        reason: what is wrong and what was expected.
        hint: what to do about it.
    """

    def __init__(self, path: str | Path, line: int | None, reason: str, hint: str = "") -> None:
        self.path, self.line, self.reason, self.hint = Path(path), line, reason, hint
        place = f"{path}:{line}" if line is not None else f"{path}"
        super().__init__(f"{place}: {reason}" + (f" {hint}" if hint else ""))

    def __reduce__(self):
        return type(self), (self.path, self.line, self.reason, self.hint)


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the job needs is not there."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """` Did you mean 'x'?`, with the known name that is closest; nothing where none is close."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(what: str, name: Any, known: Iterable[str]) -> UserError:
    """The error for a name (or dotted key, which ends in it) that is not among those known."""
    known = sorted(known)
    among = f"Known: {', '.join(known)}." if known else "There are none."
    if len(known) > LISTED:
        among = ""
    hint = did_you_mean(str(name).rpartition(".")[2], known)
    return UserError(f"Unknown {what} '{name}'.{hint} {among}".rstrip())
