"""What may and what may not share a cell."""

from __future__ import annotations

import json
import math
import os

import pytest

from mos.errors import UserError
from tests.report.synthetic import SEVEN_B, cell, report_of, write_run


def mmlu(report):
    return cell(report, "MoS 16/32")


def test_scales_are_never_mixed(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, scale="local", setup="ffffffff")
    report = report_of(tmp_path)
    assert (report.runs.scale, mmlu(report)) == ("paper", {0: 47.0})
    assert [report.counts[key] for key in ("found", "used", "left out")] == [2, 1, 1]
    assert any("of scale local" in p.reason for p in report.problems)
    local = report_of(tmp_path, scale="local")
    assert mmlu(local) == {1: 47.0}
    assert not local.filled["table2"].comparable
    with pytest.raises(UserError, match="scale=huge: no such results"):
        report_of(tmp_path, scale="huge")


def test_models_are_never_mixed(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, model="LLaMA3.2-3B", metrics={"mmlu": {"exact_match": 1.0}})
    assert mmlu(report_of(tmp_path)) == {0: 47.0}


def partial(seed, value=12.0, reason="limit=100"):
    return {
        "seed": seed,
        "metrics": {"mmlu": {"exact_match": value, "n": 100, "partial": reason}},
        "setup": reason.replace("=", ""),
    }


def test_partial_results_are_never_mixed_with_whole_ones(tmp_path):
    write_run(tmp_path, seed=0)
    cut = write_run(tmp_path, **partial(1))
    write_run(tmp_path, **partial(2))
    write_run(tmp_path, **partial(3, 99.0, "limit=5"))
    report = report_of(tmp_path)
    assert mmlu(report) == {0: 47.0}
    named = [str(p) for p in report.problems if p.where == str(cut)]
    assert named == [f"left out: {cut}: mmlu is partial (limit=100)"]
    assert mmlu(report_of(tmp_path, partial=True)) == {1: 12.0, 2: 12.0}


def test_held_out_loss_stands_beside_cut_benchmarks(tmp_path):
    run = partial(0)
    write_run(tmp_path, **run | {"metrics": run["metrics"] | {"heldout": {"loss": 1.5, "n": 8}}})
    assert [c.key for c in report_of(tmp_path, partial=True).runs.columns] == [
        "mmlu.exact_match", "heldout.loss",
    ]  # fmt: skip
    report = report_of(tmp_path)
    assert [c.key for c in report.filled["table2"].table.columns] == ["heldout.loss"]


def test_fewer_examples_without_a_mark_are_not_the_whole_benchmark(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, metrics={"mmlu": {"exact_match": 1.0, "n": 50}})
    report = report_of(tmp_path)
    assert mmlu(report) == {0: 47.0}
    assert any("50 examples, others on 14042" in p.reason for p in report.problems)


def test_duplicates_are_reported_and_count_once(tmp_path):
    old = write_run(tmp_path / "a", metrics={"mmlu": {"exact_match": 10.0}})
    new = write_run(tmp_path / "b")
    os.utime(old / "results.json", (1, 1))
    report = report_of(tmp_path)
    assert mmlu(report) == {0: 47.0}
    assert [str(p) for p in report.problems] == [
        f"left out: {old}: duplicate of {new} (seed 0); the newer one is used"
    ]


def with_config(folder, **config):
    (folder / "config.yaml").write_text(json.dumps(config))


def test_other_setups_are_said_and_stand_apart(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path, seed=seed, setup="aaaaaaaa")
        with_config(run, seed=seed, trainer={"learning_rate": 2e-4}, paths={"output_dir": "x"})
    other = write_run(
        tmp_path, seed=2, setup="bbbbbbbb", metrics={"mmlu": {"exact_match": 1.0, "n": 14042}}
    )
    with_config(other, seed=2, trainer={"learning_rate": 1e-3}, paths={"output_dir": "y"})
    report = report_of(tmp_path)
    assert mmlu(report) == {0: 47.0, 1: 47.0}
    (problem,) = report.problems
    assert str(problem).startswith("noted: MoS 16/32: 1 run(s) of 1 other setup(s) are among the")
    assert set(report.cells[report.cells["table"] == "others"]["run"]) == {str(other)}


def test_seeds_that_also_seed_the_routing_are_one_setup(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path, seed=seed, setup=f"{seed:08x}", config={"routing_seed": seed})
        with_config(run, seed=seed, adapter={"routing_seed": seed})
    report = report_of(tmp_path)
    assert mmlu(report) == {0: 47.0, 1: 47.0}
    assert not report.problems


