"""Tables by any key."""

from __future__ import annotations

import pytest

from mos.errors import UserError
from mos.report import build
from mos.report.grouping import grouped_sheet, parse_filter
from mos.report.reading import read_runs
from mos.report.sheets import flatten
from mos.summarize import quoted
from tests.report.synthetic import write_run


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


def rows_of(sheet):
    return [flatten(row) for row in sheet.rows]


def test_rows_by_columns(sweep):
    results = read_runs(sweep).results
    sheet = grouped_sheet(results, ["method.rank"], ["method.config.shards_per_vector"])
    assert sheet.header == ["method.rank", "1", "4"]
    assert rows_of(sheet) == [
        ["8", "9.50 ±0.71 (2)", "12.50 ±0.71 (2)"],
        ["16", "17.50 ±0.71 (2)", "20.50 ±0.71 (2)"],
    ]


def test_keys_of_config_yaml_and_metric_columns(sweep):
    sheet = grouped_sheet(read_runs(sweep).results, ["trainer.learning_rate"])
    assert sheet.header == ["trainer.learning_rate", "MMLU EM"]
    assert rows_of(sheet)[0] == ["0.008", "11.00 ±1.83 (4)"]


def test_other_values(sweep):
    sheet = grouped_sheet(read_runs(sweep).results, ["method.rank"], ["seed"], "train.train_loss")
    assert rows_of(sheet)[0] == ["8", "1.00 ±0.00 (2)", "1.00 ±0.00 (2)"]


def test_scale_model_and_experiment_are_never_mixed(sweep):
    write_run(sweep, rank=8, model="LLaMA3.2-3B", metrics={"mmlu": {"exact_match": 99.0}})
    sheet = grouped_sheet(read_runs(sweep).results, ["method.rank"])
    assert sheet.header[:2] == ["model", "method.rank"]
    assert ["LLaMA3.2-3B", "8", "99.00 (1)"] in rows_of(sheet)


def test_an_unknown_key_is_an_error(sweep):
    with pytest.raises(UserError, match=r"method\.rnak: none of the 8 runs has it"):
        grouped_sheet(read_runs(sweep).results, ["method.rnak"])


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("method.rank>=16", 4),
        ("method.rank>8, seed=0", 2),
        ("method.label=MoS", 8),
        ("method.label!=MoS", 0),
        ("method.label~mo", 8),
        ("trainer.learning_rate<=0.008", 4),
        ("nothing=1", 0),
        (["method.rank=8", "seed=1"], 2),
        ({"method.rank": [8, 16], "seed": 1}, 4),
        (None, 8),
    ],
)
def test_filters(sweep, given, count):
    where = parse_filter(given)
    assert sum(where(result) for result in read_runs(sweep).results) == count


def test_bad_filters(sweep):
    with pytest.raises(UserError, match="is not a condition"):
        parse_filter("MoS")
    with pytest.raises(UserError, match="none of the 8 usable runs passes"):
        build.assemble(read_runs(sweep), where=parse_filter("seed=7"))


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("rows=method.label,seed", "rows='method.label,seed'"),
        ("filter=method.rank>=16", "filter='method.rank>=16'"),
        ("filter='seed=0'", "filter='seed=0'"),
        ("runs=[a,b]", "runs=[a,b]"),
        ("out=x", "out=x"),
        ("scale=local", "select.scale=local"),
        ("since=6h", "since=6h"),
    ],
)
def test_arguments_are_quoted_for_hydra(given, passed):
    assert quoted(given) == passed
