"""One engine for many models of one shape: adapters ride on it, or weights are exchanged."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from eval.engines import Engine, EngineError, EngineSettings, start
from eval.engines.base import tensor_shapes
from eval.files import read_json
from eval.runner import Weights
from mos.console import say
from mos.errors import UserError
from mos.files import hash_files, hash_json

LORA, MERGED, FULL = "lora", "merged", "full"


@dataclass(frozen=True)
class Model:
    """What is served: a base model and, perhaps, an adapter on it.

    Attributes:
        name: of the base model, for people.
        path: folder of the original base model.
        quantization: the `quantization` config group that the adapter was trained under.
        adapter_dir: the adapter as PEFT saved it, a whole model after full fine-tuning, or None.
    """

    name: str
    path: Path
    quantization: Mapping[str, Any]
    adapter_dir: Path | None = None

    @property
    def adapter_config(self) -> dict[str, Any]:
        """As PEFT saved it; empty without an adapter and for a whole model."""
        if self.adapter_dir is None or not (self.adapter_dir / "adapter_config.json").is_file():
            return {}
        return read_json(self.adapter_dir / "adapter_config.json")

    @property
    def is_low_rank(self) -> bool:
        """Whether the adapter can be served as LoRA."""
        from mos.interchange import has_lora_form

        return bool(self.adapter_config) and has_lora_form(self.adapter_config)

    @property
    def tokenizer_dir(self) -> Path:
        """The base model's folder, or the adapter's where training added tokens."""
        if self.adapter_dir is None:
            return self.path
        if self.adapter_config:
            grown = bool(self.adapter_config.get("trainable_token_indices"))
        else:
            of_base, of_own = (read_json(d / "config.json") for d in (self.path, self.adapter_dir))
            grown = of_base["vocab_size"] != of_own["vocab_size"]
        return self.adapter_dir if grown else self.path


def weights_of(
    model: Model, choice: str, settings: EngineSettings, cache_dir: str | Path
) -> Weights:
    """Settle which weights answer for a model; nothing is loaded or computed.

    Args:
        model: what is evaluated.
        choice: "adapter", "merged", "original", or "auto": on a GPU's vLLM the adapter as LoRA,
            elsewhere merged weights.
        settings: of the engine.
        cache_dir: remembers hashes.

    Raises:
        UserError: an adapter that is not there or is not LoRA's shape, where "adapter" asks for it.
    """
    from mos.files import fingerprint

    quantized = model.quantization["bits"] is not None and choice != "original"
    weights = Weights(
        model=model.name,
        model_sha256=fingerprint(model.path, cache_dir),
        quantization=dict(model.quantization) if quantized else None,
    )
    if model.adapter_dir is None:
        return weights
    if not model.adapter_config:
        if not (model.adapter_dir / "config.json").is_file():
            raise UserError(f"{model.adapter_dir} holds neither an adapter nor a model.")
        sha256 = fingerprint(model.adapter_dir, cache_dir)
        return replace(weights, quantization=None, adapter=FULL, adapter_sha256=sha256)
    low_rank = model.is_low_rank
    if choice == "adapter" and not low_rank:
        raise UserError(
            f"eval.weights=adapter: {model.adapter_dir} is a {model.adapter_config['peft_type']}"
            " adapter or trains whole rows or modules, which is not of LoRA's shape; use"
            " eval.weights=merged."
        )
    on_gpu = settings.engine == "vllm" and settings.device == "cuda"
    as_lora = choice == "adapter" or (choice != "merged" and on_gpu and low_rank)
    return replace(
        weights,
        adapter=LORA if as_lora else MERGED,
        adapter_sha256=adapter_hash(model.adapter_dir, cache_dir),
    )


def adapter_hash(adapter_dir: Path, cache_dir: str | Path) -> str:
    """Content of an adapter, without the path of the base model that PEFT notes in its config."""
    config = read_json(adapter_dir / "adapter_config.json")
    for where in ("base_model_name_or_path", "revision", "inference_mode", "peft_version"):
        config.pop(where, None)
    files = sorted(adapter_dir.glob("adapter_model.*"))
    if not files:
        raise UserError(f"{adapter_dir} has no adapter_model.safetensors: is it a whole adapter?")
    return hash_json([config, hash_files(files, cache_dir)])


class Server:
    """An engine that starts when it is first asked for, and then serves model after model.

    Args:
        settings: of the engine.
        models: all that will be asked for as LoRA, which settles the rank that there is room for.
        tokenizer: of the base model.
        cache_dir: keeps dequantised bases, exported adapters and the engine's log.
    """

    def __init__(
        self,
        settings: EngineSettings,
        models: Iterable[Model],
        tokenizer: Any,
        cache_dir: str | Path,
    ) -> None:
        self.settings, self.tokenizer, self.cache_dir = settings, tokenizer, Path(cache_dir)
        self._models = list(models)
        self._engine: Engine | None = None
        self._loaded: Weights | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def serve(self, model: Model, weights: Weights) -> tuple[Engine, Path | None]:
        """The engine with the weights loaded, and the LoRA directory to ask it for, if any.

        Raises:
            UserError: an adapter that does not fit the model.
            EngineError: the engine does not start.
        """
        lora, loaded = None, weights
        if weights.adapter == LORA:
            lora = export(model, self.cache_dir)
            loaded = replace(weights, adapter=None, adapter_sha256=None)
        if self._engine is None or loaded != self._loaded:
            self._loaded = None
            folder, scratch = self._folder(model, loaded)
            self._engine = self._load(folder)
            self._clear()
            self._loaded, self._scratch = loaded, scratch
        return self._engine, lora

    def _folder(
        self, model: Model, weights: Weights
    ) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
        """The folder of the weights to load, and what removes it if it is only for this."""
        from mos.modeling import dequantized_base

        adapter = model.adapter_dir
        if weights.adapter == FULL and adapter is not None:
            return adapter, None
        base = model.path
        if weights.quantization is not None:
            base = dequantized_base(model.path, weights.quantization, self.cache_dir)
        if weights.adapter != MERGED or adapter is None:
            return base, None
        from mos.interchange import merge

        parent = self.cache_dir / "merged"
        parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True)
        dtype = getattr(torch, self.settings.dtype)
        return merge(base, adapter, Path(scratch.name) / model.path.name, dtype), scratch

    def _load(self, folder: Path) -> Engine:
        """Exchange the weights in the running engine, or start one where that cannot be."""
        running = self._engine
        if running is not None and tensor_shapes(running.model_dir) == tensor_shapes(folder):
            try:
                running.load_weights(folder)
                return running
            except EngineError as error:
                say(f"engine: restarting, because {error}")
        self._stop()
        settings = replace(self.settings, max_lora_rank=self._max_rank())
        log = self.cache_dir / "logs" / f"{settings.engine}-{time.strftime('%Y%m%d-%H%M%S')}.log"
        say(f"engine: starting {settings.engine} on {settings.device} ({settings.dtype})")
        started = time.perf_counter()
        engine = start(settings, folder, self.tokenizer, log)
        say(f"engine: ready in {time.perf_counter() - started:.0f} s")
        return engine

    def _max_rank(self) -> int:
        exported = (export(model, self.cache_dir) for model in self._models)
        return max((read_json(e / "adapter_config.json")["r"] for e in exported), default=0)

    def _stop(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._clear()

    def _clear(self) -> None:
        """Remove the merged weights that were loaded last."""
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def export(model: Model, cache_dir: str | Path) -> Path:
    """The adapter as a LoRA directory, made once for its content."""
    from mos.interchange import to_lora

    assert model.adapter_dir is not None
    target = Path(cache_dir) / "lora" / adapter_hash(model.adapter_dir, cache_dir)[:16]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        if not target.is_dir():
            to_lora(model.adapter_dir, Path(scratch) / "lora").rename(target)
    return target
