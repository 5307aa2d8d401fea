"""Hostile programs: each is contained, leaves nothing behind, and none passes.

A program is a completion of `def f(x): ...`, whose test wants x + 1. A FORGERY makes its wrong
answers pass where solution and test share an interpreter. An ESCAPE answers rightly only if it
broke out, so that a pass is a hole in a wall. An ASSAULT does damage and never answers rightly.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.sandbox import Limits, Program, Sandbox, Verdict
from mos.errors import UserError
from tests.eval.hostile_programs import ASSAULTS, ESCAPES, FORGERIES

PROMPT = 'def f(x):\n    """The successor of x."""\n'
TEST = """
def check(candidate):
    assert candidate(1001) == 1002
    assert candidate(2001) == 2002
    assert abs(candidate(3001) - 3002) < 1
    assert True
"""
# Small, so that the suite is quick.
LIMITS = Limits(cpu_s=0.25, wall_s=2.0, memory_mb=512, folder_mb=8, entries=512)
SECRET = "a-token-of-the-callers"


def program(completion: str) -> Program:
    return Program(PROMPT, completion, TEST, "f")


WEAKER = pytest.param("restricted", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["namespaces", WEAKER])
def isolation(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The caller's temporary folder."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def sandbox(isolation, folder):
    """One server with small limits; nothing of it is left in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKEN", SECRET)
        patch.setattr("tempfile.tempdir", str(folder))
        try:
            sandbox = Sandbox(1, LIMITS, isolation)
        except UserError as error:
            pytest.skip(f"NOT TESTED, this machine refuses it: {error}")
        with sandbox:
            everyone = [server_pid(sandbox), *descendants(server_pid(sandbox))]
            yield sandbox
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in everyone):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not list(folder.iterdir())


def server_pid(sandbox: Sandbox) -> int:
    return sandbox._servers[0]._process.pid


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


# Referee and solution process of the next program; in namespaces the server, under bubblewrap.
DESCENDANTS = {"namespaces": 3, "restricted": 2}


def assert_nothing_left(sandbox: Sandbox, isolation: str) -> None:
    expected = DESCENDANTS[isolation]
    deadline = time.monotonic() + 60
    while True:
        try:
            count = len(descendants(server_pid(sandbox)))
        except OSError:  # one ended while we looked
            count = -1
        if count == expected:
            return
        assert time.monotonic() < deadline, f"{count} processes, expected {expected}"
        time.sleep(0.01)


def judge_contained(sandbox: Sandbox, isolation: str, completion: str) -> Verdict:
    verdict = sandbox.check(program(completion))
    assert not verdict.infrastructure_error, verdict
    assert verdict.seconds < LIMITS.wall_s + 5
    assert_nothing_left(sandbox, isolation)
    return verdict


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_does_not_pass(sandbox, isolation, name):
    assert not judge_contained(sandbox, isolation, FORGERIES[name]).passed


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_would_pass_in_one_interpreter(name):
    text = f"{PROMPT}{FORGERIES[name]}\n{TEST}\ncheck(f)"
    runner = "import sys; exec(sys.stdin.read(), {}); print('passed')"
    command = [sys.executable, "-I", "-S", "-c", runner]
    ran = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert "passed" in ran.stdout, ran.stderr


@pytest.fixture(scope="module")
def targets(repo_dir, tmp_path_factory):
    """What an escaping program could reach: names in its text and what they stand for."""
    victim = tmp_path_factory.mktemp("outside") / "victim"
    victim.write_text("precious")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {
            "REPO": str(repo_dir),
            "HOME": str(Path.home()),
            "PORT": str(server.getsockname()[1]),
            "SECRET": SECRET,
            "VICTIM": str(victim),
        }


@pytest.mark.parametrize("name", ESCAPES)
def test_escape_does_not_pass(sandbox, isolation, targets, folder, name):
    completion = ESCAPES[name]
    for word, value in targets.items():
        completion = completion.replace(word, value)
    victim = Path(targets["VICTIM"])
    before = victim.stat()

    assert not judge_contained(sandbox, isolation, completion).passed
    assert victim.read_text() == "precious"
    assert victim.stat().st_mode == before.st_mode
    assert victim.stat().st_mtime_ns == before.st_mtime_ns
    assert len(list(folder.iterdir())) == (1 if isolation == "restricted" else 0)  # the server's


