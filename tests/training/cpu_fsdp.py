"""Run mos.train with FSDP on CPU processes: `torchrun cpu_fsdp.py <step> <override>...`. No test.

The first process gets SIGTERM within step `step`, if that is not 0.

accelerate shards on accelerators alone, and on CPUs takes DDP without a word. Told that its
processes are GPUs' (their device stays the CPU, their backend gloo), it shards there too.
"""

from __future__ import annotations

import os
import signal
import sys

os.environ |= {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import mos.training.fit as fit
from mos.config import compose_config
from mos.train import train

start = PartialState.__init__


def start_as_gpus(self, cpu=False, **kwargs):
    start(self, cpu, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = start_as_gpus
save = fit.save_adapter


def save_sharded(trainer, folder):
    assert any(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    save(trainer, folder)


fit.save_adapter = save_sharded
fit.check_sharding = lambda bits, device: None  # it refuses CPUs


class Signal(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and state.global_step + 1 == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGTERM)


build = fit.build_trainer


def build_with_signal(*args):
    trainer = build(*args)
    trainer.add_callback(Signal())
    return trainer


fit.build_trainer = build_with_signal

if __name__ == "__main__":
    train(compose_config(sys.argv[2:]))
