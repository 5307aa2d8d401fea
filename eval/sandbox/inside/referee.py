"""The trusted side: run a program's test here, with the candidate a call to the other process.

It is confined like the solution, for the test comes from a file. The program is read when both
processes are there, so the test and its expected values were never in the memory that the solution
can search.
"""

from __future__ import annotations

import os
from typing import Any

from . import wire
from .confine import Walls, confine

_SETUP_S = 60.0
_MESSAGE_LENGTH = 10_000
_CHANNEL, _PROGRAMS, _RESULTS = 3, 4, 5


class VanishedError(BaseException):
    """The solution process ended, or hung up, without an answer."""


class SolutionError(Exception):
    """The solution raised; carries its message."""


class SandboxError(BaseException):
    """The program could not be judged, through no fault of its own."""


def run(channel: int, programs: int, results: int, walls: Walls, folder: str) -> None:
    """Judge the next program; never returns.

    Args:
        channel: socket to the solution process.
        programs: where the program comes from. Nothing is reported if that ends.
        results: where the server reads {"started": True}, and then one of {"result": ...,
            "unjudged": ...} and {"vanished": True}, of the solution process.
        walls: of this process.
        folder: the program's working folder.
    """
    wire.take(channel, programs, results)
    os.chdir(folder)
    confine(walls, folder)
    program = wire.receive(_PROGRAMS)
    if program is not None:
        wire.send(_RESULTS, _report(program, walls.limits.value_mb << 20))
    os._exit(0)


def _report(program: dict[str, str], value_bytes: int) -> dict[str, Any]:
    unjudged = False
    try:
        _await_ready()
        wire.send(_RESULTS, {"started": True})
        result = _play(program, value_bytes)
    except VanishedError:
        return {"vanished": True}
    except SandboxError as error:
        unjudged, result = True, str(error)
    return {"result": result[:_MESSAGE_LENGTH], "unjudged": unjudged}


def _play(program: dict[str, str], value_bytes: int) -> str:
    prompt, test, entry_point = program["prompt"], program["test"], program["entry_point"]
    source = prompt + program["completion"]
    call = f"check({entry_point})"

    def candidate(*arguments: Any, **keywords: Any) -> Any:
        """The solution's function as the test sees it."""
        request = {"arguments": wire.encode(arguments), "keywords": wire.encode(keywords)}
        return _ask(request, value_bytes)

    try:
        # The reference runs this text whole; its syntax errors and their lines are the result.
        _compile(f"{source}\n{test}\n{call}")
        _ask({"source": source, "entry_point": entry_point}, value_bytes)
        # The test may use what its prompt defines (HumanEval/32, 38, 50), and gets that from
        # the prompt itself: what a completion redefines has no part in its own judgement.
        namespace: dict[str, Any] = {}
        _run_prompt(prompt, namespace)
        namespace[entry_point] = candidate
        exec(_compile(test), namespace)
        exec(_compile(call), namespace)
    except (VanishedError, SandboxError):
        raise
    except BaseException as error:
        return f"failed: {error}"
    return "passed"


def _ask(request: dict[str, Any], value_bytes: int) -> Any:
    try:
        wire.send(_CHANNEL, request)
        reply = wire.receive(_CHANNEL, value_bytes)
    except OSError as error:
        raise VanishedError from error
    if reply is None:
        raise VanishedError
    if "raised" in reply:
        raise SolutionError(reply["raised"])
    return wire.decode(reply["value"])


def _await_ready() -> None:
    try:
        reply = wire.receive(_CHANNEL, timeout_s=_SETUP_S)
    except OSError as error:
        raise SandboxError(f"the solution process did not start: {error}") from error
    if reply != {"ready": True}:
        reason = reply["broken"] if reply else "it died"
        raise SandboxError(f"the solution process could not be isolated: {reason}")


def _compile(source: str) -> Any:
    return compile(source, "<string>", "exec", dont_inherit=True)


def _run_prompt(prompt: str, namespace: dict[str, Any]) -> None:
    try:
        exec(_compile(prompt), namespace)
    except Exception as error:
        raise SandboxError(f"the prompt does not run by itself: {error}") from error
