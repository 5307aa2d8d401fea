"""Two processes learn what one process with the double batch learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mos.runs import find_runs


def job(tmp_path, name: str, batch: int) -> list[str]:
    return [
        "model=tiny_random",
        "eval=[base]",
        "adapter.r=8",
        "adapter.mos_dropout=0",
        "device=cpu",
        "quantization=none",
        "quantization.compute_dtype=float32",
        "trainer.bf16=false",
        "trainer.optim=adamw_torch",
        "trainer.max_steps=4",
        "trainer.save_steps=4",
        "trainer.logging_steps=1",
        f"trainer.per_device_train_batch_size={batch}",
        "data=messages",
        "data.eval_size=4",
        f"data.source={tmp_path}/rows.jsonl",
        f"paths.output_dir={tmp_path}/{name}",
        f"paths.cache_dir={tmp_path}/cache",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_ddp_on_two_processes_equals_one_with_the_double_batch(tmp_path, checkpointing):
    rows = [{"prompt": f"Count to {n}.", "completion": "." * n} for n in range(1, 31)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # accelerate launch starts several processes on GPUs only; torchrun sets the same variables.
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "mos.train"),
    ]
    runs = {}
    for name, command, batch in (
        ("one", [sys.executable, "-m", "mos.train"], 4),
        ("two", launch, 2),
    ):
        overrides = [
            *job(tmp_path, name, batch),
            f"trainer.gradient_checkpointing={str(checkpointing).lower()}",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *overrides], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (runs[name],) = find_runs(str(tmp_path / name))

    logs = {
        name: [json.loads(x) for x in (run.path / "loss.jsonl").read_text().splitlines()]
        for name, run in runs.items()
    }
    losses = {name: [x["loss"] for x in log if "loss" in x] for name, log in logs.items()}
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-4)
    weights = {
        name: load_file(run.adapter_dir / "adapter_model.safetensors") for name, run in runs.items()
    }
    for key, one in weights["one"].items():
        torch.testing.assert_close(weights["two"][key], one, rtol=1e-3, atol=1e-5)
