"""Tokenising text piece by piece from memory.

BPE never merges across some places of a text, and what stands between them ("pieces", roughly
words) repeats. Where those places can be found without the tokenizer, a dictionary knows the ids of
most pieces: the same ids several times faster. It asks the tokenizer's own model for the others.

Byte-level BPE looks at one pre-token at a time; for ASCII text the pre-tokenizers of GPT-2, LLaMA-3
and Qwen2 are plain regular expressions. BPE over whole texts (LLaMA-2) has no pre-tokens, but its
vocabulary may hold no token in which a space follows something else, and none with a line feed:
then nothing merges across these.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from mos.data.prefix_stability import GPT2, LLAMA3, QWEN2, components

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CAPACITY = 1 << 17  # pieces remembered; the dictionary starts over beyond that
SPACE = "▁"

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
WORD = rf"\n|{SPACE}*[^{SPACE}\n]+|{SPACE}+"


class PieceCache(dict[str, bytes]):
    """Ids of texts under one byte-level tokenizer; itself the dictionary from piece to ids.

    Ids are int32 in the machine's byte order: joining bytes is several times faster than chaining
    lists of integers.
    """

    ascii_only = True

    def __init__(self, core: Tokenizer, pattern: str) -> None:
        super().__init__()
        self._tokenize = core.model.tokenize
        to_letters = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
        self._letters = {byte: to_letters(chr(byte))[0][0] for byte in range(128)}
        self._find = re.compile(pattern).findall
        added = {t.content: i for i, t in core.get_added_tokens_decoder().items()}
        longest_first = sorted(filter(None, added), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split
        self._added = {content: _bytes_of([i]) for content, i in added.items()}

    def __missing__(self, piece: str) -> bytes:
        if len(self) >= CAPACITY:
            self.clear()
        symbols = self._symbols(piece)
        ids = self[piece] = _bytes_of([token.id for token in self._tokenize(symbols)])
        return ids

    def encode(self, text: str, before: str = "") -> bytes:
        """Ids of a stretch of text, without the specials that a template would add.

        Args:
            text: what stands between places where the tokenizer splits.
            before: what precedes it; "" or something that ends in a line feed or an added token.
        """
        lookup, find, prepare = self.__getitem__, self._find, self._prepare
        parts = []
        for i, part in enumerate(self._split(text)):  # every other one is an added token
            if i % 2:
                parts.append(self._added[part])
            elif part:
                parts.append(b"".join(map(lookup, find(prepare(part, i, before)))))
        return b"".join(parts)

    def _symbols(self, piece: str) -> str:
        """A piece in the letters of the vocabulary."""
        return piece.translate(self._letters)

    def _prepare(self, part: str, place: int, before: str) -> str:
        """The text between two added tokens as the model sees it."""
        return part


class WordCache(PieceCache):
    """The same for BPE over whole texts with "▁" for spaces; any text, not only ASCII.

    Args:
        core: the tokenizer.
        prefix: given a section of text and whether it begins the text, the section with the "▁"
            that the tokenizer puts before it. Sections end at added tokens.
    """

    ascii_only = False

    def __init__(self, core: Tokenizer, prefix: Callable[[str, bool], str]) -> None:
        super().__init__(core, WORD)
        self._prefix = prefix

    def _symbols(self, piece: str) -> str:
        return piece

    def _prepare(self, part: str, place: int, before: str) -> str:
        part = part.replace(" ", SPACE)
        goes_on = place == 0 and before.endswith("\n")
        return part if goes_on else self._prefix(part, place == 0 and not before)


def piece_cache(tokenizer: PreTrainedTokenizerBase) -> PieceCache | None:
    """A cache for a tokenizer whose pieces are known, else None.

    The tokenizer must be one that `splits_after_line_feed`.
    """
    core = tokenizer.backend_tokenizer
    if len({t.normalized for t in core.get_added_tokens_decoder().values()}) != 1:
        return None  # they are looked for in two passes
    normalizers = components(core.normalizer, "normalizers")
    splitters = components(core.pre_tokenizer, "pretokenizers")
    prefix = _prefix(normalizers, splitters)
    if prefix is not None:
        return WordCache(core, prefix) if _words_never_merge(core.model) else None
    pattern = _byte_level_pattern(splitters)
    if pattern is None or any(part["type"] != "NFC" for part in normalizers):
        return None
    return PieceCache(core, pattern)


def _byte_level_pattern(splitters: list[dict[str, Any]]) -> str | None:
    match [part["type"] for part in splitters]:
        case ["ByteLevel"] if splitters[0]["use_regex"]:
            pattern = GPT2
        case ["Split", "ByteLevel"] if not splitters[1]["use_regex"]:
            pattern = splitters[0]["pattern"].get("Regex", "")
        case _:
            return None
    return None if splitters[-1]["add_prefix_space"] else ASCII_PATTERNS.get(pattern)


def _prefix(
    normalizers: list[dict[str, Any]], splitters: list[dict[str, Any]]
) -> Callable[[str, bool], str] | None:
    """How a tokenizer over whole texts puts "▁" before a section; None for other tokenizers."""
    match [part["type"] for part in (*normalizers, *splitters)]:
        case ["Prepend", "Replace"] if (
            normalizers[0]["prepend"] == normalizers[1]["content"] == SPACE
        ):
            return lambda section, _: SPACE + section
        case ["Metaspace"] if splitters[0]["replacement"] == SPACE and not splitters[0]["split"]:
            scheme = splitters[0]["prepend_scheme"]
            return lambda section, first: (
                SPACE + section
                if (scheme == "always" or (scheme == "first" and first))
                and not section.startswith(SPACE)
                else section
            )
    return None


def _words_never_merge(model: BPE) -> bool:
    if model.ignore_merges or not model.byte_fallback:
        return False
    if any(model.token_to_id(f"<0x{byte:02X}>") is None for byte in range(256)):
        return False  # an unknown character could fuse with its neighbour
    crosses = re.compile(rf"[^{SPACE}]{SPACE}|\n|<0x").search
    merges = json.loads(model.__getstate__())["merges"]
    return not any(
        crosses("".join(merge) if isinstance(merge, list) else merge.replace(" ", ""))
        for merge in merges
    )


def _bytes_of(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()
