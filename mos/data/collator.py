"""Batches of encoded rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mos.data.chat import IGNORE_INDEX


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right to the longest of the batch (protocol section 8).

    Labels are padded with -100 by position, so that an EOS stays supervised where it is also the
    pad token.

    Attributes:
        pad_token_id: for `input_ids`.
    """

    pad_token_id: int

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Batch rows; the tensors are (rows, longest), int64."""
        longest = max(len(feature["input_ids"]) for feature in features)
        fill = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "attention_mask": 0}
        batch = {}
        for name, value in fill.items():
            batch[name] = torch.full((len(features), longest), value, dtype=torch.int64)
            for row, feature in zip(batch[name], features, strict=True):
                row[: len(feature[name])] = torch.as_tensor(feature[name])
        return batch
