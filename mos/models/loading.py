"""Base models and tokenizers: loading, quantising, and dequantising for evaluation.

`path` is the local folder that `resolve_model` returns.
"""

from __future__ import annotations

import os
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from eval.engines import products_in
from mos.adapters import attach
from mos.data.chat import CHAT_TEMPLATE_FILE
from mos.errors import UserError
from mos.files import build_once, fingerprint, hash_json
from mos.models.sources import load_config, resolve_model


def load_tokenizer(path: str | Path, pad_token: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a resolved model, with a pad token that is not EOS.

    Padding is masked by position, not by id, so the pad token does not change the loss. It differs
    from EOS for the sake of code that masks by id. The vocabulary does not grow.

    Args:
        path: folder from `resolve_model`.
        pad_token: an existing token; None keeps the model's own, or takes the unknown token if
            there is none or it is EOS.

    Raises:
        UserError: the tokenizer is damaged, brings code of its own, has no such token, or does not
            belong to the model.
    """
    try:
        if (file := Path(path) / "tokenizer.json").is_file():
            _try_out(file, file.stat().st_mtime_ns)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if not isinstance(longest := tokenizer.model_max_length, int | float):
            raise TypeError(f"model_max_length is {longest!r} and should be a number")
    except Exception as error:  # whatever a damaged file makes the tokenizer classes raise
        raise UserError(
            f"The tokenizer in {path} cannot be loaded without running code that comes with it, or"
            f" is damaged: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error
    if pad_token is None:
        pad_token = tokenizer.pad_token if tokenizer.pad_token != tokenizer.eos_token else None
        pad_token = pad_token or tokenizer.unk_token
    if pad_token is None or pad_token not in tokenizer.get_vocab():
        raise UserError(
            f"model.pad_token={pad_token!r} is not in the vocabulary of {path}: name a token that"
            " is there and that text never contains (LLaMA-2: '<unk>', LLaMA-3:"
            " '<|finetune_right_pad_id|>')."
        )
    tokenizer.pad_token = pad_token
    if (Path(path) / "config.json").is_file():
        rows = load_config(path).get_text_config().vocab_size
        token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if last >= rows:
            raise UserError(
                f"The tokenizer in {path} has tokens beyond the {rows} rows of the model's"
                f" embedding ({token!r} is id {last}): do they belong together?"
            )
    return tokenizer


@cache
def _try_out(file: Path, changed: int) -> None:
    """Load and use a tokenizer in a process of its own, which may have 4 GiB and a minute.

    The library ends its process, or takes all memory, over files that are made for it.

    Raises:
        ValueError: saying how the process ended.
    """
    script = (
        "import resource, sys, tokenizers\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 90))\n"
        "tokenizers.Tokenizer.from_file(sys.argv[1]).encode_batch(sys.argv[2:])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, file, string.printable, "é€中😀"],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"},
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode < 0:
        raise ValueError(f"{file.name} ends its process by {Signals(-done.returncode).name}")
    if done.returncode:
        raise ValueError(f"{file.name}: {done.stderr.strip().rpartition(chr(10))[2]}")


def tokenizer_of(model: Mapping[str, Any], cache_dir: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a `model` config group; raises as `resolve_model` and `load_tokenizer`."""
    folder = resolve_model(model["path"], cache_dir, model["revision"])
    return load_tokenizer(folder, model["pad_token"])


def skeleton(model: Mapping[str, Any]) -> PreTrainedModel | None:
    """The model of a `model` config group on the meta device: shapes without weights.

    Returns None where the shapes are not known without a download.
    """
    if model["architecture"] is not None:
        config: PreTrainedConfig = LlamaConfig(**model["architecture"])
    elif (Path(model["path"]).expanduser() / "config.json").is_file():
        config = load_config(Path(model["path"]).expanduser())
    else:
        return None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def quantization_config(
    quantization: Mapping[str, Any], products: str | None = None
) -> BitsAndBytesConfig | None:
    """The bitsandbytes settings of a `quantization` config group; None for unquantised weights.

    Args:
        products: type of the matrix products; None for the group's `compute_dtype`.
    """
    bits = quantization["bits"]
    if bits is None:
        return None
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization["quant_type"],
        bnb_4bit_use_double_quant=quantization["double_quant"],
        bnb_4bit_compute_dtype=getattr(torch, products or quantization["compute_dtype"]),
    )


