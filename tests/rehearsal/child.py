"""One training on the stub: `python -m tests.rehearsal.child STEPS.jsonl overrides...`

With MOS_ROOFLINE set, the third step is timed by a model of an A100.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from eval.engines.vllm import free_memory
from mos.adapters import saved
from mos.adapters.mos import model as mos_model
from mos.config import compose_config
from mos.console import exit_on_user_error
from mos.files import TINY, build_once
from mos.models.loading import copy_tokenizer
from mos.models.sources import resolve_model
from mos.train import train

COUNTERS = (
    "launches",
    "products",
    "syncs",
    "bytes_to_device",
    "bytes_to_host",
    "bytes_on_device",
    "managed_bytes",
    "prefetches",
)
ARRAY = (ctypes.c_long * len(COUNTERS)).in_dll(ctypes.CDLL(None), "rehearsal_counters")
COPIED = COUNTERS.index("bytes_on_device")

# An A100 of 40 GB: what memory reaches of 1,555 GB/s, and products of 312 (float32: 156) TFLOP/s.
BYTES_PER_SECOND = 1.4e12
FLOPS_PER_SECOND = 312e12 * 0.65
FLOPS_PER_SECOND_FLOAT32 = 156e12 * 0.5
SECONDS_PER_LAUNCH = 4e-6


class Roofline(TorchDispatchMode):
    """Adds up the time of operators: of their launches, bytes or FLOPs, whichever is longest."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = list(ARRAY)
        out = func(*args, **kwargs)
        launches = sum(ARRAY[:2]) - sum(before[:2])
        if launches or ARRAY[COPIED] > before[COPIED]:
            self.seconds += max(
                max(launches, 1) * SECONDS_PER_LAUNCH,
                traffic(func, args, kwargs, out) / BYTES_PER_SECOND,
                products(func, args, kwargs, out),
            )
        return out


def traffic(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes that an operator reads and writes."""
    written = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
    if func.overloadpacket is torch.ops.aten.embedding:
        return 2 * written[0].nbytes
    read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    # What is expanded is read once, and what is written in place is both.
    return sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in (*read, *written) if t.is_cuda)


def products(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Seconds of an operator's matrix products."""
    packet = func.overloadpacket
    if packet is torch.ops.bitsandbytes.gemm_4bit:
        flops = 2 * args[0].numel() // args[0].shape[-1] * math.prod(args[2])
    elif packet in flop_registry:
        flops = flop_registry[packet](*args, **kwargs, out_val=out)
    else:
        return 0.0
    half = tree_leaves(out)[0].dtype != torch.float32
    return flops / (FLOPS_PER_SECOND if half else FLOPS_PER_SECOND_FLOAT32)


class Steps(TrainerCallback):
    """Writes a line of JSON for each step: counts since the last, memory at its peak in bytes."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.before = list(ARRAY)

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.roofline = None
        if "MOS_ROOFLINE" in os.environ and state.global_step == 2:
            self.roofline = Roofline().__enter__()
        torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        rows = zip(COUNTERS, ARRAY, self.before, strict=True)
        step = {name: count - before for name, count, before in rows}
        step["managed_bytes"] = ARRAY[COUNTERS.index("managed_bytes")]  # held, not new
        step["allocated"] = torch.cuda.max_memory_allocated()
        step["reserved"] = torch.cuda.max_memory_reserved()
        step["batch"] = args.train_batch_size
        if self.roofline is not None:
            self.roofline.__exit__(None, None, None)
            step["milliseconds"] = self.roofline.seconds * 1e3
        with Path(sys.argv[1]).open("a") as file:
            file.write(json.dumps(step) + "\n")
        self.before = list(ARRAY)
        if str(state.global_step) == os.environ.get("MOS_STOP_AFTER"):
            os.kill(os.getpid(), signal.SIGTERM)


def hollow_model(config: Any) -> Path:
    """A folder with the shapes of a composed config, whose weights are holes in files."""

    def fill(folder: Path) -> Path:
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**config.model.architecture)).bfloat16()
        tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
        weights = {name: t for name, t in model.state_dict().items() if name not in tied}
        shards = split_torch_state_dict_into_shards(weights)
        for name, tensors in shards.filename_to_tensors.items():
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            end = 0
            for key in tensors:
                place = [end, end := end + weights[key].nbytes]
                shape = list(weights[key].shape)
                header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": place}
            text = json.dumps(header).encode()
            with (folder / name).open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(file.tell() + end)
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        model.config.save_pretrained(folder)
        copy_tokenizer(resolve_model(TINY, cache), folder)
        return folder

    cache = Path(config.paths.cache_dir)
    return build_once(cache / "models" / f"hollow-{config.model.name}", fill)


# Weights, and the shards that layers read, are the work of no kernel here.
vars(saved)["all_finite"] = lambda _: True
vars(mos_model)["check_index"] = lambda *_: None
callbacks: list[Any] = DEFAULT_CALLBACKS
callbacks.append(Steps)  # also in the process that trains, which imports this module

if __name__ == "__main__":
    config = compose_config(sys.argv[2:])
    if config.model.path != TINY:
        config.model.path = str(hollow_model(config))
    with exit_on_user_error():
        train(config)
    if "REHEARSAL_LEDGER" in os.environ:
        print("free memory of the card afterwards:", *free_memory(1))
