"""Gathering once, and rightly, whichever way the model is run."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.adapters.mos.models import (
    MOS,
    llama,
    logits,
    mos_llama,
    pool_gradients,
    pools,
    tokens,
)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    model = mos_llama(mos_dropout=0.1)
    model.train()
    torch.manual_seed(0)
    expected = pool_gradients(model, tokens())
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    for _ in range(2):
        torch.manual_seed(0)
        found = pool_gradients(model, tokens())
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-9)


def test_checkpointed_passes_may_share_a_backward():
    """As in preference losses: two passes, then one backward."""
    model = mos_llama()
    first, second = (pool_gradients(model, tokens(seed=seed)) for seed in (1, 2))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model.zero_grad()
    losses = [model(tokens(seed=seed), labels=tokens(seed=seed)).loss for seed in (1, 2)]
    sum(losses).backward()
    for name, pool in pools(model).items():
        torch.testing.assert_close(pool.grad, first[name] + second[name])


def test_reentrant_checkpointing_is_refused_among_processes(monkeypatch):
    from mos.adapters.mos import pools as module

    model = mos_llama().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    monkeypatch.setattr(module, "_is_distributed", lambda: True)
    with pytest.raises(RuntimeError, match='"use_reentrant": False'):
        model(tokens())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    pool_gradients(model, tokens())
    logits(model.eval())


@pytest.mark.parametrize("layers", [2, 6])
def test_number_of_launches_does_not_depend_on_the_number_of_layers(layers):
    model = mos_llama({**MOS, "r": 3}, llama(layers=layers))

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        launches = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if not function.is_view:
                self.launches += 1
            return function(*args, **(kwargs or {}))

    groups = list(model.base_model.model.mos)
    with Count() as count, torch.autocast("cpu", dtype=torch.bfloat16):
        for group in groups:
            group.prepare(["default"])
    assert count.launches == 3 * 14  # the indices side by side, a cast and a gather per pool
    outputs = [vector for g in groups for vectors in g.gathered.values() for vector in vectors]
    gradients = [torch.ones_like(vector) for vector in outputs]
    with Count() as count:
        torch.autograd.backward(outputs, gradients)
    assert count.launches <= 8 * 14


@pytest.mark.parametrize("write", ["optimizer", "no_grad", "data", "one entry", "another tensor"])
def test_evaluation_sees_every_change_of_a_pool(write):
    model = mos_llama().eval()
    before = logits(model)
    if write == "optimizer":
        loss = model(tokens(), labels=tokens()).loss
        loss.backward()
        torch.optim.SGD(pools(model).values(), lr=1.0).step()
    for pool in pools(model).values():
        if write == "no_grad":
            with torch.no_grad():
                pool.mul_(2)
        elif write == "data":
            pool.data.mul_(2)
        elif write == "one entry":  # as a finite difference does
            pool.data[1, -1] += 1
        elif write == "another tensor":
            pool.data = pool.data * 2
    fresh = copy.deepcopy(model)  # has nothing gathered
    assert torch.equal(logits(model), logits(fresh))
    assert not torch.allclose(logits(model), before)


def test_layers_and_parts_may_be_called_by_themselves():
    model = mos_llama()
    inner = model.base_model.model.model
    batch = tokens()
    expected = pool_gradients(model, batch)
    hidden = inner(batch).last_hidden_state
    assert torch.equal(model.base_model.model.lm_head(hidden), model(batch).logits)
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(
        model.base_model.model.lm_head(hidden)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()
    )
    loss.backward()
    for name, pool in pools(model).items():
        torch.testing.assert_close(pool.grad, expected[name])
    layer = inner.layers[1].mlp.down_proj
    x = torch.randn(3, 128)
    delta = layer.get_delta_weight("default")
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ delta.T)
    with torch.no_grad():
        layer.mos_pool_A["default"].weight.mul_(3)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 3 * x @ delta.T)


def test_one_layer_alone_may_be_differentiated():
    """The other layers of the group take no part: their share of the gradient is zero."""
    model = mos_llama()
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    x = torch.randn(3, 128)
    layer(x).sum().backward()
    read = set(layer.mos_index_B["default"].tolist())
    for shard, gradient in enumerate(layer.mos_pool_B["default"].weight.grad):
        assert bool(gradient.any()) == (shard in read)


def test_inference_mode_and_training_may_alternate():
    model = mos_llama()
    expected = pool_gradients(model, tokens())
    with torch.inference_mode():
        first = model(tokens()).logits
    found = pool_gradients(model, tokens())
    assert torch.equal(logits(model), first)
    assert all(torch.equal(found[name], expected[name]) for name in found)
