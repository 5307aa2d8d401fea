"""What a CPU and a rehearsal cannot say: `make test-gpu`. docs/gpu.md has larger models."""

from __future__ import annotations

import json

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from eval.benchmark import Decoding, Request
from eval.engines import engine_settings, start
from mos import MosConfig
from mos.files import SMOLLM2
from mos.models.sources import resolve_model
from mos.runs import read_losses
from tests.adapters.tiny import CASES, MAIN_CASES, adapted, randomise, token_ids
from tests.training import test_resume
from tests.training.test_resume import finish, job, kill

DEVICE = "cuda"
cache = test_resume.cache
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("case", MAIN_CASES)
def test_loss_and_gradients_are_the_cpus(case, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)

    def step(device: str) -> list[torch.Tensor]:
        model, ids = adapted(CASES[case]()).to(device), token_ids().to(device)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [loss.detach().cpu(), *(gradient.cpu() for gradient in gradients)]

    torch.testing.assert_close(step(DEVICE), step("cpu"), rtol=1e-3, atol=1e-5)


def test_a_killed_training_with_paged_state_goes_on(tmp_path, cache):
    """NF4 and the paper's optimizer, whose state must be paged again after loading."""
    settings = (f"device={DEVICE}", "trainer.optim=paged_adamw_32bit")
    whole = finish(job(tmp_path / "whole", cache, *settings))
    killed = job(tmp_path / "killed", cache, *settings)
    kill("after_step", 5, killed)
    losses = [
        [line["loss"] for line in read_losses(run.path / "loss.jsonl") if "loss" in line]
        for run in (whole, finish(killed))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_vllm_answers_200_prompts_of_a_mos_adapter_as_transformers_does(
    tmp_path, samples_dir, repo_dir
):
    folder = resolve_model(SMOLLM2, repo_dir / "data" / "cache")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    torch.manual_seed(0)
    model = get_peft_model(base, MosConfig(r=8, equivalent_rank=2, mos_alpha=2))
    randomise(model)
    model.save_pretrained(tmp_path)
    rows = (samples_dir / "cot" / "cot_zsopt.jsonl").read_text().splitlines()[:200]
    choices = Decoding(choices=(" A", " B", " C", " D"))
    asked = [Request(str(i), json.loads(row)["inputs"], choices) for i, row in enumerate(rows)]

    def answers(name: str, adapter) -> torch.Tensor:
        """Log-probabilities (200, 4)."""
        settings = engine_settings(name, folder, device=DEVICE, max_lora_rank=8)
        with start(settings, folder) as engine:
            prompts = engine.encode(asked)
            given = {i: c for batch in engine.complete(prompts, adapter) for i, c in batch}
        return torch.tensor([given[i].logprobs for i in range(200)])

    bare, vllm = answers("vllm", None), answers("vllm", tmp_path)
    apart = (vllm - answers("transformers", tmp_path)).abs().amax(1)
    moved = (vllm - bare).abs().amax(1)
    assert apart.quantile(0.95) < 0.15
    assert moved.quantile(0.05) > 2 * apart.quantile(0.95)
