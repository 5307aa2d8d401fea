"""What PEFT promises for LoRA holds for MoS: adapters, merging, precision, passes, copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import GenerationConfig, LlamaForSequenceClassification

from mos import MosConfig
from mos.adapters.mos.layer import MosLinear
from tests.adapters.mos.models import (
    MOS,
    PURE_SHARING,
    Decoder,
    llama,
    mos_llama,
    pool_gradients,
    pools,
    tokens,
)


def logits(model, batch=None):
    with torch.no_grad():
        return model(tokens() if batch is None else batch).logits


@pytest.fixture
def two_adapters():
    model = mos_llama().eval()
    config = MosConfig(
        **{**PURE_SHARING, "init_weights": False}, target_modules=["q_proj", "up_proj"]
    )
    model.add_adapter("other", config)
    return model


# ---- adapters ----


def test_switching_and_disabling(two_adapters):
    model, base = two_adapters, logits(llama())
    first = logits(model)
    model.set_adapter("other")
    second = logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), first)
    assert not torch.allclose(first, base)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, base)


def test_both_active_add_up(two_adapters):
    layer = two_adapters.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 64)
    two_adapters.base_model.set_adapter(["default", "other"])
    both = layer.get_delta_weight("default") + layer.get_delta_weight("other")
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ both.T)


def test_adding_an_adapter_changes_no_trainability():
    model = mos_llama()
    frozen = next(name for name in pools(model))
    pools(model)[frozen].requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    model.add_adapter("other", MosConfig(**MOS))
    after = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: after[name] for name in before} == before
    assert not any(after[name] for name in after.keys() - before.keys())
    assert len(after) == len(before) + 14


def test_deleting_an_adapter_leaves_nothing_of_it(two_adapters):
    two_adapters.set_adapter("other")
    expected = logits(two_adapters)
    two_adapters.delete_adapter("default")
    assert not any("default" in name for name in two_adapters.state_dict())
    assert all(
        "default" not in module.position
        for module in two_adapters.modules()
        if isinstance(module, MosLinear)
    )
    assert torch.equal(logits(two_adapters), expected)
    two_adapters.add_adapter("default", MosConfig(**MOS))


def test_a_batch_may_mix_adapters(two_adapters):
    batch = tokens(rows=3)
    expected = []
    for row, name in enumerate(["other", "default", None]):
        if name is None:
            with two_adapters.disable_adapter():
                expected.append(logits(two_adapters, batch[row : row + 1]))
        else:
            two_adapters.set_adapter(name)
            expected.append(logits(two_adapters, batch[row : row + 1]))
    names = ["other", "default", "__base__"]
    with torch.no_grad():
        mixed = two_adapters(batch, adapter_names=names).logits
    torch.testing.assert_close(mixed, torch.cat(expected))
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): wrong"):
        two_adapters(batch, adapter_names=["wrong", "default", "other"])
    with pytest.raises(ValueError, match="training mode"):
        two_adapters.train()(batch, adapter_names=names)


def test_modules_to_save_are_trained_and_stored(tmp_path):
    torch.manual_seed(0)
    base = LlamaForSequenceClassification(llama(pad_token_id=0).config)
    model = mos_llama(base=copy.deepcopy(base), task_type="SEQ_CLS")
    assert model.base_model.model.score.modules_to_save["default"].weight.requires_grad
    torch.nn.init.ones_(model.base_model.model.score.modules_to_save["default"].weight)
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_trainable_parameters_are_counted_once(capsys):
    model = mos_llama()
    model.print_trainable_parameters()
    expected = 3 * 3 * sum(layer.in_features + layer.out_features for layer in first_block(model))
    assert f"trainable params: {expected:,}" in capsys.readouterr().out


def first_block(model):
    return [m for n, m in model.named_modules() if isinstance(m, MosLinear) and "layers.0." in n]


# ---- merging ----


@pytest.mark.parametrize("safe_merge", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)],
    ids=["fp32", "bf16", "fp16"],
)
def test_merging(dtype, tolerance, safe_merge):
    model = mos_llama(base=llama().to(dtype)).eval()
    weight = model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    before, expected = weight.clone(), logits(model)
    model.merge_adapter(safe_merge=safe_merge)
    assert not torch.equal(weight, before)
    torch.testing.assert_close(logits(model), expected, atol=tolerance, rtol=tolerance)
    model.unmerge_adapter()
    torch.testing.assert_close(weight, before, atol=tolerance / 10, rtol=0)
    torch.testing.assert_close(logits(model), expected, atol=tolerance, rtol=tolerance)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    torch.testing.assert_close(logits(merged), expected, atol=tolerance, rtol=tolerance)


def test_unloading_leaves_the_plain_model():
    base = llama()
    expected, keys = logits(base), base.state_dict().keys()
    model = mos_llama(base=base)
    logits(model)
    unloaded = model.unload()
    assert unloaded.state_dict().keys() == keys
    assert not unloaded._forward_pre_hooks
    assert not unloaded._forward_hooks
    assert torch.equal(logits(unloaded), expected)


def test_safe_merge_refuses_what_is_not_finite():
    model = mos_llama(target_modules=["q_proj"])
    pool = next(iter(pools(model).values()))
    before = model.base_model.model.model.layers[0].self_attn.q_proj.weight.clone()
    with torch.no_grad():
        pool.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(model.base_model.model.model.layers[0].self_attn.q_proj.weight, before)


# ---- precision ----


def test_pools_are_float32_unless_told_otherwise():
    model = mos_llama(base=llama().bfloat16())
    assert {p.dtype for p in pools(model).values()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    config = MosConfig(**MOS)
    model = PeftModel(llama().bfloat16(), config, autocast_adapter_dtype=False)
    assert {p.dtype for p in pools(model).values()} == {torch.bfloat16}
    assert all(g.dtype == torch.bfloat16 for g in pool_gradients(model, tokens()).values())
    assert {p.dtype for p in pools(mos_llama(base=llama().double())).values()} == {torch.float64}


def test_autocast_computes_in_its_dtype_and_keeps_float32_gradients():
    model = mos_llama()
    exact = pool_gradients(model, tokens())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = pool_gradients(model, tokens())
        layer = model.base_model.model.model.layers[0].mlp.up_proj
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16
    for name, gradient in low.items():
        assert gradient.dtype == torch.float32
        assert (
            torch.nn.functional.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0)
            > 0.98
        )


# ---- the pass through the model ----


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


def test_gathers_once_per_pass(monkeypatch):
    from mos.adapters.mos.pools import PoolReader

    calls = []
    forward = PoolReader.forward
    monkeypatch.setattr(
        PoolReader, "forward", lambda self, *args: calls.append(1) or forward(self, *args)
    )
    model = mos_llama().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    pool_gradients(model, tokens())
    assert len(calls) == 14
    calls.clear()
    model.eval()
    logits(model)
    logits(model)
    assert len(calls) == 14  # kept in evaluation
    calls.clear()
    model.generate(
        tokens(), generation_config=GenerationConfig(max_new_tokens=4, eos_token_id=None)
    )
    assert not calls


@pytest.mark.parametrize("layers", [2, 6])
def test_number_of_launches_does_not_depend_on_the_number_of_layers(layers):
    model = mos_llama({**MOS, "r": 3}, llama(layers=layers))

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        launches = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if not function.is_view:
                self.launches += 1
            return function(*args, **(kwargs or {}))

    groups = list(model.base_model.mos_groups)
    with Count() as count, torch.autocast("cpu", dtype=torch.bfloat16):
        for group in groups:
            group.prepare(["default"])
    assert count.launches == 2 * 14  # a cast and a gather per pool
    slots = [slot for group in groups for slot in group._slots.values()]
    outputs = [vector for slot in slots for vector in slot.vectors]
    gradients = [torch.ones_like(vector) for vector in outputs]
    with Count() as count:
        torch.autograd.backward(outputs, gradients)
    assert count.launches <= 5 * 14


@pytest.mark.parametrize("write", ["optimizer", "no_grad", "data", "another tensor"])
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
        next(iter(layer.mos_pool_A.values())).mul_(3)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 3 * x @ delta.T)


def test_one_layer_alone_may_be_differentiated():
    """The other layers of the group take no part: their share of the gradient is zero."""
    model = mos_llama()
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    x = torch.randn(3, 128)
    layer(x).sum().backward()
    read = set(layer.mos_index_B["default"].tolist())
    for shard, gradient in enumerate(layer.mos_pool_B["default"].grad):
        assert bool(gradient.any()) == (shard in read)


def test_inference_mode_and_training_may_alternate():
    model = mos_llama()
    expected = pool_gradients(model, tokens())
    with torch.inference_mode():
        first = model(tokens()).logits
    found = pool_gradients(model, tokens())
    assert torch.equal(logits(model), first)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_compiles_without_graph_breaks():
    torch._dynamo.reset()
    model = mos_llama(base=Decoder(), target_modules=["down_proj"])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for seed in (1, 2):
        expected = pool_gradients(model, tokens(seed=seed))
        model.zero_grad()
        compiled(tokens(seed=seed), labels=tokens(seed=seed)).loss.backward()
        for name, pool in pools(model).items():
            torch.testing.assert_close(pool.grad, expected[name])


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_copies_are_independent(clone):
    model = mos_llama()
    model(tokens(), labels=tokens())  # leaves what it gathered for the backward pass
    other = clone(model)
    expected = logits(model)
    assert torch.equal(logits(other), expected)
    with torch.no_grad():
        for pool in pools(other).values():
            pool.zero_()
    assert torch.equal(logits(other), logits(llama()))
    assert torch.equal(logits(model), expected)
    assert other.base_model.model.model.layers[0].mlp.up_proj.group in set(
        other.base_model.mos_groups
    )


def test_kbit_preparation_works_on_plain_models():
    model = mos_llama(
        base=prepare_model_for_kbit_training(llama(), use_gradient_checkpointing=True)
    )
    assert all(g.abs().sum() > 0 for g in pool_gradients(model.train(), tokens()).values())
