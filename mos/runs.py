"""One run on disk: its identity, state, manifest and results.

    <output_dir>/<experiment>/<adapter label>-<id>/seed<k>/
        config.yaml  manifest.json  status.json  results.json  train.log  loss.jsonl
        checkpoints/  adapter/  eval/<benchmark>/{metrics.json,records.jsonl}

The id is a hash of everything that shapes the result, so the same command finds the same run:
complete, it does nothing; interrupted, it goes on. A lock that dies with its process tells a run
that is at work from one that was killed.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from mos.errors import UserError
from mos.files import write_atomically

SCHEMA = 1
SET_ASIDE = re.compile(r"\.old-\d{8}-\d{6}$")


class Run:
    """A run folder, new or existing.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / ".lock")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def id(self) -> str:
        """`<id>-s<seed>`: unique among runs; the id that trackers get."""
        return f"{self.path.parent.name.rsplit('-', 1)[-1]}-{self.path.name}"

    @property
    def adapter_dir(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoint_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config that the run was started with."""
        file = self.path / "config.yaml"
        if not file.is_file():
            raise UserError(f"{self.path} is not a run: it has no config.yaml.")
        return OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[return-value]

    @property
    def manifest(self) -> dict[str, Any]:
        return _read_json(self.path / "manifest.json")

    @property
    def results(self) -> dict[str, Any]:
        return _read_json(self.path / "results.json")

    @property
    def status(self) -> str:
        """new, running, trained, evaluated, failed, or interrupted.

        What the file says is checked against the lock: a process that was killed wrote nothing.
        """
        recorded = _read_json(self.path / "status.json").get("status", "new")
        return "interrupted" if recorded == "running" and not self.busy else recorded

    @property
    def reason(self) -> str:
        """Why the run failed or stopped, or ""."""
        return _read_json(self.path / "status.json").get("reason", "")

    @property
    def trained(self) -> bool:
        """Whether training is over and its adapter on disk, whatever became of the evaluation."""
        return "method" in self.manifest

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do: evaluated, with the results that say so."""
        return self.status == "evaluated" and bool(self.results)

    @property
    def busy(self) -> bool:
        """Whether a process works on this run now."""
        if self._lock.is_locked:
            return True
        if not self.path.is_dir():
            return False
        try:
            with FileLock(self.path / ".lock", timeout=0):
                return False
        except Timeout:
            return True

    @contextmanager
    def claimed(self, wait: bool = False) -> Iterator[bool]:
        """Hold the run for this process; yields False if another has it and `wait` is False.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=-1 if wait else 0)
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

    def write_config(self, config: Mapping[str, Any]) -> None:
        write_atomically(
            self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config)))
        )

    def write_results(self, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Write results.json (schema 1) from the manifest and the metrics of each benchmark.

        Benchmarks that were there and are not given stay.
        """
        config, manifest = self.config, self.manifest
        results = {
            "schema": SCHEMA,
            "run_id": self.id,
            "experiment": config["experiment"],
            "scale": config["scale"]["name"],
            "model": config["model"]["name"],
            "method": manifest["method"],
            "seed": config["seed"],
            "train": manifest["train"],
            "metrics": {
                **self.results.get("metrics", {}),
                **{k: dict(v) for k, v in metrics.items()},
            },
        }
        self._write_json("results.json", results)
        return results

    def set_aside(self) -> Path | None:
        """Move an existing run out of the way; returns where it is kept."""
        if not (self.path / "status.json").is_file():
            return None
        kept = self.path.with_name(f"{self.path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        kept.mkdir()
        for item in self.path.iterdir():
            if item.name != ".lock":
                shutil.move(item, kept / item.name)
        return kept

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self._write(name, json.dumps(content, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        # Of the processes of a distributed run, the first one keeps the books.
        if int(os.environ.get("RANK", "0")) == 0:
            write_atomically(self.path / name, text)


def find_runs(patterns: str | Iterable[str]) -> list[Run]:
    """Runs at or below folders and globs, in order of their paths.

    Raises:
        UserError: a pattern under which there is no run.
    """
    runs: dict[Path, Run] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        # Path.glob takes no absolute patterns.
        folders = [Path(p) for p in glob.glob(pattern, recursive=True)]  # noqa: PTH207
        found = {
            file.parent
            for folder in folders
            if folder.is_dir()
            for file in folder.rglob("config.yaml")
        }
        found = {f for f in found if not re.search(r"\.old-\d{8}-\d{6}$", f.name)}
        if not found:
            raise UserError(f"runs={pattern}: no run there (a run is a folder with a config.yaml).")
        runs.update((folder, Run(folder)) for folder in found)
    return [runs[folder] for folder in sorted(runs)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is damaged ({error}): was it edited? Restore it, or set overwrite=true."
        ) from error
