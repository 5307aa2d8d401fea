"""Start sandbox servers and hand them programs."""

from __future__ import annotations

import json
import logging
import os
import platform
import queue
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from itertools import count, product
from pathlib import Path
from typing import Any, Literal

from mos.errors import UserError

from .inside import folder as work
from .inside import wire
from .inside.confine import Limits
from .view import FOLDER, PYTHON, bubblewrap, executables, view

log = logging.getLogger(__name__)

Isolation = Literal["namespaces", "restricted"]

# Not as eval.sandbox.inside: importing `eval` imports pandas and more.
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from inside.server import main; main()"
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # a set's order is the same in every run
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
    "MALLOC_ARENA_MAX": "1",  # else each thread reserves address space, which is limited
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # numpy would set these when it is imported, which it cannot after what solution.py removes
    "OPENBLAS_MAIN_FREE": "1",
    "GOTOBLAS_MAIN_FREE": "1",
}
_START_S, _GRACE_S, _CLOSE_S = 60.0, 90.0, 30.0
# Users that no one else has: the range systemd keeps for dynamic users.
_FIRST_UID, _UIDS = 61184, 4336
_SERVERS = count(os.getpid())


@dataclass(frozen=True)
class Program:
    """A solution and its test, in parts, so that the test never meets the solution's process.

    The reference's program is `prompt + completion + LF + test + LF + check(entry_point)`.

    Attributes:
        prompt: the benchmark's own text; must run by itself (a function's docstring is its body).
        completion: untrusted.
        test: defines `check(candidate)`.
        entry_point: the function under test.
    """

    prompt: str
    completion: str
    test: str
    entry_point: str


@dataclass(frozen=True)
class Verdict:
    """What became of a program.

    Attributes:
        passed: whether the test ran to its end.
        result: "passed", "timed out" or "failed: <message>" as the reference says it; a program
            that ends without an answer "timed out", as there. With `infrastructure_error`, what
            went wrong.
        seconds: on the clock.
        infrastructure_error: the program was not judged: neither passed nor failed.
    """

    passed: bool
    result: str
    seconds: float
    infrastructure_error: bool = False


