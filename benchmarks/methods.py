"""What every method costs at the paper's budgets: FOSSIL's efficiency comparison, for both papers.

    python benchmarks/methods.py                                 # SmolLM2, bf16, this machine
    python benchmarks/methods.py --model llama2_7b --device cuda --quantization nf4
    python benchmarks/methods.py --rounds 3 --rows lora_r8 mos_r32
    python benchmarks/methods.py --rounds 0                      # sizes alone, nothing is timed

A step is forward, backward and AdamW over one batch. Its ratios are to two models in the same
process that take turns with the method, in an order that is drawn anew each round: PEFT's LoRA of
the same rank, and the base without adapter, whose backward runs to the embeddings. Each method has
a process of its own, so that its peak memory is its own.

Memory is what the method adds to a loaded base until the third step: resident memory on the CPU,
allocated memory on CUDA. Disk is the saved adapter. "Slot" is what serving it as LoRA takes, in
bf16, at its own rank.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import torch  # noqa: E402
from adapter_step import bootstrap, quantise, synchronize, timed  # noqa: E402
from machine import machine  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel  # noqa: E402

from mos.adapters import METHODS, attach, rank, row_label  # noqa: E402
from mos.config import compose_config, resolved  # noqa: E402
from mos.models.loading import load_base  # noqa: E402
from mos.models.sources import resolve_model  # noqa: E402

RESULTS = REPO / "benchmarks" / "results"
# row: adapter file and what is changed in it
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "full": ("full", {}),
    **{f"lora_r{r}": ("lora", {"r": r}) for r in (2, 8, 16, 64)},
    "vera_r256": ("table2_vera_r256", {}),
    "tied_lora_r280": ("table2_tied_lora_r280", {}),
    "prolora_r4": ("table2_prolora_r4", {}),
    "prolora_r8": ("table2_prolora_r8", {}),
    **{f"miss_r{r}": ("miss", {"r": r}) for r in (4, 14, 64)},
    "rslora_r8": ("rslora", {}),
    "dora_r8": ("dora", {}),
    **{name: (name, {}) for name in ("vblora", "unilora", "lily", "randlora", "lokr", "hira")},
    "pure_sharing": ("table1_pure_sharing", {}),
    **{f"mos_r{r}": (f"table2_mos_r{r}", {}) for r in (4, 8, 16, 32)},
    **{f"mos_r32_{switch}": (f"table2_mos_r32_{switch}", {}) for switch in ("sp", "vs", "pd")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default="smollm2_135m", help="a model group, or llama2_7b (random)"
    )
    parser.add_argument("--quantization", default="none", choices=["none", "nf4", "int8"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15, help="0: sizes alone")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--cache-dir", type=Path, default=REPO / "data" / "cache")
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results")
    parser.add_argument("--one", choices=list(ROWS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments)))
        return
    rows = []
    for name in arguments.rows:
        adapter = config(*ROWS[name])
        if arguments.quantization != "none" and not METHODS[adapter["method"]].on_quantized:
            continue
        if arguments.rounds:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
        else:
            found = sizes(attach(load(arguments), adapter), adapter)
        rows.append({"row": name, **found})
        print(json.dumps(rows[-1]), flush=True)
    kind = "methods" if arguments.rounds else "sizes"
    out = arguments.out or RESULTS / f"{kind}_{arguments.model}_{arguments.quantization}.md"
    out.write_text(table(rows, arguments))
    out.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")
    print(out.read_text())


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one method; runs in a process of its own."""
    torch.manual_seed(0)
    if arguments.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    adapter = config(*ROWS[arguments.one])
    base = load(arguments)
    before = memory_in_use(arguments.device)
    started = time.perf_counter()
    model = attach(base, adapter)
    synchronize(torch.device(arguments.device))
    seconds = time.perf_counter() - started
    model.enable_input_require_grads()
    step = Step(model, arguments)
    for _ in range(3):
        step()
    found = {
        "init_seconds": seconds,
        "added_peak_bytes": peak_memory(arguments.device) - before,
        **sizes(model, adapter),
    }
    others = {"none": {"method": "none"}}
    if found["rank"] is not None:
        targets = {"target_modules": adapter["target_modules"]}
        others["lora"] = {**config("lora", {"r": found["rank"]}), **targets}
    steps = {"self": step}
    for name, other in others.items():
        rival = attach(load(arguments), other)
        rival.enable_input_require_grads()
        steps[name] = Step(rival, arguments)
    times = take_turns(steps, arguments.rounds)
    found["step_seconds"] = statistics.median(times["self"])
    for name in others:
        ratios = [own / rival for own, rival in zip(times["self"], times[name], strict=True)]
        # with the bounds of its 95% bootstrap interval
        found[f"ratio_to_{name}"] = [statistics.median(ratios), *bootstrap(ratios)]
    return found


