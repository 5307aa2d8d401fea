"""Chat text, ids and labels."""

from __future__ import annotations

import numpy as np
import pytest

from mos.data.chat import IGNORE_INDEX, encode_messages, render_chat, render_training
from mos.errors import UserError


def test_golden_encoding(golden, smollm2_tokenizer):
    vectors = golden("train_encoding_smollm2")
    for row in vectors["rows"]:
        encoded = encode_messages(row["messages"], smollm2_tokenizer, row["max_seq_length"])
        assert encoded["input_ids"] == row["input_ids"], row["name"]
        assert encoded["labels"] == row["labels"], row["name"]
        assert encoded["attention_mask"] == [1] * len(row["input_ids"])
        kept = any(label != IGNORE_INDEX for label in encoded["labels"])
        assert kept == row["kept_by_filter"], row["name"]
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
    whole = encode_messages(messages, tiny_tokenizer, 512)
    assert encode_messages(messages, tiny_tokenizer, 64) == {k: v[:64] for k, v in whole.items()}
    assert whole["input_ids"][-1] == tiny_tokenizer.eos_token_id
