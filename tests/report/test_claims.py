"""Verdicts at known inputs."""

from __future__ import annotations

import json

import pytest

from mos.records import Metrics
from mos.report.claims import CLAIMS, HELD, NOT_HELD, UNDECIDED
from tests.report.synthetic import SEVEN_B, cell, report_of, write_run

CLAIM = "MoS beats LoRA at 5.00M on MMLU EM"


def verdicts_of(root):
    return {v.text: v for v in report_of(root).verdicts}


def write_pair(root, mos, lora):
    """MMLU of MoS 4/8 and LoRA 2, one value a seed."""
    for label, rank, values in (("MoS", 8, mos), ("LoRA", 2, lora)):
        for seed, value in enumerate(values):
            metrics = {"mmlu": {"exact_match": value, "n": 100}}
            write_run(root, label, rank, 2 * SEVEN_B, seed=seed, metrics=metrics)


def test_all_claims_hold_at_the_papers_figures(paper_runs):
    verdicts = verdicts_of(paper_runs)
    assert len(verdicts) == len(CLAIMS)
    assert {v.verdict for v in verdicts.values()} == {HELD}
    assert {v.seeds for v in verdicts.values()} == {2}
    line = str(verdicts["MoS beats every method at 5.00M"])
    assert line.startswith("MoS beats every method at 5.00M: held at 2 seeds (MoS 8 − LoRA 2")


@pytest.mark.parametrize(
    ("mos", "lora", "verdict"),
    [
        ([46.0, 46.1, 46.2], [44.0, 44.1, 44.3], HELD),
        ([44.0, 44.1, 44.2], [46.0, 46.1, 46.3], NOT_HELD),
        ([46.0, 44.0, 45.5], [45.0, 44.8, 45.1], UNDECIDED),
        ([46.0, 46.5], [45.0, 45.1], UNDECIDED),  # two seeds: twelve standard errors
        ([90.0], [10.0], UNDECIDED),  # one seed tells nothing of the spread
    ],
)
def test_a_verdict_needs_the_interval_on_one_side(tmp_path, mos, lora, verdict):
    write_pair(tmp_path, mos, lora)
    found = verdicts_of(tmp_path)[CLAIM]
    assert (found.verdict, found.seeds) == (verdict, len(mos))


def test_one_seed_says_why_it_is_undecided(tmp_path):
    write_pair(tmp_path, [90.0], [10.0])
    line = str(verdicts_of(tmp_path)[CLAIM])
    assert "undecided at 1 seed (" in line
    assert "the spread over seeds is unknown" in line


def test_only_common_seeds_are_compared(tmp_path):
    write_pair(tmp_path, [46.0, 46.2, 99.0], [44.0, 44.2])
    (comparison,) = verdicts_of(tmp_path)[CLAIM].comparisons
    assert comparison.seeds == (0, 1)
    assert comparison.interval.estimate == pytest.approx(2.0)


def test_claims_are_of_rows_that_were_all_run(tmp_path):
    write_pair(tmp_path, [46.0, 46.2], [])
    assert not verdicts_of(tmp_path)
    write_pair(tmp_path, [46.0, 46.2], [44.0, 44.2])
    verdicts = verdicts_of(tmp_path)
    assert CLAIM in verdicts
    assert verdicts["MoS beats LoRA at 5.00M"].reason.startswith("MoS 8 lacks BBH EM")
    assert "MoS beats LoRA at 19.99M" not in verdicts


def test_each_setting_of_a_row_is_judged_beside_the_same_of_the_others(tmp_path):
    """Ranks 4 and 8 fill one row, and LoRA was trained at two learning rates."""
    for rate, gain in ((0.001, 1.0), (0.002, -1.0)):
        for seed in (0, 1, 2):
            for label, rank, value in (("LoRA", 2, 44), ("MoS", 8, 44 + gain), ("MoS", 4, 47)):
                run = write_run(
                    tmp_path, label, rank, 610_560, seed=seed, setup=f"{rate}", scale="local",
                    model="Smol",
                    config={"equivalent_rank": 2} if label == "MoS" else {},
                    metrics={"mmlu": {"exact_match": value + seed / 10, "n": 100}},
                )  # fmt: skip
                (run / "config.yaml").write_text(f"trainer:\n  learning_rate: {rate}\n")
    found = [v for v in report_of(tmp_path).verdicts if "on MMLU" in v.text]
    assert {str(v.comparisons[0]).partition(" [")[0]: v.verdict for v in found} == {
        "MoS 4 (learning_rate=0.001) − LoRA 2 (learning_rate=0.001): +3.00": HELD,
        "MoS 4 (learning_rate=0.002) − LoRA 2 (learning_rate=0.002): +3.00": HELD,
        "MoS 8 (learning_rate=0.001) − LoRA 2 (learning_rate=0.001): +1.00": HELD,
        "MoS 8 (learning_rate=0.002) − LoRA 2 (learning_rate=0.002): -1.00": NOT_HELD,
    }


