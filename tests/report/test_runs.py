"""Run folders as they are found in the wild: what is unusable is named and in no mean."""

from __future__ import annotations

import json
import time

import pytest

from mos.files import hash_json
from mos.report.page import write
from mos.report.runs import read_runs
from tests.report.synthetic import SEVEN_B, cell, report_of, write_run


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


def sealed(content):
    return {**content, "sha256": hash_json(content)}


def edited_metrics(folder):
    (folder / "eval" / "mmlu").mkdir(parents=True)
    content = sealed({"metrics": {"exact_match": 10.0}}) | {"n": 3}
    (folder / "eval" / "mmlu" / "metrics.json").write_text(json.dumps(content))


def edited_results(folder):
    content = sealed(json.loads((folder / "results.json").read_text()))
    (folder / "results.json").write_text(json.dumps(content | {"seed": 7}))


def status(name):
    def write(folder):
        (folder / "status.json").write_text(json.dumps({"status": name, "reason": "disk full"}))

    return write


def replaced(name, text):
    def write(folder):
        (folder / name).write_text(text)

    return write


NESTED = "[" * 100_000

BAD = {
    "deep JSON": (replaced("results.json", NESTED), "refused", "not whole JSON"),
    "deep status": (replaced("status.json", NESTED), "refused", "status.json"),
    "cut YAML": (replaced("config.yaml", "a: [1, 2\n"), "refused", "not whole YAML"),
    "binary config": (lambda f: (f / "config.yaml").write_bytes(b"\xff"), "refused", "UTF-8"),
    "5,000 digits": (replaced("results.json", "9" * 5000), "refused", "not whole JSON"),
    "newer schema": (lambda f: edit(f, schema=2), "refused", "newer schema 2"),
    "half-written": (half_written, "refused", "half-written"),
    "edited results": (edited_results, "refused", "results.json was changed"),
    "edited metrics": (edited_metrics, "refused", "metrics.json was changed"),
    "text for a metric": (lambda f: wrong_metric(f, "47.0"), "refused", "exact_match"),
    "field missing": (lambda f: edit(f, scale=None), "refused", "scale"),
    "no metrics": (lambda f: edit(f, metrics={}), "left out", "not evaluated"),
    "no results": (no_results, "left out", "no results.json"),
    "failed": (status("failed"), "left out", "failed (disk full)"),
    "interrupted": (status("interrupted"), "left out", "interrupted"),
    "broken status": (lambda f: (f / "status.json").write_text("{"), "refused", "status.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_runs_are_named_and_in_no_mean(tmp_path, name):
    spoil, consequence, reason = BAD[name]
    good = write_run(tmp_path, seed=0)
    bad = write_run(tmp_path, seed=1, metrics={"mmlu": {"exact_match": 10.0}})
    spoil(bad)
    report = report_of(tmp_path)
    assert [report.counts[key] for key in ("found", "used", consequence)] == [2, 1, 1]
    named = [p for p in report.problems if p.where == str(bad)]
    assert [p.consequence for p in named] == [consequence]
    assert reason in named[0].reason
    assert cell(report, "MoS 16/32") == {0: 47.0}
    assert set(report.cells["run"]) == {str(good)}


def test_a_report_of_nothing_says_what_is_there(tmp_path):
    status("failed")(run := write_run(tmp_path))
    (run / "results.json").unlink()
    report = report_of(tmp_path, rows=["method.label"])
    write(report, tmp_path / "summary")
    assert [p.reason for p in report.problems] == ["status failed (disk full): no results.json"]


def read(*roots):
    problems = []
    return read_runs([str(root) for root in roots], problems), problems


def test_a_partially_evaluated_run_counts_with_what_it_has(tmp_path):
    run = write_run(tmp_path, metrics={"mmlu": {"exact_match": 47.0}})
    status("trained")(run)
    runs, problems = read(tmp_path)
    assert len(runs.wide) == 1
    assert [str(p) for p in problems] == [f"noted: {run}: partially evaluated: mmlu so far"]
    (run / "results.json").unlink()
    assert [p.reason for p in read(tmp_path)[1]] == ["trained, not evaluated"]


def test_folders_are_found_at_any_depth_and_once(tmp_path):
    deep = write_run(tmp_path / "a" / "b" / "c")
    other = write_run(tmp_path / "d", seed=1)
    (tmp_path / "a" / "seed7").mkdir()
    (tmp_path / "a" / "seed7" / "config.yaml").write_text("seed: 7\n")
    runs, problems = read(tmp_path, deep, f"{tmp_path}/d/**/seed1")
    assert sorted(runs.wide.index) == sorted([str(deep), str(other)])
    assert runs.folders == 3
    assert [p.where for p in problems] == [str(tmp_path / "a" / "seed7")]


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_thousands_of_runs_in_seconds(tmp_path, count):
    """Reading, grouping, filling, judging, writing: 5,000 runs in well under 10 s of CPU time."""
    rows = (("MoS", 16, 8), ("LoRA", 2, 2), ("LoRA", 8, 8), ("MoS", 8, 2))
    seeds = count // len(rows)
    for label, rank, e in rows:
        for seed in range(seeds):
            run = write_run(tmp_path, label, rank, e * SEVEN_B, seed=seed, setup=f"{e}{rank}")
            (run / "config.yaml").write_text(f"seed: {seed}\nadapter:\n  r: {rank}\n")
    start = time.process_time()
    report = report_of(tmp_path)
    write(report, tmp_path / "summary", with_plots=False)
    elapsed = time.process_time() - start
    assert report.counts["used"] == count
    assert len(cell(report, "MoS 16/32")) == seeds
    assert elapsed < 1 + count * 1.6e-3
