"""Encoding many conversations at once, to what the reference's re-encoding of prefixes gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

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
from mos.data.piece_cache import PieceCache, piece_cache
from mos.data.prefix_stability import splits_after_line_feed

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

ID_BYTES = np.dtype(np.int32).itemsize


class ChatEncoder:
    """Encodes many conversations to what `encode_messages` returns, several times faster.

    A prefix that ends at character p of the text encodes to the tokens of the whole that start
    before p if the tokenizer splits there either way. It does where a single line feed stands
    between two characters that are not whitespace, and after EOS, for the tokenizers that
    `splits_after_line_feed` recognises. Then the length of the encoded prefix is a matter of
    counting tokens. Rows with other boundaries (a final user turn, a user turn of nothing) and
    other tokenizers take the slow path.

    Attributes:
        slow_rows: how many rows took the slow path.
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
        self.slow_rows = 0
        self._splits = splits_after_line_feed(tokenizer)
        self._pieces = piece_cache(tokenizer) if self._splits else None
        self._leading = _leading_specials(tokenizer)

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[EncodedRow]:
        """Encode conversations; one row each, in order."""
        rows: list[EncodedRow | None] = [None] * len(conversations)
        later = []  # for the tokenizer's own batches
        for i, messages in enumerate(conversations):
            rendered = render_training(messages, self.eos, self.label_mask)
            if not self._splits or not self._splits_at_spans(rendered):
                rows[i] = self._slow(rendered)
            elif self._pieces is not None and (
                rendered.text.isascii() or not self._pieces.ascii_only
            ):
                rows[i] = self._from_pieces(rendered, self._pieces)
            else:
                later.append((i, rendered))
        if later:
            core = self.tokenizer.backend_tokenizer
            core.no_truncation()
            core.no_padding()
            encodings = core.encode_batch([rendered.text[:-1] for _, rendered in later])
            for (i, rendered), encoding in zip(later, encodings, strict=True):
                rows[i] = self._from_offsets(rendered, encoding)
        return cast("list[EncodedRow]", rows)

    def _splits_at_spans(self, rendered: Rendered) -> bool:
        """Whether every span starts and ends where the tokenizer splits either way."""
        text = rendered.text
        if not text.endswith(self.eos + "\n"):
            return False  # what is encoded is shorter than the last prefix
        length = len(text) - 1
        return all(
            p == 0
            or p >= length
            or (text[p - 1] == "\n" and not text[p - 2].isspace() and not text[p].isspace())
            or (text[p] == "\n" and text.endswith(self.eos, 0, p))
            for span in rendered.spans
            for p in span
        )

    def _from_pieces(self, rendered: Rendered, pieces: PieceCache) -> EncodedRow:
        text, encode = rendered.text, pieces.encode
        parts = [self._leading]
        length, position = len(self._leading), 0  # in bytes; in characters
        masked = []
        for start, end in rendered.spans:
            end = min(end, len(text) - 1)
            before = encode(text[position:start], text[:position])
            within = encode(text[start:end], text[:start])
            first = length + len(before)
            length = first + len(within)
            masked.append((first // ID_BYTES if start else 0, length // ID_BYTES))
            parts += before, within
            position = end
        parts.append(encode(text[position:-1], text[:position]))
        ids = np.frombuffer(b"".join(parts), dtype=np.int32)
        return truncated_row(ids, masked, self.max_seq_length)

    def _from_offsets(self, rendered: Rendered, encoding: Encoding) -> EncodedRow:
        length = len(rendered.text) - 1
        masked = []
        for span in rendered.spans:
            counts: list[int] = []
            for p in span:
                count = encoding.char_to_token(p) if 0 < p < length else len(encoding.ids)
                if count is None:  # a normalizer removed the character
                    return self._slow(rendered)
                counts.append(count if p else 0)
            masked.append((counts[0], counts[1]))
        ids = np.array(encoding.ids, dtype=np.int32)
        return truncated_row(ids, masked, self.max_seq_length)

    def _slow(self, rendered: Rendered) -> EncodedRow:
        self.slow_rows += 1
        return encode_by_prefixes(rendered, self.tokenizer, self.max_seq_length)


def _leading_specials(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """What the tokenizer puts before every text: BOS, or nothing; as `PieceCache` has ids."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return np.array(tokenizer("a")["input_ids"][: -len(plain)], dtype=np.int32).tobytes()
