"""A training step of MoS against PEFT's LoRA of the same rank r.

    python benchmarks/adapter_step.py                         # SmolLM2-135M's shape, this CPU
    python benchmarks/adapter_step.py --scale 7b --bases nf4 --checkpointing on --batches 16x512
    python benchmarks/adapter_step.py --scale tiny --rounds 3 --batches 2x16      # seconds

A step is forward, backward and AdamW under bfloat16 autocast (in float32 on a processor without
bfloat16), on a randomly initialised LLaMA. The floor is the frozen base without an adapter, with
gradients through its blocks. The three models live in one process and take turns, in an order that
rotates; the result is the median of the ratios of a round, with a 95% bootstrap interval. `--clock
cpu` counts the process's CPU time instead, for machines that are busy with other work.

Peak memory is what a step allocates at most, plus the adapter and its optimizer: without the frozen
base. Launches are the kernels that make A and B ready and reduce their gradients; the products with
the activations are the same for both.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from machine import machine  # noqa: E402

from eval.engines import products_in  # noqa: E402
from mos import MosConfig  # noqa: E402

# hidden, intermediate, blocks, heads, key-value heads, vocabulary
SHAPES = {
    "tiny": (64, 128, 6, 4, 2, 256),
    "smollm2": (576, 1536, 30, 9, 3, 49152),
    "7b": (4096, 11008, 32, 32, 32, 32000),
}
TYPES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# The most that the median ratio may be at SmolLM2's shape (batch: bound).
REQUIRED = {"4x128": 1.00, "1x32": 0.95}


@dataclass
class Measurement:
    """One row of the table. Times in seconds, sizes in bytes."""

    base: str
    checkpointing: bool
    batch: str
    floor_step: float
    lora_step: float
    mos_step: float
    ratio: float
    interval: tuple[float, float]
    to_floor: float
    floor_interval: tuple[float, float]
    lora_peak: int
    mos_peak: int


@dataclass
class Cost:
    """What an adapter costs whatever the batch. Times in seconds, sizes in bytes."""

    parameters: int
    init: float
    load: float
    disk: int
    launches: int


def build_base(scale: str, base: str, device: torch.device) -> LlamaForCausalLM:
    hidden, intermediate, blocks, heads, kv_heads, vocabulary = SHAPES[scale]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=scale == "smollm2",
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(config).to(products(device))
    model.requires_grad_(False)
    if base == "nf4":
        quantise(model.model, device)
    return model


def products(device: torch.device) -> torch.dtype:
    return getattr(torch, products_in("bfloat16", device.type))


def quantise(model: nn.Module, device: torch.device) -> None:
    """NF4 with double quantisation, as the paper trains."""
    import bitsandbytes as bnb

    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear):
            layer = bnb.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=False,
                compute_dtype=products(device),
                quant_type="nf4",
            )
            layer.weight = bnb.nn.Params4bit(
                linear.weight.data.cpu(), requires_grad=False, quant_type="nf4"
            )
            layer.support_avx512bf16_for_cpu = False
            model.set_submodule(name, layer.to(device))


def configs(args: argparse.Namespace) -> dict[str, PeftConfig]:
    return {
        "lora": LoraConfig(r=args.r, lora_alpha=16, lora_dropout=0.1, target_modules=TYPES),
        "mos": MosConfig(
            r=args.r,
            equivalent_rank=args.e,
            shards_per_vector=args.shards,
            private_rank=args.p,
            mos_alpha=16,
            mos_dropout=0.1,
            target_modules=TYPES,
        ),
    }


def build(args: argparse.Namespace, base: str, device: torch.device) -> dict[str, Any]:
    floor = build_base(args.scale, base, device)
    floor.enable_input_require_grads()
    adapted = {
        name: get_peft_model(build_base(args.scale, base, device), config)
        for name, config in configs(args).items()
    }
    return {"floor": floor, **adapted}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def make_step(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, batch: torch.Tensor
) -> Callable[[], None]:
    in_bf16 = products(batch.device) == torch.bfloat16

    def step() -> None:
        with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=in_bf16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def timed(function: Callable[[], object], device: torch.device, clock: str = "wall") -> float:
    now = time.process_time if clock == "cpu" else time.perf_counter
    synchronize(device)
    start = now()
    function()
    synchronize(device)
    return now() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """What one step allocates at most over what is there before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def held_bytes(model: PeftModel, optimizer: torch.optim.Optimizer) -> int:
    states = [t for state in optimizer.state.values() for t in state.values()]
    return sum(t.numel() * t.element_size() for t in [*trainable(model), *states])


