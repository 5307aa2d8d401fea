"""Held-out losses: each example's own, whatever batch it was in, and their sum in the results."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from mos.training.heldout import HeldOut, example_scores, write_heldout


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_a_row_loses_in_a_padded_batch_what_it_loses_alone(model):
    ids = torch.tensor([[1, 4, 5, 6, 7], [1, 8, 9, 0, 0]])
    labels = torch.tensor([[-100, -100, 5, 6, 7], [-100, -100, 9, -100, -100]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}
    with torch.no_grad():
        nll, tokens, _ = example_scores(model, batch)
        # The library's own mean over trained tokens, row by row without padding.
        for row, length in enumerate((5, 3)):
            alone = {name: value[row : row + 1, :length] for name, value in batch.items()}
            mean = float(model(**alone).loss)
            assert float(nll[row] / tokens[row]) == pytest.approx(mean, rel=1e-5)
    assert tokens.tolist() == [3, 1]


def test_an_example_is_exact_if_greedy_decoding_gives_it(model):
    prompt = torch.tensor([[1, 4, 5]])
    with torch.no_grad():
        answer = model.generate(prompt, max_new_tokens=3, do_sample=False, pad_token_id=0)
        other = answer.clone()
        other[0, -1] = (other[0, -1] + 1) % 17
        ids = torch.cat([answer, other])
        labels = ids.clone()
        labels[:, :3] = -100
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        assert example_scores(model, batch)[2].tolist() == [1.0, 0.0]


def test_records_and_metrics_have_the_form_of_a_benchmark(tmp_path):
    rows = Dataset.from_dict(
        {"input_ids": [[1, 2], [1, 3], [1, 2]], "labels": [[-100, 2], [-100, 3], [-100, 2]]}
    )
    losses = HeldOut(step=7, nll=[2.0, 6.0, 1.0], tokens=[1, 3, 2], exact=[1.0, 0.0, 1.0])
    entry = write_heldout(tmp_path, rows, losses, {"corpus": "messages"})
    assert entry.metrics["loss"] == pytest.approx(1.5)  # nats per token, not the mean of means
    assert entry.lower_is_better == ["loss"]
    folder = tmp_path / "eval" / "heldout"
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [record["scores"] for record in records] == [
        {"nll": 2.0, "tokens": 1, "exact_match": 1.0},
        {"nll": 6.0, "tokens": 3, "exact_match": 0.0},
        {"nll": 1.0, "tokens": 2, "exact_match": 1.0},
    ]  # fmt: skip
    assert len({record["id"] for record in records}) == 3
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics"] == {"loss": 1.5, "exact_match": pytest.approx(200 / 3)}
    assert metrics["stderr"]["exact_match"] == pytest.approx(100 / 3)
    assert metrics["n"] == 3
    # Residuals 0.5, 1.5, -2 of a ratio of sums over three examples.
    assert metrics["stderr"]["loss"] == pytest.approx(math.sqrt(6.5 * 3 / 2) / 6)
    other = write_heldout(
        tmp_path, rows.select([0, 1]), HeldOut(7, [2.0, 6.0], [1, 3], [1.0, 0.0]), {}
    )
    assert other.n == 2
    assert (
        json.loads((folder / "metrics.json").read_text())["prompts_sha256"]
        != (metrics["prompts_sha256"])
    )
