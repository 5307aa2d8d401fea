"""lm-eval runs our benchmarks itself: the same prompts and the same scores, example by example."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest
from transformers import AutoTokenizer

from eval import BENCHMARKS, build_benchmark
from mos.errors import UserError

pytest.importorskip("lm_eval", reason="NOT TESTED: lm-eval's tasks, it is not installed")
pytest.importorskip("sacrebleu", reason="NOT TESTED: lm-eval's tasks, sacrebleu is not installed")


def answer(prompt: str, right: str) -> str:
    """For half of the prompts the right one, else a number."""
    digit = int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 10
    return right if digit % 2 else f" {digit}"


def likelihood(prompt: str, choice: str) -> float:
    return -int(hashlib.sha256((prompt + choice).encode()).hexdigest()[:6], 16) / 1e6


@pytest.fixture(scope="module")
def answers(samples_dir, tiny_model_dir):
    """Our benchmarks on the samples, and an answer to each of their prompts."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    packed = (samples_dir / "humaneval" / "HumanEval.jsonl.gz").read_bytes()
    solutions = {
        row["task_id"]: row["canonical_solution"]
        for row in map(json.loads, gzip.decompress(packed).splitlines())
    }
    targets = {
        "mmlu": lambda question: "",
        "bbh": lambda question: f"So the answer is {question.target}.",
        "gsm8k": lambda problem: f"So the answer is {problem.answer}.",
        "tydiqa": lambda question: question.answers[0],
        "humaneval": lambda problem: solutions[problem.task_id],
    }
    built, given = {}, {}
    for name, cls in BENCHMARKS.items():
        options = {"allow_code_execution": True} if cls.runs_code else {}
        built[name] = build_benchmark(name, samples_dir / name, tokenizer, **options)
        for request, example in zip(built[name].requests, built[name].examples, strict=True):
            given[request.prompt] = answer(request.prompt, targets[name](example))
    return built, given


@pytest.fixture(scope="module")
def run_by_lm_eval(repo_dir, samples_dir, tiny_model_dir, answers):
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    class Invented(LM):
        def generate_until(self, requests, disable_tqdm=False):
            return [answers[1][request.args[0]] for request in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            return [(likelihood(*request.args), False) for request in requests]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

    manager = TaskManager(
        include_path=str(repo_dir / "eval" / "lm_eval_tasks"),
        include_defaults=False,
        metadata={"pretrained": str(tiny_model_dir), "data_dir": str(samples_dir)},
    )

    def run(name, **options):
        tasks = manager.load([f"mos_{name}"])
        return evaluate(Invented(), tasks, confirm_run_unsafe_code=True, **options)

    return run


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_prompts_and_scores_are_ours(name, answers, run_by_lm_eval):
    benchmark = answers[0][name]
    outputs = []
    for request in benchmark.requests:
        if choices := request.decoding.choices:
            outputs.append(max(choices, key=lambda c: likelihood(request.prompt, c)).strip())
        else:
            text = answers[1][request.prompt]
            outputs.append([text] * request.decoding.n if request.decoding.n > 1 else text)
    score = benchmark.score(outputs)
    result = run_by_lm_eval(name)
    samples = result["samples"][f"mos_{name}"]
    assert len(samples) == len(score.records)
    for sample, record in zip(samples, score.records, strict=True):
        assert sample["doc"]["id"] == record["id"]
        assert sample["prompt_hash"] == record["prompt_sha256"]
        assert {metric: sample[metric] for metric in sample["metrics"]} == record["scores"]
    assert len({sample[benchmark.metrics[0].name] for sample in samples}) > 1
    for metric, value in score.metrics.items():
        assert 100 * result["results"][f"mos_{name}"][f"{metric},none"] == pytest.approx(value)
    request = benchmark.requests[0]
    for arguments in samples[0]["arguments"]:
        assert arguments[0] == request.prompt
        if not request.decoding.choices:
            assert arguments[1]["max_gen_toks"] == request.decoding.max_tokens
            assert arguments[1]["until"] == list(request.decoding.stop)
            assert arguments[1]["temperature"] == request.decoding.temperature
    assert len(samples[0]["resps"][0]) == request.decoding.n


def test_a_limit_takes_the_first_examples(answers, run_by_lm_eval):
    samples = run_by_lm_eval("gsm8k", limit=3)["samples"]["mos_gsm8k"]
    ids = [request.id for request in answers[0]["gsm8k"].requests]
    assert [sample["doc"]["id"] for sample in samples] == ids[:3]


def test_data_is_named_and_code_is_run_with_consent(repo_dir, samples_dir):
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    folder = str(repo_dir / "eval" / "lm_eval_tasks")
    with pytest.raises(UserError, match="mos_mmlu has no data"):
        TaskManager(include_path=folder, include_defaults=False, metadata={}).load(["mos_mmlu"])
    manager = TaskManager(
        include_path=folder, include_defaults=False, metadata={"data_dir": str(samples_dir)}
    )
    with pytest.raises(ValueError, match="unsafe"):
        evaluate(None, manager.load(["mos_humaneval"]))
