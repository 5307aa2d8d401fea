"""Output on the terminal: messages, errors, tables; what goes to train.log instead."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mos.errors import UserError, write_fault


def is_main_process() -> bool:
    """Whether this process prints and writes: the first of a distributed run, or the only one.

    `accelerate launch` and torchrun set RANK.
    """
    return os.environ.get("RANK", "0") == "0"


def launched_processes() -> int:
    """How many processes a launcher (`accelerate launch`, torchrun) has started for this job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


console = Console(soft_wrap=True, quiet=not is_main_process())
errors = Console(stderr=True, soft_wrap=True)

# Without a handler, logging would print the messages that were just printed.
logging.getLogger("mos").addHandler(logging.NullHandler())


def printable(text: str) -> str:
    """The text with control characters and line ends written out (`\\x1b`).

    For names that come from outside: they must not control the terminal or start a new line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(message: str) -> None:
    """Print a message of one or more lines, and log it; control characters are written out."""
    message = _lines(message)
    console.print(message, highlight=False, markup=False)
    logging.getLogger("mos").info(message)


def note(message: str) -> None:
    """Say what takes a while, on stderr: what the command prints is for others to read."""
    errors.print(_lines(message), highlight=False, markup=False)


def fail(message: str) -> None:
    """Print and log an error that the user can correct."""
    message = _lines(message)
    errors.print("error:", style="bold red", end=" ")
    errors.print(message, highlight=False, markup=False)
    logging.getLogger("mos").error(message)


def _lines(message: str) -> str:
    return "\n".join(map(printable, message.split("\n")))


def show_traceback() -> None:
    """Print the exception that is being handled."""
    errors.print_exception()


INTERRUPTED = 130  # exit status of a command that a signal ended
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def signals_interrupt() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does.

    Schedulers send SIGTERM; closing a terminal sends SIGHUP, which stays ignored under `nohup`. A
    script starts its background jobs with SIGINT ignored; here it works again.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


signals_got: set[int] = set()  # Python drops what a handler raises within a `__del__`


def _interrupt(number: int, frame: Any) -> None:
    signals_got.add(number)
    raise KeyboardInterrupt


class Bar:
    """How far some work is, with the time left: a bar on a terminal, else a line each half minute.

    Of `total` steps, `done` were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0, on: Console = console) -> None:
        first = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        then = TextColumn("{task.fields[text]}"), TimeRemainingColumn()
        self.on, self.said, still = on, time.monotonic(), not on.is_terminal
        self.bars = Progress(*first, *then, console=on, disable=still, speed_estimate_period=600)
        self.bars.add_task(what, total=total, completed=done, text="")
        self.task = self.bars.tasks[0]
        self.bars.start()

    def move(self, done: int, text: str = "") -> None:
        """To a number of steps; the text, if any, stands beside."""
        self.bars.update(self.task.id, completed=done, text=text or self.task.fields["text"])
        if not self.on.is_terminal and time.monotonic() - self.said > 30:
            self.say(self.task.fields["text"])

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.said, left = time.monotonic(), self.task.time_remaining
        to_go = f"  about {timedelta(seconds=int(left))} to go" if left else ""
        step = f"{self.task.description} {int(self.task.completed)}/{self.task.total}"
        self.on.print(f"  {step}  {text}{to_go}", highlight=False)

    def close(self) -> None:
        self.bars.stop()


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say what takes some seconds: a line, which on a terminal has a clock that runs meanwhile."""
    if not console.is_terminal:
        say(f"{what} ...")
        yield
        return
    columns = TextColumn("{task.description} ..."), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(printable(what).replace("[", "\\["), total=None)
        yield


def override(key: str, value: object) -> str:
    """A Hydra override that sets `key` to `value`, whatever characters the value has."""
    if re.fullmatch(r"[\w.@:+-]*/[\w./@:+-]*", str(value)):  # "true" and "1e5" are no texts
        return f"{key}={value}"
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", str(value))  # elsewhere Hydra leaves backslashes alone
    text = text.replace("'", "\\'").replace("${", "\\${")
    return f"{key}='{text}'"


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the program on a UserError: its message without a traceback, and its exit status.

    So does a file that cannot be written, by whichever library.
    """
    try:
        yield
    except UserError as error:
        fail(str(error))
        sys.exit(error.exit_status)
    except Exception as error:
        if (reason := write_fault(error)) is None:
            raise
        file = getattr(error, "filename", None) or "a file"
        fail(f"{file} cannot be written ({reason}). The same command continues from what is kept.")
        sys.exit(UserError.exit_status)


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Send all logging and warnings to `file`, and keep libraries off the terminal."""
    handler = logging.FileHandler(file, encoding="utf-8")
    # On a full disk, each record would be a traceback.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no loading reports of transformers, in between."""
    from transformers.utils import logging as library

    shown, level = library.is_progress_bar_enabled(), library.get_verbosity()
    library.disable_progress_bar()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if shown:
            library.enable_progress_bar()


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice off the terminal; train.log has the warnings."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if "datasets" in sys.modules:  # evaluation does without, and it takes a second to import
        sys.modules["datasets"].disable_progress_bars()
    else:
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    for name in ("transformers", "datasets", "accelerate", "bitsandbytes", "peft"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
