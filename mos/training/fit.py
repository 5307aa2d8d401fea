"""From a validated config to a trained adapter in the run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase, set_seed

from eval.engines import products_in
from mos.adapters import rank, row_label
from mos.config import TrainConfig
from mos.console import is_main_process, say, working
from mos.data.chat import CHAT_TEMPLATE_FILE, chat_template
from mos.data.dataset import load_training_data
from mos.evaluation.jobs import build_benchmarks, settings_for
from mos.evaluation.subjects import adapter_hash, write_origin
from mos.files import (
    as_readable,
    beside,
    fingerprint,
    read_json,
    set_aside,
    source_hash,
    write_json,
)
from mos.models.card import CARD, write_card
from mos.models.loading import load_base, load_tokenizer, with_adapter
from mos.models.sources import resolve_model
from mos.preflight import choose_device
from mos.run import Run, describe_environment, model_identity, peak_memory_bytes
from mos.training.checkpoints import newest_valid
from mos.training.distributed import check_sharding
from mos.training.heldout import HeldOut, write_heldout
from mos.training.trainer import (
    CrashSafeTrainer,
    StopOnSignal,
    build_trainer,
    training_arguments,
)


def describe(config: TrainConfig, run: Run) -> tuple[Path, PreTrainedTokenizerBase]:
    """Note in the manifest what a run is made with; returns the model's folder and tokenizer."""
    model_dir = resolve_model(config.model.path, config.paths.cache_dir, config.model.revision)
    tokenizer = load_tokenizer(model_dir, config.model.pad_token)
    if config.eval.benchmarks and not config.eval.defer:
        settings_for(config.eval, config.quantization, config.device, model_dir)
    prompts = {
        name: benchmark.prompts_sha256()
        for name, benchmark in build_benchmarks(config.eval, tokenizer).items()
    }
    run.update_manifest(
        **describe_environment(),
        model={"path": config.model.path, "identity": model_identity(config)},
        prompts_sha256=prompts,
        benchmarks_sha256={
            name: source_hash(options.data_dir, config.paths.cache_dir)
            for name, options in config.eval.benchmarks.items()
        },
    )
    return model_dir, tokenizer


def record_bare(config: TrainConfig, run: Run) -> None:
    """What `fit` leaves, for a model without an adapter."""
    describe(config, run)
    record(config, run, trainable=0, train=None)


def fit(config: TrainConfig, run: Run) -> None:
    """Train the adapter that `config` describes, continuing from the newest whole checkpoint.

    Leaves `adapter/` and the manifest's `train` and `method`.

    Raises:
        UserError: unusable data, weights or settings, before the model is loaded.
    """
    device = choose_device(config)
    check_sharding(config, device)
    arguments = training_arguments(config, run, device)
    model_dir, tokenizer = describe(config, run)
    state = PartialState(cpu=device == "cpu")
    with state.main_process_first():
        with working(f"data: {config.data.corpus} from {config.data.source}"):
            options = config.data.dump()
            data = load_training_data(tokenizer, cache_dir=config.paths.cache_dir, **options)
        for line in data.summary():
            say(f"data: {line}")
        checkpoint = newest_valid(run.checkpoint_dir)
    run.update_manifest(data={"sha256": data.fingerprint, "statistics": data.statistics})
    set_seed(config.seed)
    quantization = config.quantization.dump()
    with working(f"model: loading {config.model.name}"):
        base = load_base(model_dir, quantization, state.device)
        model: Any = with_adapter(base, quantization, config.adapter.dump())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    products = products_in(config.quantization.compute_dtype, device)
    say(
        f"model: {config.model.name}, {trainable:,} trainable parameters, on {device} in {products}"
    )
    run.update_manifest(products=products)
    stop = StopOnSignal(run)
    patience = config.trainer.early_stopping_patience
    trainer = build_trainer(model, tokenizer, data, arguments, run, stop, patience)
    with stop.listening(), closing(trainer.progress):
        train, losses = run_trainer(trainer, run, checkpoint)
        rows = data.eval
        if data.test is not None:
            rows, losses = data.test, trainer.measure(data.test)
    save_adapter(trainer, run.adapter_dir)
    base_sha256 = fingerprint(model_dir, config.paths.cache_dir)
    if is_main_process():
        write_origin(run.adapter_dir, config, base_sha256)
    if losses is not None and is_main_process():
        write_heldout(run.path, rows, losses, config.data.dump())
    record(config, run, trainable, train, n_blocks=model.config.num_hidden_layers)
    if is_main_process():
        if losses is not None:
            run.write_results()
        write_card(run)


