"""The Tulu chat format: text, token ids, and which tokens are trained on (protocol sections 0, 8).

Two renderings exist and differ. Evaluation prompts (`render_chat`) strip assistant contents only
and end assistant turns with "</s>"; training text strips every content and ends assistant turns
with the tokenizer's own EOS.

The reference finds the masked stretches by re-encoding every prefix of a conversation, which is
quadratic in turns. `ChatEncoder` encodes once and counts tokens where that is provably the same,
and re-encodes elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypedDict, cast

import numpy as np

from mos.data.piece_cache import PieceCache, piece_cache
from mos.data.prefix_stability import splits_after_line_feed
from mos.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
ID_BYTES = np.dtype(np.int32).itemsize
ROLES = ("system", "user", "assistant")
MARKERS = tuple(f"<|{role}|>" for role in ROLES)
GENERATION_HEADER = "<|assistant|>\n"
EVALUATION_EOS = "</s>"

LabelMask = Literal["reference", "clean"]


class Message(TypedDict):
    role: str
    content: str


class Encoded(TypedDict):
    input_ids: list[int]
    attention_mask: list[int]
    labels: list[int]


def render_chat(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """Render an evaluation prompt (protocol section 0).

    Args:
        messages: system, user and assistant messages; may be empty.
        add_generation_prompt: end with the header of the assistant's turn.

    Raises:
        UserError: a role that is none of the three.
    """
    text = ""
    for message in messages:
        content = message["content"]
        if _role(message) == "assistant":
            content = content.strip() + EVALUATION_EOS
        text += f"<|{message['role']}|>\n{content}\n"
    return text + GENERATION_HEADER if add_generation_prompt else text


@dataclass(frozen=True)
class Rendered:
    """Training text of a conversation and the character spans that are masked in its labels.

    Attributes:
        text: the rendering of every message, each ending in a line feed. What is encoded is this
            text stripped; span ends refer to the unstripped one.
        spans: (start, end) character positions, in order; start 0 is the first token (BOS).
    """

    text: str
    spans: tuple[tuple[int, int], ...]


def render_training(
    messages: Sequence[Message], eos: str, label_mask: LabelMask = "reference"
) -> Rendered:
    """Render a conversation for training and find what is not trained on (protocol section 8).

    `label_mask="reference"` masks every message that is not the assistant's, plus the header of an
    assistant turn that follows one. Hence the line feed after a non-final EOS is trained on, and
    so is the header of an assistant message that comes first or follows another assistant message.
    `label_mask="clean"` trains on assistant contents and their EOS alone.

    Raises:
        UserError: no messages, or an unknown role.
    """
    if not messages:
        raise UserError("a conversation has no messages: expected at least one.")
    text = ""
    ends = []
    for message in messages:
        suffix = eos if _role(message) == "assistant" else ""
        text += f"<|{message['role']}|>\n{message['content'].strip()}{suffix}\n"
        ends.append(len(text))
    starts = [0, *ends[:-1]]
    spans = []
    if label_mask == "reference":
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                header = i + 1 < len(messages) and messages[i + 1]["role"] == "assistant"
                spans.append((starts[i], ends[i] + len(GENERATION_HEADER) * header))
    elif label_mask == "clean":
        unmasked_until = 0
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                spans.append((unmasked_until, starts[i] + len(GENERATION_HEADER)))
                unmasked_until = ends[i] - 1
        spans.append((unmasked_until, len(text)))
    else:
        raise UserError(f"data.label_mask={label_mask!r}: expected 'reference' or 'clean'.")
    return Rendered(text, tuple(spans))


def encode_messages(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    label_mask: LabelMask = "reference",
) -> Encoded:
    """Encode one conversation as the reference does, re-encoding prefixes (protocol section 8).

    Returns:
        `input_ids`, `attention_mask` (ones) and `labels` (-100 where masked): lists of one length,
        at most `max_seq_length`.

    Raises:
        UserError: no messages, or an unknown role.
    """
    rendered = render_training(messages, _eos(tokenizer), label_mask)
    row = _encode_by_prefixes(rendered, tokenizer, max_seq_length)
    return Encoded(
        input_ids=row.input_ids.tolist(),
        attention_mask=[1] * len(row.input_ids),
        labels=row.labels.tolist(),
    )


@dataclass(frozen=True)
class EncodedRow:
    """One conversation as ids.

    Attributes:
        input_ids: int32 (tokens,), truncated to the limit.
        masked: (start, end) stretches of tokens whose labels are masked, in order, within limit.
        full_length: length in tokens before truncation.
    """

    input_ids: np.ndarray
    masked: tuple[tuple[int, int], ...]
    full_length: int

    @property
    def labels(self) -> np.ndarray:
        """The ids, -100 where masked."""
        labels = self.input_ids.copy()
        for start, end in self.masked:
            labels[start:end] = IGNORE_INDEX
        return labels

    @property
    def supervised(self) -> int:
        """How many tokens have a label; `masked` stretches do not overlap."""
        return len(self.input_ids) - sum(end - start for start, end in self.masked)


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
        self.eos = _eos(tokenizer)
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
        return _row(ids, masked, self.max_seq_length)

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
        return _row(ids, masked, self.max_seq_length)

    def _slow(self, rendered: Rendered) -> EncodedRow:
        self.slow_rows += 1
        return _encode_by_prefixes(rendered, self.tokenizer, self.max_seq_length)


def _row(ids: np.ndarray, masked: Sequence[tuple[int, int]], limit: int) -> EncodedRow:
    length = min(len(ids), limit)
    cut: list[tuple[int, int]] = []
    covered = 0
    for start, end in masked:
        start, end = max(start, covered), min(end, length)
        if start < end:
            cut.append((start, end))
            covered = end
    return EncodedRow(ids[:length], tuple(cut), len(ids))


def _encode_by_prefixes(
    rendered: Rendered, tokenizer: PreTrainedTokenizerBase, max_seq_length: int
) -> EncodedRow:
    def encode(text: str) -> list[int]:
        return tokenizer(text, truncation=True, max_length=max_seq_length)["input_ids"]

    text = rendered.text.strip()
    ids = np.array(encode(text), dtype=np.int32)
    masked = [
        (len(encode(rendered.text[:start])) if start else 0, len(encode(rendered.text[:end])))
        for start, end in rendered.spans
    ]
    row = _row(ids, masked, len(ids))
    if len(ids) < max_seq_length:
        return row
    full = tokenizer(text, verbose=False)["input_ids"]
    return replace(row, full_length=len(full))


def _leading_specials(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """What the tokenizer puts before every text: BOS, or nothing; as `PieceCache` has ids."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return np.array(tokenizer("a")["input_ids"][: -len(plain)], dtype=np.int32).tobytes()


def _role(message: Message) -> str:
    role = message["role"]
    if role not in ROLES:
        raise UserError(f"unknown role {role!r}: expected one of {', '.join(ROLES)}.")
    return role


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.eos_token:
        raise UserError(
            "the tokenizer has no EOS token, which every assistant turn ends with: set"
            " `eos_token` in its tokenizer_config.json."
        )
    return str(tokenizer.eos_token)
