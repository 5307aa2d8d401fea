"""Held-out loss as the yardstick of tables and claims, and sweeps over learning rates."""

from __future__ import annotations

import json

import pytest

from mos.report.rates import rates_sheet
from tests.report.synthetic import lines_of, report_of, write_run


def write_heldout(root, label, rank, losses, seed, rate=None, validation=None, exact=()):
    """A run with the loss of each held-out example; tokens alternate between 1 and 3.

    Args:
        exact: 1 or 0 for each example, whether its answer is given to the word.
    """
    tokens = [1.0 if i % 2 else 3.0 for i in range(len(losses))]
    nll = [loss * n for loss, n in zip(losses, tokens, strict=True)]
    loss = sum(nll) / sum(tokens)
    metrics = {"loss": loss}
    if exact:
        metrics["exact_match"] = 100 * sum(exact) / len(exact)
    config = {"r": rank, "equivalent_rank": 2} if label == "MoS" else {"r": rank}
    run = write_run(
        root, label, rank, 610_560, seed=seed, scale="local", model="Smol", config=config,
        metrics={"heldout": metrics | {"n": len(losses), "lower_is_better": ["loss"]}},
        setup=f"{rate}", train={"steps": 10, "eval_loss": validation},
    )  # fmt: skip
    (run / "eval" / "heldout").mkdir(parents=True)
    records = [
        {"id": str(i), "scores": {"nll": x, "tokens": n}}
        for i, (x, n) in enumerate(zip(nll, tokens, strict=True))
    ]
    for record, score in zip(records, exact, strict=False):
        record["scores"]["exact_match"] = score
    file = run / "eval" / "heldout" / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    (file.parent / "metrics.json").write_text(json.dumps({"metrics": metrics}))
    if rate is not None:
        (run / "config.yaml").write_text(f"seed: {seed}\ntrainer:\n  learning_rate: {rate}\n")
    return run


def test_claims_are_judged_on_held_out_loss(tmp_path):
    for seed in (0, 1):
        losses = [1.0 + i / 100 for i in range(100)]
        write_heldout(tmp_path, "LoRA", 2, losses, seed)
        write_heldout(tmp_path, "MoS", 8, [x - 0.2 + seed / 1000 for x in losses], seed)
    report = report_of(tmp_path)
    verdict = next(v for v in report.verdicts if v.claim.text == "MoS beats LoRA at {first}")
    assert verdict.text == "MoS beats LoRA at 0.61M, on held-out loss"
    assert verdict.verdict == "held"
    (comparison,) = verdict.comparisons
    assert str(comparison.interval).startswith("+0.1995 [+0.19")
    assert comparison.examples.interval.estimate == pytest.approx(0.1995)
    assert not comparison.mcnemar
    cell = lines_of(report)["MoS", "4/8"].average
    assert report.filled[1].table.header == [
        "Method",
        "Rank",
        "# Param.",
        "Held-out loss (superni_mmlu)",
    ]
    assert cell.n == 2


def test_claims_are_judged_on_exact_answers_to_held_out_examples(tmp_path):
    for seed in (0, 1):
        write_heldout(tmp_path, "LoRA", 2, [1.0] * 8, seed, exact=[1.0, 0.0] * 4)
        write_heldout(tmp_path, "MoS", 8, [2.0] * 8, seed, exact=[1.0, 1.0] * 4)
    report = report_of(tmp_path, yardstick="heldout.exact_match")
    verdict = next(v for v in report.verdicts if v.claim.text == "MoS beats LoRA at {first}")
    assert verdict.verdict == "held"
    (comparison,) = verdict.comparisons
    assert comparison.examples.interval.estimate == pytest.approx(50)
    assert comparison.mcnemar["heldout.exact_match seed 0"] == pytest.approx(0.125)
    # The loss is the yardstick if none is named.
    assert report_of(tmp_path).filled[1].table.columns[0].key == "heldout.loss"


def test_other_held_out_examples_are_never_compared(tmp_path):
    for seed, label, rank in ((0, "LoRA", 2), (1, "LoRA", 2), (0, "MoS", 8)):
        run = write_heldout(tmp_path, label, rank, [1.0, 2.0], seed)
        asked = {"metrics": {"loss": 1.25}, "prompts_sha256": "a" if label == "LoRA" else "b"}
        (run / "eval" / "heldout" / "metrics.json").write_text(json.dumps(asked))
    report = report_of(tmp_path)
    assert report.counts["used"] == 2
    assert [p.reason for p in report.problems] == [
        "heldout is of other examples than those of most runs of the experiment"
    ]


def test_learning_rates_by_method(tmp_path):
    validation = {"LoRA": (1.3, 1.1, 1.2), "MoS": (1.4, 1.2, 1.0)}
    for label, losses in validation.items():
        for rate, loss in zip((0.0001, 0.001, 0.01), losses, strict=True):
            for seed in (0, 1):
                rank = 8 if label == "MoS" else 2
                write_heldout(tmp_path, label, rank, [loss + 0.05] * 4, seed, rate, loss)
    report = report_of(tmp_path)
    lora, mos = report.curves
    assert (lora.best, lora.at_edge) == (0.001, False)
    assert (mos.best, mos.at_edge) == (0.01, True)
    frame = rates_sheet(report.runs, report.curves).frame.set_index("Method")
    assert frame.loc["MoS 8"].to_list()[1:] == [
        "1.4000 ±0.0000 (2)", "1.2000 ±0.0000 (2)", "1.0000 ±0.0000 (2)",
        "0.01 (edge)", "1.0500 ±0.0000 (2)", "0.001", "1.2500 ±0.0000 (2)",
    ]  # fmt: skip
    assert lines_of(report)["MoS", "4/8"].average.mean == pytest.approx(1.05)
