"""Is a tokenizer safe to train with, and which one is it."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mos.data.chat import (
    IGNORE_INDEX,
    Message,
    encode_messages,
    eos_of,
    render_chat,
)
from mos.errors import UserError

logger = logging.getLogger(__name__)

PROBES = (
    "def f(x):\n    if x:\n        return x  # two  spaces\n\n\n    return\n",
    "a\tb\n\tc   d",
    "Question: 12 + 30 = ?\n\nAnswer: 42.",
    "naïve – 日本語 🙂",
)


CONVERSATIONS: tuple[list[Message], ...] = (
    [
        {"role": "user", "content": "What is 7 * 6?"},
        {"role": "assistant", "content": "It is 42."},
    ],
    [
        {"role": "system", "content": "Answer in a word."},
        {"role": "user", "content": "def f(x):\n    return x  # what is this?"},
        {"role": "assistant", "content": "Python"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes: the colon says so."},
    ],
)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that would silently spoil training data or evaluation prompts.

    It must round-trip whitespace, agree with the sentencepiece model it was made from (transformers
    5 mis-builds LLaMA's from a bare `tokenizer.model`: runs of spaces merge wrongly), and have a
    pad token. On sample conversations, an evaluation prompt must be at most one BOS and the ids of
    its text; the ids of the prompt must begin those of prompt and answer; exactly the answers and
    their EOS must be trained on; and whatever is cut must be cut at its end.

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
    eos = eos_of(tokenizer)
    for messages in CONVERSATIONS:
        if problem := _problem_with(tokenizer, messages, eos):
            raise UserError(
                f"tokenizer {name} {problem} Mend its tokenizer.json (post_processor) or"
                " tokenizer_config.json, or use those of the model's authors."
            )
    if tokenizer.pad_token_id is None:
        raise UserError(f"tokenizer {name} has no pad token: set model.pad_token.")


def _problem_with(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], eos: str
) -> str | None:
    """What the tokenizer does wrong with a conversation, or None."""
    prompt = render_chat(messages[:-1], eos=eos)
    ids = tokenizer(prompt)["input_ids"]
    plain = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = len(ids) - len(plain)
    if start < 0 or ids[start:] != plain:
        last = tokenizer.convert_ids_to_tokens(ids[-1])
        return f"ends a prompt in {last!r}, which does not belong to its text."
    if start > 1:
        first = tokenizer.convert_ids_to_tokens(ids[:start])
        return f"begins a prompt with {first}; expected one BOS or none."
    row = encode_messages(messages, tokenizer, 512)
    whole = row["input_ids"]
    if whole[-1] != tokenizer.eos_token_id:
        return (
            f"does not encode its EOS {eos!r} in text as one token (id {tokenizer.eos_token_id}),"
            " so that answers would be trained without an end."
        )
    if whole[: len(ids)] != ids:
        return "gives a prompt other ids where an answer follows it."
    trained = [[]]  # type: list[list[int]]
    for label in encode_messages(messages, tokenizer, 512, "clean")["labels"]:
        if label != IGNORE_INDEX:
            trained[-1].append(label)
        elif trained[-1]:
            trained.append([])
    found = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in trained]
    expected = [m["content"] + eos for m in messages if m["role"] == "assistant"]
    if found != expected:
        return f"masks the wrong tokens: {found} would be trained on; expected {expected}."
    for length in (len(whole) - 3, len(ids) - 3):
        cut = encode_messages(messages, tokenizer, length)
        if (cut["input_ids"], cut["labels"]) != (whole[:length], row["labels"][:length]):
            return (
                f"does not cut long texts at their end (truncation_side="
                f"{tokenizer.truncation_side!r}; ids and labels would not belong together)."
            )
    return None


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