def write_records(root, right: dict[tuple[str, int], list[int]], prompt="p"):
    for (label, seed), answers in right.items():
        rank = 8 if label == "MoS" else 2
        value = 100 * sum(answers) / len(answers)
        run = write_run(
            root, label, rank, 2 * SEVEN_B, seed=seed,
            metrics={"mmlu": {"exact_match": value, "n": len(answers)}},
        )  # fmt: skip
        file = run / "eval" / "mmlu" / "records.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            {"id": f"law/{i}", "prompt_sha256": prompt, "scores": {"exact_match": float(a)}}
            for i, a in enumerate(answers)
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_records_add_the_spread_over_examples(tmp_path):
    """Equal differences at both seeds: without records certain, with few examples not."""
    mos, lora = [1, 1, 1, 0, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0, 0, 0]
    write_records(tmp_path, {("MoS", s): mos for s in (0, 1)} | {("LoRA", s): lora for s in (0, 1)})
    found = verdicts_of(tmp_path)[CLAIM]
    (comparison,) = found.comparisons
    assert found.verdict == UNDECIDED
    assert comparison.interval.estimate == pytest.approx(12.5)
    assert comparison.examples


def test_records_with_many_examples_decide(tmp_path):
    mos, lora = [1] * 300 + [0] * 200, [1] * 200 + [0] * 300
    write_records(tmp_path, {("MoS", s): mos for s in (0, 1)} | {("LoRA", s): lora for s in (0, 1)})
    found = verdicts_of(tmp_path)[CLAIM]
    assert found.verdict == HELD


def test_damaged_records_are_refused_and_named(tmp_path):
    write_records(tmp_path, {(label, 0): [1, 0] for label in ("MoS", "LoRA")})
    file = next(tmp_path.rglob("mos-*/seed0/eval/mmlu/records.jsonl"))
    file.write_text(file.read_text().replace("0.0", '"0.0"'))
    summary = report_of(tmp_path)
    assert any(p.consequence == "refused" and "scores" in p.reason for p in summary.problems)


def test_different_prompts_are_not_paired(tmp_path):
    write_records(tmp_path, {("MoS", 0): [1, 0]}, prompt="a")
    write_records(tmp_path, {("LoRA", 0): [1, 0]}, prompt="b")
    summary = report_of(tmp_path)
    assert any("different prompts" in p.reason for p in summary.problems)


def write_heldout(root, label, rank, losses, seed, exact=(), prompts=""):
    """A run with the loss of each held-out example; tokens alternate between 1 and 3.

    Args:
        exact: 1 or 0 for each example, whether its answer is given to the word.
    """
    tokens = [1.0 if i % 2 else 3.0 for i in range(len(losses))]
    nll = [loss * n for loss, n in zip(losses, tokens, strict=True)]
    metrics = {"loss": sum(nll) / sum(tokens)}
    if exact:
        metrics["exact_match"] = 100 * sum(exact) / len(exact)
    config = {"r": rank, "equivalent_rank": 2} if label == "MoS" else {"r": rank}
    run = write_run(
        root, label, rank, 610_560, seed=seed, scale="local", model="Smol", config=config,
        metrics={"heldout": metrics | {"n": len(losses), "lower_is_better": ["loss"]}},
    )  # fmt: skip
    records = [
        {"id": str(i), "scores": {"nll": x, "tokens": n}}
        for i, (x, n) in enumerate(zip(nll, tokens, strict=True))
    ]
    for record, score in zip(records, exact, strict=False):
        record["scores"]["exact_match"] = score
    Metrics(metrics=metrics, prompts_sha256=prompts).write(run / "eval" / "heldout", records)


def test_claims_are_judged_on_held_out_loss(tmp_path):
    for seed in (0, 1):
        losses = [1.0 + i / 100 for i in range(100)]
        write_heldout(tmp_path, "LoRA", 2, losses, seed)
        write_heldout(tmp_path, "MoS", 8, [x - 0.2 + seed / 1000 for x in losses], seed)
    report = report_of(tmp_path)
    verdict = next(v for v in report.verdicts if v.claim.text == "MoS beats LoRA at {first}")
    assert verdict.text == "MoS beats LoRA at 0.61M, on held-out loss"
    assert verdict.verdict == HELD
    (comparison,) = verdict.comparisons
    assert str(comparison).startswith("MoS 8 − LoRA 2: -0.1995 [-0.2")
    assert str(comparison).endswith("nats, less is better")
    means = {row: report.filled["table2"].at(row, *report.filled["table2"].table.columns).mean
             for row in ("MoS 4/8", "LoRA 2")}  # fmt: skip
    assert means["MoS 4/8"] - means["LoRA 2"] == pytest.approx(-0.1995)
    assert comparison.examples
    (column,) = report.filled["table2"].table.columns
    assert (column.key, column.title) == ("heldout.loss", "Held-out loss (superni_mmlu)")
    assert len(cell(report, "MoS 4/8", column.name)) == 2


def test_claims_are_judged_on_exact_answers_to_held_out_examples(tmp_path):
    for seed in (0, 1):
        write_heldout(tmp_path, "LoRA", 2, [1.0] * 800, seed, exact=[1.0, 0.0] * 400)
        write_heldout(tmp_path, "MoS", 8, [2.0] * 800, seed, exact=[1.0, 1.0] * 400)
    report = report_of(tmp_path, yardstick="heldout.exact_match")
    verdict = next(v for v in report.verdicts if v.claim.text == "MoS beats LoRA at {first}")
    assert verdict.verdict == HELD
    assert verdict.comparisons[0].interval.estimate == pytest.approx(50)


def test_other_held_out_examples_are_never_compared(tmp_path):
    for seed, label, rank in ((0, "LoRA", 2), (1, "LoRA", 2), (0, "MoS", 8)):
        write_heldout(tmp_path, label, rank, [1.0, 2.0], seed, prompts="ab"[label == "MoS"])
    report = report_of(tmp_path)
    assert report.counts["used"] == 2
    assert [p.reason for p in report.problems] == [
        "heldout is of other examples than those of most runs of the experiment"
    ]