def config(file: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {**resolved(compose_config([f"adapter={file}"]))["adapter"], **changes}


def load(arguments: argparse.Namespace) -> PreTrainedModel:
    groups = [f"model={arguments.model}", f"quantization={arguments.quantization}"]
    cfg = compose_config(groups)
    quantization, model = cfg.quantization, cfg.model
    if arguments.model != "llama2_7b":
        path = resolve_model(model.path, arguments.cache_dir)
        return load_base(path, quantization, arguments.device)
    with torch.device(arguments.device):
        random_weights = LlamaForCausalLM(LlamaConfig(**model.architecture, dtype=torch.bfloat16))
    random_weights.to(torch.bfloat16).config.use_cache = False
    if arguments.quantization == "nf4":
        quantise(random_weights.model, torch.device(arguments.device))
    return random_weights


class Step:
    """One training step of a model on a fixed random batch."""

    def __init__(self, model: torch.nn.Module, arguments: argparse.Namespace) -> None:
        self.model, self.device = model.train(), torch.device(arguments.device)
        generator = torch.Generator().manual_seed(0)
        shape = (arguments.batch, arguments.length)
        self.ids = torch.randint(3, 30_000, shape, generator=generator).to(self.device)
        if self.ids.max() >= model.config.vocab_size:
            self.ids %= model.config.vocab_size
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-5) if trainable else None

    def __call__(self) -> float:
        return timed(self.once, self.device)

    def once(self) -> None:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self.model(input_ids=self.ids, labels=self.ids).loss
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()


def take_turns(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for i in range(rounds + 1):
        for name in order.sample(list(steps), len(steps)):
            seconds = steps[name]()
            if i:  # the first round warms up
                times[name].append(seconds)
    return times


def sizes(model: torch.nn.Module, adapter: dict[str, Any]) -> dict[str, Any]:
    """Trainable parameters, bytes of the saved adapter, and of the LoRA slot that serves it."""
    from mos.errors import UserError
    from mos.export import to_lora

    trained = [p for p in model.parameters() if p.requires_grad]
    found = {
        "label": row_label(adapter),
        "rank": rank(adapter, n_blocks=model.config.num_hidden_layers),
        "trainable_parameters": sum(p.numel() for p in trained),
    }
    if not hasattr(model, "peft_config"):
        own = sum(p.numel() * p.element_size() for p in trained)
        return {**found, "disk_bytes": own, "slot_bytes": None}
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(f"{scratch}/adapter", save_embedding_layers=False)
        try:
            lora = to_lora(model, f"{scratch}/lora", torch.bfloat16)
        except UserError:
            slot = None
        else:
            slot = (lora / "adapter_model.safetensors").stat().st_size
        disk = (Path(scratch) / "adapter" / "adapter_model.safetensors").stat().st_size
    return {**found, "disk_bytes": disk, "slot_bytes": slot}


def memory_in_use(device: str) -> int:
    """Bytes in use now; the peak is counted anew from here."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return process_status("VmRSS")


def peak_memory(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    return process_status("VmHWM")


def process_status(field: str) -> int:
    """A size in bytes from Linux's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


COLUMNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "Method": lambda row: row["label"] if row["row"] != "none" else "no adapter",
    "Rank": lambda row: row["rank"] or "-",
    "# Param.": lambda row: f"{row['trainable_parameters']:,}",
    "Init. s": lambda row: f"{row['init_seconds']:.3f}",
    "Step s": lambda row: f"{row['step_seconds']:.3f}",
    "/ LoRA, same rank": lambda row: ratio(row.get("ratio_to_lora")),
    "/ no adapter": lambda row: ratio(row["ratio_to_none"]),
    "Added peak MB": lambda row: megabytes(row["added_peak_bytes"]),
    "Disk MB": lambda row: megabytes(row["disk_bytes"]),
    "Disk bytes / param.": lambda row: bytes_per_parameter(row),
    "LoRA slot MB": lambda row: megabytes(row["slot_bytes"]),
}
TIMED = list(COLUMNS)[3:8]


def table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    columns = [name for name in COLUMNS if arguments.rounds or name not in TIMED]
    command = " ".join(["python benchmarks/methods.py", *sys.argv[1:]])
    setting = (
        f"batch {arguments.batch} x {arguments.length}, medians of {arguments.rounds} rounds with"
        " 95% bootstrap intervals"
    )
    lines = [
        f"# Methods on {arguments.model}, {arguments.quantization} base",
        "",
        f"`{command}` on {machine(arguments.device)}; {setting if arguments.rounds else 'sizes'}.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- " * len(columns) + "|",
    ]
    for row in rows:
        lines.append(f"| {' | '.join(str(COLUMNS[name](row)) for name in columns)} |")
    return "\n".join(lines) + "\n"


def ratio(measured: list[float] | None) -> str:
    return "-" if measured is None else "{:.2f} ({:.2f}-{:.2f})".format(*measured)


def bytes_per_parameter(row: dict[str, Any]) -> str:
    parameters = row["trainable_parameters"]
    return f"{row['disk_bytes'] / parameters:.2f}" if parameters else "-"


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"


if __name__ == "__main__":
    main()
