"""What can be seen only on the benchmarks' original files, which are others' and not committed."""

import hashlib
import os
from pathlib import Path

import pytest

from eval import build_benchmark
from eval.bbh import read_demonstrations

ORIGINALS = Path(
    os.environ.get("MOS_SHARED_DIR", Path(__file__).resolve().parents[3] / "shared"), "data"
)
if not ORIGINALS.is_dir():
    pytest.skip(
        f"NOT TESTED: prompts of the original BBH, GSM8K and MMLU, which are not in {ORIGINALS}"
        " (set MOS_SHARED_DIR)",
        allow_module_level=True,
    )


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def check_prompts(prompts, config):
    assert len(prompts) == config["num_prompts"]
    assert sum(map(len, prompts)) == config["total_chars"]
    first = config["sha256_first20"]
    assert [sha(prompt) for prompt in prompts[: len(first)]] == first


def test_bbh_prompts_are_the_reference_s(golden):
    config = golden("bbh_prompts")["configs"]["direct_chat"]
    requests = build_benchmark("bbh", ORIGINALS / "bbh").requests
    check_prompts([request.prompt for request in requests], config)
    for task, vector in config["per_task"].items():
        own = [request.prompt for request in requests if request.id.startswith(f"{task}/")]
        assert [sha(prompt) for prompt in own[:20]] == vector["sha256_first20"]
        assert sha("\0".join(own)) == vector["sha256_all_joined_nul"]


def test_empty_outputs_match_81_dyck_targets():
    benchmark = build_benchmark("bbh", ORIGINALS / "bbh", tasks=["dyck_languages"])
    assert benchmark.score([""] * 250).metrics["exact_match"] == pytest.approx(32.4)


def test_lm_eval_has_bbh_s_demonstrations(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    tasks = [path.stem for path in (ORIGINALS / "bbh/cot-prompts").glob("*.txt")]
    assert len(tasks) == 27
    for task in tasks:
        own = read_demonstrations(ORIGINALS / "bbh", task)
        assert own.strip() == read_demonstrations(tmp_path, task).strip(), task


def test_gsm8k_prompts_are_the_reference_s(golden):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    requests = build_benchmark("gsm8k", ORIGINALS / "gsm8k").requests
    prompts = [request.prompt for request in requests]
    check_prompts(prompts, golden("gsm_prompts")["configs"]["cot8_chat"])


def test_all_questions_of_mmlu_are_read():
    requests = build_benchmark("mmlu", ORIGINALS / "mmlu").requests
    assert len(requests) == 14042
    lost = [request for request in requests if ". nan\n" in request.prompt]
    assert len(lost) == 10  # the choices "None", by pandas' inference (protocol section 1)
