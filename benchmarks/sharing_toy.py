"""The two sinusoids of arXiv 2409.15371v12, section 3.1, with sharing that is sharing.

    python benchmarks/sharing_toy.py

There an MLP trained on one sinusoid is adapted to another, and MoS loses more than LoRA. With one
adapted layer no two layers share; so all four blocks are adapted here, after that setting.
"""

import math
import statistics
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mos import MosConfig

WIDTH, BLOCKS, STEPS, SEEDS = 64, 4, 300, 10
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # the paper has the first for all; then each row's best


def mlp() -> nn.Sequential:
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(BLOCKS)]
    return nn.Sequential(nn.Linear(1, WIDTH), *blocks, nn.Linear(WIDTH, 1))


def fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float) -> float:
    """The loss after training on all points at once."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


x = torch.linspace(-1, 1, 50)[:, None]
for layers in (["1.0"], [f"{i}.0" for i in range(1, BLOCKS + 1)]):
    print(f"adapted: {len(layers)} of {BLOCKS} blocks; loss, mean of {SEEDS} seeds")
    for name, rank in (("LoRA", 2), ("MoS", 2), ("MoS", 4), ("LoRA", 4)):
        if name == "MoS" and rank > 2 and len(layers) == 1:
            continue  # a pool of one layer has two ranks
        found: dict[float, list[float]] = {rate: [] for rate in RATES}
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            base = mlp()
            fit(base, x, torch.sin(2 * math.pi * x), 1e-2)
            lora = LoraConfig(target_modules=layers, r=rank, lora_alpha=16)
            mos = MosConfig(target_modules=layers, r=rank, equivalent_rank=2, routing_seed=seed)
            for rate in RATES:
                start = mlp()
                start.load_state_dict(base.state_dict())
                model = get_peft_model(start, lora if name == "LoRA" else mos)
                found[rate].append(fit(model, x, torch.sin(4 * math.pi * x + 1), rate))
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        best = min(RATES, key=lambda rate: statistics.mean(found[rate]))
        shown = (f"{r:g}: {statistics.mean(found[r]):.4f}" for r in (RATES[0], best))
        error = statistics.stdev(found[best]) / math.sqrt(SEEDS)
        print(f"  {name} r={rank} {size:5} parameters, {', best '.join(shown)} ± {error:.4f}")
