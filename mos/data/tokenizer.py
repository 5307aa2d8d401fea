"""Is a tokenizer safe to train with, which one is it, and the chat markers as vocabulary."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from transformers import AddedToken, PreTrainedTokenizerBase

from mos.data.chat import IGNORE_INDEX, MARKERS, encode_messages
from mos.errors import UserError

logger = logging.getLogger(__name__)

PROBES = (
    "def f(x):\n    if x:\n        return x  # two  spaces\n\n\n    return\n",
    "a\tb\n\tc   d",
    "Question: 12 + 30 = ?\n\nAnswer: 42.",
    "naïve – 日本語 🙂",
)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that would silently spoil the training data.

    It must round-trip whitespace, agree with the sentencepiece model it was made from (transformers
    5 mis-builds LLaMA's from a bare `tokenizer.model`: runs of spaces merge wrongly), encode its
    EOS as one token that ends up supervised, and have a pad token.

    Raises:
        UserError: naming the first of these that does not hold.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    for probe in PROBES:
        ids = tokenizer(probe, add_special_tokens=False)["input_ids"]
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if decoded != probe:
            raise UserError(
                f"tokenizer {name} does not round-trip text: {probe!r} becomes {decoded!r}."
                " Use the tokenizer.json of the model's authors."
            )
    _check_sentencepiece(tokenizer, name)
    row = encode_messages(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
        tokenizer,
        512,
    )
    if row["input_ids"][-1] != tokenizer.eos_token_id or row["labels"][-1] == IGNORE_INDEX:
        raise UserError(
            f"tokenizer {name} does not encode its EOS {tokenizer.eos_token!r} in text as one token"
            f" (id {tokenizer.eos_token_id}), so that answers would be trained without an end."
        )
    if tokenizer.pad_token_id is None:
        raise UserError(f"tokenizer {name} has no pad token: set model.pad_token.")


def _check_sentencepiece(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    model_file = Path(str(tokenizer.name_or_path)) / "tokenizer.model"
    if not model_file.is_file():
        return
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        logger.warning("%s not checked against sentencepiece, which is not installed", model_file)
        return
    try:
        reference = SentencePieceProcessor(model_file=str(model_file))
    except (RuntimeError, OSError):  # LLaMA-3 ships a tiktoken file under this name
        return
    for probe in PROBES:
        expected = reference.encode(probe)
        found = tokenizer(probe, add_special_tokens=False)["input_ids"]
        if found != expected:
            pieces = [reference.id_to_piece(i) for i in expected]
            raise UserError(
                f"tokenizer {name} disagrees with {model_file} on {probe!r}: it gives"
                f" {tokenizer.convert_ids_to_tokens(found)}, sentencepiece gives {pieces}. It was"
                " built wrongly from the bare sentencepiece model: put the tokenizer.json of the"
                " model's authors beside it."
            )


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides which ids a text gets."""
    digest = hashlib.sha256(f"{type(tokenizer).__name__}\0{tokenizer.truncation_side}\0".encode())
    digest.update(json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True).encode())
    if tokenizer.is_fast:
        core = tokenizer.backend_tokenizer
        core.no_truncation()  # both are left behind by the last call, not part of the tokenizer
        core.no_padding()
        digest.update(core.to_str().encode())
    else:
        digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
        digest.update(json.dumps(tokenizer.init_kwargs, default=str, sort_keys=True).encode())
    return digest.hexdigest()


def add_chat_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Add the chat markers `<|system|>`, `<|user|>`, `<|assistant|>` as vocabulary, in place.

    The paper does not: there they are plain text. Calling it again changes nothing. Who trains
    with them must resize the model's embeddings to `len(tokenizer)`, train the new rows and save
    tokenizer and rows with the adapter (`modules_to_save=["embed_tokens", "lm_head"]`).

    Returns:
        The ids of the three markers.
    """
    tokenizer.add_tokens(
        [AddedToken(marker, special=True, normalized=False) for marker in MARKERS],
        special_tokens=True,
    )
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[marker] for marker in MARKERS]
