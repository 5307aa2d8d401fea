"""Two processes that share the pools compute what one does."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor

from tests.adapters.mos.models import llama, mos_llama, pool_gradients, pools, tokens

pytestmark = pytest.mark.slow


def sharded_by(kind: str, model: nn.Module) -> nn.Module:
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    blocks = model.base_model.model.model.layers
    if kind == "fsdp2":
        for module in (*blocks, model):
            fully_shard(module)
        return model
    policy = partial(transformer_auto_wrap_policy, transformer_layer_cls={type(blocks[0])})
    options = {"use_orig_params": kind == "fsdp1", "device_id": torch.device("cpu")}
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, **options)


def train_in_process(rank: int, folder: str, checkpointing: dict | None, kind: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = mos_llama(base=llama())
    if checkpointing is not None:
        model.gradient_checkpointing_enable(checkpointing)
        model.enable_input_require_grads()
    model.train()
    try:
        parallel = sharded_by(kind, model)
        for _ in range(2):
            model.zero_grad()
            parallel(tokens(seed=rank), labels=tokens(seed=rank)).loss.backward()
        result = {name: whole(pool.grad) for name, pool in pools(model).items()}
    except (RuntimeError, ValueError) as error:
        result = str(error)
    if rank == 0:
        torch.save(result, f"{folder}/result.pt")
    # A process that leaves while the other still sends to it can abort in gloo's threads.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def whole(gradient):
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def run(folder, checkpointing, kind="ddp"):
    torch.multiprocessing.spawn(train_in_process, (str(folder), checkpointing, kind), nprocs=2)
    return torch.load(folder / "result.pt")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}])
def test_gradients_are_the_mean_of_one_process(kind, checkpointing, tmp_path):
    found = run(tmp_path, checkpointing, kind)
    model = mos_llama(base=llama()).train()
    first, second = (pool_gradients(model, tokens(seed=seed)) for seed in (0, 1))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, (first[name] + second[name]) / 2)


def test_reentrant_checkpointing_is_refused(tmp_path):
    assert '"use_reentrant": False' in run(tmp_path, {"use_reentrant": True})


def test_flat_parameters_are_refused(tmp_path):
    """By torch where frozen and trained weights would share one, else by our weights."""
    assert "use_orig_params" in run(tmp_path, None, "flat")
