"""Tokenising ASCII text piece by piece from memory.

Byte-level BPE looks at one pre-token ("piece", roughly a word) at a time, and pieces repeat. For
ASCII text the pre-tokenizers of GPT-2, LLaMA-3 and Qwen2 are plain regular expressions, so that
Python finds the pieces and a dictionary knows their ids: the same ids several times faster. The
dictionary asks the tokenizer's own model for a piece it has not seen.
"""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from mos.data.prefix_stability import GPT2, LLAMA3, QWEN2, components

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


class PieceCache(dict[str, bytes]):
    """Ids of ASCII texts under one tokenizer; itself the dictionary from piece to ids.

    Ids are int32 in the machine's byte order: joining bytes is several times faster than chaining
    lists of integers.
    """

    def __init__(self, core: Tokenizer, pattern: str) -> None:
        super().__init__()
        self._model = core.model
        self._bytes = ByteLevel(add_prefix_space=False, use_regex=False)
        self._find = re.compile(pattern).findall
        added = {t.content: i for i, t in core.get_added_tokens_decoder().items()}
        longest_first = sorted(filter(None, added), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split
        self._added = {content: _bytes_of([i]) for content, i in added.items()}

    def __missing__(self, piece: str) -> bytes:
        if len(self) >= CAPACITY:
            self.clear()
        ((mapped, _),) = self._bytes.pre_tokenize_str(piece)
        ids = self[piece] = _bytes_of([token.id for token in self._model.tokenize(mapped)])
        return ids

    def encode(self, text: str) -> bytes:
        """Ids of an ASCII text, without the specials that a template would add."""
        parts = self._split(text)  # every other one is an added token
        for i, part in enumerate(parts):
            ids = self._added[part] if i % 2 else b"".join(map(self.__getitem__, self._find(part)))
            parts[i] = ids
        return b"".join(parts)


def piece_cache(tokenizer: PreTrainedTokenizerBase) -> PieceCache | None:
    """A cache for a tokenizer whose ASCII pieces are known, else None."""
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return None
    core = tokenizer.backend_tokenizer
    parts = components(core.pre_tokenizer, "pretokenizers")
    if not parts or parts[-1]["type"] != "ByteLevel" or parts[-1]["add_prefix_space"]:
        return None
    if len(parts) == 1 and parts[0]["use_regex"]:
        pattern = GPT2
    elif len(parts) == 2 and not parts[1]["use_regex"] and parts[0]["type"] == "Split":
        pattern = parts[0]["pattern"].get("Regex", "")
    else:
        return None
    added = core.get_added_tokens_decoder().values()
    if (
        pattern not in ASCII_PATTERNS
        or any(t.lstrip or t.rstrip or t.single_word for t in added)
        or len({t.normalized for t in added}) != 1  # else they are looked for in two passes
        or any(part["type"] != "NFC" for part in components(core.normalizer, "normalizers"))
        or not isinstance(core.model, BPE)
        or core.model.dropout
    ):
        return None
    return PieceCache(core, ASCII_PATTERNS[pattern])


def _bytes_of(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()
