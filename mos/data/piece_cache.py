"""Tokenising ASCII text piece by piece from memory.

Byte-level BPE looks at one pre-token ("piece", roughly a word) at a time, and pieces repeat. For
ASCII text the pre-tokenizers of GPT-2, LLaMA-3 and Qwen2 are plain regular expressions, so that
Python finds the pieces and a dictionary knows their ids: the same ids several times faster. The
dictionary asks the tokenizer's own model for a piece it has not seen.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from mos.data.prefix_stability import GPT2, LLAMA3, QWEN2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CAPACITY = 1 << 18  # pieces remembered; the dictionary starts over beyond that

_SPACE = r"[ \t\n\x0b\x0c\r]"  # what \s is in ASCII to the tokenizers, other than to `re`
_NO_SPACE = r"[^ \t\n\x0b\x0c\r]"
_PUNCTUATION = r" ?[^ \t\n\x0b\x0c\rA-Za-z0-9]+"
_SPACES = rf"{_SPACE}+(?!{_NO_SPACE})|{_SPACE}+"
_LINES = rf"{_PUNCTUATION}[\r\n]*|{_SPACE}*[\r\n]+|{_SPACES}"
_CONTRACTION = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
ASCII_PATTERNS = {  # alternatives that cannot match at the same place are in order of frequency
    GPT2: rf" ?[A-Za-z]+|'(?:s|t|re|ve|m|ll|d)| ?[0-9]+|{_PUNCTUATION}|{_SPACES}",
    LLAMA3: rf"{_CONTRACTION}|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{{1,3}}|{_LINES}",
    QWEN2: rf"{_CONTRACTION}|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]|{_LINES}",
}


class PieceCache(dict[str, list[int]]):
    """Ids of ASCII texts under one tokenizer; itself the dictionary from piece to ids."""

    def __init__(self, core: Tokenizer, pattern: str) -> None:
        super().__init__()
        self._model = core.model
        self._bytes = ByteLevel(add_prefix_space=False, use_regex=False)
        self._find = re.compile(pattern).findall
        added = {t.content: i for i, t in core.get_added_tokens_decoder().items()}
        longest_first = sorted(filter(None, added), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split
        self._added = {content: [i] for content, i in added.items()}

    def __missing__(self, piece: str) -> list[int]:
        if len(self) >= CAPACITY:
            self.clear()
        ((mapped, _),) = self._bytes.pre_tokenize_str(piece)
        ids = self[piece] = [token.id for token in self._model.tokenize(mapped)]
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of an ASCII text, without the specials that a template would add."""
        parts = self._split(text)
        if len(parts) == 1:
            return list(chain.from_iterable(map(self.__getitem__, self._find(text))))
        ids: list[int] = []
        for i, part in enumerate(parts):  # odd ones are added tokens
            if i % 2:
                ids += self._added[part]
            elif part:
                ids += chain.from_iterable(map(self.__getitem__, self._find(part)))
        return ids


def piece_cache(tokenizer: PreTrainedTokenizerBase) -> PieceCache | None:
    """A cache for a tokenizer whose ASCII pieces are known, else None."""
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return None
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = core["pre_tokenizer"] or {}
    parts = parts.get("pretokenizers", [parts])
    last = parts[-1]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if len(parts) == 1 and last["use_regex"]:
        pattern = GPT2
    elif len(parts) == 2 and not last["use_regex"] and parts[0]["type"] == "Split":
        pattern = parts[0]["pattern"].get("Regex", "")
    else:
        return None
    added = core["added_tokens"]
    plain = not any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in added)
    one_pass = len({t["normalized"] for t in added}) == 1
    normalizer = core["normalizer"]
    if (
        pattern not in ASCII_PATTERNS
        or not (plain and one_pass)
        or (normalizer is not None and normalizer["type"] != "NFC")
        or core["model"]["type"] != "BPE"
        or core["model"].get("dropout")
    ):
        return None
    return PieceCache(tokenizer.backend_tokenizer, ASCII_PATTERNS[pattern])
