"""Several processes, one run: the main process decides and writes, the others follow."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list

from mos.errors import UserError

LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "MASTER_",
    "LOCAL_",
    "GROUP_",
    "TORCHELASTIC_",
    "ACCELERATE_",
)


def check_sharding(config: Mapping[str, Any], device: str) -> None:
    """Refuse what cannot be trained with weights in shards, as `accelerate launch` asks for it.

    Args:
        config: of the training.
        device: "cuda" or "cpu".

    Raises:
        UserError: FSDP or DeepSpeed with a quantised base, on a CPU, or with another optimizer than
            torch's AdamW; DeepSpeed with `data.chat_tokens`, or not installed.
    """
    bits = config["quantization"]["bits"]
    optim = config["trainer"].get("optim", "adamw_torch")
    for name, variable in (
        ("FSDP", "ACCELERATE_USE_FSDP"),
        ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"),
    ):
        if os.environ.get(variable, "false").lower() != "true":
            continue
        if bits is not None:
            raise UserError(
                f"{name} with quantization.bits={bits}: quantised weights are not trained in"
                " shards here. Use quantization=none, or configs/accelerate/ddp.yaml, where each"
                " GPU holds the whole model."
            )
        if device == "cpu":
            raise UserError(f"{name} shards weights over GPUs, and the device is the CPU.")
        # Nobody has seen whether bitsandbytes' kernels know a shard from a whole tensor, or whether
        # the state of others comes back from a checkpoint.
        if optim not in ("adamw_torch", "adamw_torch_fused"):
            raise UserError(
                f"{name} with trainer.optim={optim}: only torch's AdamW was compared with one"
                " process. Use trainer.optim=adamw_torch."
            )
        if name == "DeepSpeed":
            _check_deepspeed(config)


def _check_deepspeed(config: Mapping[str, Any]) -> None:
    if config["data"]["chat_tokens"]:
        raise UserError(
            "DeepSpeed with data.chat_tokens=true: rows for new tokens cannot be added to an"
            " embedding in shards. Use data.chat_tokens=false, or configs/accelerate/ddp.yaml."
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("DeepSpeed is not installed: pip install deepspeed.")


def check_continued(checkpoint: Path) -> None:
    """Refuse a checkpoint whose optimizer state this job would lose. All processes may call this.

    Each process of DeepSpeed keeps the state of its shards in a file of its own. Without DeepSpeed
    transformers would begin anew with the weights, without a word.

    Raises:
        UserError: DeepSpeed wrote it and this job has another number of processes or no DeepSpeed,
            or the other way round.
    """
    state = PartialState()
    now = state.num_processes if state.distributed_type == DistributedType.DEEPSPEED else 0
    then = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    if then != now:
        had, has = (f"{n} processes of DeepSpeed" if n else "no DeepSpeed" for n in (then, now))
        raise UserError(
            f"{checkpoint} was written with {had}, and this job has {has}: the optimizer's state"
            " cannot be taken over. Continue it as it was begun, or start anew with overwrite=true."
        )


def agreed(decision: bool, device: str) -> bool:
    """What the main process decided, in every process. All must call this, once."""
    PartialState(cpu=device == "cpu")  # joins the others on the first call
    box = [decision]
    broadcast_object_list(box)
    return box[0]


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. All must call this, after `agreed`."""
    state = PartialState()
    if state.num_processes == 1:
        return flag
    flags = torch.tensor(int(flag), device=state.device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags)


def plain_environment() -> dict[str, str]:
    """The environment without the launcher's variables, for a child that is not part of the job."""
    return {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}
