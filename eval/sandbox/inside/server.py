"""A clean process that starts two processes per program, keeps their time and ends them.

It never holds a program's text itself, so nothing of it is in the memory of the next program's
processes. It reads no clock of theirs and takes no word of theirs but the referee's result.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from . import confine, folder, referee, solution, wire
from .confine import Limits, Walls

# What solutions import, loaded once. Not numpy: every fork would pay for its pages.
_PRELOADED = (
    *("bisect", "collections", "copy", "datetime", "functools", "hashlib", "heapq", "itertools"),
    *("math", "multiprocessing", "operator", "re", "shutil", "statistics", "string", "typing"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_TICK_MS = 20
_DYING_S = 0.2
_MESSAGE_BYTES = 1 << 20


class _Libraries:
    """Imports the third-party packages that are shown, and no other that lies beside them."""

    def __init__(self, paths: list[str], folders: list[str]):
        self.names = {Path(path).stem for path in paths}
        self.folders = folders

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, self.folders) if name in self.names else None


def main() -> None:
    """Serve until the programs on descriptor 0 end; the first frame on 1 says what is in force.

    The second argument of the command line is a JSON object: `restricted` (there are no
    namespaces around us), `uid` (the user to become, or null), `folder` (where programs may
    write; removed in the end, if it is no file system of its own), `limits`, and the paths of a
    `View`.
    """
    config = json.loads(sys.argv[2])
    sys.argv = [""]
    del sys.path[0]
    programs, verdicts = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in _PRELOADED:
        import_module(name)
    random.seed(42)
    try:
        walls = _walls(config)
    except OSError as error:
        wire.send(verdicts, {"error": str(error)})
        return
    sys.meta_path.append(_Libraries(config["libraries"], config["site"]))
    wire.send(verdicts, {"ready": True})
    gc.freeze()
    work = config["folder"]
    try:
        while verdict := _Match(walls, work, programs).verdict():
            wire.send(verdicts, verdict)  # at once: on a busy machine the next line takes a while
            folder.empty(Path(work))
    finally:
        if walls.restricted:
            folder.remove(work)


def _walls(config: dict[str, Any]) -> Walls:
    """Become the user that programs run as; say what else will hold.

    Raises:
        OSError: what would make this isolation one is missing.
    """
    if config["uid"] is not None:
        os.setgroups([])
        os.setresgid(*[config["uid"]] * 3)
        os.setresuid(*[config["uid"]] * 3)
    confine.prctl(confine.PR_SET_DUMPABLE, 0)
    limits, folders = Limits(**config["limits"]), config["readable"]
    if not config["restricted"]:
        return Walls(limits, restricted=False)
    confine.landlock_version()
    shown = confine.outside(folders, config["hidden"])
    readable = [*shown, *config["libraries"], *_DEVICES]
    return Walls(limits, True, readable, listable=[*folders, *config["site"]])


class _Match:
    """The two processes of one program, which wait for it, and what becomes of them."""

    def __init__(self, walls: Walls, work: str, programs: int):
        self.limits = walls.limits
        self.work = work
        self.programs = programs
        ours, theirs = socket.socketpair()
        self.results, results = os.pipe()
        self.solution = _fork(lambda: solution.run(theirs.fileno(), walls, work))
        self.referee = _fork(lambda: referee.run(ours.fileno(), programs, results, walls, work))
        ours.close()
        theirs.close()
        os.close(results)
        self.statuses: dict[int, tuple[int, float]] = {}
        self.started: float | None = None

    def verdict(self) -> dict[str, Any] | None:
        """`result`, `seconds` on the clock, `infrastructure_error`; None if the caller left."""
        try:
            found = self._watch()
        finally:
            for pid in (self.solution, self.referee):
                self._end(pid)
            os.close(self.results)
        if found is None:
            return None
        seconds = 0.0 if self.started is None else time.monotonic() - self.started
        return {"result": found[0], "seconds": seconds, "infrastructure_error": found[1]}

    def _watch(self) -> tuple[str, bool] | None:
        """The result, and whether it is none of the program's making; None if the caller left."""
        poll = select.poll()
        poll.register(self.results, select.POLLIN)
        poll.register(self.programs, 0)  # reports only that the other end was closed
        while True:
            ready = [fd for fd, _ in poll.poll(None if self.started is None else _TICK_MS)]
            if self.programs in ready:
                return None
            if self._out_of_time():
                return "timed out", False
            if self.started is not None and folder.overfull(self.work, self.limits):
                most = f"{self.limits.entries} entries or {self.limits.folder_mb} MiB"
                return f"failed: its folder holds more than {most}", False
            if self.results not in ready:
                continue
            try:
                report = wire.receive(self.results, _MESSAGE_BYTES, timeout_s=1.0)
            except (OSError, ValueError):
                report = None
            match report:
                case {"started": True} if self.started is None:
                    self.started = time.monotonic()
                    self.cpu_before = {
                        pid: _cpu_s(pid) or 0.0 for pid in (self.solution, self.referee)
                    }
                case {"result": str(result), "unjudged": bool(unjudged)}:
                    return result, unjudged
                case {"vanished": True}:
                    return self._vanished(self.solution, "the solution")
                case _:
                    return self._vanished(self.referee, "the referee")

    def _out_of_time(self) -> bool:
        if self.started is None:
            return False
        if time.monotonic() - self.started > self.limits.wall_s:
            return True
        used = {pid: _cpu_s(pid) for pid in self.cpu_before}
        return any(
            cpu_s is not None and cpu_s - self.cpu_before[pid] > self.limits.cpu_s
            for pid, cpu_s in used.items()
        )

    def _vanished(self, pid: int, name: str) -> tuple[str, bool]:
        """What is said of a process that ended, or hung up, without an answer.

        As in the reference, whose parent waits in vain for a program that leaves by os._exit or
        crashes, it "timed out"; but not if the system killed it for no limit of ours.
        """
        deadline = time.monotonic() + _DYING_S
        while not self._reap(pid, os.WNOHANG) and time.monotonic() < deadline:
            time.sleep(0.01)
        status, cpu_s = self.statuses.get(pid, (0, 0.0))
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            if cpu_s < self.limits.cpu_s:
                return f"the system killed {name} (out of memory?)", True
        elif pid == self.referee and os.WIFEXITED(status):
            return f"{name} ended with status {os.WEXITSTATUS(status)}", True
        return "timed out", False

    def _end(self, pid: int) -> None:
        if pid not in self.statuses:
            os.kill(pid, signal.SIGKILL)
            self._reap(pid)

    def _reap(self, pid: int, flags: int = 0) -> bool:
        if pid not in self.statuses:
            ended, status, usage = os.wait4(pid, flags)
            if ended:
                self.statuses[pid] = status, usage.ru_utime + usage.ru_stime
        return pid in self.statuses


def _fork(role: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            role()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def _cpu_s(pid: int) -> float | None:
    """Processor time of a child; None once it has died."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
    except OSError:
        return None
