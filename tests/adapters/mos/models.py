"""Tiny models and the switch combinations that the tests of MoS run over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM

from mos import MosConfig

TYPES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

MOS = {"r": 5, "equivalent_rank": 3, "shards_per_vector": 4, "private_rank": 1}
PURE_SHARING = {
    "r": "all",
    "equivalent_rank": 2,
    "shards_per_vector": 1,
    "private_rank": 0,
    "pair_dissociation": False,
}
# The rows of the paper and what else the switches allow.
SWITCHES = {
    "mos": MOS,
    "-pd": {**MOS, "pair_dissociation": False},
    "-vs": {**MOS, "shards_per_vector": 1},
    "-sp": {**MOS, "private_rank": 0},
    "-pd -vs": {**MOS, "pair_dissociation": False, "shards_per_vector": 1},
    "-pd -sp": {**MOS, "pair_dissociation": False, "private_rank": 0},
    "-vs -sp": {**MOS, "shards_per_vector": 1, "private_rank": 0},
    "pure sharing": PURE_SHARING,
    "pure sharing + random scaling": {**PURE_SHARING, "random_scaling": {"mean": 0.5, "std": 1.0}},
    "pure sharing + subset selection": {**PURE_SHARING, "r": 3},
    "mos + random scaling": {**MOS, "random_scaling": {"mean": 0.0, "std": 2.0}},
    "nothing shared": {**MOS, "r": 3, "private_rank": 3},
    "private ranks only": {**MOS, "r": 3, "private_rank": 3},
}


def llama(
    layers: int = 3, kv_heads: int = 2, hidden: int = 64, seed: int = 0, **config
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            vocab_size=64,
            max_position_embeddings=64,
            **config,
        )
    )


class Output(NamedTuple):
    loss: torch.Tensor
    logits: torch.Tensor


class Decoder(nn.Module):
    """A LLaMA in whatever dtype its weights have: transformers' own rounds to float32 inside."""

    def __init__(self, layers: int = 2, kv_heads: int = 2, hidden: int = 16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(64, hidden)
        self.layers = nn.ModuleList(_Block(kv_heads, hidden) for _ in range(layers))
        self.head = nn.Linear(hidden, 64, bias=False)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Output:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Output(loss, logits)


class _Block(nn.Module):
    def __init__(self, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.kv_heads, kv = kv_heads, hidden // 4 * kv_heads
        self.q_proj, self.o_proj = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(hidden, kv, bias=False) for _ in range(2))
        self.gate_proj, self.up_proj = (nn.Linear(hidden, 2 * hidden) for _ in range(2))
        self.down_proj = nn.Linear(2 * hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed, kv = F.rms_norm(x, x.shape[-1:]), self.kv_heads
        q, k, v = (
            proj(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
            for proj, heads in ((self.q_proj, 4), (self.k_proj, kv), (self.v_proj, kv))
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(attended.transpose(1, 2).flatten(2))
        normed = F.rms_norm(x, x.shape[-1:])
        return x + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))


def mos_llama(
    switches: dict | None = None, base: torch.nn.Module | None = None, **config
) -> PeftModel:
    """A model whose pools are all random, so that the adapter matters."""
    config = {"init_weights": False, **(switches or MOS), **config}
    return get_peft_model(base if base is not None else llama(), MosConfig(**config))


def tokens(rows: int = 2, length: int = 7, seed: int = 1) -> torch.Tensor:
    return torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(seed))


def pools(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".mos_pool_" in name}


def pool_gradients(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(batch, labels=batch).loss.backward()
    return {name: p.grad.clone() for name, p in pools(model).items()}


def logits(model: nn.Module, batch: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens() if batch is None else batch).logits
