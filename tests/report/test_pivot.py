"""Tables by any key, and their plot."""

from __future__ import annotations

import re

import pytest

from mos.errors import UserError
from mos.report.plots import drawn, pivot_plot
from tests.report.synthetic import report_of, shown, write_run


@pytest.fixture
def sweep(tmp_path):
    for rank in (8, 16):
        for shards in (1, 4):
            for seed in (0, 1):
                run = write_run(
                    tmp_path, rank=rank, seed=seed, setup=f"{rank:04x}{shards:04x}",
                    config={"r": rank, "shards_per_vector": shards},
                    metrics={"mmlu": {"exact_match": rank + shards + seed}},
                )  # fmt: skip
                (run / "config.yaml").write_text(f"trainer:\n  learning_rate: {rank / 1000}\n")
    return tmp_path


def grouped(root, *rows, texts=1, **options):
    return shown(report_of(root, rows=rows, **options).sheets["grouped"], texts)


def test_rows_by_columns(sweep):
    assert grouped(sweep, "method.rank", columns=["method.config.shards_per_vector"]) == {
        ("8",): {"1": "9.50 ±0.71 (2)", "4": "12.50 ±0.71 (2)"},
        ("16",): {"1": "17.50 ±0.71 (2)", "4": "20.50 ±0.71 (2)"},
    }


def test_the_runs_behind_a_cell_are_named(sweep):
    cells = report_of(
        sweep,
        rows=["method.rank"],
    ).cells
    own = cells[(cells["table"] == "grouped") & (cells["row"] == "16, 4")]
    assert sorted(own["value"]) == [20.0, 21.0]
    assert {path.rpartition("/")[2] for path in own["run"]} == {"seed0", "seed1"}
    assert all("00100004" in path for path in own["run"])


def test_runs_of_other_settings_never_share_a_cell(sweep):
    """The learning rate tells ranks apart, not shards: these are added."""
    table = grouped(sweep, "trainer.learning_rate", texts=2)
    assert table["0.008", "1"] == {"MMLU EM": "9.50 ±0.71 (2)"}
    sheet = report_of(sweep, rows=["trainer.learning_rate"]).sheets["grouped"]
    assert "added to the rows: method.config.shards_per_vector." in sheet.notes[1]


def test_runs_of_other_lengths_never_share_a_cell(tmp_path):
    for steps, setup in ((4, "aaaa"), (400, "bbbb")):
        run = write_run(tmp_path, setup=setup, metrics={"mmlu": {"exact_match": steps / 10}})
        (run / "config.yaml").write_text(f"trainer:\n  max_steps: {steps}\n  save_steps: {steps}\n")
    assert grouped(tmp_path, "method.label", "method.rank", texts=3) == {
        ("MoS", "16", "4"): {"MMLU EM": "0.40 (1)"},
        ("MoS", "16", "400"): {"MMLU EM": "40.00 (1)"},
    }


def test_values_and_metrics_as_columns(sweep):
    table = grouped(sweep, "method.rank", columns=["seed"], value="train.train_loss", texts=2)
    assert table["8", "1"] == {"0": "1.0000 (1)", "1": "1.0000 (1)"}
    table = grouped(sweep, "method.rank", "seed", columns=["mmlu.exact_match"], texts=3)
    assert table["8", "0", "1"] == {"MMLU EM": "9.00 (1)"}
    assert grouped(sweep, columns=["method.rank"])


def test_scale_model_and_experiment_are_never_mixed(sweep):
    write_run(sweep, rank=8, model="LLaMA3.2-3B", metrics={"mmlu": {"exact_match": 99.0}})
    sheet = report_of(sweep, rows=["method.rank"]).sheets["grouped"]
    assert "model" in sheet.notes[1]
    assert shown(sheet, 3)["8", "LLaMA3.2-3B", "–"] == {"MMLU EM": "99.00 (1)"}


def test_bare_models_come_first(sweep):
    write_run(sweep, "Vanilla (chat)", None, 0, metrics={"mmlu": {"exact_match": 99.0}})
    assert next(iter(grouped(sweep, "method.label"))) == ("Vanilla (chat)",)


def test_a_sweep_over_learning_rates_is_a_table_with_a_plot(tmp_path):
    losses = {"LoRA": (1.3, 1.1, 1.2), "MoS": (1.4, 1.2, 1.0)}
    for label, own in losses.items():
        for rate, loss in zip((0.0001, 0.001, 0.01), own, strict=True):
            train = {"steps": 10, "eval_loss": loss}
            run = write_run(tmp_path, label, 8, setup=f"{rate}", train=train)
            (run / "config.yaml").write_text(f"seed: 0\ntrainer:\n  learning_rate: {rate}\n")
    by = {"rows": ["method.label"], "columns": ["trainer.learning_rate"]}
    report = report_of(tmp_path, **by, value="train.eval_loss")
    assert shown(report.sheets["grouped"], 1)["MoS",] == {
        "0.0001": "1.4000 (1)", "0.001": "1.2000 (1)", "0.01": "1.0000 (1)",
    }  # fmt: skip
    sheet = report.sheets["grouped"]
    marks = dict(zip(sheet.frame["method.label"], sheet.marks.to_numpy().tolist(), strict=True))
    assert marks == {"LoRA": ["", "", "bold", ""], "MoS": ["", "", "", "bold"]}
    (plot,) = drawn("grouped", "", "", lambda: pivot_plot(report.pivot))
    for text in ("LoRA", "MoS", "trainer.learning_rate", "train.eval_loss", "0.0001"):
        assert f"<!-- {text} -->" in plot.svg


def test_an_unknown_key_is_an_error(sweep):
    with pytest.raises(UserError, match=r"method\.rnak: none of the 8 runs has it"):
        grouped(sweep, "method.rnak")


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("method.rank>=16", 4),
        ("method.rank > 8 and seed == 0", 2),
        ('method.label == "MoS"', 8),
        ('method.label.str.contains("Mo")', 8),
        ("trainer.learning_rate <= 0.008", 4),
        ("method.rank in [8, 16] and metrics.mmlu.exact_match > 20", 1),
        (None, 8),
    ],
)
def test_filters(sweep, given, count):
    assert report_of(sweep, where=given).counts["used"] == count


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("method.label == MoS", "'MoS' is not defined"),
        ("method.rnak >= 8", "Did you mean 'method.rank'"),
        ("method.rank = 8", "Expected an expression of pandas"),
        ("method.label >= 8", "Expected an expression of pandas"),
        ("method.rank", "Expected an expression of pandas"),
        ("seed == 7", "none of the 8 usable runs passes"),
    ],
)
def test_bad_filters(sweep, given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        report_of(sweep, where=given)
