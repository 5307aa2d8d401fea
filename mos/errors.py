"""Errors that a user can correct: what was found and where, what was expected, what to do."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# More names than this are not listed.
LISTED = 40


class UserError(ValueError):
    """Something the user asked for or supplied is wrong. Commands print only its message.

    Attributes:
        exit_status: of the command that it ends.
    """

    exit_status = 2


class LeftOutError(UserError):
    """Some of several members could not be used; the others were.

    Args:
        failures: the members that were left out, each with the reason.
        of: how many there were.
    """

    exit_status = 1

    def __init__(self, failures: Mapping[str, str], of: int) -> None:
        self.failures, self.of = dict(failures), of
        reasons: dict[str, list[str]] = {}
        for name, reason in failures.items():
            reasons.setdefault(reason, []).append(name)
        lines = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
        super().__init__("\n".join([f"{len(failures)} of {of} were left out:", *lines]))

    def __reduce__(self):
        return type(self), (self.failures, self.of)


class DataError(UserError):
    """A row of a data file, or the file, cannot be used.

    Args:
        path: the file.
        line: 1-based line (or row) number; None if it concerns the whole file.
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
    """A file or folder that the job needs does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


def write_fault(error: BaseException) -> str | None:
    """What kept a file from being written ("No space left on device"); None for other errors.

    safetensors and torch say it in exceptions of their own, torch without the reason.
    """
    number = error.errno if isinstance(error, OSError) else None
    if said := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(said[1])
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return os.strerror(number)
    of_torch = re.search(r"inline_container.*unexpected pos|PytorchStreamWriter", str(error))
    return "is the disk full?" if of_torch else None


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """ " Did you mean 'x'?" with the closest of the known names; "" if none is close."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(what: str, name: Any, known: Iterable[str]) -> UserError:
    """The error for a name, or a dotted key that ends in one, which is not among the known ones."""
    known = sorted(known)
    among = f"Known: {', '.join(known)}." if known else "There are none."
    if len(known) > LISTED:
        among = ""
    hint = did_you_mean(str(name).rpartition(".")[2], known)
    return UserError(f"Unknown {what} '{name}'.{hint} {among}".rstrip())
