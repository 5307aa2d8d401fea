"""Which shards are read: drawn as the paper says, reproducible, and private ones private."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mos import MosConfig
from mos.adapters.mos.layer import MosLinear
from mos.adapters.mos.routing import draw, storage_dtype
from tests.adapters.mos.models import MOS, PURE_SHARING, SWITCHES, llama, mos_llama


def indices(model, adapter_name="default"):
    return {
        (name, side): getattr(module, f"mos_index_{side}")[adapter_name]
        for name, module in model.named_modules()
        if isinstance(module, MosLinear)
        for side in "AB"
    }


def assert_equal_routing(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_layers_read_distinct_public_shards_then_their_private_ones():
    model = mos_llama()  # e=3, L=3, l=4, p=1, r=5
    by_type = Counter()
    for (name, side), index in indices(model).items():
        kind = (name.rpartition(".")[2], side)
        layer, by_type[kind] = by_type[kind], by_type[kind] + 1
        public, private = index[: 4 * 4].tolist(), index[4 * 4 :].tolist()
        assert max(public) < (3 - 1) * 3 * 4
        assert len(set(public)) == len(public)
        assert private == [24 + 4 * layer + i for i in range(4)]


def test_private_shards_are_read_by_one_layer_only():
    readers = Counter()
    for (name, side), index in indices(mos_llama()).items():
        readers.update((name.rpartition(".")[2], side, shard) for shard in set(index.tolist()))
    private = {key: n for key, n in readers.items() if key[2] >= 24}
    assert len(private) == 7 * 2 * 3 * 4  # types, sides, layers, p * l
    assert set(private.values()) == {1}


def test_sides_blocks_and_types_are_drawn_independently():
    drawn = [tuple(index[:16].tolist()) for index in indices(mos_llama()).values()]
    assert len(set(drawn)) == len(drawn)


def test_without_pair_dissociation_both_sides_read_alike():
    found = indices(mos_llama({**MOS, "pair_dissociation": False}))
    assert all(torch.equal(index, found[name, "A"]) for (name, _), index in found.items())


def test_draws_are_uniform_over_ordered_subsets():
    config = MosConfig(r=3, equivalent_rank=2, shards_per_vector=1, private_rank=0)
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(
        tuple(routing.index_A.tolist())
        for _ in range(3000)
        for routing in draw(config, 2, generator)
    )
    assert len(drawn) == 4 * 3 * 2  # of the pool's four, in every order
    assert min(drawn.values()) > 0.75 * 6000 / 24
    assert max(drawn.values()) < 1.25 * 6000 / 24


@pytest.mark.parametrize("r", ["all", 6])
def test_pure_sharing_reads_the_pool_in_order(r):
    found = indices(mos_llama({**PURE_SHARING, "r": r}))  # e=2, L=3
    assert all(index.tolist() == list(range(6)) for index in found.values())


def test_routing_depends_on_its_seed_alone():
    reference = indices(mos_llama())
    torch.manual_seed(123)
    torch.rand(17)
    assert_equal_routing(indices(mos_llama(base=llama(seed=9))), reference)
    other = indices(mos_llama(routing_seed=1))
    assert any(not torch.equal(other[key], reference[key]) for key in reference)


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    list(draw(MosConfig(**SWITCHES["mos + random scaling"]), 4, generator))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)


def test_random_scaling_is_frozen_and_of_its_distribution():
    model = mos_llama({**PURE_SHARING, "random_scaling": {"mean": 3.0, "std": 0.5}})
    scales = [m.mos_scale["default"] for m in model.modules() if isinstance(m, MosLinear)]
    assert not any(scale.requires_grad for scale in scales)
    drawn = torch.cat(scales)
    assert drawn.mean() == pytest.approx(3.0, abs=0.2)
    assert drawn.std() == pytest.approx(0.5, rel=0.3)
    assert len(drawn.unique()) == len(drawn)


@pytest.mark.parametrize(
    ("n_shards", "dtype"),
    [
        (1, torch.uint8),
        (256, torch.uint8),
        (257, torch.int16),
        (2**15, torch.int16),
        (2**15 + 1, torch.int32),
    ],
)
def test_indices_are_stored_in_the_smallest_type(n_shards, dtype):
    assert storage_dtype(n_shards) == dtype
