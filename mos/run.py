"""One run on disk: its identity, state, manifest and results.

    <output_dir>/<experiment>/<adapter label>-<id>/seed<k>/
        config.yaml  manifest.json  status.json  results.json  train.log  loss.jsonl
        checkpoints/  adapter/  eval/<benchmark>/{metrics.json,records.jsonl}

The id is a hash of everything that shapes the result, so the same command finds the same run: it
does nothing if the run is complete, and continues it if it was interrupted. A running process holds
a lock on the folder, which ends with the process: that tells a run at work from a killed one.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout
from omegaconf import OmegaConf

from mos.config import TrainConfig, load_config
from mos.console import is_main_process, say
from mos.errors import UserError
from mos.files import NO_FLOCK, lock_at, name_aside, set_aside, soft_lock, write_atomically
from mos.records import SCHEMA, DamagedError, Manifest, Metrics, Results, Stage, Status


class Run:
    """A run folder, new or existing.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = self.path / ".lock"
        self._lock: BaseFileLock | None = None

    @property
    def id(self) -> str:
        """`<id>-s<seed>`: unique among runs; the id that trackers get."""
        return f"{self.path.parent.name.rsplit('-', 1)[-1]}-{self.path.name}"

    @property
    def name(self) -> str:
        """The last two parts of the path, which tell the run from others of its experiment."""
        return "/".join(self.path.parts[-2:])

    @property
    def adapter_dir(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoint_dir(self) -> Path:
        return self.path / "checkpoints"

    @cached_property
    def config(self) -> TrainConfig:
        """The config that the run was started with.

        Raises:
            UserError: there is none, or it is damaged.
        """
        try:
            return load_config(self.path / "config.yaml")
        except FileNotFoundError:
            raise UserError(f"{self.path} is not a run: it has no config.yaml.") from None

    @property
    def manifest(self) -> Manifest:
        return Manifest.load(self.path) or Manifest()

    @property
    def results(self) -> Results | None:
        return Results.load(self.path)

    @property
    def state(self) -> Status:
        """What status.json says; "interrupted" if it says "running" and no process holds the lock.

        Raises:
            DamagedError: status.json is damaged.
        """
        state = Status.load(self.path) or Status(status="new")
        if state.status == "running" and not self.busy:
            return Status(status="interrupted", reason=state.reason or "its process was killed")
        return state

    @property
    def status(self) -> Stage:
        return self.state.status

    @property
    def trained(self) -> bool:
        """Whether training has ended and its adapter is on disk; says nothing of the evaluation."""
        return self.manifest.method is not None

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do and results.json is there."""
        status = self.status
        asks_for_no_more = status == "trained" and not self.config.eval.benchmarks
        return (status == "evaluated" or asks_for_no_more) and self.results is not None

    @property
    def busy(self) -> bool:
        """Whether a process works on this run now. Asking writes nothing."""
        if holder := soft_lock(self._file).pid:
            status = Status.load(self.path)
            elsewhere = status is not None and status.host != socket.gethostname()
            return elsewhere or Path(f"/proc/{holder}").exists()
        if not self._file.is_file():
            return False
        with self._file.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno not in NO_FLOCK:
                    raise
        return False

    @contextmanager
    def claimed(self, wait: bool = False) -> Iterator[bool]:
        """Lock the run for this process; yields False if another process has it.

        Args:
            wait: for the other process to end.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._lock = self._lock or lock_at(self._file)
            if lock.lock_file != str(self._file):
                say(f"no flock below {self.path}: {lock.lock_file} names the process at work")
            # A process that only asks whether the run is busy holds the lock for an instant.
            lock.acquire(timeout=-1 if wait else 0.5)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path} ({error.strerror}): free some space or choose"
                " another folder with paths.output_dir=..."
            ) from error
        try:
            yield True
        finally:
            lock.release()

    def set_status(self, status: Stage, reason: str = "") -> None:
        """Record running, trained, evaluated, interrupted, or failed with the reason."""
        if is_main_process():
            Status(
                status=status,
                reason=reason,
                host=socket.gethostname(),
                pid=os.getpid(),
                time=datetime.now(UTC).isoformat(timespec="seconds"),
            ).save(self.path)

    def update_manifest(self, **entries: Any) -> None:
        """Add or replace top-level entries of manifest.json."""
        if is_main_process():
            Manifest.model_validate({**self.manifest.content(), **entries}).save(self.path)

    def write_config(self, config: TrainConfig) -> None:
        self.__dict__.pop("config", None)
        text = OmegaConf.to_yaml(OmegaConf.create(config.dump()))
        write_atomically(self.path / "config.yaml", text)

    def write_results(self) -> Results:
        """Write results.json from the config, the manifest and the results in eval/.

        What it says of a benchmark without a folder there stays, unless it is damaged.
        """
        try:
            earlier = self.results
        except DamagedError as error:
            say(f"{error} It is made again.")
            set_aside(self.path / "results.json")
            earlier = None
        config, manifest = self.config, self.manifest
        if manifest.method is None:
            raise UserError(f"{self.path} is not trained yet: it has no results.")
        folders = sorted(f for f in (self.path / "eval").glob("*") if "." not in f.name)
        found = {folder.name: Metrics.whole(folder) for folder in folders}
        scores = {name: result.scores for name, result in found.items() if result}
        results = Results(
            schema=SCHEMA,
            run_id=self.id,
            experiment=config.experiment,
            scale=config.scale.name,
            model=config.model.name,
            method=manifest.method,
            seed=config.seed,
            train=manifest.train,
            metrics={**(earlier.metrics if earlier else {}), **scores},
        )
        if is_main_process():
            results.save(self.path)
        return results

    def set_aside(self) -> Path | None:
        """Move what an existing run wrote to a folder beside it, and return that folder."""
        if not (self.path / "status.json").is_file():
            return None
        kept = name_aside(self.path)
        kept.mkdir()
        # The status last: until then the run is not new, and the next call moves the rest.
        for item in sorted(self.path.iterdir(), key=lambda item: item.name == "status.json"):
            if not item.name.startswith(self._file.name):
                item.rename(kept / item.name)
        return kept