def test_a_benchmark_after_training_on_other_data_is_not_in_the_tables(tmp_path):
    metrics = {"mmlu": {"exact_match": 40.0}, "bbh": {"exact_match": 30.0}}
    write_run(tmp_path, metrics=metrics)
    report = report_of(tmp_path)
    assert mmlu(report) == {0: 40.0}
    assert not cell(report, "MoS 16/32", "bbh.exact_match")
    assert any("not the paper's pair" in p.reason for p in report.problems)


def test_an_untrained_model_may_be_evaluated_anywhere(tmp_path):
    metrics = {"mmlu": {"exact_match": 41.0}, "bbh": {"exact_match": 33.0}}
    write_run(tmp_path, "Vanilla (no-chat)", None, 0, metrics=metrics, method="none")
    report = report_of(tmp_path)
    assert cell(report, "Vanilla (no-chat)") == {0: 41.0}
    assert cell(report, "Vanilla (no-chat)", "bbh.exact_match") == {0: 33.0}


def test_rows_that_answered_other_prompts_are_said(tmp_path):
    for label, rank, prompts in (("MoS", 16, "aa"), ("LoRA", 8, "bb"), ("LoRA", 2, "aa")):
        parameters = 2 * SEVEN_B if rank == 2 else 8 * SEVEN_B
        run = write_run(tmp_path, label, rank, parameters)
        (run / "eval" / "mmlu").mkdir(parents=True)
        evaluation = {"metrics": {"exact_match": 47.0}, "prompts_sha256": prompts}
        (run / "eval" / "mmlu" / "metrics.json").write_text(json.dumps(evaluation))
    reasons = [p.reason for p in report_of(tmp_path).problems if p.where == "table2"]
    assert reasons == ["mmlu was asked in different prompts: LoRA 2, MoS 16/32 / LoRA 8"]


def test_own_experiments_are_used_and_said(tmp_path):
    write_run(tmp_path, experiment="mine", metrics={"bbh": {"exact_match": 30.0}})
    report = report_of(tmp_path)
    assert cell(report, "MoS 16/32", "bbh.exact_match") == {0: 30.0}
    assert any("experiment 'mine' is used" in p.reason for p in report.problems)


def test_unknown_rows_are_named_and_apart(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, "MoSLoRA", method="moslora", metrics={"mmlu": {"exact_match": 99.0}})
    report = report_of(tmp_path)
    assert mmlu(report) == {0: 47.0}
    assert list(report.sheets["others"].frame["method.label"]) == ["MoSLoRA"]
    (problem,) = report.problems
    assert str(problem) == "noted: row MoSLoRA: no method 'moslora' is known here (1 run(s))"


def test_known_labels_outside_of_the_tables_are_not_unknown(tmp_path):
    for label in ("MiSS", "MiSS (bat)", "MoS -sp -pd", "Full fine-tuning"):
        write_run(tmp_path, label)
    report = report_of(tmp_path)
    assert not report.problems
    assert len(report.sheets["others"].frame) == 4


def average(report, row, table):
    filled = report.filled[table]
    return [frame.at[row, "average"] for frame in (filled.mean, filled.std, filled.n)]


def test_the_average_waits_for_all_columns(tmp_path):
    write_run(tmp_path)
    report = report_of(tmp_path)
    assert mmlu(report)
    assert math.isnan(average(report, "MoS 16/32", "table2")[0])


def test_the_average_of_seeds_uses_those_that_all_columns_share(tmp_path):
    for experiment, metrics in {
        "superni_mmlu": {"mmlu": {"exact_match": 40.0}},
        "flan_bbh": {"bbh": {"exact_match": 30.0}},
        "cot_gsm8k": {"gsm8k": {"exact_match": 20.0}},
    }.items():
        for seed in (0, 1) if experiment != "cot_gsm8k" else (1,):
            write_run(
                tmp_path, "MoS", 8, 7_823_360, experiment=experiment, seed=seed,
                model="LLaMA2-13B", metrics=metrics,
            )  # fmt: skip
    mean, std, n = average(report_of(tmp_path), "MoS 4/8", "table3")
    assert (mean, n) == (30.0, 1)
    assert math.isnan(std)


def test_budgets_tell_rows_of_one_rank_apart(tmp_path):
    write_run(tmp_path, rank=16, parameters=2 * SEVEN_B)
    report = report_of(tmp_path)
    assert set(report.cells["table"]) == {"others"}
    assert report.filled["table2"].about.empty
