"""Batches of encoded rows: right padding, or packed rows with their positions."""

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
    pad token. Packed rows carry `position_ids` and get no attention mask: without one, and without
    a key-value cache, the model takes every restart of the positions for a new sequence and lets
    none attend to another.

    Attributes:
        pad_token_id: for `input_ids`.
    """

    pad_token_id: int

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch rows of one kind; tensors are (rows, longest), int64."""
        packed = "position_ids" in features[0]
        names = ("input_ids", "labels", "position_ids" if packed else "attention_mask")
        fill = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "attention_mask": 0}
        longest = max(len(feature["input_ids"]) for feature in features)
        batch: dict[str, Any] = {"use_cache": False} if packed else {}
        for name in names:
            rows = torch.full((len(features), longest), fill.get(name, 0), dtype=torch.int64)
            for row, feature in zip(rows, features, strict=True):
                values = torch.as_tensor(feature[name])
                row[: len(values)] = values
                if name == "position_ids":  # the padding is one more sequence of its own
                    row[len(values) :] = torch.arange(longest - len(values))
            batch[name] = rows
        return batch
