"""Run mos.train in shards on CPU processes: `torchrun cpu_sharded.py <step> <override>...`.

No test. With what `accelerate launch` sets for configs/accelerate/fsdp.yaml, but for the precision.
The first process gets SIGTERM within step `step`, if that is not 0.

accelerate shards on accelerators alone, and on CPUs takes DDP without a word. Told that its
processes are GPUs' (their device stays the CPU, their backend gloo), it shards there too.
"""

from __future__ import annotations

import os
import signal
import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

import mos.training.fit as fit
from mos.config import compose_config
from mos.train import train

STEP, *OVERRIDES = sys.argv[1:]
os.environ |= {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}

start, start_accelerator = PartialState.__init__, AcceleratorState.__init__


def start_as_gpus(self, cpu=False, **kwargs):
    start(self, cpu, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def start_accelerator_as_gpus(self, *args, cpu=False, **kwargs):
    start_accelerator(self, *args, **kwargs)


PartialState.__init__ = start_as_gpus
AcceleratorState.__init__ = start_accelerator_as_gpus
save = fit.save_adapter


def save_sharded(trainer, folder):
    assert any(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    save(trainer, folder)


fit.save_adapter = save_sharded
fit.check_sharding = lambda *_: None  # it refuses CPUs


class Signal(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and state.global_step + 1 == int(STEP):
            os.kill(os.getpid(), signal.SIGTERM)


DEFAULT_CALLBACKS.append(Signal)

if __name__ == "__main__":
    train(compose_config(OVERRIDES))