class Sandbox(AbstractContextManager):
    """A few sandbox servers; use it as a context manager.

    Args:
        workers: programs at one time; one per available processor if None.
        limits: of each program.
        isolation: see the package's description.

    Raises:
        UserError: this machine cannot isolate a program so.
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        isolation: Isolation = "namespaces",
    ):
        if platform.system() != "Linux":
            raise UserError(
                f"untrusted programs can be isolated on Linux only, this is {platform.system()}: "
                "score this benchmark on a Linux machine or in a Linux container"
            )
        self.workers = workers or len(os.sched_getaffinity(0))
        limits = limits or Limits()
        first = _first_server(limits, isolation)
        self.isolation: str = first.description
        """What is in force, in words, for the record."""
        level = logging.WARNING if isolation == "restricted" else logging.INFO
        log.log(level, "untrusted programs run in: %s", self.isolation)
        more = (_Server(limits, first.wrapper, first.become) for _ in range(self.workers - 1))
        self._servers = [first, *more]
        self._idle: queue.SimpleQueue[_Server] = queue.SimpleQueue()
        for server in self._servers:
            self._idle.put(server)

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()

    def check(self, program: Program) -> Verdict:
        server = self._idle.get()
        try:
            return server.judge(program)
        finally:
            self._idle.put(server)

    def check_many(self, programs: Sequence[Program]) -> list[Verdict]:
        """Judge programs; the verdicts are in order."""
        with ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(self.check, program) for program in programs]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for server in self._servers:
                    server.hang_up()
                raise


@cache
def check_isolation(isolation: Isolation) -> None:
    """Raise now the `UserError` that a `Sandbox` would raise later."""
    with Sandbox(1, isolation=isolation):
        pass


def _first_server(limits: Limits, isolation: Isolation) -> _Server:
    attempts, reasons = [("", False)], []
    if isolation == "namespaces":
        # Root's server becomes another user, unless even root may make namespaces only as users do.
        attempts = list(product(executables(), (True, False) if os.geteuid() == 0 else (False,)))
        reasons = [] if attempts else ["bubblewrap is not installed: apt-get install bubblewrap"]
    for wrapper, become in attempts:
        server = _Server(limits, wrapper, become)
        try:
            server.start()
            return server
        except OSError as error:
            server.close()
            reasons.append(str(error))
    if isolation == "restricted":
        advice = "score this benchmark on another machine"
    else:
        _first_server(limits, "restricted").close()  # raises where that cannot be advised
        advice = (
            "containers and clusters often forbid the namespaces of bubblewrap; use"
            " eval.sandbox=restricted, which works here and keeps programs from files, processes"
            " and the network"
        )
    raise UserError(
        f"this machine cannot isolate untrusted programs ({'; '.join(reasons)}): {advice}"
    )


class _Server:
    """One server process (inside/server.py), started when first needed and after a failure.

    Args:
        limits: of each program.
        wrapper: the `bwrap` to run it in, or "" for the restricted isolation.
        become: it is root's, and becomes another user.
    """

    def __init__(self, limits: Limits, wrapper: str, become: bool):
        self.wrapper = wrapper
        self.become = become
        walls = {
            "bubblewrap namespaces, own root": wrapper,
            "no namespaces; Landlock file access list": not wrapper,
            "user of its own": become,
            "list of allowed system calls (no processes, no sockets); resource limits": True,
        }
        self.description = "; ".join(wall for wall, holds in walls.items() if holds)
        self._limits = limits
        self._programs = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._held = ExitStack()

    def start(self) -> None:
        """Start the process; OSError where the system forbids what was asked for."""
        shown, code, folder = view(), str(Path(__file__).parent), FOLDER
        start: list[str] = []
        if self.wrapper:
            start = bubblewrap(self.wrapper, shown, code, self._limits, self.become)
        else:
            folder = tempfile.mkdtemp(prefix="mos-sandbox-")
            self._held.callback(work.remove, folder)  # its server does, unless it was killed
        config = {
            "restricted": not self.wrapper,
            "uid": _FIRST_UID + next(_SERVERS) % _UIDS if self.become else None,
            "folder": folder,
            "limits": asdict(self._limits),
            **asdict(shown),
        }
        command = [*start, PYTHON, "-s", "-S", "-P", "-c", _BOOT, code, json.dumps(config)]
        # Some installations find the interpreter's own library by it.
        linker = {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
        programs, self._programs = os.pipe()
        self._verdicts, verdicts = os.pipe()
        self._held.callback(os.close, self._verdicts)
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (until close)
        self._errors = self._held.enter_context(errors)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=programs,
                stdout=verdicts,
                stderr=self._errors,
                env=_ENVIRONMENT | {"TMPDIR": folder} | linker,
                start_new_session=True,
            )
        finally:
            os.close(programs)
            os.close(verdicts)
        hello = self._receive(_START_S)
        if "error" in hello:
            raise OSError(hello["error"])

    def judge(self, program: Program) -> Verdict:
        try:
            if self._process is None:
                self.start()
            wire.send(self._programs, asdict(program))
            answer = self._receive(self._limits.wall_s + _GRACE_S)
        except OSError as error:
            self.close()
            return Verdict(False, f"the sandbox failed: {error}", 0.0, infrastructure_error=True)
        passed = answer["result"] == "passed" and not answer["infrastructure_error"]
        return Verdict(passed, **answer)

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        answer = wire.receive(self._verdicts, timeout_s=timeout_s)
        if answer is None:
            self._errors.seek(0)
            trace = self._errors.read().decode(errors="replace").strip()
            raise OSError(f"its server died: {trace[-1000:] or 'it said nothing'}")
        return answer

    def hang_up(self) -> None:
        """Give no more programs; the one in hand, if any, is ended and has no verdict."""
        if self._programs >= 0:
            os.close(self._programs)
            self._programs = -1

    def close(self) -> None:
        self.hang_up()
        if self._process is not None:
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._held.close()
