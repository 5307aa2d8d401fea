"""The trusted side: run a program's test here, with the candidate a call to the other process.

One referee per program. It forks the solution process before it reads the program, so the test
and its expected values were never in the memory that the solution can search.
"""

from __future__ import annotations

import math
import os
import resource
import select
import signal
import socket
import time
from types import FrameType
from typing import Any

from . import libc, solution, wire
from .confine import Plan, drop_privileges
from .limits import Limits

_TICK_S = 0.02
_SETUP_S = 60.0
_MESSAGE_LENGTH = 10_000

NO_MORE_PROGRAMS = 3


class OutOfTimeError(BaseException):
    """The program has used its time, whatever the test was doing."""


class VanishedError(BaseException):
    """The solution process ended, or hung up, without an answer."""


class SolutionError(Exception):
    """The solution raised; carries its message."""


class SandboxError(BaseException):
    """The program could not be judged, through no fault of its own."""


def referee(plan: Plan, limits: Limits, folder: str | None, programs: int, verdicts: int) -> int:
    """Judge the next program from one descriptor, write its verdict to the other.

    The program works in `folder`, or one of its own making if that is None.

    Returns the process's exit status: 0, or NO_MORE_PROGRAMS at the end of the stream.
    """
    ours, theirs = socket.socketpair()
    if "process" in plan.namespaces:
        libc.call("unshare", libc.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        solution.run(theirs.fileno(), plan, limits, folder)
    theirs.close()
    match = Match(pid, ours.fileno(), programs, limits)
    try:
        drop_privileges(plan.uid)
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        program = wire.receive(programs)
        if program is None:
            return NO_MORE_PROGRAMS
        verdict = match.judge(program)
    finally:
        match.end()
    wire.send(verdicts, verdict)
    return 0


class Match:
    """One program's run: calls to the solution process, its clocks, and the verdict."""

    def __init__(self, pid: int, channel: int, programs: int, limits: Limits):
        self.pid = pid
        self.channel = channel
        self.limits = limits
        self.cpu_clock = (~pid << 3) | 2  # the clock id of a process, clock_getcpuclockid(3)
        self.caller = select.poll()
        self.caller.register(programs, 0)
        self.wall_start = time.monotonic()
        self.reaped = False

    def end(self) -> None:
        """Kill the solution process, with whatever else is in its process namespace."""
        if not self.reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.reaped = True

    def judge(self, program: dict[str, str]) -> dict[str, Any]:
        """The verdict: `result`, `seconds` on the clock, `infrastructure_error`."""
        infrastructure_error = False
        try:
            self._await_ready()
            self._start_clocks()
            try:
                result = self._play(program)
                self._check_clocks()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except OutOfTimeError:
            result = "timed out"
        except VanishedError:
            # As in the reference, whose parent waits in vain for a program that leaves by
            # os._exit or crashes.
            result = "timed out"
            if self._killed_by_system():
                infrastructure_error = True
                result = "the system killed the program (is the machine out of memory?)"
        except SandboxError as error:
            infrastructure_error, result = True, str(error)
        return {
            "result": result[:_MESSAGE_LENGTH],
            "seconds": time.monotonic() - self.wall_start,
            "infrastructure_error": infrastructure_error,
        }

    def _play(self, program: dict[str, str]) -> str:
        prompt, test, entry_point = program["prompt"], program["test"], program["entry_point"]
        source = prompt + program["completion"]
        call = f"check({entry_point})"
        try:
            # The reference runs this text whole; its syntax errors and their lines are the result.
            _compile(f"{source}\n{test}\n{call}")
            self._ask({"source": source, "entry_point": entry_point})
            # The test may use what its prompt defines (HumanEval/32, 38, 50), and gets that from
            # the prompt itself: what a completion redefines has no part in its own judgement.
            namespace: dict[str, Any] = {}
            _run_prompt(prompt, namespace)
            namespace[entry_point] = self._candidate
            exec(_compile(test), namespace)
            exec(_compile(call), namespace)
        except Exception as error:
            return f"failed: {error}"
        return "passed"

    def _candidate(self, *arguments: Any, **keywords: Any) -> Any:
        """The solution's function as the test sees it."""
        call = {"arguments": wire.encode(arguments), "keywords": wire.encode(keywords)}
        return self._ask(call)

    def _ask(self, request: dict[str, Any]) -> Any:
        try:
            wire.send(self.channel, request)
            reply = wire.receive(self.channel, self.limits.value_mb << 20)
        except OSError as error:
            raise VanishedError from error
        if reply is None:
            raise VanishedError
        if "raised" in reply:
            raise SolutionError(reply["raised"])
        return wire.decode(reply["value"])

    def _await_ready(self) -> None:
        try:
            reply = wire.receive(self.channel, timeout_s=_SETUP_S)
        except OSError as error:
            raise SandboxError(f"the solution process did not start: {error}") from error
        if reply != {"ready": True}:
            reason = reply["broken"] if reply else "it died"
            raise SandboxError(f"the solution process could not be isolated: {reason}")

    def _start_clocks(self) -> None:
        self.wall_start = time.monotonic()
        self.cpu_start = time.clock_gettime(self.cpu_clock)
        # For a test that is at work in C on a monstrous value, which no signal interrupts.
        seconds = math.ceil(self.limits.wall_s + self.limits.cpu_s)
        memory = self.limits.memory_mb << 20
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)

    def _tick(self, signum: int, frame: FrameType | None) -> None:
        try:
            if self.caller.poll(0):
                raise SandboxError("the caller has gone")
            self._check_clocks()
        except BaseException:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise

    def _check_clocks(self) -> None:
        if time.monotonic() - self.wall_start > self.limits.wall_s:
            raise OutOfTimeError
        try:
            cpu_s = time.clock_gettime(self.cpu_clock) - self.cpu_start
        except OSError:  # it has died; the next read from it tells
            return
        if cpu_s > self.limits.cpu_s:
            raise OutOfTimeError

    def _killed_by_system(self) -> bool:
        """Whether it died of a SIGKILL that neither it nor its limits can have caused."""
        for _ in range(20):
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.reaped = True
                cpu_s = usage.ru_utime + usage.ru_stime
                return cpu_s < self.limits.cpu_s and status == signal.SIGKILL
            time.sleep(0.01)
        return False


def _compile(source: str) -> Any:
    return compile(source, "<string>", "exec", dont_inherit=True)


def _run_prompt(prompt: str, namespace: dict[str, Any]) -> None:
    try:
        exec(_compile(prompt), namespace)
    except Exception as error:
        raise SandboxError(f"the prompt does not run by itself: {error}") from error
