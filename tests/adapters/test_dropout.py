"""The dropout of our methods: torch's, by other random numbers on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mos.adapters.linear import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_it_drops_with_its_probability_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1001, 999, dtype=dtype)  # an odd number of values
    y = Dropout(p)(x)
    assert set(y.unique().tolist()) == {0.0, (x[0, 0] / (1 - p)).item()}
    dropped = (y == 0).double()
    assert dropped.mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
    # Neighbours, which come out of one number, are dropped independently of each other.
    pairs = dropped.flatten()[: x.numel() // 2 * 2].view(-1, 2)
    both = pairs.prod(dim=1).mean().item()
    assert both == pytest.approx(p * p, abs=5 * (p * p / len(pairs)) ** 0.5)


def test_gradients_pass_where_values_do_and_a_recomputation_drops_the_same():
    torch.manual_seed(0)
    x = torch.randn(64, 33, requires_grad=True)
    y = checkpoint(Dropout(0.3), x, use_reentrant=False)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y / x).detach())


def test_it_does_nothing_in_evaluation_and_everything_at_one():
    x = torch.randn(8, 8)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert not Dropout(1.0)(x).any()
