"""The processes of a run: those of a launcher, of which the first decides and writes; the one that
trains in the place of the one that was started; the one that evaluates.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from mos.config import TrainConfig
from mos.console import INTERRUPTED, STOP_SIGNALS
from mos.errors import UserError

LAUNCHER = ["RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "TORCHELASTIC_", "ACCELERATE_"]
# What a launcher may have a handler for that puts its job back into the queue (submitit: SIGUSR2).
REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (*STOP_SIGNALS, *REQUEUE_SIGNALS)


def check_sharding(config: TrainConfig, device: str) -> None:
    """Refuse what cannot be trained with weights in shards, as `accelerate launch` asks for it."""
    deepspeed, fsdp = (
        os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"
        for name in ("DEEPSPEED", "FSDP")
    )
    if deepspeed:
        raise UserError("DeepSpeed is not supported: use configs/accelerate/fsdp.yaml or ddp.yaml.")
    bits, optim = config.quantization.bits, getattr(config.trainer, "optim", "adamw_torch")
    if fsdp and bits is not None:
        raise UserError(
            f"FSDP with quantization.bits={bits}: quantised weights are not trained in shards. Use"
            " quantization=none, or configs/accelerate/ddp.yaml: the whole model on each GPU."
        )
    if fsdp and device == "cpu":
        raise UserError("FSDP shards weights over GPUs, and the device is the CPU.")
    # Nobody has seen whether bitsandbytes' kernels know a shard from a whole tensor, or whether
    # the state of others comes back from a checkpoint.
    if fsdp and optim not in ("adamw_torch", "adamw_torch_fused"):
        raise UserError(f"FSDP with trainer.optim={optim}: use trainer.optim=adamw_torch.")


def agreed(decision: bool, device: str) -> bool:
    """What the main process decided, in every process. All must call this, once."""
    PartialState(cpu=device == "cpu")  # joins the others on the first call
    box = [decision]
    broadcast_object_list(box)
    return box[0]


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. All must call this, after `agreed`."""
    return any(gather_object([flag]))


def in_own_process(work: Callable[..., None], *args: Any) -> None:
    """Call `work(*args)` in a new process, which takes with it what it held on a GPU.

    It gets the signals that stop or requeue a job from here, and dies with this process. `work` is
    importable, and its arguments are picklable.

    Raises:
        UserError: the process was killed.
        BaseException: whatever `work` raises, KeyboardInterrupt included.
    """
    earlier = set(multiprocessing.active_children())
    # The new process inherits the mask: signals wait for its handlers, and for those here.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            done = pool.submit(_begin, work, args)
            (child,) = set(multiprocessing.active_children()) - earlier

            def pass_on(number: int, frame: Any) -> None:
                if child.pid and child.is_alive():
                    os.kill(child.pid, number)

            with signals_taken(pass_on):
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                done.result()
    except BrokenProcessPool as error:
        code = child.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        raise UserError(
            f"the process that trains ended without a word ({how}; SIGKILL is what a machine sends"
            " that is out of memory). What was finished is kept; the same command continues."
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin(work: Callable[..., None], args: tuple[Any, ...]) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, _interrupt)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        work(*args)
    except BaseException as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # one of a library, which could not tell the parent anything
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
    finally:
        for number in SIGNALS:  # nothing is left to stop but the answer
            signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: Any) -> None:
    if not _is_echo(number):
        raise KeyboardInterrupt


_accepted: dict[int, float] = {}


def _is_echo(number: int) -> bool:
    """Whether a signal came already, within a second.

    Who signals all processes of a job, as Ctrl-C does, reaches this one and the parent, which
    passes it on.
    """
    now = time.monotonic()
    if now - _accepted.get(number, -math.inf) < 1:
        return True
    _accepted[number] = now
    return False


def _die_with_parent() -> None:
    """Without it, another process could take up the run, whose lock the parent held."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def signals_taken(receive: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `receive` handle the signals that stop or requeue a job while the body runs.

    A launcher that requeues its job by a handler of its own has it called with its signal once the
    body has ended by KeyboardInterrupt.

    Raises:
        UserError: the launcher refuses to requeue the job.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    handlers: dict[int, Any] = {}
    received = set()

    def handle(number: int, frame: Any) -> None:
        if not _is_echo(number):
            received.add(number)
            receive(number, frame)

    for number in SIGNALS:
        handler = signal.getsignal(number)
        nohup = number == signal.SIGHUP and handler == signal.SIG_IGN
        if callable(handler) or (number in STOP_SIGNALS and not nohup):
            handlers[number] = signal.signal(number, handle) or signal.SIG_DFL
    try:
        try:
            yield
        finally:
            for taken, handler in handlers.items():
                signal.signal(taken, handler)
    except KeyboardInterrupt as stop:
        for asked in received.intersection(REQUEUE_SIGNALS):
            if handlers[asked] is _interrupt:  # the launcher is the parent's
                continue
            try:
                handlers[asked](asked, None)
            except Exception as error:  # it was requeued too often
                raise UserError(f"{stop}. {error}") from error
        raise


def evaluate_apart(arguments: Sequence[str]) -> None:
    """`mos evaluate` in a process of its own: vLLM takes all of the memory, and may die with it.

    Raises:
        KeyboardInterrupt: a signal stopped it.
        UserError: it ended otherwise than well, and has said why.
    """
    command = [sys.executable, "-m", "mos.evaluate", *arguments]
    # It is no part of a launcher's job.
    plain = {k: v for k, v in os.environ.items() if not k.startswith(tuple(LAUNCHER))}
    with subprocess.Popen(command, env=plain) as evaluation:
        try:
            code = evaluation.wait()
        except BaseException:
            evaluation.terminate()
            evaluation.wait()  # it keeps what it has, and ends its engine
            raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt("the evaluation was stopped by a signal")
    if code:
        raise UserError(
            f"the evaluation stopped (exit status {code}). What was trained and answered is kept;"
            " the same command continues from there."
        )
