"""The loss of every held-out example: its mean is logged as eval_loss, all of it is kept.

`eval/heldout` has the form of a benchmark's result, so that tables, paired statistics and claims
can use it: `records.jsonl` with a line an example, `metrics.json` with the means.

Beside the loss stands the exact match: whether each trained token of an example is the likeliest
after those before it. If so, and only then, greedy decoding gives the answer, token by token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy

from eval.results import SCHEMA, Metrics
from eval.scoring import micro
from mos.data.chat import IGNORE_INDEX
from mos.files import hash_json

NAME, EXACT = "heldout", "exact_match"


@dataclass(frozen=True)
class HeldOut:
    """What held-out examples came to, in the order of the data set.

    Attributes:
        step: optimizer steps of the weights that were measured.
        nll: sum of the negative log-likelihoods of an example's trained tokens, in nats.
        tokens: number of these tokens.
        exact: 1 where greedy decoding gives all of them, else 0.
    """

    step: int
    nll: list[float]
    tokens: list[int]
    exact: list[float]

    @property
    def loss(self) -> float:
        """Nats per trained token, over all examples."""
        return sum(self.nll) / sum(self.tokens)

    @property
    def stderr(self) -> float | None:
        """Standard error of `loss`, a ratio of two sums over examples; None for a single one."""
        n = len(self.nll)
        if n < 2:
            return None
        residuals = [x - self.loss * t for x, t in zip(self.nll, self.tokens, strict=True)]
        return math.sqrt(sum(r * r for r in residuals) * n / (n - 1)) / sum(self.tokens)


def example_scores(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """How well a causal language model predicts each row of a padded batch.

    Args:
        batch: input_ids, attention_mask and labels, each (rows, length).

    Returns:
        Sums of negative log-likelihoods, numbers of trained tokens, and 1.0 where each of these is
        the likeliest (else 0.0), each (rows,).
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1]  # (rows, length - 1, vocabulary)
    labels = batch["labels"][:, 1:]  # (rows, length - 1)
    trained = labels != IGNORE_INDEX
    predicted, wanted = logits[trained].float(), labels[trained]  # (trained, vocabulary)
    row, zeros = trained.nonzero()[:, 0], torch.zeros(len(labels), device=logits.device)
    nll = zeros.index_add(0, row, cross_entropy(predicted, wanted, reduction="none"))
    wrong = zeros.index_add(0, row, (predicted.argmax(dim=-1) != wanted).float())
    return nll, trained.sum(dim=1), (wrong == 0).float()


def write_heldout(
    run_dir: Path, rows: Dataset, losses: HeldOut, options: Mapping[str, Any]
) -> Metrics:
    """Write `eval/heldout/` of a run: of its encoded rows, beside the `data` config group."""
    ids = _row_ids(rows)
    exact = micro([{"scores": {EXACT: score}} for score in losses.exact])
    each = zip(ids, losses.nll, losses.tokens, losses.exact, strict=True)
    records = [
        {"id": name, "scores": {"nll": nll, "tokens": tokens, EXACT: score}}
        for name, nll, tokens, score in each
    ]
    result = Metrics(
        schema=SCHEMA,
        benchmark=NAME,
        prompts_sha256=hash_json(ids),
        partial="",
        options=dict(options),
        n=len(ids),
        metrics={"loss": losses.loss, **exact.metrics},
        stderr={"loss": losses.stderr, **exact.stderr},
        lower_is_better=["loss"],
        step=losses.step,
        tokens=sum(losses.tokens),
    )
    return result.write(run_dir / "eval" / NAME, records)


def _row_ids(rows: Dataset) -> list[str]:
    """A row's id is a hash of its tokens and labels, numbered where the same row occurs again."""
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        name = hash_json([row["input_ids"], row["labels"]])[:16]
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return ids
