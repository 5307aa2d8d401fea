"""Tables by any key, and their plot."""

from __future__ import annotations

import re
import shutil
from itertools import product

import pytest

from mos.errors import UserError
from mos.report.pivot import show_sweeps
from mos.report.plots import drawn, heat_plot
from mos.runs import find_runs
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
    return shown(report_of(root, rows=rows, **options).grouped.sheet, texts)


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
    sheet = report_of(sweep, rows=["trainer.learning_rate"]).grouped.sheet
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
    sheet = report_of(sweep, rows=["method.rank"]).grouped.sheet
    assert "model" in sheet.notes[1]
    assert shown(sheet, 3)["8", "LLaMA3.2-3B", "–"] == {"MMLU EM": "99.00 (seed 0)"}


def test_bare_models_come_first(sweep):
    write_run(sweep, "Vanilla (chat)", None, 0, metrics={"mmlu": {"exact_match": 99.0}})
    assert next(iter(grouped(sweep, "method.label"))) == ("Vanilla (chat)",)


def test_a_table_by_learning_rates_has_a_heat_map(tmp_path):
    losses = {"LoRA": (1.3, 1.1, 1.2), "MoS": (1.4, 1.2, 1.0)}
    for label, own in losses.items():
        for rate, loss in zip((0.0001, 0.001, 0.01), own, strict=True):
            train = {"steps": 10, "eval_loss": loss}
            run = write_run(tmp_path, label, 8, setup=f"{rate}", train=train)
            (run / "config.yaml").write_text(f"seed: 0\ntrainer:\n  learning_rate: {rate}\n")
    by = {"rows": ["method.label"], "columns": ["trainer.learning_rate"]}
    report = report_of(tmp_path, **by, value="train.eval_loss")
    sheet = report.grouped.sheet
    assert shown(sheet, 1)["MoS",] == {
        "0.0001": "1.4000 (1)", "0.001": "1.2000 (1)", "0.01": "1.0000 (1)",
    }  # fmt: skip
    bold = {(sheet.frame.iat[y, 0], sheet.frame.columns[x]) for y, x in sheet.marks}
    assert bold == {("LoRA", "0.001"), ("MoS", "0.01")}
    (plot,) = drawn("grouped", "", "", heat_plot, report.grouped)
    for text in ("LoRA", "MoS", "trainer.learning_rate", "1.4000", "1.0000", "0.0001"):
        assert f"<!-- {text} -->" in plot.svg


def write_sweep(root, seeds=(0, 1)):
    """Twelve settings: r, l, p; the loss of each at its seeds, which no other order gives."""
    for number, (r, shards, private) in enumerate(product((8, 16), (1, 2, 4), (0, 1))):
        label = "MoS" + " -sp" * (private == 0) + " -vs" * (shards == 1)
        for seed in seeds:
            loss = 5.6 + (number * 5 % 12) / 100 + seed / 20 + (number + seed) % 3 / 1000
            write_run(
                root, label, r, 610_560, seed=seed, scale="local", model="SmolLM2-135M",
                setup=f"{number:08x}",
                config={"r": r, "shards_per_vector": shards, "private_rank": private},
                metrics={"heldout": {"loss": loss, "n": 64, "lower_is_better": ["loss"]}},
            )  # fmt: skip


def test_a_sweep_is_read_in_one_look(tmp_path, capsys):
    """A line a setting, the best first, with differences over the same seeds, in 80 columns."""
    write_sweep(tmp_path)
    show_sweeps(find_runs(tmp_path))
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert lines[0].strip() == "Sweep superni_mmlu on SmolLM2-135M"
    words = " ".join(lines[1:4]).split()
    assert " ".join(words) == "shards_ per_ private_ minus r vector rank mean sd n best"
    rows = [line.split() for line in lines if line.startswith(("8 ", "16 "))]
    assert len(rows) == 12
    assert [row[3] for row in rows] == sorted(row[3] for row in rows)
    assert rows[0] == ["8", "1", "0", "5.6255", "0.0361", "2", "best"]
    for row in rows[1:]:
        difference = float(row[3]) - float(rows[0][3])
        assert float(row[6]) == pytest.approx(difference, abs=2e-4)
    assert "Held-out loss in nats, lower is better, over seeds 0, 1." in printed
    assert "sd and ±: standard deviation over seeds" in printed


def test_what_has_other_seeds_is_no_part_of_a_sweeps_order(tmp_path):
    write_sweep(tmp_path)
    for run in tmp_path.rglob("*-00000000/seed1"):  # the best is not done
        shutil.rmtree(run)
    frame = report_of(tmp_path).sheets["sweep"][0].frame
    last = frame.iloc[-1]
    assert (last["r"], last["shards_per_vector"], last["private_rank"]) == ("8", "1", "0")
    assert (last["n"], last["minus best"]) == ("seed 0", "–")
    assert frame["minus best"].iloc[0] == "best"


def test_a_heat_map_has_every_value_of_a_sweep(tmp_path):
    write_sweep(tmp_path)
    (pivot,) = report_of(tmp_path).sweeps
    assert {title: map.shape for title, map in pivot.maps.items()} in (
        {"private_rank=0": (2, 3), "private_rank=1": (2, 3)},
        {"r=8": (2, 3), "r=16": (2, 3)},
    )
    drawn_values = {f"{mean:.4f}" for map in pivot.maps.values() for mean in map.to_numpy().flat}
    assert drawn_values == set(pivot.sheet.frame["mean"])
    (plot,) = drawn("sweep", "", "", heat_plot, pivot)
    for text in ("shards_per_vector", "1", *drawn_values):
        assert f"<!-- {text} -->" in plot.svg


def test_a_sweep_is_sorted_by_the_yardstick(sweep):
    frame = report_of(sweep, yardstick="mmlu.exact_match").sheets["sweep"][0].frame
    assert list(frame["mean"]) == ["20.50", "17.50", "12.50", "9.50"]
    assert list(frame["minus best"]) == ["best", "-3.00 ±0.00", "-8.00 ±0.00", "-11.00 ±0.00"]


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
