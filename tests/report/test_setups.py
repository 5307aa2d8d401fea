"""What may and what may not share a cell."""

from __future__ import annotations

import json
import math
import os

import pytest

from mos.errors import UserError
from mos.records import Metrics
from mos.report.paper import AVERAGE
from tests.report.synthetic import SEVEN_B, cell, report_of, shown, write_run


def mmlu(report):
    return cell(report, "MoS 16/32")


def test_scales_are_never_mixed(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, scale="local", setup="ffffffff")
    report = report_of(tmp_path)
    assert (report.runs.scale, mmlu(report)) == ("paper", {0: 47.0})
    assert [report.counts[key] for key in ("found", "used", "left out")] == [2, 1, 1]
    assert any("of scale local, not paper" in p.reason for p in report.problems)
    local = report_of(tmp_path, scale="local")
    assert mmlu(local) == {1: 47.0}
    assert not local.filled["table2"].comparable
    with pytest.raises(UserError, match="scale=huge: no such results"):
        report_of(tmp_path, scale="huge")


def test_each_model_has_tables_of_its_own(tmp_path):
    write_run(tmp_path, seed=0)
    small = write_run(tmp_path, seed=1, model="Llama/3.2", metrics={"mmlu": {"exact_match": 1.0}})
    report = report_of(tmp_path)
    assert mmlu(report) == {0: 47.0}
    assert cell(report, "MoS 16/32", table="table2-Llama-3.2") == {1: 1.0}
    only = report_of(tmp_path, model="Llama/3.2")
    assert list(only.filled) == ["table2"]
    assert set(only.cells["run"]) == {str(small)}
    with pytest.raises(UserError, match=r"model=other: no such results; there are .*Llama/3\.2"):
        report_of(tmp_path, model="other")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("weights", "quantization", None),
        ("weights", "model_sha256", "other"),
        ("engine", "engine", "transformers"),
        ("engine", "dtype", "float32"),
        ("options", "chat", False),
    ],
)
def test_weights_engines_and_chats_are_never_mixed(tmp_path, part, key, value):
    """Seed 1 was evaluated in another way than the config of both says."""
    how = {
        "weights": {"model": "m", "model_sha256": "m", "quantization": {"bits": 4}, "adapter": "x"},
        "engine": {"engine": "vllm", "dtype": "bfloat16", "version": "1"},
        "options": {"chat": True, "data_dir": "here"},
    }
    for seed in (0, 1, 2):
        run = write_run(tmp_path, seed=seed, metrics={"mmlu": {"exact_match": 40.0 + seed}})
        other = {part: how[part] | {key: value}} if seed == 1 else {}
        said = how | {"engine": how["engine"] | {"version": str(seed)}} | other
        Metrics(metrics={"exact_match": 1.0}, schema=1, **said).write(run / "eval/mmlu", [])
    report = report_of(tmp_path, rows=["method.label"])
    rows = report.filled["table2"].rows
    found = [cell(report, row) for row in rows if row.startswith("MoS 16/32")]
    assert sorted(found, key=len) == [{1: 41.0}, {0: 40.0, 2: 42.0}]
    name = "bits" if key == "quantization" else key
    assert all(f"{name}=" in row for row in rows if row.startswith("MoS 16/32"))
    cells = report.cells[report.cells["table"] == "grouped"]
    assert cells.groupby("row")["seed"].agg(set).tolist() in ([{0, 2}, {1}], [{1}, {0, 2}])


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


@pytest.mark.parametrize("scale", ["paper", "local"])
def test_of_two_settings_none_is_chosen(tmp_path, scale):
    """Beside the paper's figures its learning rate stands alone; elsewhere both are listed."""
    for seed, rate in ((0, 2e-4), (1, 2e-4), (0, 1e-3), (1, 1e-3), (2, 1e-3)):
        run = write_run(
            tmp_path, seed=seed, scale=scale, setup=f"{rate}",
            metrics={"mmlu": {"exact_match": rate * 1e5 + seed, "n": 14042}},
        )  # fmt: skip
        with_config(run, seed=seed, trainer={"learning_rate": rate}, paths={"output_dir": rate})
    report = report_of(tmp_path)
    rows = {"MoS 16/32"}
    if scale == "local":
        rows = {f"MoS 16/32, learning_rate={rate}" for rate in (0.0002, 0.001)}
        assert cell(report, "MoS 16/32, learning_rate=0.001") == {0: 100.0, 1: 101.0}
        notes = [str(p) for p in report.problems if "not in the means" in p.reason]
        assert notes[0].startswith("noted: MoS 16/32, learning_rate=0.001: seed 2")
    else:
        assert mmlu(report) == {0: 20.0, 1: 21.0}
    assert set(report.cells.loc[report.cells["table"] == "table2", "row"]) == rows
    sweep = report.cells[report.cells["table"] == "sweep"]
    assert len(sweep["run"].unique()) == 4


def test_the_papers_rows_have_the_papers_settings(tmp_path):
    """Shards in four; in two is no row of the paper."""
    for shards, label in ((1, "MoS -vs"), (2, "MoS"), (4, "MoS")):
        write_run(
            tmp_path, label, setup=f"{shards}", config={"shards_per_vector": shards},
            metrics={"mmlu": {"exact_match": float(shards)}},
        )  # fmt: skip
    report = report_of(tmp_path)
    assert mmlu(report) == {0: 4.0}
    assert cell(report, "MoS -vs 16/32") == {0: 1.0}
    sweep = shown(report.sheets["sweep"][0], 1)
    assert list(sweep) == [("4",), ("2",), ("1",)]


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
    assert ("MoSLoRA",) in shown(report.sheets["sweep"][0], 1)
    (problem,) = report.problems
    assert str(problem) == "noted: row MoSLoRA: no method 'moslora' is known here (1 run(s))"


def test_known_labels_outside_of_the_tables_are_not_unknown(tmp_path):
    for label in ("MiSS", "MiSS (bat)", "MoS -sp -pd", "Full fine-tuning"):
        write_run(tmp_path, label)
    report = report_of(tmp_path)
    assert not report.problems
    assert not report.filled
    assert not report.verdicts
    assert len(report.sheets["sweep"][0].frame) == 4


def average(report, row, table):
    return report.filled[table].at(row, AVERAGE)


def test_the_average_waits_for_all_columns(tmp_path):
    write_run(tmp_path)
    report = report_of(tmp_path)
    assert mmlu(report)
    assert math.isnan(average(report, "MoS 16/32", "table2").mean)


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
    mean, std, seeds = average(report_of(tmp_path), "MoS 4/8", "table3")
    assert (mean, seeds) == (30.0, (1,))
    assert math.isnan(std)


def test_budgets_tell_rows_of_one_rank_apart(tmp_path):
    write_run(tmp_path, rank=16, parameters=2 * SEVEN_B)
    assert not report_of(tmp_path).filled
