"""The untrusted side: run a solution, then call its function whenever the referee asks.

Nothing in this process decides anything. It knows the solution's text and the arguments of the
calls so far; what it answers is data, which the referee compares outside.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from . import wire
from .confine import Walls, confine

_CHANNEL = 3
# A thread's share of the address space: a hundred of them leave room for the program's data.
_THREAD_STACK = 4 << 20

# What the reference sets to None before it runs a program, so that a program that uses it fails
# here with the same message. No protection: that is `confine`.
_REMOVED = {
    "builtins": "exit quit help",
    "os": """kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename
        renames truncate replace unlink fchmod fchown chmod chown chroot lchflags lchmod lchown
        getcwd chdir""",
    "shutil": "rmtree move chown",
    "subprocess": "Popen",
}
_UNIMPORTABLE = ("ipdb", "joblib", "resource", "psutil", "tkinter")


class _Sink(io.TextIOBase):
    """Swallows what is written and, as in the reference, raises OSError when read."""

    def write(self, text: str) -> int:
        return len(text)

    def read(self, size: int | None = -1) -> str:
        raise OSError

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        raise OSError


def run(channel: int, walls: Walls, folder: str) -> None:
    """Be the solution process; never returns.

    Args:
        channel: socket to the referee.
        walls: of this process.
        folder: working folder.
    """
    wire.take(channel)
    try:
        try:
            _prepare(walls, folder)
        except Exception as error:
            wire.send(_CHANNEL, {"broken": f"{type(error).__name__}: {error}"})
        else:
            wire.send(_CHANNEL, {"ready": True})
            _serve()
    finally:
        os._exit(0)


def _prepare(walls: Walls, folder: str) -> None:
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)
    tempfile.tempdir = folder
    threading.stack_size(_THREAD_STACK)
    confine(walls, folder)

    sys.stdin = sys.stdout = sys.stderr = _Sink()
    for module, names in _REMOVED.items():
        for name in names.split():
            setattr(importlib.import_module(module), name, None)
    for name in _UNIMPORTABLE:
        sys.modules[name] = None  # type: ignore[assignment]


def _serve() -> None:
    namespace: dict[str, Any] = {}
    request = wire.receive(_CHANNEL)
    entry_point = request["entry_point"]
    reply = _answer(_execute, request["source"], namespace)
    while True:
        wire.send(_CHANNEL, reply)
        request = wire.receive(_CHANNEL)
        if request is None:
            return
        reply = _answer(_call, namespace, entry_point, request)


def _answer(action: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What the action returns, or the message of what it raises, SystemExit and all."""
    try:
        return {"value": wire.encode(action(*arguments))}
    except BaseException as error:
        return {"raised": str(error)}


def _execute(source: str, namespace: dict[str, Any]) -> None:
    exec(compile(source, "<string>", "exec", dont_inherit=True), namespace)


def _call(namespace: dict[str, Any], entry_point: str, request: dict[str, Any]) -> Any:
    if entry_point not in namespace:
        raise NameError(f"name '{entry_point}' is not defined")
    arguments, keywords = wire.decode(request["arguments"]), wire.decode(request["keywords"])
    return namespace[entry_point](*arguments, **keywords)
