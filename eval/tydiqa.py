"""TyDiQA-GoldP: questions on a passage in nine languages (protocol section 4)."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from eval.benchmark import Benchmark, Decoding, Metric, Request, chat_prompt, may_exceed
from eval.files import check_fields, require
from eval.scoring import bare
from mos.errors import DataError, MissingFileError, UserError
from mos.files import read_json

SEED = 42
TRAIN = "tydiqa-goldp-v1.1-train"
DEV = "tydiqa-goldp-v1.1-dev.json"


@dataclass(frozen=True)
class Template:
    with_passage: str
    without_passage: str
    passage: str
    question: str
    answer: str


_TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
TEMPLATES = {language: Template(**texts) for language, texts in _TEXTS.items()}


@dataclass(frozen=True)
class Question:
    id: str
    language: str
    context: str
    question: str
    answers: tuple[str, ...]


@dataclass(eq=False, kw_only=True)
class TyDiQA(Benchmark):
    """`tydiqa-goldp-v1.1-{train,dev}.json`; metrics `f1` and `exact_match`, means over languages.

    A train file that is a declared subset (`tydiqa-goldp-v1.1-train.<languages>.json`) serves as
    well; the languages that it lacks are asked without shots, and `partial` says so.

    Args:
        tokenizer: cuts the passages; needed where one may be longer than `max_context_tokens`.
        shots: examples per language, drawn from train.
        context: with the passage, else the question alone.
        max_context_tokens: longest passage, specials included; 0 never cuts.
    """

    name = "tydiqa"
    metrics = (Metric("f1", "TyDiQA F1"), Metric("exact_match", "TyDiQA EM"))
    setting = "1-shot, GP"

    shots: NonNegativeInt = 1
    context: bool = True
    max_context_tokens: NonNegativeInt = 512

    def __post_init__(self) -> None:
        dev = read_questions(require(self.data_dir / DEV, "the questions of TyDiQA"))
        demonstrations, lacking = draw_shots(self.data_dir, {q.language for q in dev}, self.shots)
        questions, self.partial = self.selection.apply(dev, lambda q: q.language, self.name)
        languages = {q.language for q in questions}
        if without := sorted(languages & lacking):
            reason = f"no shots for {', '.join(without)}: the train file lacks them"
            self.partial = "; ".join(filter(None, (self.partial, reason)))
        if self.context:
            limits = self.tokenizer, self.max_context_tokens
            questions = cut_passages(questions, *limits)
            demonstrations = {k: cut_passages(demonstrations[k], *limits) for k in languages}
        self.examples = questions
        # In chat mode EOS is the only stop.
        decoding = Decoding(max_tokens=50, stop=() if self.chat else ("\n",))
        self.requests = []
        for question in questions:
            prompt = render(question, demonstrations[question.language], self.context)
            cue = TEMPLATES[question.language].answer
            prompt = chat_prompt(prompt, cue) if self.chat else prompt + cue
            self.requests.append(Request(question.id, prompt, decoding))

    @staticmethod
    def group_of(record_id: str) -> str:
        """The language."""
        return record_id.partition("-")[0]

    def judge(self, example: Question, output: str) -> tuple[str, list[str], dict[str, float]]:
        """As SQuAD v1.1 does."""
        parsed, answers = output.strip(), list(example.answers)
        equal = normalize(parsed) in map(normalize, answers)
        scores = {"f1": max(f1(parsed, answer) for answer in answers), "exact_match": float(equal)}
        return parsed, answers, scores


def render(question: Question, shots: Sequence[Question], context: bool) -> str:
    """Instruction, shots and question; ends in a newline, before the answer's label."""
    template = TEMPLATES[question.language]

    def ask(q: Question) -> str:
        passage = f"{template.passage} {q.context}\n" if context else ""
        return f"{passage}{template.question} {q.question}\n"

    instruction = template.with_passage if context else template.without_passage
    examples = [f"{ask(shot)}{template.answer} {shot.answers[0]}\n\n" for shot in shots]
    return f"{instruction}\n\n{''.join(examples)}{ask(question)}"


