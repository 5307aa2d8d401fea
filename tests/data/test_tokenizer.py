"""Unsafe tokenizers are refused; fingerprints; chat markers as vocabulary."""

from __future__ import annotations

import copy
import json

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mos.data.chat import chat_template, encode_messages, render_chat
from mos.data.tokenizer import PROBES, check_tokenizer, fingerprint
from mos.errors import UserError

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def test_good_tokenizers_pass(tokenizers_by_kind):
    for kind in ("smollm2", "bytes", "gpt2", "llama3", "llama2", "llama2-first"):
        check_tokenizer(tokenizers_by_kind[kind])


def test_tokenizer_that_drops_whitespace_is_refused(tokenizers_by_kind):
    with pytest.raises(UserError, match="does not round-trip"):
        check_tokenizer(tokenizers_by_kind["unknown"])


def changed(tokenizer, single=None, **settings):
    """A copy with another template around texts, or other settings."""
    copied = copy.deepcopy(tokenizer)
    if single:
        copied.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair="$A $B", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    for name, value in settings.items():
        setattr(copied, name, value)
    return copied


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"single": "<s> $A </s>"}, "ends a prompt in '</s>'"),
        ({"single": "$A </s>"}, "ends a prompt in '</s>'"),
        ({"single": "<s> <s> $A"}, "begins a prompt with .*expected one BOS or none"),
        ({"truncation_side": "left"}, r"does not cut long texts at their end \(.*'left'"),
        ({"split_special_tokens": True}, "does not encode its EOS '</s>' in text as one token"),
    ],
)
def test_tokenizers_that_break_the_mask_are_refused_by_name(change, problem, tiny_tokenizer):
    with pytest.raises(UserError, match=problem):
        check_tokenizer(changed(tiny_tokenizer, **change))


def test_tokenizers_that_merge_across_turns_are_refused(tiny_tokenizer):
    """`\\nI`, a line feed and the first letter of an answer, is one token here."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["vocab"]["ĊI"] = len(spec["model"]["vocab"])
    spec["model"]["merges"] = [["Ċ", "I"]]
    spec["pre_tokenizer"]["use_regex"] = False
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(spec))
    with pytest.raises(UserError, match="gives a prompt other ids where an answer follows"):
        check_tokenizer(tokenizer)


def test_chat_template_is_render_chat(tokenizers_by_kind, golden):
    conversations = [case["messages"] for case in golden("chat_template")["cases"]]
    conversations += [row["messages"] for row in golden("train_encoding_smollm2")["rows"]]
    conversations = [messages for messages in conversations if messages]  # transformers wants one
    for kind in ("smollm2", "llama2", "llama3"):
        tokenizer = copy.deepcopy(tokenizers_by_kind[kind])
        tokenizer.chat_template = chat_template(tokenizer)
        bos = "" if kind == "smollm2" else tokenizer.bos_token
        for messages in conversations:
            for prompt in (True, False):
                options = {"tokenize": False, "add_generation_prompt": prompt}
                text = render_chat(messages, prompt, eos=tokenizer.eos_token)
                assert tokenizer.apply_chat_template(messages, **options) == bos + text
            stripped = [{**m, "content": m["content"].strip()} for m in messages]
            if messages[-1]["role"] == "assistant":
                text = tokenizer.apply_chat_template(stripped, tokenize=False).removesuffix("\n")
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert ids == encode_messages(messages, tokenizer, 4096)["input_ids"]
        with pytest.raises(Exception, match="unknown role tool"):
            tokenizer.apply_chat_template([{"role": "tool", "content": ""}])


def test_missing_pad_and_eos_are_refused(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="no pad token"):
        check_tokenizer(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS"):
        check_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    text = folder / "text.txt"
    text.write_text("\n".join(["def f(x):", "    return x", "        y = 12 + 30"] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        pad_id=3,
        minloglevel=2,
    )
    return folder


def test_disagreement_with_the_sentencepiece_model_is_refused(sentencepiece_folder):
    """One piece a character round-trips, and yet is not what the model was trained with."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(
        model_file=str(sentencepiece_folder / "tokenizer.model")
    )
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    from tokenizers import decoders, normalizers

    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(sentencepiece_folder)
    tokenizer = AutoTokenizer.from_pretrained(sentencepiece_folder)
    decoded = tokenizer.decode(tokenizer(PROBES[0], add_special_tokens=False)["input_ids"])
    assert decoded == PROBES[0]
    with pytest.raises(UserError, match=r"disagrees with .*tokenizer\.model"):
        check_tokenizer(tokenizer)


def test_fingerprint_is_of_the_vocabulary_not_of_the_last_call(tokenizers_by_kind):
    tokenizer = copy.deepcopy(tokenizers_by_kind["gpt2"])
    before = fingerprint(tokenizer)
    tokenizer(["a", "b c"], truncation=True, max_length=1, padding=True)
    assert fingerprint(tokenizer) == before
    tokenizer.add_tokens(["new"])
    assert fingerprint(tokenizer) != before
    prints = [fingerprint(t) for t in tokenizers_by_kind.values()]
    assert len(set(prints)) == len(prints)