@pytest.mark.parametrize("name", ASSAULTS)
def test_assault_is_contained(sandbox, isolation, name):
    assert not judge_contained(sandbox, isolation, ASSAULTS[name]).passed
    # The sandbox works on, undisturbed.
    assert sandbox.check(program("    return x + 1")).passed


def test_a_program_finds_nothing_of_the_one_before(sandbox):
    completion = ESCAPES["finds what the program before it left"]
    assert not any(sandbox.check(program(completion)).passed for _ in range(3))


OUT_OF_REACH = """
    import ctypes, os, posix
    here = os.environ["HOME"]
    def unshared():
        if ctypes.CDLL(None, use_errno=True).syscall(436, 50, 60, 2):
            raise OSError
    for attempt in (
        lambda: open(f"{here}/../more", "w"),
        lambda: posix.mkdir(f"{here}/../more"),
        lambda: posix.rename(here, f"{here}-moved"),
        lambda: posix.rmdir(here),
        unshared,
    ):
        try:
            attempt()
        except OSError:
            continue
        return 0
    return x + 1
"""


def test_what_is_above_the_folder_and_descriptors_of_its_own_are_out_of_reach(sandbox):
    assert sandbox.check(program(OUT_OF_REACH)).passed
    assert sandbox.check(program("    return x + 1")).passed


STORMS = {
    "folders side by side": "posix.mkdir(str(x))",
    "folders in folders": "posix.mkdir('d'); posix.chdir('d')",
    "folders that cannot be listed": "posix.mkdir(str(x), 0o300); posix.chdir(str(x))",
    "links": "posix.symlink('nowhere', str(x))",
    "files that are renamed": "open('a', 'w').close(); posix.rename('a', str(x))",
}


@pytest.mark.parametrize("name", STORMS)
def test_a_storm_in_the_folder_ends_at_a_bound(sandbox, name):
    before = time.monotonic()
    completion = f"    import posix\n    while True:\n        {STORMS[name]}; x += 1\n"
    result = sandbox.check(program(completion)).result
    assert result == "failed: its folder holds more than 512 entries or 8 MiB"
    assert sandbox.check(program("    return x + 1")).passed
    assert time.monotonic() - before < 20


# Tests come from a file that may be anyone's; each of these would fail if it got out.
HOSTILE_TESTS = [
    "import os\n    assert os.fork() is None",
    "import socket\n    socket.socket()",
    "assert not open('REPO/pyproject.toml').read()",
    "assert not open('VICTIM', 'w').write('broken')",
    "import os, signal\n    os.kill(os.getppid(), signal.SIGKILL)",
]


def test_a_test_is_confined_too(sandbox, isolation, targets):
    for action in HOSTILE_TESTS:
        for word, value in targets.items():
            action = action.replace(word, value)
        test = f"def check(candidate):\n    {action}\n"
        verdict = sandbox.check(Program(PROMPT, "    return x + 1", test, "f"))
        assert verdict.result.startswith("failed: [Errno "), (action, verdict)
        assert not verdict.infrastructure_error
    assert_nothing_left(sandbox, isolation)
    assert Path(targets["VICTIM"]).read_text() == "precious"


ONE_HASH = "[i * (2**61 - 1) for i in range(1, 90_001)]"


@pytest.mark.parametrize(
    ("completion", "test", "result"),
    [
        (f"return set({ONE_HASH}[:300])", "candidate(0)", "failed: 300 values of one hash"),
        (f"return {ONE_HASH}", "set(candidate(0))", "timed out"),
        ("return 1 << 300_000", "candidate(0)", "failed: a number of"),
        ("return 0", "while True: pass", "timed out"),
        ("return 0", "import os; os._exit(0)", "the referee ended with status 0"),
        ("return 0", "import os; os.write(5, b'\\0' * 9)", "the referee"),
    ],
)
def test_the_limit_that_strikes_is_named(sandbox, completion, test, result):
    """Whatever the test does with a value: the verdict says why, and the next program is judged."""
    test = f"def check(candidate):\n    {test}\n"
    verdict = sandbox.check(Program(PROMPT, f"    {completion}", test, "f"))
    assert verdict.result.startswith(result)
    assert verdict.infrastructure_error == result.startswith("the referee")
    assert sandbox.check(program("    return x + 1")).passed


def test_isolation_is_stated(sandbox, isolation):
    stated = {"namespaces": "bubblewrap namespaces", "restricted": "no namespaces; Landlock"}
    assert stated[isolation] in sandbox.isolation
    assert "list of allowed system calls" in sandbox.isolation