def bootstrap(ratios: list[float]) -> tuple[float, float]:
    generator = random.Random(0)
    medians = sorted(
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(2000)
    )
    return medians[50], medians[-51]


def compare(
    models: dict[str, Any], base: str, batch: str, checkpointing: bool, args, device
) -> Measurement:
    rows, length = map(int, batch.split("x"))
    vocabulary = SHAPES[args.scale][-1]
    tokens = torch.randint(
        vocabulary, (rows, length), generator=torch.Generator().manual_seed(0)
    ).to(device)
    steps, optimizers = {}, {}
    for name, model in models.items():
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        weights = trainable(model)
        optimizers[name] = torch.optim.AdamW(weights, lr=2e-4) if weights else None
        steps[name] = make_step(model, optimizers[name], tokens)
        for _ in range(args.warmup):
            steps[name]()
    names = deque(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            times[name].append(timed(steps[name], device, args.clock))
        names.rotate()
    ratios = [mos / lora for lora, mos in zip(times["lora"], times["mos"], strict=True)]
    to_floor = [mos / floor for floor, mos in zip(times["floor"], times["mos"], strict=True)]
    peaks = {
        name: peak_bytes(steps[name], device) + held_bytes(models[name], optimizer)
        for name, optimizer in optimizers.items()
        if optimizer is not None
    }
    return Measurement(
        base=base,
        checkpointing=checkpointing,
        batch=batch,
        floor_step=statistics.median(times["floor"]),
        lora_step=statistics.median(times["lora"]),
        mos_step=statistics.median(times["mos"]),
        ratio=statistics.median(ratios),
        interval=bootstrap(ratios),
        to_floor=statistics.median(to_floor),
        floor_interval=bootstrap(to_floor),
        lora_peak=peaks["lora"],
        mos_peak=peaks["mos"],
    )


class _Launches(TorchDispatchMode):
    """Counts the calls that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def count_launches(model: PeftModel) -> int:
    """Kernels that bring A and B of all layers to bfloat16 and reduce their gradients."""
    groups = getattr(model.base_model.model, "mos", None)
    device_type = next(model.parameters()).device.type
    with _Launches() as launches, torch.autocast(device_type, dtype=torch.bfloat16):
        if groups is None:
            outputs = [parameter.to(torch.bfloat16) for parameter in trainable(model)]
        else:
            blocks = model.config.num_hidden_layers
            for group in groups:
                group.prepare(["default"])
            outputs = [
                t for group in groups for k in range(blocks) for t in group.vectors("default", k)
            ]
    gradients = [torch.ones_like(output) for output in outputs]
    with launches:
        torch.autograd.backward(outputs, gradients)
    model.zero_grad()
    return launches.count


def measure_cost(args: argparse.Namespace, config: PeftConfig, device: torch.device) -> Cost:
    base = build_base(args.scale, "bf16", device)
    start = time.perf_counter()
    model = get_peft_model(base, config)
    init = time.perf_counter() - start
    loads = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        disk = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        for _ in range(3):
            loads.append(timed(lambda: model.load_adapter(folder, "loaded"), device))
            model.delete_adapter("loaded")
    parameters = model.get_nb_trainable_parameters()[0]
    return Cost(parameters, init, statistics.median(loads), disk, count_launches(model.train()))


def table(args, device, measurements: list[Measurement], costs: dict[str, Cost]) -> str:
    lora, mos = costs["lora"], costs["mos"]
    lines = [
        f"# Step time of MoS (e={args.e}, r={args.r}, l={args.shards}, p={args.p}) against LoRA "
        f"(r={args.r}), {args.scale} shape",
        "",
        f"`python benchmarks/adapter_step.py {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        f"on {machine(device.type)}. {args.rounds} rounds, {args.clock} clock, products in "
        f"{products_in('bfloat16', device.type)}.",
        "",
        "| base | recompute | batch | ms floor | LoRA | MoS | MoS to LoRA (95% interval) "
        "| MoS to the floor | peak MB LoRA | MoS |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for m in measurements:
        cells = [
            m.base,
            "on" if m.checkpointing else "off",
            m.batch,
            f"{1e3 * m.floor_step:.0f}",
            f"{1e3 * m.lora_step:.0f}",
            f"{1e3 * m.mos_step:.0f}",
            f"**{m.ratio:.3f}** ({m.interval[0]:.3f} to {m.interval[1]:.3f})",
            f"{m.to_floor:.2f} ({m.floor_interval[0]:.2f} to {m.floor_interval[1]:.2f})",
            f"{m.lora_peak / 1e6:.0f}",
            f"{m.mos_peak / 1e6:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| | LoRA | MoS |",
        "| --- | --- | --- |",
        f"| trainable parameters | {lora.parameters:,} | {mos.parameters:,} |",
        f"| bytes on disk | {lora.disk:,} | {mos.disk:,} |",
        f"| kernels for A, B and their gradients | {lora.launches} | {mos.launches} |",
        f"| initialisation, s | {lora.init:.2f} | {mos.init:.2f} |",
        f"| loading, s | {lora.load:.2f} | {mos.load:.2f} |",
        "",
    ]
    return "\n".join(lines)


def failures(measurements: list[Measurement]) -> list[str]:
    found = []
    for m in measurements:
        where = f"{m.base}, checkpointing {m.checkpointing}, {m.batch}"
        if m.ratio > REQUIRED.get(m.batch, 1.0):
            found.append(f"{where}: ratio {m.ratio:.3f} over {REQUIRED.get(m.batch, 1.0):.2f}")
        if m.mos_peak >= m.lora_peak:
            found.append(f"{where}: peak memory {m.mos_peak:,} not under LoRA's {m.lora_peak:,}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=SHAPES, default="smollm2")
    parser.add_argument("--bases", nargs="+", choices=["nf4", "bf16"], default=["nf4", "bf16"])
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--batches", nargs="+", default=["4x128", "1x32"], help="rows x tokens")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--r", type=int, default=32)
    parser.add_argument("--e", type=int, default=8, help="equivalent rank of MoS")
    parser.add_argument("--shards", type=int, default=4, help="shards per vector of MoS")
    parser.add_argument("--p", type=int, default=1, help="private rank of MoS")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the table here, and a .json beside it")
    parser.add_argument("--check", action="store_true", help="fail if a required bound is missed")
    args = parser.parse_args()

    device = torch.device(args.device)
    measurements = []
    for base in args.bases:
        models = build(args, base, device)
        for checkpointing in args.checkpointing:
            for batch in args.batches:
                row = compare(models, base, batch, checkpointing == "on", args, device)
                print(
                    f"{base} {checkpointing} {batch}: {row.ratio:.3f}", file=sys.stderr, flush=True
                )
                measurements.append(row)
        del models
    costs = {name: measure_cost(args, config, device) for name, config in configs(args).items()}
    text = table(args, device, measurements, costs)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
        record = {
            "machine": machine(device.type),
            "arguments": {k: str(v) for k, v in vars(args).items()},
            "measurements": [asdict(m) for m in measurements],
            "costs": {name: asdict(cost) for name, cost in costs.items()},
        }
        args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    missed = failures(measurements)
    if missed:
        print("\n".join(missed), file=sys.stderr)
    if args.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
