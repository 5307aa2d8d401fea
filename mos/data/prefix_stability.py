"""Which tokenizers provably split after a single line feed.

For these, encoding a text up to such a place gives the first tokens of encoding the whole text, so
that one encoding with offsets answers what the reference asks by re-encoding prefixes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES_AND_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _LINES_AND_SPACES
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _LINES_AND_SPACES


def splits_after_line_feed(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens never cross, nor depend on what follows, a place between LF and a non-space.

    The LF itself must follow a character that is not whitespace. True for byte-level BPE with the
    pre-tokenizers of GPT-2, LLaMA-3 and Qwen2 (their only look-ahead, `\\s+(?!\\S)`, sees no
    further than the character after a run of whitespace, and a run of one is one piece either
    way), and for BPE over whole texts (LLaMA-2) if the vocabulary merges LF with nothing. False
    means "not known", never "known not to".
    """
    if not tokenizer.is_fast or tokenizer.truncation_side != "right":
        return False
    if tokenizer.split_special_tokens:
        return False
    added = tokenizer.added_tokens_decoder.values()
    if any(t.lstrip or t.rstrip or t.single_word or "\n" in t.content for t in added):
        return False
    if tokenizer.eos_token not in {t.content for t in added}:
        return False
    core = tokenizer.backend_tokenizer
    return (
        isinstance(core.model, BPE)
        and not core.model.dropout
        and all(map(_local_normalizer, components(core.normalizer, "normalizers")))
        and _splits(core)
        and _specials_only_lead(tokenizer)
    )


def components(component: Any, key: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer consists of, as in tokenizer.json."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    return state[key] if state["type"] == "Sequence" else [state]


def _local_normalizer(part: dict[str, Any]) -> bool:
    if part["type"] == "Replace":
        return part["pattern"] == {"String": " "}
    return part["type"] in ("NFC", "Prepend")


def _splits(core: Tokenizer) -> bool:
    parts = components(core.pre_tokenizer, "pretokenizers")
    if all(part["type"] == "Metaspace" for part in parts):
        return _line_feed_never_merges(core.model)
    splitters = [
        (part["type"] == "ByteLevel" and part["use_regex"])
        or (part["type"] == "Split" and part["pattern"].get("Regex") in (GPT2, LLAMA3, QWEN2))
        for part in parts
    ]
    harmless = (
        part["type"] == "Digits" or (part["type"] == "ByteLevel" and not part["use_regex"])
        for part in parts
    )
    return any(splitters) and all(s or h for s, h in zip(splitters, harmless, strict=True))


def _line_feed_never_merges(model: BPE) -> bool:
    if model.ignore_merges:
        return False
    if model.token_to_id("\n") is None and not (
        model.byte_fallback and model.token_to_id("<0x0A>") is not None
    ):
        return False
    return not any(
        line_feed in piece
        for merge in json.loads(model.__getstate__())["merges"]
        for piece in (merge if isinstance(merge, list) else merge.split(" "))
        for line_feed in ("\n", "<0x0A>")
    )


def _specials_only_lead(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return ids[len(ids) - len(plain) :] == plain
