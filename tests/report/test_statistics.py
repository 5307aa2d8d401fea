"""Against scipy and explicit enumeration."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from mos.errors import DataError
from mos.report.statistics import (
    Strata,
    combined_interval,
    mcnemar,
    paired_bootstrap,
    paired_strata,
    read_records,
)


def strata(*groups):
    return Strata(tuple(np.column_stack([g, np.ones(len(g))]) for g in groups))


def test_mcnemar_equals_the_enumeration_of_all_sign_flips():
    first = np.array([1, 1, 1, 1, 1, 0, 0, 1, 0, 1])
    second = np.array([0, 0, 0, 1, 0, 1, 0, 0, 0, 1])
    differences = [d for d in first - second if d]
    observed = abs(sum(differences))
    flips = list(itertools.product((-1, 1), repeat=len(differences)))
    enumerated = sum(abs(sum(signs)) >= observed for signs in flips) / len(flips)
    assert mcnemar(first, second) == pytest.approx(enumerated)
    assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar(first, first) == 1.0


def test_seed_interval_is_scipys_t_interval():
    values = [36.1, 36.9, 36.4]
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    interval = combined_interval(values)
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert combined_interval([36.1]).low is None


def test_two_seeds_give_an_interval_of_twelve_standard_errors():
    interval = combined_interval([1.0, 2.0])
    assert interval.high - interval.estimate == pytest.approx(12.706 * 0.5, rel=1e-4)


def test_combined_interval_has_its_limits():
    seeds = [1.0, 1.2]
    assert combined_interval(seeds, None) == combined_interval(seeds, 0.0)
    # Examples alone: a normal interval.
    wide = combined_interval([1.0, 1.0], 0.5)
    assert wide.high - wide.estimate == pytest.approx(stats.norm.ppf(0.975) * 0.5)
    # Satterthwaite by hand: both variances are 0.01, so the degrees of freedom are 1 * 2**2.
    both = combined_interval(seeds, 0.1)
    assert both.high - both.estimate == pytest.approx(stats.t.ppf(0.975, 4) * math.sqrt(0.02))
    assert combined_interval([1.0], 0.5).low is None


def test_bootstrap_of_a_tiny_sample_equals_its_enumeration():
    values = np.array([[-100.0], [0.0], [100.0], [100.0]])
    means = [np.mean(draw) for draw in itertools.product(values[:, 0], repeat=4)]
    found = paired_bootstrap([strata(values)], count=200_000, seed=1)
    assert found.interval.estimate == 25.0
    assert found.error == pytest.approx(np.std(means), rel=0.02)
    exact = 2 * np.mean(np.array(means) <= 0)
    assert found.p == pytest.approx(min(1.0, exact), rel=0.02)


def test_bootstrap_agrees_with_scipy_on_a_large_sample():
    rng = np.random.default_rng(3)
    values = rng.choice([-100.0, 0.0, 0.0, 0.0, 100.0, 100.0], size=(800, 1))
    ours = paired_bootstrap([strata(values)], count=20_000)
    theirs = stats.bootstrap(
        (values[:, 0],), np.mean, n_resamples=5000, method="percentile", random_state=4
    )
    interval = theirs.confidence_interval
    assert ours.interval.low == pytest.approx(interval.low, abs=0.4)
    assert ours.interval.high == pytest.approx(interval.high, abs=0.4)
    assert ours.error == pytest.approx(theirs.standard_error, rel=0.03)


def test_groups_weigh_the_same_and_benchmarks_are_averaged_by_metric():
    small, large = np.full((2, 1), 100.0), np.zeros((50, 1))
    two_metrics = np.array([[30.0, 0.0]] * 7)
    found = paired_bootstrap([strata(small, large), strata(two_metrics)])
    assert found.interval.estimate == pytest.approx((50 + 30 + 0) / 3)
    assert found.error == pytest.approx(0.0, abs=1e-9)


def write_records(folder, benchmark, records):
    file = folder / "eval" / benchmark / "records.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def record(identity, value, metric="exact_match", prompt="p"):
    return {"id": identity, "prompt_sha256": prompt, "scores": {metric: value}}


def test_records_give_the_metric_as_its_benchmark_averages_it(tmp_path):
    records = [record("a/0", 1), record("b/0", 0), record("b/1", 0), record("b/2", 1)]
    write_records(tmp_path, "bbh", records)
    found = read_records(tmp_path, "bbh", {"exact_match": (100 + 100 / 3) / 2})
    assert dict(found.table["group"]) == {"a/0": "a", "b/0": "b", "b/1": "b", "b/2": "b"}
    write_records(tmp_path, "mmlu", records)
    assert read_records(tmp_path, "mmlu", {"exact_match": 50.0})
    assert read_records(tmp_path, "gsm8k", {"exact_match": 50.0}) is None


def test_records_that_do_not_give_the_metric_are_refused(tmp_path):
    write_records(tmp_path, "mmlu", [record("a/0", 1), record("a/1", 0)])
    with pytest.raises(DataError, match=r"do not give the stored exact_match 51\.00"):
        read_records(tmp_path, "mmlu", {"exact_match": 51.0})


@pytest.mark.parametrize("line", ['{"id": "a"', '{"id": "a", "scores": {}}', "[]"])
def test_a_broken_record_is_named_by_line(tmp_path, line):
    file = write_records(tmp_path, "mmlu", [record("a/0", 1)])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"records\.jsonl:2"):
        read_records(tmp_path, "mmlu", {"exact_match": 100.0})


def test_pairs_are_matched_by_id_and_need_the_same_prompts(tmp_path):
    stored = {"exact_match": 50.0}
    for name, records in {
        "one": [record("x/0", 1), record("x/1", 0)],
        "two": [record("x/1", 1), record("x/0", 0)],
        "other prompt": [record("x/0", 1, prompt="q"), record("x/1", 0)],
    }.items():
        write_records(tmp_path / name, "mmlu", records)
    one, two, other = (
        read_records(tmp_path / name, "mmlu", stored) for name in ("one", "two", "other prompt")
    )
    (group,) = paired_strata([one], [two]).differences
    assert sorted(group[:, 0]) == [-100.0, 100.0]
    (mean,) = paired_strata([one, two], [two, two]).differences
    assert sorted(mean[:, 0]) == [-50.0, 50.0]
    assert paired_strata([one], [other]) is None
