"""One engine for many models of one shape: adapters ride on it, or weights are exchanged."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eval.engines import Engine, EngineError, EngineSettings, start, tensor_shapes
from eval.runner import Weights
from mos.console import say
from mos.evaluation.subjects import adapter_hash, read_adapter_config
from mos.files import build_once, read_json
from mos.models.loading import dequantized_base

# How an adapter is applied.
LORA, MERGED, FULL = "lora", "merged", "full"


class Server(AbstractContextManager):
    """An engine that starts when it is first asked for, and then serves model after model.

    Args:
        settings: of the engine.
        adapters: the folders of all that will ride on it, which settles the rank that there is
            room for.
        tokenizer: of the base model.
        cache_dir: keeps dequantised bases, exported adapters and the engine's log.
    """

    def __init__(
        self,
        settings: EngineSettings,
        adapters: Iterable[Path],
        tokenizer: Any,
        cache_dir: str | Path,
    ) -> None:
        self.settings, self.tokenizer, self.cache_dir = settings, tokenizer, Path(cache_dir)
        self._adapters = list(adapters)
        self._engine: Engine | None = None
        self._loaded: Weights | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __exit__(self, *_: object) -> None:
        self.stop()

    def serve(
        self, base: Path, adapter_dir: Path | None, weights: Weights
    ) -> tuple[Engine, Path | None]:
        """The engine with the weights loaded, and the adapter to ask it for, if any.

        Args:
            base: folder of the original base model.
            adapter_dir: as `Subject.adapter_dir`.

        Raises:
            UserError: an adapter that does not fit the model.
            EngineError: the engine does not start.
        """
        adapter, loaded = None, weights
        if weights.adapter == LORA and adapter_dir is not None:
            adapter, _ = unmerged(adapter_dir, self.cache_dir)
            loaded = replace(weights, adapter=None, adapter_sha256=None)
        if self._engine is None or loaded != self._loaded:
            self._loaded = None
            folder, scratch = self._folder(base, adapter_dir, loaded)
            self._engine = self._load(folder)
            self._clear()
            self._loaded, self._scratch = loaded, scratch
        return self._engine, adapter

    def _folder(
        self, base: Path, adapter: Path | None, weights: Weights
    ) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
        """The folder of the weights to load, and what removes it if it is only for this."""
        if weights.adapter == FULL and adapter is not None:
            return adapter, None
        name = base.name
        if weights.quantization is not None:
            base = dequantized_base(base, weights.quantization, self.cache_dir, self.stop)
        if weights.adapter != MERGED or adapter is None:
            return base, None
        from mos.models.interchange import merge  # imports PEFT, which takes seconds

        parent = self.cache_dir / "merged"
        parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True)
        dtype = getattr(torch, self.settings.dtype)
        return merge(base, adapter, Path(scratch.name) / name, dtype), scratch

    def _load(self, folder: Path) -> Engine:
        """Exchange the weights in the running engine, or start one where that cannot be."""
        running = self._engine
        if running is not None and tensor_shapes(running.model_dir) == tensor_shapes(folder):
            try:
                running.load_weights(folder)
                return running
            except EngineError as error:
                say(f"engine: restarting, because {error}")
        self.stop()
        rank = max((unmerged(folder, self.cache_dir)[1] for folder in self._adapters), default=0)
        settings = replace(self.settings, max_lora_rank=rank)
        log = self.cache_dir / "logs" / f"{settings.engine}-{time.strftime('%Y%m%d-%H%M%S')}.log"
        say(f"engine: starting {settings.engine} on {settings.device} ({settings.dtype})")
        started = time.perf_counter()
        engine = start(settings, folder, self.tokenizer, log)
        say(f"engine: ready in {time.perf_counter() - started:.0f} s")
        return engine

    def stop(self) -> None:
        """End the engine; the next `serve` starts another."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._clear()

    def _clear(self) -> None:
        """Remove the merged weights that were loaded last."""
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def unmerged(adapter: Path, cache_dir: str | Path) -> tuple[Path, int]:
    """The folder that engines load an adapter from, and the adapter's rank.

    MoS is loaded as it is saved (`mos.serving` in vLLM), others as LoRA, written once for their
    content; so is MoS whose layers differ in rank, and pure sharing.
    """
    from mos.adapters.mos.model import saved_ranks
    from mos.models.interchange import to_lora

    config = read_adapter_config(adapter)
    if config["peft_type"] == "MOS" and isinstance(config["r"], int):
        rank, *others = saved_ranks(adapter)
        if not others:
            return adapter, rank
    target = Path(cache_dir) / "lora" / adapter_hash(adapter, cache_dir)[:16]
    lora = build_once(target, lambda folder: to_lora(adapter, folder))
    return lora, read_json(lora / "adapter_config.json")["r"]
