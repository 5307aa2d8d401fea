"""What is evaluated: a base model and perhaps an adapter on it, known by their content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from eval.engines import EngineSettings
from eval.files import read_json
from eval.runner import Weights
from mos.errors import UserError
from mos.evaluation.content import adapter_hash, read_adapter_config, read_origin
from mos.files import fingerprint

LORA, MERGED, FULL = "lora", "merged", "full"


@dataclass(frozen=True)
class Model:
    """A base model and, perhaps, an adapter on it.

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

    @cached_property
    def adapter_config(self) -> dict[str, Any]:
        """As PEFT saved it; empty without an adapter and for a whole model."""
        return {} if self.adapter_dir is None else read_adapter_config(self.adapter_dir)

    @property
    def is_low_rank(self) -> bool:
        """Whether the adapter can be served as LoRA."""
        from mos.interchange import has_lora_form  # imports PEFT, which takes seconds

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
    """Settle which weights answer for a model; no model is loaded, nothing is computed.

    Args:
        model: what is evaluated.
        choice: "adapter", "merged", "original", or "auto": on a GPU's vLLM the adapter as LoRA,
            elsewhere merged weights.
        settings: of the engine.
        cache_dir: remembers hashes.

    Raises:
        UserError: an adapter that is not there, has numbers that are not finite, or is not LoRA's
            shape where "adapter" asks for it.
    """
    quantized = model.quantization["bits"] is not None and choice != "original"
    weights = Weights(
        model=model.name,
        model_sha256=fingerprint(model.path, cache_dir),
        quantization=dict(model.quantization) if quantized else None,
    )
    if model.adapter_dir is None:
        return weights
    sha256 = adapter_hash(model.adapter_dir, cache_dir)
    if not model.adapter_config:
        return replace(weights, quantization=None, adapter=FULL, adapter_sha256=sha256)
    on_gpu = settings.engine == "vllm" and settings.device == "cuda"
    low_rank = (on_gpu or choice == "adapter") and model.is_low_rank
    if choice == "adapter" and not low_rank:
        raise UserError(
            f"eval.weights=adapter: {model.adapter_dir} is a {model.adapter_config['peft_type']}"
            " adapter or trains whole rows or modules, which is not of LoRA's shape; use"
            " eval.weights=merged."
        )
    check_finite(model.adapter_dir)
    as_lora = choice == "adapter" or (choice != "merged" and on_gpu and low_rank)
    return replace(weights, adapter=LORA if as_lora else MERGED, adapter_sha256=sha256)


def check_finite(adapter_dir: Path) -> None:
    """Raise a `UserError` that names the tensors of an adapter that hold NaN or infinity."""
    for file in sorted(adapter_dir.glob("adapter_model*.safetensors")):
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged or cut ({error}).") from error
        broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise UserError(
                f"{file}: {len(broken)} of {len(tensors)} tensors hold numbers that are not finite"
                f" ({', '.join(broken[:3])}): its training diverged, and it is not evaluated."
            )


def check_base(model: Model, weights: Weights, mismatch: str) -> Weights:
    """Refuse an adapter on another base than it was trained on, where that is known.

    Args:
        mismatch: "refuse", or "allow", which records the base of the training in the weights.

    Raises:
        UserError: the base model's content is not that of the training.
    """
    if model.adapter_dir is None or weights.adapter == FULL:
        return weights
    origin = read_origin(model.adapter_dir)
    if origin is None or origin["model_sha256"] == weights.model_sha256:
        return weights
    trained_on = origin["model_sha256"]
    if mismatch != "allow":
        raise UserError(
            f"{model.adapter_dir} was trained on another base model ({origin['model']}, content"
            f" {trained_on[:8]}) than {model.path} ({model.name}, {weights.model_sha256[:8]}):"
            " choose it with model=, or insist with eval.base_mismatch=allow."
        )
    return replace(weights, trained_on_sha256=trained_on)
