"""Against scipy and explicit enumeration."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from mos.errors import UserError
from mos.report.paper import column
from mos.report.statistics import (
    combined_interval,
    example_error,
    paired_strata,
    scores_of,
)


def strata(*groups):
    return [np.column_stack([g, np.ones(len(g))]) for g in groups]


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


def test_the_error_over_a_tiny_sample_equals_the_enumeration_of_its_draws():
    values = np.array([[-100.0], [0.0], [100.0], [100.0]])
    means = [np.mean(draw) for draw in itertools.product(values[:, 0], repeat=4)]
    assert example_error([strata(values)]) == pytest.approx(np.std(means))


def test_the_error_of_weighted_examples_agrees_with_scipys_bootstrap():
    rng = np.random.default_rng(3)
    values, weights = rng.normal(size=800), rng.integers(1, 9, size=800)

    def mean(values, weights, axis):
        return (values * weights).sum(axis=axis) / weights.sum(axis=axis)

    theirs = stats.bootstrap(
        (values, weights), mean, paired=True, n_resamples=5000, vectorized=True, random_state=4
    )
    ours = example_error([[np.column_stack([values * weights, weights])]])
    assert ours == pytest.approx(theirs.standard_error, rel=0.03)


def test_groups_weigh_the_same_and_benchmarks_are_averaged_by_metric():
    rng = np.random.default_rng(5)
    small, large = rng.normal(size=(200, 1)), rng.normal(size=(800, 1))
    # Means of 200 and 800 draws, averaged: half of the root of the sum of their variances.
    expected = math.sqrt(small.var() / 200 + large.var() / 800) / 2
    assert example_error([strata(small, large)]) == pytest.approx(expected)
    # A second metric that never differs halves it.
    two = [np.hstack([group, np.zeros_like(group)]) for group in (small, large)]
    assert example_error([strata(*two)]) == pytest.approx(expected / 2)


def write_records(folder, benchmark, records):
    file = folder / "eval" / benchmark / "records.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def record(identity, value, metric="exact_match", prompt="p"):
    return {"id": identity, "prompt_sha256": prompt, "scores": {metric: value}}


EXACT = column("mmlu.exact_match")


def test_examples_have_the_groups_of_their_benchmark(tmp_path):
    records = [record("a/0", 1), record("b/0", 0), record("b/1", 0), record("b/2", 1)]
    write_records(tmp_path, "bbh", records)
    found = scores_of(tmp_path, [column("bbh.exact_match")])
    assert dict(found["group"]) == {"a/0": "a", "b/0": "b", "b/1": "b", "b/2": "b"}
    assert list(found["bbh.exact_match"]) == [100.0, 0.0, 0.0, 100.0]
    assert scores_of(tmp_path, [column("gsm8k.exact_match")]) is None


@pytest.mark.parametrize("line", ['{"id": "a"', '{"id": "a", "scores": {}}', "[]"])
def test_a_broken_record_is_named(tmp_path, line):
    file = write_records(tmp_path, "mmlu", [record("a/0", 1)])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"mmlu"):
        scores_of(tmp_path, [EXACT])


def test_pairs_are_matched_by_id_and_need_the_same_prompts(tmp_path):
    for name, records in {
        "one": [record("x/0", 1), record("x/1", 0)],
        "two": [record("x/1", 1), record("x/0", 0)],
        "other": [record("x/0", 1, prompt="q"), record("x/1", 0)],
    }.items():
        write_records(tmp_path / name, "mmlu", records)
    one, two, other = (scores_of(tmp_path / name, [EXACT]) for name in ("one", "two", "other"))
    (group,) = paired_strata([one], [two])
    assert sorted(group[:, 0]) == [-100.0, 100.0]
    (mean,) = paired_strata([one, two], [two, two])
    assert sorted(mean[:, 0]) == [-50.0, 50.0]
    assert paired_strata([one], [other]) is None
