"""What a benchmark is: prompts with their decoding settings, and a score for the outputs.

A benchmark knows nothing of engines, models or adapters; an engine knows nothing of benchmarks.
"""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from eval.scoring import Score, check_outputs, macro, micro
from eval.selection import ALL, Selection
from mos.data.chat import Message, render_chat


def chat_prompt(content: str, cue: str) -> str:
    """A user turn in the Tulu chat text, the assistant's header, and the start of its answer."""
    turn = Message(role="user", content=content)
    return render_chat([turn], add_generation_prompt=True) + cue


def may_exceed(text: str, tokens: int) -> bool:
    """Whether `text` might encode to more than so many tokens; False is certain.

    A token covers at least one byte; a BOS, an EOS and a sentencepiece space may come on top.
    """
    return len(text.encode("utf-8", "surrogatepass")) + 3 > tokens


@dataclass(frozen=True)
class Decoding:
    """How an engine answers a prompt.

    Attributes:
        max_tokens: longest output, in tokens.
        temperature: 0 is greedy.
        top_p: nucleus mass, in (0, 1].
        stop: texts at which the output is cut (the text itself is left out).
        n: outputs per prompt.
        choices: if given, nothing is generated: the answer is the choice whose last token has the
            largest logit at the position after the prompt; the first one wins ties.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    n: int = 1
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One prompt (text; the tokenizer adds its own BOS) under an id unique in its benchmark."""

    id: str
    prompt: str
    decoding: Decoding

    @property
    def prompt_sha256(self) -> str:
        return hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).hexdigest()

    def record(
        self, output: Any, parsed: Any, target: Any, scores: dict[str, float]
    ) -> dict[str, Any]:
        """What is kept of one example; `scores` are in 0..1 under the metrics' names."""
        return {
            "id": self.id,
            "prompt_sha256": self.prompt_sha256,
            "output": output,
            "parsed": parsed,
            "target": target,
            "scores": scores,
        }


@dataclass(frozen=True)
class Completion:
    """What an engine gave back for one request.

    Attributes:
        texts: `n` outputs; for a choice, the chosen one, stripped ("A").
        finish_reasons: one per output: "stop" (EOS or a stop text), "length" (truncated), "choice".
        prompt_tokens: length of the encoded prompt, specials included.
        output_tokens: one per output.
        logprobs: for a choice, the log-probability of every choice in their order.
        tied: for a choice, whether another choice has the winner's logit.
    """

    texts: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    prompt_tokens: int
    output_tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    tied: bool = False


@dataclass(frozen=True)
class Metric:
    """A metric that every result of a benchmark has.

    Attributes:
        name: as in records and results ("exact_match").
        title: of its column in tables ("MMLU EM").
    """

    name: str
    title: str


@dataclass(eq=False)
class Benchmark(ABC):
    """Prompts of a benchmark, and their scores. All that the program knows of it is said here.

    A subclass is a keyword-only dataclass whose fields are the benchmark's options, the keys of
    `configs/eval/<name>.yaml`; its `__post_init__` reads the examples and makes the requests, its
    `judge` scores an example. One that `runs_code` has the option `allow_code_execution`.

    Args:
        data_dir: the benchmark's folder.
        tokenizer: of the model that is asked.
        selection: which examples.
        chat: prompts are the Tulu chat text, else bare.

    Attributes:
        name: the benchmark's name in configs and results.
        metrics: the metrics that every result has, in the order of the tables' columns.
        setting: how the examples are asked ("3-shot"), as the tables print it in parentheses.
        runs_code: whether scoring runs programs that the model wrote, which the user must allow.
        requests: one per example, in the order in which `score` expects the outputs.
        examples: what the requests were made of, in the same order: dataclasses.
        partial: why these are not all examples of the benchmark (a limit, some tasks), or "".
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    setting: ClassVar[str]
    runs_code: ClassVar[bool] = False

    data_dir: Path
    tokenizer: Any = None
    selection: Selection = ALL
    chat: bool = field(default=True, kw_only=True)
    requests: list[Request] = field(init=False, repr=False)
    examples: list[Any] = field(init=False, repr=False)
    partial: str = field(default="", init=False)

    @staticmethod
    def group_of(record_id: str) -> str:
        """The group of an example where a metric is the mean of its groups' means, else ""."""
        return ""

    def check_ready(self) -> None:  # noqa: B027
        """Raise a `UserError` if outputs could not be scored; to be asked before generating."""

    def judge(self, example: Any, output: str) -> tuple[Any, Any, dict[str, float]]:
        """What an output comes to: what was read from it, the target, scores in 0..1 by metric."""
        raise NotImplementedError

    def score(self, outputs: Sequence[Any]) -> Score:
        """Score outputs given in the order of `requests`.

        Each output is a string (for choices, the chosen letter). A benchmark whose outputs are
        lists of strings, or are scored together, has its own `score`.

        Raises:
            UserError: an output is missing, or is none.
        """
        check_outputs(self.requests, outputs)
        records = [
            request.record(output, *self.judge(example, output))
            for request, example, output in zip(self.requests, self.examples, outputs, strict=True)
        ]
        grouped = type(self).group_of is not Benchmark.group_of
        return macro(records, self.group_of) if grouped else micro(records)

    def only(self, position: int) -> Self:
        """The benchmark of one of its examples alone."""
        alone = copy(self)
        alone.requests, alone.examples = [self.requests[position]], [self.examples[position]]
        return alone

    def prompts_sha256(self) -> str:
        """One hash over every id, prompt and decoding setting, in order."""
        digest = hashlib.sha256()
        for request in self.requests:
            digest.update(f"{request.id}\0{request.prompt_sha256}\0{request.decoding}\n".encode())
        return digest.hexdigest()
