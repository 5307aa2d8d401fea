"""The GPU's code paths on a stub of its driver: `make test-rehearsal` (docs/gpu.md)."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from tests.rehearsal.rehearsing import CASES, CONTEXT, EXPECTED, measured, on_stub, training

pytestmark = [
    pytest.mark.rehearsal,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("nvidia") is None, reason="needs torch's CUDA build"),
]
TINY = ("model=tiny_random", "adapter.r=8", "data.max_seq_length=64")


@pytest.mark.parametrize("case", CASES)
def test_a_step_launches_waits_and_holds_what_it_did(case):
    """A new `.item()` in the hot path is a sync more, a copy that nobody asked for is bytes."""
    expected = json.loads(EXPECTED.read_text())[case]
    assert expected.pop("overrides") == CASES[case], "rewrite the table: see rehearsing.py"
    step = measured(*CASES[case])
    assert step == pytest.approx(expected, rel=0.02)


def test_a_run_that_was_stopped_goes_on(tmp_path):
    """With the paper's optimizer, whose paged state must be paged again after loading."""
    settings = (*CASES["3B MoS"], "trainer.save_steps=2", "trainer.logging_steps=1")
    stopped = training(tmp_path, *settings, MOS_STOP_AFTER="2")
    assert len(stopped.steps) == 2, stopped.output
    resumed = training(tmp_path, *settings)
    assert (resumed.code, len(resumed.steps)) == (0, 2), resumed.output
    assert resumed.steps[-1]["managed_bytes"] == stopped.steps[-1]["managed_bytes"] > 0
    assert resumed.steps[-1]["prefetches"] == stopped.steps[-1]["prefetches"] > 0


def test_several_visible_gpus_train_the_batch_of_the_config(tmp_path):
    outcome = training(tmp_path, *TINY, REHEARSAL_DEVICES="2")
    assert outcome.code == 0, outcome.output
    assert [step["batch"] for step in outcome.steps] == [16] * 4


def test_a_card_that_is_too_small_is_named_before_anything_is_loaded(tmp_path):
    outcome = training(tmp_path, "model=llama2_13b", "adapter=table2_mos_r8", REHEARSAL_GIB="11")
    assert (outcome.code, outcome.steps) == (2, []), outcome.output
    assert "this training needs" in outcome.output
    assert "trainable parameters, on cuda" not in outcome.output


def test_an_evaluation_finds_the_card_empty(tmp_path):
    outcome = training(tmp_path, *TINY, REHEARSAL_LEDGER=str(tmp_path / "ledger"))
    assert outcome.code == 0, outcome.output
    free, whole = map(int, outcome.output.rpartition("afterwards: ")[2].split())
    assert free == whole - CONTEXT  # of the process that asks


def test_vllm_answers_with_and_without_an_adapter(tmp_path):
    done = on_stub("-m", "tests.rehearsal.engine", str(tmp_path), REHEARSAL_READS="1")
    assert done.returncode == 0, done.stdout
    assert "answered without, with, without, with the adapter, and after reloading" in done.stdout
