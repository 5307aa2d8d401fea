"""Tables by any key."""

from __future__ import annotations

import re

import pytest

from mos.errors import UserError
from tests.report.synthetic import report_of, write_run


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


def grouped(root, *rows, **options):
    return report_of(root, rows=rows, **options).sheets["grouped"].frame


def test_rows_by_columns(sweep):
    frame = grouped(sweep, "method.rank", columns=["method.config.shards_per_vector"])
    assert list(frame) == ["method.rank", "1", "4"]
    assert frame.to_numpy().tolist() == [
        ["8", "9.50 ±0.71 (2)", "12.50 ±0.71 (2)"],
        ["16", "17.50 ±0.71 (2)", "20.50 ±0.71 (2)"],
    ]


def test_runs_of_other_settings_never_share_a_cell(sweep):
    """The learning rate tells ranks apart, not shards: these are added."""
    frame = grouped(sweep, "trainer.learning_rate")
    assert list(frame) == ["trainer.learning_rate", "method.config.shards_per_vector", "MMLU EM"]
    assert frame.to_numpy().tolist()[0] == ["0.008", "1", "9.50 ±0.71 (2)"]


def test_runs_of_other_lengths_never_share_a_cell(tmp_path):
    for steps, setup in ((4, "aaaa"), (400, "bbbb")):
        run = write_run(tmp_path, setup=setup, metrics={"mmlu": {"exact_match": steps / 10}})
        (run / "config.yaml").write_text(f"trainer:\n  max_steps: {steps}\n  save_steps: {steps}\n")
    frame = grouped(tmp_path, "method.label", "method.rank")
    assert frame.to_numpy().tolist() == [
        ["MoS", "16", "4", "0.40 (1)"],
        ["MoS", "16", "400", "40.00 (1)"],
    ]
    assert frame.columns[2] == "trainer.max_steps"


def test_values_and_metrics_as_columns(sweep):
    frame = grouped(sweep, "method.rank", columns=["seed"], value="train.train_loss")
    assert frame.to_numpy().tolist()[0] == ["8", "1", "1.0000 (1)", "1.0000 (1)"]
    frame = grouped(sweep, "method.rank", "seed", columns=["mmlu.exact_match"])
    assert list(frame)[-1] == "MMLU EM"


def test_scale_model_and_experiment_are_never_mixed(sweep):
    write_run(sweep, rank=8, model="LLaMA3.2-3B", metrics={"mmlu": {"exact_match": 99.0}})
    frame = grouped(sweep, "method.rank")
    assert frame.columns[1] == "model"
    assert "99.00 (1)" in frame.to_numpy()[:, -1]


def test_bare_models_come_first(sweep):
    write_run(sweep, "Vanilla (chat)", None, 0, metrics={"mmlu": {"exact_match": 99.0}})
    assert "8" in grouped(sweep, "method.label", "method.rank")["method.rank"].to_list()
    assert grouped(sweep, "method.label")["method.label"][0] == "Vanilla (chat)"


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
        ("method.label == MoS", "no run has the key MoS"),
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
