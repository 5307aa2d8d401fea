"""Packing several examples into one row; a departure from the paper, off by default.

Positions start over at every example. Without an attention mask and a key-value cache, transformers
derives from them a block-diagonal causal mask (eager, sdpa, flex attention), so that no example
attends to another. Flash attention honours them in batches of one row only: do not pack with it.
The first label of every example is masked: predicting it is the last token of its neighbour's job.
With packing the loss averages over the tokens of more examples a row, so that batch sizes and
step counts of the paper no longer mean the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from mos.data.chat import IGNORE_INDEX

_LIST = pa.list_(pa.int32())
PACKED_SCHEMA = pa.schema(
    {"input_ids": _LIST, "labels": _LIST, "position_ids": _LIST, "length": pa.int32()}
)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: positions of examples, grouped so that no group exceeds `capacity`.

    Deterministic; ties keep their order. `lengths` must not exceed `capacity`.
    """
    sizes = np.asarray(lengths)
    packs: list[list[list[int]]] = [[] for _ in range(capacity + 1)]  # by room left
    rooms = 0  # bit r is set where packs[r] holds one
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        if enough := rooms >> size:
            room = size + (enough & -enough).bit_length() - 1  # the tightest fit
            group = packs[room].pop()
            if not packs[room]:
                rooms ^= 1 << room
        else:
            room, group = capacity, []
        group.append(index)
        packs[room - size].append(group)
        rooms |= 1 << (room - size)
    return sorted(group for same_room in packs for group in same_room)


def packed_batches(
    table: pa.Table, groups: Sequence[Sequence[int]], batch_size: int = 256
) -> Iterator[pa.RecordBatch]:
    """Arrow batches of packed rows: input_ids, labels, position_ids, length.

    Args:
        table: columns input_ids and labels (lists of int32), memory-mapped or not.
        groups: which rows of `table` make each packed row.
        batch_size: packed rows per batch.
    """
    for start in range(0, len(groups), batch_size):
        chosen = groups[start : start + batch_size]
        rows = table.take([index for group in chosen for index in group]).combine_chunks()
        ids = rows["input_ids"].chunk(0)
        row_lengths = np.diff(ids.offsets.to_numpy())
        starts = np.cumsum(row_lengths) - row_lengths
        labels = rows["labels"].chunk(0).flatten().to_numpy().copy()
        labels[starts] = IGNORE_INDEX
        positions = np.arange(len(labels), dtype=np.int32) - np.repeat(starts, row_lengths)
        counts = np.array([len(group) for group in chosen])
        ends = np.cumsum(row_lengths)[np.cumsum(counts) - 1]
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        yield pa.record_batch(
            [
                pa.ListArray.from_arrays(offsets, values)
                for values in (
                    ids.flatten(),
                    pa.array(labels),
                    pa.array(positions.astype(np.int32)),
                )
            ]
            + [pa.array(np.diff(offsets))],
            schema=PACKED_SCHEMA,
        )
