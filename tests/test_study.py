"""benchmarks/study.py: what it trains, and in which order."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

from mos.config import compose_config, validate

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "study.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["study"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["study"]


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(
        corpora=["cot"], rows=["lora_r2", "mos_r8"], seeds=[0, 1, 2], data="data/full",
        runs=str(tmp_path), out=str(tmp_path),
    )  # fmt: skip


def test_every_row_is_a_valid_config(study, args):
    for row in study.ROWS:
        config = validate(compose_config(study.overrides(args, "cot", row)))
        assert (config["experiment"], config["scale"]["name"]) == ("study_cot", "study")
        assert config["data"]["test_size"] == 512


def test_other_seeds_are_trained_at_the_best_rates(study, args, monkeypatch):
    losses = {
        ("lora_r2", 0.0005): 1.2, ("lora_r2", 0.002): 1.1, ("lora_r2", 0.008): 1.3,
        ("mos_r8", 0.0005): 1.2, ("mos_r8", 0.002): 1.1, ("mos_r8", 0.008): 1.0,
    }  # fmt: skip

    class Finished:
        def __init__(self, loss):
            self.results = {"train": {"eval_loss": loss}}

    known = dict(losses)
    monkeypatch.setattr(
        study, "finished",
        lambda _, corpus, row, rate: Finished(known[row, rate]) if (row, rate) in known else None,
    )  # fmt: skip
    sweeps = [(given[-1], rates, seeds) for given, rates, seeds in study.plan(args)]
    assert sweeps == [
        ("adapter=table1_lora_r2", [0.0005, 0.002, 0.008], [0]),
        ("adapter=table2_mos_r8", [0.0005, 0.002, 0.008], [0]),
        ("adapter=table1_lora_r2", [0.002], [1, 2]),
        ("adapter=table2_mos_r8", [0.002, 0.008], [1, 2]),
    ]
    del known["mos_r8", 0.008]  # as long as a rate is missing, none is the best
    assert list(study.plan(args))[-1][1] == [0.002]


def test_routing_follows_the_seed_in_every_row_that_has_one(study, args, monkeypatch):
    commands = []
    monkeypatch.setattr(study.subprocess, "run", lambda command, **_: commands.append(command))
    for row in ("lora_r2", "mos_r8_pd", "pure_sharing", "subset_selection"):
        study.sweep(study.overrides(args, "cot", row), [0.002], [1, 2])
    follows = ["adapter.routing_seed=${seed}" in command for command in commands]
    assert follows == [False, True, True, True]
