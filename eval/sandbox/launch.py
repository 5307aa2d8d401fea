"""Start sandbox servers and hand them programs."""

from __future__ import annotations

import json
import logging
import os
import platform
import queue
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from mos.errors import UserError

from .inside import wire
from .inside.limits import Limits
from .inside.namespaces import FOLDER
from .view import PYTHON, bubblewrap, view

log = logging.getLogger(__name__)

Isolation = Literal["namespaces", "bubblewrap", "restricted"]

# Not as eval.sandbox.inside: importing `eval` imports pandas and more.
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from inside.server import main; main()"
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # a set's order is the same in every run
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # numpy would set these when it is imported, which it cannot after what solution.py removes
    "OPENBLAS_MAIN_FREE": "1",
    "GOTOBLAS_MAIN_FREE": "1",
}
_START_S = 60.0
_GRACE_S = 90.0
_CLOSE_S = 30.0


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


def check(program: Program, *, timeout_s: float = 3.0) -> Verdict:
    """Judge one program (see `Sandbox`)."""
    with Sandbox(limits=Limits.for_timeout(timeout_s)) as sandbox:
        return sandbox.check(program)


def check_many(
    programs: Sequence[Program],
    workers: int | None = None,
    *,
    timeout_s: float = 3.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Verdict]:
    """Judge programs, in order; `progress(done, total)` is called after each (see `Sandbox`)."""
    with Sandbox(workers, Limits.for_timeout(timeout_s)) as sandbox:
        return sandbox.check_many(programs, progress)


class Sandbox:
    """A few sandbox servers; use it as a context manager.

    Args:
        workers: programs at one time; one per available processor if None.
        limits: of each program.
        isolation: "auto" takes namespaces if the kernel grants them to us, or to `bwrap` if that
            is installed, and else restricts each process by itself, with a warning. Each can be
            asked for by name.

    Raises:
        UserError: nothing on this machine can isolate a program.
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        isolation: Isolation | Literal["auto"] = "auto",
    ):
        if platform.system() != "Linux":
            raise UserError(
                f"untrusted programs can be isolated on Linux only, this is {platform.system()}: "
                "score this benchmark on a Linux machine or in a Linux container"
            )
        self.workers = workers or len(os.sched_getaffinity(0))
        self._limits = limits or Limits()
        self._idle: queue.SimpleQueue[_Server] = queue.SimpleQueue()
        first = self._first_server(isolation)
        self.isolation: str = first.description
        """What is in force, in words, for the record."""
        level = logging.WARNING if first.isolation == "restricted" else logging.INFO
        log.log(level, "untrusted programs run in: %s", self.isolation)
        self._servers = [first]
        for _ in range(self.workers - 1):
            self._servers.append(_Server(self._limits, first.isolation))
        for server in self._servers:
            self._idle.put(server)

    def _first_server(self, isolation: str) -> _Server:
        reasons = []
        for kind in get_args(Isolation):
            if isolation not in ("auto", kind):
                continue
            server = _Server(self._limits, kind)
            try:
                server.start()
                return server
            except OSError as error:
                server.close()
                reasons.append(f"{kind}: {error}")
        raise UserError(
            "this machine cannot isolate untrusted programs "
            f"({'; '.join(reasons)}): score this benchmark on another one"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for server in self._servers:
            server.close()

    def check(self, program: Program) -> Verdict:
        server = self._idle.get()
        try:
            return server.judge(program)
        finally:
            self._idle.put(server)

    def check_many(
        self,
        programs: Sequence[Program],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        """Judge programs, in order; `progress(done, total)` is called after each."""
        with ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(self.check, program) for program in programs]
            try:
                for done, _ in enumerate(as_completed(futures), start=1):
                    if progress is not None:
                        progress(done, len(futures))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for server in self._servers:
                    server.hang_up()
                raise
            return [future.result() for future in futures]


class _Server:
    """One server process (inside/server.py), started when first needed and after a failure."""

    def __init__(self, limits: Limits, isolation: Isolation):
        self.isolation = isolation
        self.description = ""
        self._limits = limits
        self._programs = -1
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; OSError where the kernel forbids what was asked for."""
        shown, code, folder = view(), str(Path(__file__).parent), tempfile.gettempdir()
        config = {"isolation": self.isolation, "limits": asdict(self._limits), **asdict(shown)}
        command = [PYTHON, "-s", "-S", "-P", "-c", _BOOT, code, json.dumps(config)]
        if self.isolation == "bubblewrap":
            wrapper = shutil.which("bwrap")
            if wrapper is None:
                raise FileNotFoundError("bwrap is not installed")
            command = [*bubblewrap(wrapper, shown, code, self._limits), *command]
            folder = FOLDER
        # Some installations find the interpreter's own library by it.
        linker = {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
        programs, self._programs = os.pipe()
        self._verdicts, verdicts = os.pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (until close)
        self._process = subprocess.Popen(
            command,
            stdin=programs,
            stdout=verdicts,
            stderr=self._errors,
            env=_ENVIRONMENT | {"TMPDIR": folder} | linker,
            start_new_session=True,
        )
        os.close(programs)
        os.close(verdicts)
        hello = self._receive(_START_S)
        if "error" in hello:
            raise OSError(hello["error"])
        self.description = _describe(self.isolation, hello)

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
        if self._process is not None:
            self.hang_up()
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            os.close(self._verdicts)
            self._errors.close()
            self._process = None


def _describe(isolation: Isolation, hello: dict[str, Any]) -> str:
    if isolation == "namespaces":
        walls = [f"namespaces ({', '.join(hello['namespaces'])}), own root"]
    elif isolation == "bubblewrap":
        walls = ["bubblewrap namespaces, own root"]
    elif hello["landlock"]:
        walls = ["no namespaces", "Landlock file access list"]
    else:
        walls = ["no namespaces, no Landlock: files that everyone may read are visible"]
    if hello["uid"] is not None:
        walls.append(f"user {hello['uid']}")
    walls.append("system call filter (no processes, no sockets)")
    walls.append("resource limits")
    return "; ".join(walls)
