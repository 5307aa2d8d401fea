"""The Tulu chat format: text, token ids, and which tokens are trained on (protocol sections 0, 8).

Two renderings exist and differ. Evaluation prompts (`render_chat`) strip assistant contents only
and end assistant turns with "</s>"; training text strips every content and ends assistant turns
with the tokenizer's own EOS.

As in the reference, the masked stretches are found by encoding every prefix of a conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

from mos.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
ROLES = ("system", "user", "assistant")
GENERATION_HEADER = "<|assistant|>\n"
EVALUATION_EOS = "</s>"
CHAT_TEMPLATE_FILE = "chat_template.jinja"  # where transformers looks for it

LabelMask = Literal["reference", "clean"]


class Message(TypedDict):
    role: str
    content: str
    train: NotRequired[bool]  # false: an assistant turn that is not trained on


def render_chat(
    messages: Sequence[Message], add_generation_prompt: bool = True, eos: str = EVALUATION_EOS
) -> str:
    """Render an evaluation prompt (protocol section 0).

    Args:
        messages: system, user and assistant messages; may be empty.
        add_generation_prompt: end with the header of the assistant's turn.
        eos: what ends assistant turns; the protocol's, whatever the model's own is.

    Raises:
        UserError: a role that is none of the three.
    """
    text = ""
    for message in messages:
        content = message["content"]
        if _role(message) == "assistant":
            content = content.strip() + eos
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
    `label_mask="clean"` trains on assistant contents and their EOS alone. An assistant turn with
    `train: False` is masked like the turn of another role.

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
    spans: list[tuple[int, int]] = []
    if label_mask == "reference":
        for i, message in enumerate(messages):
            if not _is_trained(message):
                header = i + 1 < len(messages) and messages[i + 1]["role"] == "assistant"
                start = max(starts[i], spans[-1][1]) if spans else starts[i]
                spans.append((start, ends[i] + len(GENERATION_HEADER) * header))
    elif label_mask == "clean":
        unmasked_until = 0
        for i, message in enumerate(messages):
            if _is_trained(message):
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
) -> dict[str, list[int]]:
    """Encode one conversation as the reference does, re-encoding prefixes (protocol section 8).

    Returns:
        `input_ids`, `attention_mask` (ones) and `labels` (-100 where masked): lists of one length,
        at most `max_seq_length`.

    Raises:
        UserError: no messages, or an unknown role.
    """
    rendered = render_training(messages, eos_of(tokenizer), label_mask)
    (row,) = encode_by_prefixes([rendered], tokenizer, max_seq_length)
    ids, labels = row.input_ids.tolist(), row.labels.tolist()
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


@dataclass(frozen=True)
class EncodedRow:
    """One conversation as ids.

    Attributes:
        input_ids: int32 (tokens,), truncated to the limit.
        labels: the same, -100 where masked.
        full_length: length in tokens before truncation.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    full_length: int


def encode_by_prefixes(
    rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase, max_seq_length: int
) -> list[EncodedRow]:
    """Encode texts, and every prefix at which a span starts or ends, to count its tokens.

    Many at a time: a fast tokenizer then takes all cores.
    """
    import numpy as np  # takes a tenth of the time in which a command starts

    def encode(texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return tokenizer(texts, truncation=True, max_length=max_seq_length)["input_ids"]

    texts = [each.text.strip() for each in rendered]
    places = [{p for span in each.spans for p in span if p} for each in rendered]
    prefixes = [each.text[:p] for each, ps in zip(rendered, places, strict=True) for p in ps]
    counts = map(len, encode(prefixes))
    rows = []
    for each, text, ps, ids in zip(rendered, texts, places, encode(texts), strict=True):
        known = {0: 0} | {p: next(counts) for p in ps}
        labels = np.array(ids, dtype=np.int32)
        for start, end in each.spans:
            labels[known[start] : known[end]] = IGNORE_INDEX
        # Only a text that was cut, or just fits, is encoded again for its length.
        cut = len(ids) >= max_seq_length
        length = len(tokenizer(text, verbose=False)["input_ids"]) if cut else len(ids)
        rows.append(EncodedRow(np.array(ids, dtype=np.int32), labels, length))
    return rows


def _is_trained(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("train", True)


def _role(message: Message) -> str:
    role = message["role"]
    if role not in ROLES:
        raise UserError(f"unknown role {role!r}: expected one of {', '.join(ROLES)}.")
    return role


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja template with which other programs speak to a model as it was trained.

    `tokenizer.apply_chat_template` then gives the text of `render_chat` with the tokenizer's own
    EOS, behind a BOS where the tokenizer puts one before texts: such programs encode the text
    without adding any, so that the ids are those of training.
    """
    bos = "{{ bos_token }}" if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""
    return bos + _TEMPLATE


_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']"
    " + ': expected system, user or assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{{ message['content'].strip() + eos_token + '\n' }}"
    "{% else %}"
    "{{ message['content'] + '\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def eos_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that ends an assistant turn in training.

    Raises:
        UserError: the tokenizer has none.
    """
    if not tokenizer.eos_token:
        raise UserError(
            "the tokenizer has no EOS token, which every assistant turn ends with: set"
            " `eos_token` in its tokenizer_config.json."
        )
    return str(tokenizer.eos_token)
