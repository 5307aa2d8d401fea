"""What vLLM calls in each of its processes (entry point group `vllm.general_plugins`).

It lets vLLM's LoRA loader read folders of MoS adapters, finds adapters by name in the folder
MOS_ADAPTERS, says why one was refused, and mends vLLM's CPU kernels. LoRA adapters are loaded as
before. Imports of vLLM are inside the functions: this module is imported where there is none.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
from collections.abc import Callable
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

from mos.errors import UserError

log = logging.getLogger("vllm.mos")

# What is replaced here is private to vLLM: the releases that it was tested with.
TESTED = "0.32."
# How a refusal begins, whichever process it comes from.
REFUSED = "adapter refused: "


def register() -> None:
    """Extend vLLM in this process, each part once, however often this is called.

    A vLLM that was not tested is named in its log. A part for which it has no place is left out,
    and the log says what does not work then.
    """
    from vllm import __version__ as version

    if not version.startswith(TESTED):
        _warn(
            f"vLLM {version} was not tested with MoS adapters, which use functions private to vLLM"
            f" {TESTED}x: compare some answers with those of PEFT"
        )
    parts = (
        (_load_adapters, "MoS adapters are not served"),
        (_mend_cpu_kernels, "on a CPU, do not ask for the base model and adapters at once"),
        (_explain_refusals, "what is wrong with a refused adapter is in the log alone"),
        (_find_by_name, "MOS_ADAPTERS has no effect"),
    )
    for extend, without in parts:
        try:
            extend()
        except (ImportError, AttributeError) as error:
            log.error("vLLM %s is not as expected (%s): %s", version, error, without)


@cache
def _warn(message: str) -> None:
    log.warning(message)


def _replace(owner: Any, name: str, parameters: str, make: Callable[[Any], Any]) -> None:
    """Put `make(original)` in the place of a function of vLLM's, unless it is there already.

    Args:
        parameters: the names of the original's first ones, by which it is known.

    Raises:
        AttributeError: there is no such function, or it takes others.
    """
    original = getattr(owner, name)
    if hasattr(original, "of_mos"):
        return
    found = list(inspect.signature(original).parameters)
    if found[: len(parameters.split())] != parameters.split():
        raise AttributeError(f"{name} takes {', '.join(found)}")
    replacement: Any = wraps(original)(make(original))
    replacement.of_mos = True
    setattr(owner, name, replacement)


def _load_adapters() -> None:
    from vllm.lora.utils import get_adapter_absolute_path
    from vllm.lora.worker_manager import WorkerLoRAManager

    def choosing(original: Any) -> Any:
        def load_adapter(self: Any, lora_request: Any) -> Any:
            folder = Path(get_adapter_absolute_path(lora_request.lora_path))
            method = _method(folder)
            if method is None or method == "LORA":
                return original(self, lora_request)
            try:
                from mos.serving.native import load

                return load(self, folder, method, lora_request.lora_int_id)
            except UserError as error:
                raise ValueError(f"{REFUSED}{folder}: {error}") from error

        return load_adapter

    _replace(WorkerLoRAManager, "_load_adapter", "self lora_request", choosing)


def _method(folder: Path) -> str | None:
    """The method that an adapter folder names, None if vLLM had better say what is wrong."""
    try:
        method = json.loads((folder / "adapter_config.json").read_text("utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(method).upper()


def _find_by_name() -> None:
    if not os.environ.get("MOS_ADAPTERS"):
        return
    from vllm import envs
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    if "mos" in LoRAResolverRegistry.get_supported_resolvers():
        return
    folder = Path(os.environ["MOS_ADAPTERS"])

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

    def blamed(response: Any, message: str) -> Any:
        error = response.error
        error.message, error.type, error.code = message, "BadRequestError", 400
        return response

    def loading(original: Any) -> Any:
        async def load_lora_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
            response = await original(self, *args, **kwargs)
            message = getattr(getattr(response, "error", None), "message", "")
            return blamed(response, message) if REFUSED in message else response

        return load_lora_adapter

    def resolving(original: Any) -> Any:
        async def resolve_lora(self: Any, lora_name: str) -> Any:
            response = await original(self, lora_name)
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

        return resolve_lora

    _replace(models, "load_lora_adapter", "self request", loading)
    _replace(models, "resolve_lora", "self lora_name", resolving)


def _mend_cpu_kernels() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    from mos.serving import cpu

    # those for prefills call these by their names in lora_ops
    for module in (lora_ops, punica_cpu):
        for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"):
            kernel = getattr(cpu, name)
            parameters = " ".join(inspect.signature(kernel).parameters)

            def ours(_: Any, kernel: Any = kernel) -> Any:
                return partial(kernel)

            _replace(module, name, parameters, ours)
