"""Encoding a corpus to what the reference's re-encoding of prefixes gives, several times faster.

Byte-level BPE encodes one piece of a text (roughly a word) at a time, and pieces repeat. For ASCII
text the pieces of the usual tokenizers can be found with `re`, so that a dictionary knows most of
their ids, and the tokenizer's own model is asked for the others. What is not covered takes the
reference's way: other tokenizers, other text, and masks that begin or end elsewhere than at a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from mos.data.chat import (
    EncodedRow,
    LabelMask,
    Message,
    Rendered,
    encode_by_prefixes,
    eos_of,
    render_training,
    truncated_row,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEMBERED = 1 << 17  # pieces; the dictionary starts over beyond that

# How GPT-2, SmolLM2, LLaMA-3 and Qwen2 cut a text, and the same for `re` and ASCII, where \s
# is what it is to the tokenizers, and alternatives that exclude each other are sorted by frequency.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
_SPLIT += r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SMOLLM2 = "GPT2, every digit apart"
LLAMA3, QWEN2 = _SPLIT.format(digits="{1,3}"), _SPLIT.format(digits="")
_S = r" \t\n\x0b\x0c\r"
_SPACES = rf"[{_S}]+(?![^{_S}])|[{_S}]+"
_MARKS = rf" ?[^{_S}A-Za-z0-9]+"
_ASCII = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\nA-Za-z0-9]?[A-Za-z]+"
_LINES = rf"{_MARKS}[\r\n]*|[{_S}]*[\r\n]+|{_SPACES}"
IN_ASCII = {
    GPT2: rf" ?[A-Za-z]+|'(?:s|t|re|ve|m|ll|d)| ?[0-9]+|{_MARKS}|{_SPACES}",
    SMOLLM2: rf" ?[A-Za-z]+|'(?:s|t|re|ve|m|ll|d)|[0-9]|{_MARKS}|[{_S}]+(?![^{_S}0-9])|[{_S}]+",
    LLAMA3: rf"{_ASCII}|[0-9]{{1,3}}|{_LINES}",
    QWEN2: rf"{_ASCII}|[0-9]|{_LINES}",
}


class ChatEncoder:
    """Encodes conversations to what `encode_messages` returns.

    Attributes:
        pieces: the dictionary; None for a tokenizer whose pieces are not known.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_seq_length: int,
        label_mask: LabelMask = "reference",
    ) -> None:
        self.tokenizer = tokenizer
        self.max_seq_length = max_seq_length
        self.label_mask: LabelMask = label_mask
        self.eos = eos_of(tokenizer)
        pattern = pieces_of(tokenizer)
        self.pieces = Pieces(tokenizer, pattern) if pattern else None

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[EncodedRow]:
        """Encode conversations; one row each, in order."""
        rendered = [render_training(m, self.eos, self.label_mask) for m in conversations]
        rows = [self._from_pieces(each) for each in rendered]
        others = [each for each, row in zip(rendered, rows, strict=True) if row is None]
        encoded = iter(encode_by_prefixes(others, self.tokenizer, self.max_seq_length))
        return [next(encoded) if row is None else row for row in rows]

    def _from_pieces(self, rendered: Rendered) -> EncodedRow | None:
        """A row; None if it is not covered.

        A piece ends after a line feed between two characters that are not whitespace, so that a
        prefix up to there has the first ids of the text.
        """
        text = rendered.text
        length = len(text) - 1  # what is encoded does not have the last line feed
        if self.pieces is None or not text.isascii() or not text.endswith(self.eos + "\n"):
            return None
        parts, masked, position, count = [self.pieces.leading], [], 0, len(self.pieces.leading)
        for span in rendered.spans:
            counts = [0, 0]
            for side, place in enumerate(span):
                place = min(place, length)
                if 0 < place < length and not (
                    text[place - 1] == "\n"
                    and not text[place - 2].isspace()
                    and not text[place].isspace()
                ):
                    return None
                if place:
                    parts.append(self.pieces.encode(text[position:place]))
                    position, count = place, count + len(parts[-1])
                    counts[side] = count // 4  # bytes an id
            masked.append((counts[0], counts[1]))
        parts.append(self.pieces.encode(text[position:length]))
        ids = np.frombuffer(b"".join(parts), dtype=np.int32)
        return truncated_row(ids, masked, self.max_seq_length)


class Pieces(dict[str, bytes]):
    """From piece to ids, int32: joining bytes is several times faster than chaining lists.

    Args:
        tokenizer: the tokenizer.
        pattern: what its pieces are in ASCII text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pattern: str) -> None:
        super().__init__()
        core = tokenizer.backend_tokenizer
        self._tokenize = core.model.tokenize
        to_letters = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
        self._letters = {byte: to_letters(chr(byte))[0][0] for byte in range(128)}
        self._find = re.compile(pattern).findall
        added = {t.content: i for i, t in core.get_added_tokens_decoder().items()}
        longest_first = sorted(filter(None, added), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split
        self._added = {content: _bytes([i]) for content, i in added.items()}
        specials = tokenizer("a")["input_ids"]
        self.leading = _bytes(specials[:-1])  # BOS, or nothing

    def __missing__(self, piece: str) -> bytes:
        if len(self) >= REMEMBERED:
            self.clear()
        ids = [token.id for token in self._tokenize(piece.translate(self._letters))]
        self[piece] = _bytes(ids)
        return self[piece]

    def encode(self, text: str) -> bytes:
        """Ids of a stretch of text, without the specials that a template would add."""
        parts = []
        for i, part in enumerate(self._split(text)):  # every other one is an added token
            if i % 2:
                parts.append(self._added[part])
            else:
                parts += map(self.__getitem__, self._find(part))
        return b"".join(parts)


def pieces_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The pattern of a tokenizer's pieces in ASCII text; None if it is not known."""
    if not tokenizer.is_fast or tokenizer.truncation_side != "right":
        return None
    core = tokenizer.backend_tokenizer
    model, added = core.model, core.get_added_tokens_decoder().values()
    ids = tokenizer("a")["input_ids"]
    if (
        not isinstance(model, BPE)
        or model.dropout
        or tokenizer.split_special_tokens
        or any(t.lstrip or t.rstrip or t.single_word or "\n" in t.content for t in added)
        or len({t.normalized for t in added}) != 1  # they are looked for in two passes
        or tokenizer.eos_token not in {t.content for t in added}
        or ids[-1:] != tokenizer("a", add_special_tokens=False)["input_ids"]
        or any(part["type"] != "NFC" for part in _parts(core.normalizer, "normalizers"))
    ):
        return None
    *splitters, last = _parts(core.pre_tokenizer, "pretokenizers") or [{"type": None}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    match [part["type"] for part in splitters]:
        case [] if last["use_regex"]:
            return IN_ASCII[GPT2]
        case ["Digits"] if last["use_regex"] and splitters[0]["individual_digits"]:
            return IN_ASCII[SMOLLM2]
        case ["Split"] if not last["use_regex"] and splitters[0]["behavior"] == "Isolated":
            return IN_ASCII.get(splitters[0]["pattern"].get("Regex"))
    return None


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer consists of, as in tokenizer.json."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    return state[key] if state["type"] == "Sequence" else [state]


def _bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype=np.int32).tobytes()
