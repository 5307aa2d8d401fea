"""What vLLM calls in each of its processes (entry point group `vllm.general_plugins`).

It lets vLLM's LoRA loader read folders of MoS adapters, finds adapters by name in the folder
MOS_ADAPTERS, says why one was refused, and mends vLLM's CPU kernels. LoRA adapters are loaded as
before. Imports of vLLM are inside the functions: this module is imported where there is none.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from functools import wraps
from pathlib import Path
from typing import Any

from mos.errors import UserError

log = logging.getLogger("vllm.mos")

# How a refusal begins, whichever process it comes from.
REFUSED = "adapter refused: "


def register() -> None:
    """Extend vLLM in this process, once."""
    from vllm.lora.worker_manager import WorkerLoRAManager

    original = WorkerLoRAManager._load_adapter
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def load_adapter(self: Any, lora_request: Any) -> Any:
        from vllm.lora.utils import get_adapter_absolute_path

        folder = Path(get_adapter_absolute_path(lora_request.lora_path))
        method = _method(folder)
        if method is None or method == "LORA":
            return original(self, lora_request)
        try:
            from mos.serving.native import load

            return load(self, folder, method, lora_request.lora_int_id)
        except UserError as error:
            raise ValueError(f"{REFUSED}{folder}: {error}") from error

    manager: Any = WorkerLoRAManager
    manager._load_adapter = load_adapter
    _mend_cpu_kernels()
    _explain_refusals()
    if os.environ.get("MOS_ADAPTERS"):
        _find_by_name(Path(os.environ["MOS_ADAPTERS"]))


def _method(folder: Path) -> str | None:
    """The method that an adapter folder names, None if vLLM had better say what is wrong."""
    try:
        method = json.loads((folder / "adapter_config.json").read_text("utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(method).upper()


def _find_by_name(folder: Path) -> None:
    from vllm import envs
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class Resolver(LoRAResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            found = folder / lora_name
            inside = found.resolve().parent == folder.resolve()
            if not inside or not (found / "adapter_config.json").is_file():
                return None
            # vLLM gives it a number of its own
            return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(found))

    if not folder.is_dir():
        log.error("MOS_ADAPTERS=%s is not a folder: no adapter is found by name", folder)
    elif not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        log.error("MOS_ADAPTERS has no effect without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
    LoRAResolverRegistry.register_resolver("mos", Resolver())


def _explain_refusals() -> None:
    """In a server: a refused adapter is the request's fault (400), and the answer says why."""
    serving = sys.modules.get("vllm.entrypoints.openai.models.serving")
    models = getattr(serving, "OpenAIServingModels", None)
    if models is None:
        return
    load, resolve = models.load_lora_adapter, models.resolve_lora

    def blamed(response: Any, message: str) -> Any:
        error = response.error
        error.message, error.type, error.code = message, "BadRequestError", 400
        return response

    @wraps(load)
    async def load_lora_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        response = await load(self, *args, **kwargs)
        message = getattr(getattr(response, "error", None), "message", "")
        return blamed(response, message) if REFUSED in message else response

    @wraps(resolve)
    async def resolve_lora(self: Any, lora_name: str) -> Any:
        response = await resolve(self, lora_name)
        if getattr(getattr(response, "error", None), "code", None) == 400:
            # vLLM keeps the reason to itself: the engine is asked again
            for resolver in self.lora_resolvers:
                request = await resolver.resolve_lora(self.model_config.model, lora_name)
                if request is not None:
                    try:
                        await self.engine_client.add_lora(request)
                    except Exception as error:
                        return blamed(response, str(error))
        return response

    models.load_lora_adapter, models.resolve_lora = load_lora_adapter, resolve_lora


def _mend_cpu_kernels() -> None:
    """Rows of a batch that ask for no adapter have the number -1, by which vLLM's CPU kernels
    take the last adapter's weights. They get an input of zeros instead, which adds nothing."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    def honouring(kernel: Any) -> Any:
        @wraps(kernel)
        def mended(
            inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **named: Any
        ) -> Any:
            without = indices < 0
            if without.any():
                inputs = inputs.masked_fill(without[:, None], 0)
            return kernel(inputs, weights, output, indices, *rest, **named)

        return mended

    # those for prefills call these by their names in lora_ops
    for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"):
        mended = honouring(getattr(lora_ops, name))
        setattr(lora_ops, name, mended)
        setattr(punica_cpu, name, mended)
