"""Two processes that share the pools compute what one does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.adapters.mos.models import llama, mos_llama, pool_gradients, pools, tokens

pytestmark = pytest.mark.slow


def train_in_process(rank: int, folder: str, checkpointing: dict | None) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = mos_llama(base=llama())
    if checkpointing is not None:
        model.gradient_checkpointing_enable(checkpointing)
        model.enable_input_require_grads()
    model.train()
    parallel = nn.parallel.DistributedDataParallel(model)
    try:
        for _ in range(2):
            model.zero_grad()
            parallel(tokens(seed=rank), labels=tokens(seed=rank)).loss.backward()
        result = {name: pool.grad for name, pool in pools(model).items()}
    except RuntimeError as error:
        result = str(error)
    if rank == 0:
        torch.save(result, f"{folder}/result.pt")
    torch.distributed.destroy_process_group()


def run(folder, checkpointing):
    torch.multiprocessing.spawn(train_in_process, (str(folder), checkpointing), nprocs=2)
    return torch.load(folder / "result.pt")


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}])
def test_gradients_are_the_mean_of_one_process(checkpointing, tmp_path):
    found = run(tmp_path, checkpointing)
    model = mos_llama(base=llama()).train()
    first, second = (pool_gradients(model, tokens(seed=seed)) for seed in (0, 1))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, (first[name] + second[name]) / 2)


def test_reentrant_checkpointing_is_refused(tmp_path):
    assert '"use_reentrant": False' in run(tmp_path, {"use_reentrant": True})
