"""Several engines at once on one machine: a process each, with GPUs of its own."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mos.console import INTERRUPTED, exit_on_user_error, label_lines, signals_interrupt
from mos.errors import LeftOutError, UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def evaluate_at_once(
    evaluate: Callable[[Mapping[str, Any]], object],
    options: Mapping[str, Any],
    engines: int,
    gpus_each: int,
) -> None:
    """Let each of several processes evaluate its shard of every benchmark.

    Args:
        evaluate: what a process does with its `options`; importable.
        options: configs/evaluate.yaml, resolved. A process gets them with one engine and a `shard`
            of its own, of so many more `shards`.
        engines: how many processes.
        gpus_each: how many of the visible GPUs each of them sees; there are enough, or none.

    Raises:
        UserError: one of them did not get to its end; the others did.
    """
    there = [str(number) for number in range(torch.cuda.device_count())]
    visible = os.environ.get(VISIBLE)
    gpus = visible.split(",") if visible else there
    context = multiprocessing.get_context("spawn")
    processes = []
    for number in range(engines):
        own = {
            **options,
            "shard": options["shard"] * engines + number,
            "shards": options["shards"] * engines,
            "eval": {**options["eval"], "data_parallel": 1},
        }
        process = context.Process(target=_engine, args=(evaluate, own, f"[{number + 1}] "))
        if there:
            os.environ[VISIBLE] = ",".join(gpus[number * gpus_each :][:gpus_each])
        process.start()
        processes.append(process)
    if there:
        os.environ[VISIBLE] = ",".join(gpus)
    try:
        for process in processes:
            process.join()
    except BaseException:
        for process in processes:
            process.terminate()  # it keeps what it has, and ends its engine
        raise
    statuses = [process.exitcode for process in processes]
    if stopped := set(statuses) - {0, LeftOutError.exit_status}:
        raise UserError(
            f"{sum(status in stopped for status in statuses)} of {engines} engines stopped (exit"
            f" statuses {statuses}); what was answered is kept, and the same command continues."
        )


def _engine(evaluate: Callable[[Any], object], options: Mapping[str, Any], label: str) -> None:
    label_lines(label)
    signals_interrupt()
    try:
        with exit_on_user_error():
            evaluate(options)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
