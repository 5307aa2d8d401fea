"""A tiny LLaMA with grouped-query attention, and every method of ours on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mos import MosConfig, ProloraConfig, TiedLoraConfig

HIDDEN, INTERMEDIATE, KV, BLOCKS, VOCABULARY = 64, 128, 32, 2, 97

CASES: dict[str, Callable[..., PeftConfig]] = {
    "mos": lambda **kw: MosConfig(
        **{"r": 4, "equivalent_rank": 3, "shards_per_vector": 4, "private_rank": 1, **kw}
    ),
    "mos-sp": lambda **kw: CASES["mos"](**{"equivalent_rank": 2, "private_rank": 0, **kw}),
    "mos-random-scaling": lambda **kw: MosConfig(
        **{
            "r": "all",
            "equivalent_rank": 2,
            "shards_per_vector": 1,
            "private_rank": 0,
            "pair_dissociation": False,
            "random_scaling": {"mean": 1.0, "std": 0.5},
            **kw,
        }
    ),
    "prolora": lambda **kw: ProloraConfig(
        **{"r": 4, "unshared_rank": 1, "reduction_a": 3, "reduction_b": 2, **kw}
    ),
    "tied_lora": lambda **kw: TiedLoraConfig(**{"r": 6, **kw}),
}
MAIN_CASES = ["mos", "prolora", "tied_lora"]


def tiny_llama(dtype: torch.dtype = torch.float32, blocks: int = BLOCKS) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def token_ids(rows: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Move every trainable parameter away from its start, where the update is zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.data += noise.to(parameter.data)


def adapted(config: PeftConfig, base: torch.nn.Module | None = None, seed: int = 0) -> PeftModel:
    """A model with a random, non-zero adapter, in evaluation mode."""
    base = tiny_llama() if base is None else base
    torch.manual_seed(seed)
    model = get_peft_model(base, config)
    randomise(model, seed)
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
    return model(input_ids=token_ids() if ids is None else ids, **kwargs).logits


def gradients(model: torch.nn.Module, ids: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Gradients of the language modelling loss by parameter name."""
    ids = token_ids() if ids is None else ids
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
