"""Two processes learn what one process with the double batch learns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mos.config import compose_config, validate
from mos.errors import UserError
from mos.run import Run
from mos.runs import find_runs, read_losses
from mos.training.distributed import check_sharding


def job(tmp_path, name: str, batch: int) -> list[str]:
    return [
        "model=tiny_random",
        "eval=base",
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


def write_rows(tmp_path) -> None:
    rows = [{"prompt": f"Count to {n}.", "completion": "." * n} for n in range(1, 31)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def start(script: list[str], overrides: list[str], processes: int = 1) -> None:
    """Run a script of Python on several processes (torchrun) or one, to a good end."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), *script, *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 or "KeyboardInterrupt" in done.stderr, done.stdout + done.stderr


def the_run(folder: Path) -> Run:
    (run,) = find_runs(folder)
    return run


def assert_same_training(run: Run, expected: Run, tolerance: float = 1) -> None:
    for key in ("loss", "eval_loss"):
        own, other = (
            [line[key] for line in read_losses(r.path / "loss.jsonl") if key in line]
            for r in (run, expected)
        )
        assert own == pytest.approx(other, rel=1e-5 * tolerance)
    own, other = (load_file(r.adapter_dir / "adapter_model.safetensors") for r in (run, expected))
    assert own.keys() == other.keys()
    for key, weight in other.items():
        close = {"rtol": 1e-4 * tolerance, "atol": 2e-6 * tolerance}
        torch.testing.assert_close(own[key], weight, **close)


@pytest.mark.slow
def test_two_processes_with_shards_equal_one_and_are_continued(tmp_path):
    write_rows(tmp_path)
    sharded = [str(Path(__file__).with_name("cpu_sharded.py"))]
    start(["-m", "mos.train"], job(tmp_path, "one", 4))
    one = the_run(tmp_path / "one")

    start([*sharded, "3"], job(tmp_path, "two", 2), processes=2)
    two = the_run(tmp_path / "two")
    assert (two.state.status, two.state.reason) == (
        "interrupted",
        "stopped by SIGTERM; step 3 of 4 is kept",
    )
    alone = tmp_path / "alone" / one.path.relative_to(tmp_path / "one")
    shutil.copytree(two.checkpoint_dir, alone / "checkpoints")
    shutil.copy(two.path / "loss.jsonl", alone)

    start([*sharded, "0"], job(tmp_path, "two", 2), processes=2)
    assert_same_training(two, one)
    start(["-m", "mos.train"], job(tmp_path, "alone", 4))
    assert "continuing from checkpoint-3" in (alone / "train.log").read_text()
    assert_same_training(the_run(tmp_path / "alone"), one)


@pytest.mark.parametrize(
    ("variable", "options", "device", "words"),
    [
        ("ACCELERATE_USE_FSDP", {"bits": 4}, "cuda", "FSDP with quantization.bits=4"),
        ("ACCELERATE_USE_FSDP", {}, "cpu", "FSDP shards weights over GPUs"),
        ("ACCELERATE_USE_FSDP", {"optim": "paged_adamw_32bit"}, "cuda", "FSDP with trainer.optim="),
        ("ACCELERATE_USE_DEEPSPEED", {}, "cuda", "DeepSpeed is not supported: .*fsdp.yaml"),
    ],
)
def test_what_cannot_be_sharded_is_refused_by_name(variable, options, device, words, monkeypatch):
    quantization = "nf4" if options.get("bits") else "none"
    optim = options.get("optim", "adamw_torch")
    config = validate(compose_config([f"quantization={quantization}", f"trainer.optim={optim}"]))
    check_sharding(config, device)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=words):
        check_sharding(config, device)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_ddp_on_two_processes_equals_one_with_the_double_batch(tmp_path, checkpointing):
    write_rows(tmp_path)
    for name, batch, processes in (("one", 4, 1), ("two", 2, 2)):
        overrides = [*job(tmp_path, name, batch), f"trainer.gradient_checkpointing={checkpointing}"]
        start(["-m", "mos.train"], overrides, processes)
    assert_same_training(the_run(tmp_path / "two"), the_run(tmp_path / "one"), tolerance=10)
