"""What a job takes, counted before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mos.config import compose_config, validate
from mos.errors import UserError
from mos.models.memory import GIB, estimate
from mos.plan import plan, plan_table, sweep_total
from mos.preflight import check_card

MOS, PAPER = "adapter=table2_mos_r32", "scale=paper"
# Four steps on the stub of tests/rehearsal, whose allocator and sizes are real.
REHEARSED = json.loads((Path(__file__).parents[1] / "rehearsal" / "expected.json").read_text())


def config_of(*overrides: str):
    return validate(compose_config([*overrides]))


@pytest.mark.parametrize("case", REHEARSED)
def test_memory_is_what_a_rehearsal_took(case):
    rehearsed = REHEARSED[case]
    found = estimate(config_of(PAPER, *rehearsed["overrides"]))
    assert found.peak_memory_bytes == pytest.approx(rehearsed["allocated"], rel=0.05)
    assert found.card_memory_bytes == pytest.approx(rehearsed["needed"], rel=0.10)


@pytest.mark.parametrize(
    ("overrides", "parameters"),
    [
        ([PAPER, MOS], 19_988_480),
        ([PAPER, "adapter=table2_lora_r64"], 159_907_840),
        ([PAPER, "adapter=table2_vera_r256"], 1_417_216),
        ([PAPER, "adapter=table2_tied_lora_r280"], 4_989_696),
        (["adapter=table2_mos_r8"], 610_560),
    ],
)
def test_parameters_are_the_paper_s(overrides, parameters):
    assert estimate(config_of(*overrides)).trainable_parameters == parameters


def test_a_card_that_is_too_small_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("mos.preflight.choose_device", lambda _: "cuda")
    free = [22.9, 13.0]
    monkeypatch.setattr("eval.engines.vllm.free_memory", lambda _: (free[0] * GIB, 23.5 * GIB))
    check_card(config_of(PAPER, MOS))
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"needs 8\d\.\d GiB, and 22\.9 of 23\.5 GiB are free"):
        check_card(config_of(PAPER, MOS, "trainer.gradient_checkpointing=false"))
    del free[0]
    check_card(config_of(PAPER, MOS))
    assert "may take 15.5 GiB" in capsys.readouterr().out


def test_a_plan_says_whether_it_fits_and_what_float32_norms_cost(monkeypatch):
    monkeypatch.setattr("mos.plan._device", lambda _: ("a card", 23.5 * GIB, 1e14))
    fits, large = (
        plan(config_of(PAPER, MOS, f"trainer.gradient_checkpointing={checkpointing}"))
        for checkpointing in ("true", "false")
    )
    assert fits["fits"]
    assert not large["fits"]
    assert fits["norms_memory_bytes"] > 0
    assert fits["seconds"] > 0
    total = sweep_total([fits, large])
    assert (total["members"], total["fits"]["24 GB"]) == (2, 1)
    assert plan_table([fits, large]).row_count == 2


def test_the_command_prints_one_object():
    command = [sys.executable, "-m", "mos.plan", "model=tiny_random", "adapter.r=8", "format=json"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["trainable_parameters"] > 0
    assert found["adapter_bytes"] > 4 * found["trainable_parameters"]
    assert found["peak_memory_bytes"] < found["card_memory_bytes"]
