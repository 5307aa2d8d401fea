"""HumanEval: Python functions to complete, checked by running them (protocol section 5)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from pydantic import NonNegativeFloat, PositiveInt

from eval.benchmark import Benchmark, Decoding, Metric, Request, chat_prompt
from eval.files import read_jsonl, require
from eval.sandbox import Isolation, Program, Sandbox, Verdict, check_isolation
from eval.scoring import Score, check_outputs, micro
from mos.errors import DataError, UserError

log = logging.getLogger(__name__)

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
PASS_AT = (1, 5, 10)


@dataclass(frozen=True)
class Problem:
    task_id: str
    prompt: str
    test: str
    entry_point: str


@dataclass(eq=False, kw_only=True)
class HumanEval(Benchmark):
    """`HumanEval.jsonl[.gz]`; metrics `pass@1`, `pass@5`, `pass@10`, as far as `samples` reach.

    Args:
        samples: completions per problem.
        temperature: of sampling, with nucleus mass 0.95 (the authors' pass@10 takes 0.8).
        allow_code_execution: let `score` run the completions.
        sandbox: how they are isolated, "namespaces" or "restricted" (see eval/sandbox).
    """

    name = "humaneval"
    metrics = (Metric("pass@1", "HumanEval P@1"),)
    setting = "0-shot"
    runs_code = True

    samples: PositiveInt = 20
    temperature: NonNegativeFloat = 0.1
    allow_code_execution: bool = False
    sandbox: Isolation = "namespaces"

    def __post_init__(self) -> None:
        problems = read_problems(self.data_dir)
        self.examples, self.partial = self.selection.apply(problems, lambda p: p.task_id, self.name)
        decoding = Decoding(512, self.temperature, top_p=0.95, stop=STOP, n=self.samples)
        self.requests = []
        for problem in self.examples:
            prompt = problem.prompt
            if self.chat:
                # The function's head stands in both turns; generation continues the second.
                prompt = chat_prompt(
                    f"Complete the following python function.\n\n\n{prompt}",
                    f"Here is the completed function:\n\n\n{prompt}",
                )
            self.requests.append(Request(problem.task_id, prompt, decoding))

    def check_ready(self) -> None:
        if not self.allow_code_execution:
            raise UserError(
                "HumanEval is scored by running code that a model wrote. It runs in a sandbox, but"
                " the machine is yours: allow it with eval.allow_code_execution=true"
                " (build_benchmark(..., allow_code_execution=True))."
            )
        check_isolation(self.sandbox)

    def score(self, outputs: Sequence[Sequence[str]]) -> Score:
        """Run every completion, as it was generated: neither stripped nor cleaned.

        Args:
            outputs: `samples` completions for each problem.

        Raises:
            UserError: code execution is not allowed.
        """
        self.check_ready()
        n = self.samples
        if n == 1:
            outputs = [[output] if isinstance(output, str) else output for output in outputs]
        check_outputs(self.requests, outputs, n)
        verdicts, isolation = run(self.examples, outputs, self.sandbox)
        records = []
        for request, problem, texts, judged in zip(
            self.requests, self.examples, outputs, verdicts, strict=True
        ):
            passed = sum(verdict.passed for verdict in judged)
            scores = {f"pass@{k}": pass_at_k(n, passed, k) for k in PASS_AT if k <= n}
            results = [verdict.result for verdict in judged]
            records.append(request.record(list(texts), results, problem.entry_point, scores))
        return replace(micro(records), scoring={"sandbox": isolation})


def run(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    isolation: Isolation = "namespaces",
) -> tuple[list[list[Verdict]], str]:
    """Run all completions of all problems.

    A program that the sandbox cannot judge, twice, fails alone and its result says why.

    Returns:
        The verdicts, and what isolated the programs, in words.

    Raises:
        UserError: the sandbox does not work, or no longer.
    """
    programs = [
        (problem.task_id, Program(problem.prompt, text, problem.test, problem.entry_point))
        for problem, samples in zip(problems, completions, strict=True)
        for text in samples
    ]
    with Sandbox(isolation=isolation) as sandbox:
        verdicts = sandbox.check_many([program for _, program in programs])
        for i, (task_id, program) in enumerate(programs):
            if verdicts[i].infrastructure_error:
                verdicts[i] = _judge_again(sandbox, task_id, program)
        walls = sandbox.isolation
    remaining = iter(verdicts)
    return [list(islice(remaining, len(samples))) for samples in completions], walls


def _judge_again(sandbox: Sandbox, task_id: str, program: Program) -> Verdict:
    verdict = sandbox.check(program)
    if not verdict.infrastructure_error:
        return verdict
    working = sandbox.check(Program("def f():\n    ''\n", "", "def check(f):\n    f()\n", "f"))
    if not working.passed:
        raise UserError(
            f"the sandbox cannot run programs: {working.result} Nothing is scored; the completions"
            " are kept, so the same command goes on from here."
        )
    log.warning("a program of %s was not judged and counts as failed: %s", task_id, verdict.result)
    return replace(verdict, result=f"failed: not judged: {verdict.result}")


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k samples passes, from c of n that do: 1 - C(n-c, k) / C(n, k).

    Computed as a product, whose rounding is the reference's.
    """
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def read_problems(data_dir: Path) -> list[Problem]:
    path = data_dir / "HumanEval.jsonl.gz"
    if not path.exists():
        path = require(data_dir / "HumanEval.jsonl", "the problems of HumanEval (or .jsonl.gz)")
    fields = ("task_id", "prompt", "test", "entry_point")
    problems = []
    for line, row in read_jsonl(path, fields):
        if f"def {row['entry_point']}(" not in row["prompt"]:
            raise DataError(
                path, line, f"the prompt does not define entry_point {row['entry_point']!r}."
            )
        problems.append(Problem(*(row[field] for field in fields)))
    if not problems:
        raise DataError(path, None, "no problems in it.")
    return problems
