"""Several processes, one run: the main process decides and writes, the others follow."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mos.config import TrainConfig
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


def check_sharding(config: TrainConfig, device: str) -> None:
    """Refuse what cannot be trained with weights in shards, as `accelerate launch` asks for it.

    Args:
        config: of the training.
        device: "cuda" or "cpu".

    Raises:
        UserError: DeepSpeed; FSDP with a quantised base, on a CPU, or with another optimizer than
            torch's AdamW.
    """
    if _launched_with("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            "DeepSpeed is not supported: weights are sharded with configs/accelerate/fsdp.yaml, and"
            " several GPUs that each hold the whole model take configs/accelerate/ddp.yaml."
        )
    if not _launched_with("ACCELERATE_USE_FSDP"):
        return
    if (bits := config.quantization.bits) is not None:
        raise UserError(
            f"FSDP with quantization.bits={bits}: quantised weights are not trained in shards here."
            " Use quantization=none, or configs/accelerate/ddp.yaml, where each GPU holds the whole"
            " model."
        )
    if device == "cpu":
        raise UserError("FSDP shards weights over GPUs, and the device is the CPU.")
    # Nobody has seen whether bitsandbytes' kernels know a shard from a whole tensor, or whether
    # the state of others comes back from a checkpoint.
    optim = config.trainer.get("optim", "adamw_torch")
    if optim not in ("adamw_torch", "adamw_torch_fused"):
        raise UserError(
            f"FSDP with trainer.optim={optim}: only torch's AdamW was compared with one process."
            " Use trainer.optim=adamw_torch."
        )


def _launched_with(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


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