def run_trainer(
    trainer: CrashSafeTrainer, run: Run, checkpoint: Path | None
) -> tuple[dict[str, Any], HeldOut | None]:
    """Train to the end, from a checkpoint if there is one, and measure the held-out loss.

    Returns the `train` entry of results.json, and the losses of the held-out examples, if any.
    """
    if checkpoint is None:
        trainer.train()
    else:
        say(f"continuing from {checkpoint.name}")
        trainer.args.eval_on_start = False
        if trainer.finished(checkpoint):  # killed before the adapter was written
            trainer.restore(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint))
    seconds = trainer.loss_log.seconds()
    heldout = None if trainer.eval_dataset is None else trainer.measure(trainer.eval_dataset)
    lines = trainer.loss_log.lines(trainer.state)
    logged = [(0, 0.0)] + [(line["step"], line["loss"]) for line in lines if "loss" in line]
    total = sum(loss * (at - since) for (since, _), (at, loss) in pairwise(logged))
    entry = {
        "steps": trainer.state.global_step,
        "train_loss": total / logged[-1][0],
        "eval_loss": heldout.loss if heldout else None,
        "eval_loss_before": next((x["eval_loss"] for x in lines if x["step"] == 0), None),
        "seconds": seconds,
        "tokens_per_second": trainer.state.num_input_tokens_seen / seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "examples": lines[-1]["examples"],
    }
    return entry, heldout


def save_adapter(trainer: CrashSafeTrainer, folder: Path) -> None:
    """Write the adapter (or the fully fine-tuned model) whole, under its final name."""
    with beside(folder) as new:  # of each process; only the main one's gets files
        trainer.save_model(str(new))
        if trainer.args.should_save:
            tokenizer: Any = trainer.processing_class
            (new / CARD).unlink(missing_ok=True)  # PEFT's form to fill in
            (new / CHAT_TEMPLATE_FILE).write_text(chat_template(tokenizer), "utf-8")
            if (config := new / "adapter_config.json").exists():
                # PEFT keeps names in sets, whose order differs from process to process.
                said, of_names = read_json(config), ("target_modules", "exclude_modules")
                said |= {k: sorted(said[k]) for k in of_names if isinstance(said.get(k), list)}
                write_json(config, said)
            as_readable(new)
            if folder.exists():
                set_aside(folder)
            new.rename(folder)
    trainer.accelerator.wait_for_everyone()


def record(
    config: TrainConfig,
    run: Run,
    trainable: int,
    train: dict[str, Any] | None,
    n_blocks: int | None = None,
) -> None:
    """Note in the manifest what results.json says about method and training."""
    adapter, cache_dir = config.adapter.dump(), config.paths.cache_dir
    files = run.adapter_dir.glob("*.safetensors")
    run.update_manifest(
        train=train,
        method={
            "name": adapter["method"],
            "label": row_label(adapter, config.eval.chat),
            "rank": rank(adapter, n_blocks),
            "trainable_parameters": trainable,
            "adapter_bytes": sum(file.stat().st_size for file in files),
            "config": adapter,
        },
        adapter_sha256=adapter_hash(run.adapter_dir, cache_dir) if trainable else None,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


@contextmanager
def tracked(config: TrainConfig, run: Run, group: str | None) -> Iterator[None]:
    """Point trackers at this run, in the group of its sweep, and close them with its outcome."""
    logging = config.logging
    if "tensorboard" in logging.report_to:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "tensorboard")
    if "wandb" not in logging.report_to or not is_main_process():
        yield
        return
    import wandb

    mode: Any = logging.wandb_mode
    if mode == "auto":
        mode = "online" if wandb.api.api_key else "offline"
    tracker = wandb.init(
        project=logging.wandb_project,
        entity=logging.wandb_entity,
        id=run.id,
        name=f"{config.experiment}/{run.path.parent.name}/{run.path.name}",
        group=group,
        mode=os.environ.get("WANDB_MODE", mode),
        dir=str(run.path),
        config=config.dump(),
        resume="allow",
        settings=wandb.Settings(silent=True),
    )
    offline = f"offline; upload with: wandb sync {Path(tracker.dir).parent}"
    say(f"wandb: {f'online, {tracker.url}' if tracker.url else offline}")
    try:
        yield
    except BaseException:
        tracker.finish(exit_code=1)
        raise
    tracker.finish(exit_code=0)
