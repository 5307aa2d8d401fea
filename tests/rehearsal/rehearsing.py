"""Runs of the project on the stub, and the table that they are held against.

    python -m tests.rehearsal.rehearsing [CASE ...]   # measure anew, into expected.json
    python -m tests.rehearsal.rehearsing roofline     # time of a step of MoS beside LoRA's

To be run by the Python of an environment with requirements/cuda.lock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rehearsal.build import build

REPO = Path(__file__).resolve().parents[2]
CACHE = REPO / "data" / "cache"
EXPECTED = Path(__file__).with_name("expected.json")
CONTEXT = 500 << 20  # as in stub.cpp

# Settings of which launches, waits and memory are known (expected.json).
NO_CHECKPOINTING = "trainer.gradient_checkpointing=false"
CASES = {
    "7B MoS": ["adapter=table2_mos_r32"],
    "7B LoRA r=64": ["adapter=table2_lora_r64"],
    "13B MoS": ["model=llama2_13b", "adapter=table2_mos_r8"],
    "3B MoS": ["model=llama3_2_3b", "adapter=table2_mos_r32"],
    "7B MoS without checkpointing": ["adapter=table2_mos_r32", NO_CHECKPOINTING],
    "7B MoS bf16": ["adapter=table2_mos_r32", "quantization=none"],
    "7B MoS int8": ["adapter=table2_mos_r32", "quantization=int8"],
    "13B MoS e=8": ["model=llama2_13b", "adapter=table2_mos_r32"],
    # As in PEFT's published comparison of methods.
    "3B LoRA bf16 4 x 768 without checkpointing": [
        *("model=llama3_2_3b", "adapter=lora", "adapter.r=32", "quantization=none"),
        *("adapter.target_modules=[q_proj,v_proj]", "trainer.optim=adamw_torch"),
        *("trainer.per_device_train_batch_size=4", "data.max_seq_length=768", NO_CHECKPOINTING),
    ],
}
# Steps of the roofline: the floor has one adapted layer, the first, so that gradients go through
# all others.
FLOOR = [
    *("adapter=lora", "adapter.r=1", "adapter.target_modules=[q_proj]"),
    "+adapter.layers_to_transform=[0]",
]
STEPS = {"floor": FLOOR, "LoRA r=32": ["adapter=lora", "adapter.r=32"], "MoS": CASES["7B MoS"]}


@dataclass
class Outcome:
    """How a child ended, what it printed, and a dict for each step of its training."""

    code: int
    output: str
    steps: list[dict[str, Any]]


def on_stub(*command: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python with `command` on the stub; its output is text."""
    folder = Path(os.environ.get("MOS_REHEARSAL_STUB", CACHE / "rehearsal"))
    library = build(folder)
    stub = {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(library), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(REPO), **stub, **environment},
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def training(folder: Path, *overrides: str, **environment: str) -> Outcome:
    """Four steps of full rows in the paper's setting, in `folder`; a second call continues."""
    rows, steps = folder / "rows.jsonl", folder / "steps.jsonl"
    words = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "so " * 400}]
    rows.write_text("".join(json.dumps({"id": i, "messages": words}) + "\n" for i in range(64)))
    steps.unlink(missing_ok=True)
    arguments = [
        *("scale=paper", "model.pad_token='<pad>'", "trainer.max_steps=4", "eval=base"),
        *("data=messages", f"data.source={rows}", "data.eval_size=0"),
        *(f"paths.cache_dir={CACHE}", f"paths.output_dir={folder}", *overrides),
    ]
    done = on_stub("-m", "tests.rehearsal.child", str(steps), *arguments, **environment)
    lines = steps.read_text().splitlines() if steps.is_file() else []
    return Outcome(done.returncode, done.stdout, [json.loads(line) for line in lines])


def measured(*overrides: str, **environment: str) -> dict[str, Any]:
    """Counts of a step that is like all later ones, and the memory that the training needs."""
    with tempfile.TemporaryDirectory() as folder:
        # Large enough for all; what a card must have is read off.
        outcome = training(Path(folder), *overrides, REHEARSAL_GIB="200", **environment)
    if outcome.code or len(outcome.steps) != 4:
        sys.exit(f"{overrides} ended with {outcome.code}:\n{outcome.output}")
    step = {**outcome.steps[2], **outcome.steps[1]}  # the third may be slowed down by its clock
    step["allocated"] = max(step["allocated"] for step in outcome.steps)
    reserved = max(step.pop("reserved") for step in outcome.steps)
    step["needed"] = reserved + step["managed_bytes"] + CONTEXT
    return step


def roofline() -> None:
    """Print the table of docs/gpu.md: a step of 7B, NF4, 16 x 512 with checkpointing."""
    print("| norms | step | launches + products | syncs | ms | to LoRA | to the floor |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for norms in ("float32", "bfloat16"):
        took: dict[str, float] = {}
        for name, overrides in STEPS.items():
            step = measured(*overrides, f"quantization.norms={norms}", MOS_ROOFLINE="1")
            took[name] = step["milliseconds"]
            lora = f"{took[name] / took['LoRA r=32']:.3f}" if name != "floor" else ""
            counts = f"{step['launches']:,} + {step['products']:,} | {step['syncs']}"
            print(
                f"| {norms} | {name} | {counts} | {took[name]:,.0f} | {lora} |"
                f" {took[name] / took['floor']:.2f} |",
                flush=True,
            )


def main(names: list[str]) -> None:
    if names == ["roofline"]:
        return roofline()
    known = json.loads(EXPECTED.read_text()) if EXPECTED.is_file() else {}
    for name in names or CASES:
        known[name] = {"overrides": CASES[name], **measured(*CASES[name])}
        print(name, known[name], flush=True)
        EXPECTED.write_text(json.dumps(known, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
