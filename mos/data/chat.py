"""The Tulu chat format: text, token ids, and which tokens are trained on (protocol sections 0, 8).

Two renderings exist and differ. Evaluation prompts (`render_chat`) strip assistant contents only
and end assistant turns with "</s>"; training text strips every content and ends assistant turns
with the tokenizer's own EOS.

The reference finds the masked stretches by re-encoding every prefix of a conversation, which is
quadratic in turns. `ChatEncoder` finds them in the character offsets of a single encoding where
that is provably the same, and re-encodes elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from transformers import PreTrainedTokenizerBase

from mos.data.prefix_stability import splits_after_line_feed
from mos.errors import UserError

IGNORE_INDEX = -100
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
    return _encode_by_prefixes(rendered, tokenizer, max_seq_length)


class ChatEncoder:
    """Encodes many conversations to what `encode_messages` returns, several times faster.

    A prefix that ends at character p of the text encodes to the tokens of the whole that start
    before p if the tokenizer splits there either way. It does where a single line feed stands
    between two characters that are not whitespace, for the tokenizers that
    `splits_after_line_feed` recognises; then the length of the encoded prefix is the index of the
    token that holds character p. Other rows (an empty message, a final user turn) and other
    tokenizers take the slow path.

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
        self._fast = splits_after_line_feed(tokenizer)

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[EncodedRow]:
        """Encode conversations; one row each, in order."""
        rendered = [render_training(m, self.eos, self.label_mask) for m in conversations]
        if not self._fast:
            return [self._slow(r) for r in rendered]
        core = self.tokenizer.backend_tokenizer
        core.no_truncation()
        core.no_padding()
        encodings = core.encode_batch([r.text.rstrip() for r in rendered])
        return [self._row(r, e) for r, e in zip(rendered, encodings, strict=True)]

    def _row(self, rendered: Rendered, encoding: Any) -> EncodedRow:
        text = rendered.text
        length = len(text.rstrip())
        ids: list[int] = encoding.ids
        masked = []
        for start, end in rendered.spans:
            first = self._tokens_before(text, length, start, encoding)
            last = self._tokens_before(text, length, end, encoding)
            if first is None or last is None:
                return self._slow(rendered)
            masked.append((first, last))
        return EncodedRow.build(ids, masked, self.max_seq_length)

    def _tokens_before(self, text: str, length: int, p: int, encoding: Any) -> int | None:
        """Length of the encoding of text[:p], or None where only encoding it can tell."""
        if p == 0:
            return 0
        if p == length or (p == length + 1 and text.endswith(self.eos + "\n")):
            return len(encoding.ids)
        if p > length:
            return None
        after_line_feed = text[p - 1] == "\n" and not text[p - 2].isspace()
        if after_line_feed and not text[p].isspace():
            return encoding.char_to_token(p)
        if text[p] == "\n" and text.endswith(self.eos, 0, p):
            return encoding.char_to_token(p)
        return None

    def _slow(self, rendered: Rendered) -> EncodedRow:
        self.slow_rows += 1
        ids = self.tokenizer(rendered.text.strip())["input_ids"]
        row = _encode_by_prefixes(rendered, self.tokenizer, self.max_seq_length)
        return EncodedRow(row["input_ids"], row["labels"], len(ids))


@dataclass(frozen=True)
class EncodedRow:
    """Ids and labels of one conversation, and its length in tokens before truncation."""

    input_ids: list[int]
    labels: list[int]
    full_length: int

    @classmethod
    def build(cls, ids: list[int], masked: list[tuple[int, int]], limit: int) -> EncodedRow:
        kept = ids[:limit]
        labels = list(kept)
        for start, end in masked:
            end = min(end, len(kept))
            if start < end:
                labels[start:end] = [IGNORE_INDEX] * (end - start)
        return cls(kept, labels, len(ids))


def _encode_by_prefixes(
    rendered: Rendered, tokenizer: PreTrainedTokenizerBase, max_seq_length: int
) -> Encoded:
    def encode(text: str) -> list[int]:
        return tokenizer(text, truncation=True, max_length=max_seq_length)["input_ids"]

    ids = encode(rendered.text.strip())
    labels = list(ids)
    for start, end in rendered.spans:
        first = len(encode(rendered.text[:start])) if start else 0
        last = min(len(encode(rendered.text[:end])), len(ids))
        if first < last:
            labels[first:last] = [IGNORE_INDEX] * (last - first)
    return Encoded(input_ids=ids, attention_mask=[1] * len(ids), labels=labels)


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
