"""RaSA against its definition, in float64."""

from __future__ import annotations

import pytest
import torch

from mos import RasaConfig
from tests.adapters.tiny import BLOCKS, HIDDEN, KV, adapted, gradients, logits, tiny_llama

SHAPES = {"q_proj": (HIDDEN, HIDDEN), "k_proj": (HIDDEN, KV)}  # (in, out)


def test_forward_and_every_gradient():
    config = RasaConfig(r=5, shared_rank=2, rasa_alpha=7, target_modules=list(SHAPES))
    model = adapted(config).double()
    names = {}
    for p, (h, o) in SHAPES.items():
        for side in "AB":
            pool = f"base_model.model.rasa.{p}_{h}x{o}.rasa_pool_lora_{side}.default.weight"
            names[p, side] = pool
        for k in range(BLOCKS):
            layer = f"base_model.model.model.layers.{k}.self_attn.{p}"
            for part in ("lora_A", "lora_B", "scale"):
                names[p, k, part] = f"{layer}.rasa_{part}.default.weight"
    parameters = dict(model.named_parameters())
    parts = {key: parameters[n].detach().clone().requires_grad_() for key, n in names.items()}

    reference = tiny_llama().double().requires_grad_(False)
    for p in SHAPES:
        pool_A, pool_B = parts[p, "A"], parts[p, "B"]
        assert pool_A.shape[0] == pool_B.shape[1] == BLOCKS * config.shared_rank
        for k in range(BLOCKS):
            A, B, s = (parts[p, k, part] for part in ("lora_A", "lora_B", "scale"))
            delta = B @ A + pool_B @ torch.diag(s) @ pool_A
            linear = getattr(reference.model.layers[k].self_attn, p)
            weight = linear.weight.detach()
            del linear.weight
            linear.weight = weight + config.rasa_alpha / config.r * delta
    torch.testing.assert_close(logits(model), logits(reference))

    found = gradients(model)
    assert set(found) == set(names.values())
    gradients(reference)
    for key, part in parts.items():
        torch.testing.assert_close(found[names[key]], part.grad)


def test_parameter_count():
    """Those of LoRA of rank r, and a scale for each layer and rank of its pool."""
    model = adapted(RasaConfig(r=5, shared_rank=2, target_modules=list(SHAPES)))
    widths = sum(h + o for h, o in SHAPES.values())
    scales = len(SHAPES) * BLOCKS * BLOCKS * 2
    assert model.get_nb_trainable_parameters()[0] == BLOCKS * 5 * widths + scales


@pytest.mark.parametrize("shared_rank", [0, 5])
def test_nothing_or_everything_may_be_shared(shared_rank, tmp_path):
    from peft import PeftModel

    model = adapted(RasaConfig(r=5, shared_rank=shared_rank))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"r": 0}, "`r`"), ({"shared_rank": 9}, "shared_rank"), ({"rasa_dropout": -1}, "dropout")],
)
def test_impossible_values_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        RasaConfig(**options)
