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
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from mos.config import TrainConfig, load_config
from mos.console import is_main_process, say
from mos.errors import UserError
from mos.files import read_json, write_atomically, write_json

SCHEMA = 1
STATUSES = ("new", "running", "interrupted", "trained", "evaluated", "failed")


class State(NamedTuple):
    """The progress of a run.

    Attributes:
        status: one of `STATUSES`.
        reason: why the run failed or stopped, or what is left to do; may be empty.
    """

    status: str
    reason: str = ""


class Run:
    """A run folder, new or existing.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / ".lock")

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
    def manifest(self) -> dict[str, Any]:
        return _read_json(self.path / "manifest.json")

    @property
    def results(self) -> dict[str, Any]:
        return _read_json(self.path / "results.json")

    @property
    def state(self) -> State:
        """What status.json says; "interrupted" if it says "running" and no process holds the lock.

        Raises:
            UserError: status.json is damaged.
        """
        file = self.path / "status.json"
        recorded = _read_json(file)
        state = State(recorded.get("status", "new"), recorded.get("reason", ""))
        if state.status not in STATUSES or not isinstance(state.reason, str):
            raise UserError(f"{file} names no known status ({state.status!r}): was it edited?")
        if state.status == "running" and not self.busy:
            return State("interrupted", state.reason or "its process was killed")
        return state

    @property
    def status(self) -> str:
        return self.state.status

    @property
    def trained(self) -> bool:
        """Whether training has ended and its adapter is on disk; says nothing of the evaluation."""
        return "method" in self.manifest

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do and results.json is there."""
        status = self.status
        asks_for_no_more = status == "trained" and not self.config.eval.benchmarks
        if status != "evaluated" and not asks_for_no_more:
            return False
        return bool(self.results) and self.results_fault is None

    @property
    def results_fault(self) -> str | None:
        """Why results.json cannot be trusted: it, or what it was made of, was changed since."""
        from eval.results import is_edited, read_result, results_entry

        results = self.results
        if is_edited(results):
            return "was edited"
        for name, entry in results.get("metrics", {}).items():
            folder = self.path / "eval" / name
            result = read_result(folder) if folder.is_dir() else None
            if folder.is_dir() and (result is None or results_entry(result) != entry):
                return f"does not say what {folder.relative_to(self.path)} says"
        return None

    @property
    def busy(self) -> bool:
        """Whether a process works on this run now. Asking writes nothing."""
        lock = self.path / ".lock"
        if not lock.is_file():
            return False
        with lock.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
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
            # A process that only asks whether the run is busy holds the lock for an instant.
            self._lock.acquire(timeout=-1 if wait else 0.5)
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
            self._lock.release()

    def set_status(self, status: str, reason: str = "") -> None:
        """Record running, trained, evaluated, interrupted, or failed with the reason."""
        self._write_json(
            "status.json",
            {
                "status": status,
                "reason": reason,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )

    def update_manifest(self, **entries: Any) -> None:
        """Add or replace top-level entries of manifest.json."""
        self._write_json("manifest.json", {**self.manifest, **entries})

    def write_config(self, config: TrainConfig) -> None:
        self.__dict__.pop("config", None)
        text = OmegaConf.to_yaml(OmegaConf.create(config.dump()))
        write_atomically(self.path / "config.yaml", text)

    def write_results(self, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Write results.json (schema 1) from the manifest and the metrics of each benchmark.

        Metrics of other benchmarks that it has already are kept, unless it was edited.
        """
        from eval.results import is_edited, read_result, results_entry, sealed

        config, manifest, earlier = self.config, self.manifest, self.results
        if is_edited(earlier):
            say(f"{self.path / 'results.json'} was edited; it is written again")
            folders = [f for f in (self.path / "eval").glob("*") if "." not in f.name]
            found = {folder.name: read_result(folder) for folder in folders}
            earlier = {"metrics": {k: results_entry(r) for k, r in found.items() if r}}
        results = {
            "schema": SCHEMA,
            "run_id": self.id,
            "experiment": config.experiment,
            "scale": config.scale.name,
            "model": config.model.name,
            "method": manifest["method"],
            "seed": config.seed,
            "train": manifest["train"],
            "metrics": {
                **earlier.get("metrics", {}),
                **{k: dict(v) for k, v in metrics.items()},
            },
        }
        results = sealed(results)
        self._write_json("results.json", results)
        return results

    def set_aside(self) -> Path | None:
        """Move what an existing run wrote to a folder beside it, and return that folder."""
        if not (self.path / "status.json").is_file():
            return None
        kept = self.path.with_name(f"{self.path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        kept.mkdir()
        for item in self.path.iterdir():
            if item.name != ".lock":
                shutil.move(item, kept / item.name)
        return kept

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        if is_main_process():
            write_json(self.path / name, content)


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a file of a run; {} where there is none."""
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise UserError(
            f"{file} is damaged ({error}): was it edited? Restore it, or set overwrite=true."
        ) from error
    return content