def cut_passages(questions: Sequence[Question], tokenizer: Any, max_tokens: int) -> list[Question]:
    """The questions with passages of at most `max_tokens`, special tokens included."""
    doubtful = dict.fromkeys(
        q.context for q in questions if max_tokens and may_exceed(q.context, max_tokens)
    )
    if not doubtful:
        return list(questions)
    if tokenizer is None:
        raise UserError(f"tydiqa cuts passages to {max_tokens} tokens: pass the model's tokenizer.")
    encoded = tokenizer(list(doubtful)).input_ids
    # Decoding keeps the specials: with LLaMA a cut passage starts with a literal "<s>", may end in
    # U+FFFD, and is encoded again inside the prompt, "<s>" as BOS. Passages short enough are never
    # decoded.
    cut = {
        context: tokenizer.decode(ids[:max_tokens])
        for context, ids in zip(doubtful, encoded, strict=True)
        if len(ids) > max_tokens
    }
    return [replace(q, context=cut.get(q.context, q.context)) for q in questions]


def draw_shots(
    data_dir: Path, languages: set[str], shots: int
) -> tuple[dict[str, list[Question]], set[str]]:
    """Draw each language's examples from train with one generator, the languages sorted.

    Returns:
        Examples per language, and the languages of which a subset of train has none.
    """
    if not shots:
        return {language: [] for language in languages}, set()
    path, whole = find_train(data_dir)
    pool: dict[str, list[Question]] = {language: [] for language in sorted(languages)}
    for question in read_questions(path):
        if question.language in pool:
            pool[question.language].append(question)
    lacking = {language for language, rows in pool.items() if not rows and not whole}
    generator = random.Random(SEED)
    for language in sorted(languages - lacking):
        if len(pool[language]) < shots:
            raise DataError(
                path, None, f"{len(pool[language])} {language} rows for tydiqa.shots={shots}."
            )
        pool[language] = generator.sample(pool[language], shots)
    return pool, lacking


def find_train(data_dir: Path) -> tuple[Path, bool]:
    """The train file, and whether it is the whole of it."""
    if (path := data_dir / f"{TRAIN}.json").exists():
        return path, True
    subsets = sorted(data_dir.glob(f"{TRAIN}.*.json"))
    if len(subsets) != 1:
        found = ", ".join(subset.name for subset in subsets) or "none"
        raise MissingFileError(
            f"{path} does not exist; expected it, or one subset {TRAIN}.<languages>.json (found"
            f" {found}), for the few-shot examples. tydiqa.shots=0 needs neither."
        )
    return subsets[0], False


def read_questions(path: Path) -> list[Question]:
    """All questions of a GoldP file in its order; the language is the id up to the first "-"."""
    table = read_json(path)
    questions = []
    try:
        for article in table["data"]:
            for paragraph in article["paragraphs"]:
                questions += [_question(qa, paragraph["context"], path) for qa in paragraph["qas"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            path,
            None,
            f"not in the GoldP layout after {len(questions)} questions: {error!r}; expected"
            " data[].paragraphs[].{context, qas[].{id, question, answers[].text}}.",
        ) from error
    if not questions:
        raise DataError(path, None, "no questions in it.")
    return questions


def _question(qa: Mapping[str, Any], context: str, path: Path) -> Question:
    check_fields({**qa, "context": context}, ("id", "question", "context"), path, None)
    language = TyDiQA.group_of(qa["id"])
    answers = tuple(answer["text"] for answer in qa["answers"])
    if language not in TEMPLATES:
        raise DataError(path, None, f"{qa['id']}: no prompt for language {language!r}.")
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(path, None, f"{qa['id']}: no answer text.")
    return Question(qa["id"], language, context, qa["question"], answers)


def f1(prediction: str, answer: str) -> float:
    """Token F1; 0 if both are empty, although their exact match is then 1."""
    predicted, expected = normalize(prediction).split(), normalize(answer).split()
    common = (Counter(predicted) & Counter(expected)).total()
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles (in any language), single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare(text)).split())
