"""The study's scripts: what is trained and when, what a run measures, what the tables conclude."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mos.models.sources import build_random

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(BENCHMARKS))
    import study
    import study_gpu
    import study_rows

    yield study, study_rows, study_gpu
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def tiny(scripts, tmp_path, monkeypatch):
    """A base of 8 blocks whose 64 'words' are bytes, adapted as the study does."""
    rows = scripts[1]
    monkeypatch.setattr(rows, "WORDS", 64)
    monkeypatch.setattr(rows, "words", lambda tokenizer: list(range(100, 164)))
    model = str(build_random(tmp_path / "model"))
    return rows.Setting(model, blocks=2, unit=768, batch=2, dtype="float32")


def line(job, loss, **more):
    return {
        **vars(job), "run": job.name, "load": "" if job.load is None else job.load, "loss": loss,
        "validation": "", "parameters": 33_792, "bits": 1.0, **more,
    }  # fmt: skip


def test_rates_are_searched_until_the_best_is_inside(scripts):
    """And what follows is trained at the best; nothing twice."""
    study = scripts[0]
    best = {"lora_r2": 0.01, "mos_r8": 0.04, "lora_r16": 0.0025}
    table, order = {}, []
    for job in study.plan(table):
        if job.name not in table:
            order.append(job)
            far = abs(torch.tensor(job.rate / best.get(job.row, 0.01)).log2().item())
            diverged = job.row == "mos_r8" and job.rate > 0.1
            table[job.name] = line(job, "nan" if diverged else f"{2 + far}")
    rates = {row: {j.rate for j in order if j.row == row} for row in best}
    assert rates["lora_r2"] == {0.005, 0.01, 0.02}
    assert rates["mos_r8"] == {0.005, 0.01, 0.02, 0.04, 0.08}
    assert rates["lora_r16"] == {0.00125, 0.0025, 0.005, 0.01, 0.02}
    assert {j.rate for j in order if j.row == "mos_r8" and (j.seed or j.load != 1)} == {0.04}
    assert [j.load for j in order if j.load != 1][:9] == [0.25] * 6 + [2.0] * 3
    assert {(j.row, j.load, j.seed) for j in order} >= {
        (row, load, seed) for row in study.MAIN for load in study.LOADS for seed in (0, 1)
    }
    assert len(order) == len(table)
    assert all(job.name in table for job in study.plan(table))


def test_rates_of_text_are_chosen_on_validation_examples(scripts):
    study = scripts[0]
    table = {}
    for job in study.text_plan(table):
        inside = abs(job.rate - 1.4e-3) < 1e-9
        table.setdefault(job.name, line(job, 1.0 if not inside else 2.0, validation=2.0 - inside))
    seeds = [entry["seed"] for entry in table.values() if entry["rate"] == pytest.approx(1.4e-3)]
    assert sorted(seeds) == sorted([0, 1, 2, 3, 4] * 3)
    assert any("+0.0000" in shown for shown in study.text_verdicts(table))


def test_the_share_of_the_gap_is_over_common_seeds(scripts):
    study, rows, _ = scripts
    losses = {"lora_r2": (5.0, 5.2), "mos_r8": (3.0, 3.2, 9.0), "lora_r16": (1.0, 1.2)}
    table = {}
    for row, of_row in losses.items():
        for seed, loss in enumerate(of_row):
            job = rows.Job(row, 1.0, 0.01, seed)
            table[job.name] = line(job, loss)
    share = study.closed(table, "mos_r8", 1.0)
    assert (share.estimate, share.low) == (pytest.approx(0.5), pytest.approx(0.5))
    assert study.verdict(share) == "both count"
    for seed in (0, 1):
        table[rows.Job("lora_r16", 1.0, 0.01, seed).name]["loss"] = 4.5
    assert study.closed(table, "mos_r8", 1.0) is None  # a gap of half a nat says nothing


def test_verdicts_follow_from_the_table_in_the_repository(scripts):
    study = scripts[0]
    table = study.read(study.RESULTS)
    assert (study.RESULTS / "verdicts.md").read_text("utf-8") == study.verdicts(table)
    losses = (study.RESULTS / "losses.csv").read_text("utf-8").splitlines()[1:]
    last = {run: float(rest.split()[-1]) for run, rest in (text.split(",") for text in losses)}
    assert last == {run: pytest.approx(float(of["loss"]), abs=1e-4) for run, of in table.items()}
    for of in table.values():
        if of["bits"]:
            words = int(of["pages"]) * 64
            bits = words * (12 - float(of["loss"]) / 0.6931472) / int(of["parameters"])
            assert float(of["bits"]) == pytest.approx(bits, abs=1e-4)
    assert sum(p.stat().st_size for p in study.RESULTS.rglob("*") if p.is_file()) < 300_000


def test_the_cut_model_computes_what_the_whole_one_does(scripts, tiny):
    rows = scripts[1]
    whole, _ = rows.load_model(tiny)
    part, tokenizer = rows.load_model(tiny)
    ids, answers = rows.pages(tokenizer, 3, seed=1)
    assert ids[:, -64:].tolist() == (answers + 100).tolist()
    hidden = rows.cut(part, 2, ids)
    state = part.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
    torch.testing.assert_close(state, whole.model(ids, use_cache=False).last_hidden_state)


def test_a_run_stores_pages_and_says_how_many_bits(scripts, tiny):
    rows = scripts[1]
    assert rows.pages_of(1, 768) == 2  # 768 bits are two pages of 64 words of 6 bits
    done = rows.capacity(tiny, "lora_r2", 1, 0.05, seed=0, epochs=25)
    assert done["losses"][-1] < done["losses"][0] - 0.5
    bits = 2 * 64 * (6 - done["loss"] / 0.6931472)
    assert done["bits"] == pytest.approx(bits / done["parameters"], rel=1e-4)


def test_the_gpu_s_entry_runs_on_a_cpu(scripts, tiny, tmp_path, monkeypatch, capsys):
    """At tiny size: words, then text; what the time does not suffice for is left."""
    _, rows, gpu = scripts

    # Other processes would not see the tiny words.
    inline = nullcontext(SimpleNamespace(map=map))
    monkeypatch.setattr(gpu, "ProcessPoolExecutor", lambda *_, **__: inline)
    encoded = tmp_path / "encoded.jsonl"
    example = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}
    encoded.write_text((json.dumps(example) + "\n") * 12)
    monkeypatch.setattr(rows, "VALIDATION", 2)
    monkeypatch.setattr(rows, "TEST", 2)
    common = f"--model {tiny.model} --device cpu --blocks 8 --unit 768 --epochs 1 --jobs 2"
    gpu.main([*common.split(), "--out", str(tmp_path / "words")])
    assert "0 known runs are left" in capsys.readouterr().out
    table = rows.read(tmp_path / "words")
    assert {(of["row"], of["load"]) for of in table.values()} == {
        (row, load) for row in gpu.ROWS for load in ("0.5", "1.0", "2.0")
    }
    text = ["--text", str(encoded), "--examples", "8", "--batch", "4"]
    gpu.main([*common.split(), *text, "--out", str(tmp_path / "text"), "--minutes", "0.02"])
    found = rows.read(tmp_path / "text")
    assert found
    assert all(float(of["validation"]) > 0 for of in found.values())
