"""Several processes, one run: the main process decides and writes, the others follow."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "MASTER_",
    "LOCAL_",
    "GROUP_",
    "TORCHELASTIC_",
    "ACCELERATE_",
)


def process_state(device: str) -> PartialState:
    """This process among the others; joins them on the first call.

    Args:
        device: "cuda" or "cpu".
    """
    return PartialState(cpu=device == "cpu")


def agreed(decision: bool, device: str) -> bool:
    """What the main process decided, in every process. All must call this, once."""
    process_state(device)
    box = [decision]
    broadcast_object_list(box)
    return box[0]


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. All must call this, after `process_state`."""
    state = PartialState()
    if state.num_processes == 1:
        return flag
    flags = torch.tensor(int(flag), device=state.device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags)


def plain_environment() -> dict[str, str]:
    """The environment without the launcher's variables, for a child that is not part of the job."""
    return {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}
