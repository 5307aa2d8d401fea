"""Chat text, ids and labels: the reference's vectors, and fast against slow."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mos.data import encoder as module
from mos.data.chat import encode_messages, render_chat, render_training
from mos.data.encoder import ChatEncoder
from mos.errors import UserError

BY_PIECES = ["smollm2", "bytes", "gpt2", "digits", "llama3", "qwen2"]
KINDS = [*BY_PIECES, "llama2", "llama2-first", "llama2-always", "unknown"]
FRAGMENTS = [
    *"a1 .,:;!?'\"/\\#{}()[]<>|=+-*~^&%$@_",
    *(
        "word",
        "Word's",
        "don't",
        "x = 1",
        "    return x",
        "12345",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "  ",
    ),
    *("é", "日本", "🙂", "e\u0301", "\u00a0", "\u0085", "\x1c", "\u200b", "Ω", "٣", "ﬁ", "\x00"),
    *("</s>", "<s>", "<|im_end|>", "<|user|>", "<|assistant|>\n", "</", "s>", "<0x0A>", "▁"),
]


def conversations(count: int, seed: int, ascii_only: bool = False):
    rng = random.Random(seed)
    fragments = [f for f in FRAGMENTS if f.isascii()] if ascii_only else FRAGMENTS
    for _ in range(count):
        yield [
            {
                "role": rng.choice(["system", "user", "assistant", "assistant"]),
                "content": "".join(rng.choices(fragments, k=rng.choice([0, 1, 3, 12]))),
                "train": rng.random() < 0.9,
            }
            for _ in range(rng.choice([1, 2, 2, 3, 5]))
        ]


def test_golden_encoding(golden, smollm2_tokenizer):
    vectors = golden("train_encoding_smollm2")
    for row in vectors["rows"]:
        encoded = encode_messages(row["messages"], smollm2_tokenizer, row["max_seq_length"])
        assert encoded["input_ids"] == row["input_ids"], row["name"]
        assert encoded["labels"] == row["labels"], row["name"]
        assert encoded["attention_mask"] == [1] * len(row["input_ids"])
        encoder = ChatEncoder(smollm2_tokenizer, row["max_seq_length"])
        (fast,) = encoder.encode_batch([row["messages"]])
        assert fast.input_ids.tolist() == row["input_ids"], row["name"]
        assert fast.labels.tolist() == row["labels"], row["name"]
        assert (fast.supervised > 0) == row["kept_by_filter"], row["name"]
    for row in vectors["errors"]:
        with pytest.raises(ValueError, match=r"role|messages"):
            encode_messages(row["messages"], smollm2_tokenizer, 512)


def test_golden_chat_template(golden):
    for case in golden("chat_template")["cases"]:
        assert render_chat(case["messages"], add_generation_prompt=True) == case["text"]


def test_render_chat_without_generation_prompt():
    messages = [{"role": "user", "content": " a "}, {"role": "assistant", "content": " b "}]
    assert render_chat(messages, add_generation_prompt=False) == (
        "<|user|>\n a \n<|assistant|>\nb</s>\n"
    )
    with pytest.raises(UserError, match="'tool'"):
        render_chat([{"role": "tool", "content": ""}])


@pytest.mark.parametrize("label_mask", ["reference", "clean"])
@pytest.mark.parametrize("kind", KINDS)
def test_fast_encoding_equals_prefix_encoding(tokenizers_by_kind, kind, label_mask):
    tokenizer = tokenizers_by_kind[kind]
    rows = [*conversations(80, seed=1), *conversations(80, seed=2, ascii_only=True)]
    for limit in (512, 20):
        encoder = ChatEncoder(tokenizer, limit, label_mask)
        for messages, fast in zip(rows, encoder.encode_batch(rows), strict=True):
            slow = encode_messages(messages, tokenizer, limit, label_mask)
            assert fast.input_ids.tolist() == slow["input_ids"], messages
            assert fast.labels.tolist() == slow["labels"], messages
            assert fast.supervised == sum(label != -100 for label in slow["labels"])
            assert fast.full_length >= len(fast.input_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_single_turns_are_encoded_by_pieces(tokenizers_by_kind, kind, monkeypatch):
    rows = [
        [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": str(i)}]
        for i in range(10)
    ]
    left = []
    monkeypatch.setattr(module, "encode_by_prefixes", lambda rows, *_: left.extend(rows) or rows)
    ChatEncoder(tokenizers_by_kind[kind], 512).encode_batch(rows)
    assert len(left) == (0 if kind in BY_PIECES else 10)


def test_reference_mask_trains_on_line_feed_and_headers_the_clean_one_does_not(tiny_tokenizer):
    messages = [
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
    ]

    def supervised(label_mask):
        row = encode_messages(messages, tiny_tokenizer, 512, label_mask)
        labels = np.array(row["labels"])
        stretches = np.split(labels, np.flatnonzero(np.diff(labels == -100)) + 1)
        return [tiny_tokenizer.decode(s) for s in stretches if s[0] != -100]

    assert supervised("reference") == [
        "<s><|assistant|>\nfirst</s>\n",
        "one</s>\n<|assistant|>\ntwo</s>",
    ]
    assert supervised("clean") == ["first</s>", "one</s>", "two</s>"]
    with pytest.raises(UserError, match="label_mask"):
        render_training(messages, "</s>", "all")


def test_truncated_rows_end_without_eos(tiny_tokenizer):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x" * 100}]
    (row,) = ChatEncoder(tiny_tokenizer, 64).encode_batch([messages])
    assert len(row.input_ids) == 64
    assert row.input_ids[-1] != tiny_tokenizer.eos_token_id
    assert row.full_length == len(encode_messages(messages, tiny_tokenizer, 512)["input_ids"])
