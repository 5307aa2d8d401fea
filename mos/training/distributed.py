"""Several processes, one run: the main process decides and writes, the others follow."""

from __future__ import annotations

import importlib.util
import os

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

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


def check_sharding(bits: int | None, device: str) -> None:
    """Refuse what cannot be trained with weights in shards, as `accelerate launch` asks for it.

    Args:
        bits: of the quantised base weights, or None.
        device: "cuda" or "cpu".

    Raises:
        UserError: FSDP or DeepSpeed with a quantised base or on a CPU, DeepSpeed not installed.
    """
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
        if name == "DeepSpeed" and importlib.util.find_spec("deepspeed") is None:
            raise UserError("DeepSpeed is not installed: pip install deepspeed.")


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