def from_folder(path: str | Path, dtype: torch.dtype | None, **options: Any) -> PreTrainedModel:
    """The model in a folder, in such a way that it can be saved.

    Args:
        dtype: of the weights; None for that of the files.
        options: of transformers' `from_pretrained`.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype or "auto", trust_remote_code=False, **options
    )
    settings = model.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:  # as of a temperature without sampling, which transformers loads
        tokens = {key: v for key, v in settings.to_dict().items() if key.endswith("_token_id")}
        model.generation_config = GenerationConfig(**tokens)
    return model


def load_base(
    path: str | Path, quantization: Mapping[str, Any], device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Load a model onto one device, quantised as configured.

    Products are made in `eval.engines.products_in` of `compute_dtype`.

    Args:
        path: folder from `resolve_model`.
        quantization: the `quantization` config group (`bits`, `quant_type`, `double_quant`,
            `compute_dtype`).
        device: where the weights go.
    """
    from mos.adapters.linear import keep_4bit_weights_unpacked

    products = products_in(quantization["compute_dtype"], torch.device(device).type)
    model = from_folder(
        path,
        getattr(torch, quantization["compute_dtype"]),
        quantization_config=quantization_config(quantization, products),
        device_map={"": torch.device(device)},
    )
    model.config.use_cache = False
    keep_4bit_weights_unpacked(model)
    for parameter in model.parameters():
        if parameter.dtype == getattr(torch, quantization["compute_dtype"]):
            parameter.data = parameter.data.to(getattr(torch, products))
    return model


def with_adapter(
    model: PreTrainedModel, quantization: Mapping[str, Any], adapter: Mapping[str, Any]
) -> torch.nn.Module:
    """A base as `load_base` returns it, frozen, with an adapter on it.

    Args:
        quantization, adapter: the config groups.
    """
    if quantization["bits"] is not None and quantization.get("norms", "float32") == "float32":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return attach(model, adapter)


def dequantized_base(
    path: str | Path,
    quantization: Mapping[str, Any],
    cache_dir: str | Path,
    make_room: Callable[[], None] = lambda: None,
) -> Path:
    """A model folder with the quantised weights of a base, written out as bf16; made once.

    An adapter is trained on the quantised weights. On the original weights it would be another
    function (KL 6e-2 against 2e-4 here). Without quantisation, `path` itself is returned.

    Args:
        make_room: called before the weights are put on a GPU.
    """
    config = quantization_config(quantization)
    if config is None:
        return Path(path)
    key = hash_json([fingerprint(path, cache_dir), config.to_dict()])[:12]
    target = Path(cache_dir) / "models" / f"{Path(path).name}-dequantized-{key}"

    def build(folder: Path) -> None:
        if not torch.cuda.is_available():
            return _dequantize(path, quantization, "cpu", folder)
        # On the GPU, whose quantised weights may differ from a CPU's in a last bit, but in another
        # process: CUDA would keep memory of this one, which an engine is to have.
        make_room()
        with ProcessPoolExecutor(1, get_context("spawn")) as child:
            return child.submit(_dequantize, path, dict(quantization), "cuda", folder).result()

    return build_once(target, build)


def _dequantize(
    path: str | Path, quantization: Mapping[str, Any], device: str, folder: Path
) -> None:
    quantized = load_base(path, quantization, device)
    plain = from_folder(path, torch.bfloat16)
    with torch.no_grad():
        for name, module in quantized.named_modules():
            if (weight := dequantize_weight(module)) is not None:
                layer: Any = plain.get_submodule(name)
                layer.weight.copy_(weight.T if isinstance(layer, Conv1D) else weight)
    plain.save_pretrained(folder)
    copy_tokenizer(Path(path), folder)


def dequantize_weight(module: torch.nn.Module) -> torch.Tensor | None:
    """The full-precision weight (out_features, in_features) of a bitsandbytes linear layer."""
    import bitsandbytes as bnb
    from peft.utils.integrations import dequantize_bnb_weight

    if not isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
        return None
    weight = module.get_parameter("weight")
    return dequantize_bnb_weight(weight, state=getattr(module, "state", None))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files. Saving through its class may change them."""
    names = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt")
    for pattern in (*names, CHAT_TEMPLATE_FILE):
        for file in filter(Path.is_file, source.glob(pattern)):
            shutil.copyfile(file, target / file.name)
