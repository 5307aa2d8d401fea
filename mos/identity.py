"""What a run is identified by: a hash of everything that shapes its result.

Paths, devices and logging are not part of it; data, models and benchmarks are, by their content.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mos.config import TrainConfig
from mos.data.corpora import listed
from mos.data.fetch import is_on_hub
from mos.files import fingerprint, hash_json, source_hash
from mos.run import Run

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
    """The run that a validated config asks for; nothing is created.

    Args:
        config: from `mos.config.validate`.
    """
    from mos.methods import rank, row_label

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
