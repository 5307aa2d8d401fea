"""Run folders as they are found in the wild: what is unusable is named and in no mean."""

from __future__ import annotations

import json
import os
import time

import pytest

from mos.errors import MissingFileError, UserError
from mos.report import build
from mos.report.reading import read_runs, seconds
from tests.report.synthetic import SEVEN_B, write_run


def edit(folder, **changes):
    file = folder / "results.json"
    content = json.loads(file.read_text())
    for key, value in changes.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    file.write_text(json.dumps(content))


def half_written(folder):
    text = (folder / "results.json").read_text()
    (folder / "results.json").write_text(text[: len(text) // 2])


def no_results(folder):
    (folder / "results.json").unlink()


def wrong_metric(folder, value):
    edit(folder, metrics={"mmlu": {"exact_match": value}})


def edited_after_evaluation(folder):
    (folder / "eval" / "mmlu").mkdir(parents=True)
    (folder / "eval" / "mmlu" / "metrics.json").write_text(json.dumps({"exact_match": 46.0}))


def metric_missing(folder):
    edit(folder, metrics={"tydiqa": {"f1": 50.0}})


def status(name):
    def write(folder):
        (folder / "status.json").write_text(json.dumps({"status": name, "reason": "disk full"}))

    return write


BAD = {
    "newer schema": (lambda f: edit(f, schema=2), "refused", "newer schema 2"),
    "no schema": (lambda f: edit(f, schema=None), "refused", "schema None"),
    "half-written": (half_written, "refused", "half-written"),
    "empty": (lambda f: (f / "results.json").write_text(""), "refused", "is empty"),
    "a list": (lambda f: (f / "results.json").write_text("[]"), "refused", "holds a list"),
    "text for a metric": (lambda f: wrong_metric(f, "47.0"), "refused", "no number"),
    "not a number": (lambda f: wrong_metric(f, float("nan")), "refused", "no number"),
    "above 100": (lambda f: wrong_metric(f, 470.1), "refused", "expected 0..100"),
    "edited": (edited_after_evaluation, "refused", "one of them was edited"),
    "metric missing": (metric_missing, "skipped", "lacks exact_match"),
    "no metrics": (lambda f: edit(f, metrics={}), "skipped", "not evaluated"),
    "field missing": (lambda f: edit(f, scale=None), "refused", "lacks scale"),
    "wrong type": (lambda f: edit(f, seed="0"), "refused", "wrong type"),
    "no results": (no_results, "skipped", "no results.json"),
    "failed": (status("failed"), "skipped", "failed (disk full)"),
    "interrupted": (status("interrupted"), "skipped", "interrupted"),
    "broken status": (lambda f: (f / "status.json").write_text("{"), "refused", "status.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_runs_are_named_and_in_no_mean(tmp_path, name):
    spoil, consequence, reason = BAD[name]
    good = write_run(tmp_path, seed=0)
    bad = write_run(tmp_path, seed=1, metrics={"mmlu": {"exact_match": 10.0}})
    spoil(bad)
    summary = build.assemble(read_runs(tmp_path))
    assert summary.folders == 2
    named = [p for p in summary.problems if p.where == str(bad)]
    assert [p.consequence for p in named] == [consequence]
    assert reason in named[0].reason
    cell = summary.filled[1].lines[10].group.cells["mmlu.exact_match"]
    assert cell.values == {0: 47.0}
    assert [run.path for run in cell.runs] == [good]


def test_a_missing_metric_leaves_the_other_benchmark(tmp_path):
    write_run(tmp_path, metrics={"mmlu": {"exact_match": 47.0}, "tydiqa": {"f1": 50.0}})
    reading = read_runs(tmp_path)
    assert list(reading.results[0].metrics) == ["mmlu"]
    assert "metrics.tydiqa lacks exact_match" in str(reading.problems[0])


def test_rounded_results_are_not_taken_for_edited(tmp_path):
    run = write_run(tmp_path, metrics={"mmlu": {"exact_match": 47.01}})
    (run / "eval" / "mmlu").mkdir(parents=True)
    (run / "eval" / "mmlu" / "metrics.json").write_text(
        json.dumps({"metrics": {"exact_match": 47.0131}})
    )
    assert not read_runs(tmp_path).problems


def test_folders_are_found_at_any_depth_and_once(tmp_path):
    deep = write_run(tmp_path / "a" / "b" / "c")
    other = write_run(tmp_path / "d", seed=1)
    (deep / "checkpoints" / "10").mkdir(parents=True)
    (deep / "checkpoints" / "10" / "config.yaml").write_text("{}")
    (tmp_path / "a" / "seed7").mkdir()
    reading = read_runs([tmp_path, deep, f"{tmp_path}/d/**/seed1"])
    assert sorted(r.path for r in reading.results) == sorted([deep, other])
    assert reading.folders == 3
    assert [p.where for p in reading.problems] == [str(tmp_path / "a" / "seed7")]


def test_what_overwrite_set_aside_is_not_read(tmp_path):
    run = write_run(tmp_path)
    old = write_run(tmp_path, seed=1)
    old.rename(run.with_name("seed0.old-20261122-010203"))
    assert [r.path for r in read_runs(tmp_path).results] == [run]


def test_nothing_there_is_an_error_that_says_so(tmp_path):
    with pytest.raises(MissingFileError, match="no such folder"):
        read_runs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="no run folder below it"):
        read_runs(tmp_path / "empty")


def test_since_leaves_out_older_results(tmp_path):
    new, old = write_run(tmp_path), write_run(tmp_path, seed=1)
    earlier = time.time() - 7 * 3600
    os.utime(old / "results.json", (earlier, earlier))
    assert [r.path for r in read_runs(tmp_path, since="6h").results] == [new]
    assert len(read_runs(tmp_path, since="8h").results) == 2
    with pytest.raises(UserError, match="as in 6h"):
        read_runs(tmp_path, since="yesterday")


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("1.5h", 5400), ("2d", 172800)])
def test_durations(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("count", [1000, pytest.param(5000, marks=pytest.mark.slow)])
def test_thousands_of_runs_in_seconds(tmp_path, count):
    """Reading, grouping, filling, judging, writing: 5,000 runs in well under 10 s of CPU time."""
    rows = (("MoS", 16, 8), ("LoRA", 2, 2), ("LoRA", 8, 8), ("MoS", 8, 2))
    seeds = count // len(rows)
    for label, rank, e in rows:
        for seed in range(seeds):
            write_run(tmp_path, label, rank, e * SEVEN_B, seed=seed)
    start = time.process_time()
    summary = build.assemble(read_runs(tmp_path))
    build.write(summary, tmp_path / "summary", with_plots=False)
    elapsed = time.process_time() - start
    assert len(summary.results) == count
    assert summary.filled[1].lines[10].cell(summary.filled[1].table.columns[0]).n == seeds
    assert elapsed < count * 1.6e-3
