"""Costs of a job or a sweep before anything is loaded: `python -m mos.plan scale=paper`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, PositiveInt

from mos.budget import parameters, show, sized
from mos.cli import command
from mos.config import TrainConfig, resolved, validate
from mos.console import console, note, say
from mos.errors import UserError
from mos.methods import row_label
from mos.plan_tables import GIB, plan_table, total_line
from mos.schema import Strict, check

if TYPE_CHECKING:
    from mos.estimate import Anatomy

BF16 = 2
USERS = 10_000
REFERENCE_RANKS = (16, 64)
GPU_SIZES = (24, 40, 80)  # GB
# The paper's motivation: 3.36 TB for 10,000 users of a 70B model, each with a LoRA of rank 16.
PAPER_FORMULA = "users * rank * blocks * projections * (in + out) * bytes"
PAPER_FACTORS = {
    "users": 10_000,
    "rank": 16,
    "blocks": 80,
    "projections": 4,
    "in + out": 8192 + 8192,
    "bytes": 4,
}
PAPER_ASSUMPTIONS = (
    "Llama2-70B, LoRA on q, k, v, o, each taken as 8192 x 8192 (grouped queries left aside), fp32"
)


def plan(cfg: DictConfig | TrainConfig, users: int = USERS) -> dict[str, Any]:
    """Parameters, bytes and time of one job.

    Args:
        cfg: configs/train.yaml composed with overrides, or what `mos.config.validate` made of it.
        users: how many adapters `serving` counts.

    Returns:
        A JSON-serialisable dict; sizes in bytes, times in seconds.

    Raises:
        UserError: a wrong config, unknown shapes, an adapter that does not fit them.
    """
    from mos.estimate import count, device_of, training_flops

    config = validate(cfg) if isinstance(cfg, DictConfig) else cfg
    adapter = config["adapter"]
    method = adapter["method"]
    anatomy = count(config)
    device = device_of(config)
    memory = _memory(config, anatomy)
    peak = sum(memory.values())
    disk = _disk(config, anatomy)
    rate = device["flops_per_second"]
    lora = anatomy.lora_parameters
    flops = training_flops(config, anatomy) if anatomy.trainable else 0.0
    return {
        "label": row_label(adapter, config["eval"]["chat"]),
        "rank": anatomy.rank,
        "model": config["model"]["name"],
        "scale": config["scale"]["name"],
        "experiment": config["experiment"],
        "base_parameters": anatomy.base,
        "trainable_parameters": anatomy.trainable,
        "adapter_bytes": anatomy.adapter_bytes,
        "lora_bytes": None if lora is None else 4 * lora,
        **memory,
        "peak_memory_bytes": peak,
        "device": device["name"],
        "device_memory_bytes": device["memory_bytes"],
        "device_assumed": device["assumed"],
        "fits": peak <= device["memory_bytes"],
        "disk_bytes": sum(disk.values()),
        "disk": disk,
        "seconds": None if rate is None or flops is None else flops / rate,
        "serving": serving(anatomy, method, users),
        "assumptions": _assumptions(config, device),
    }


def _assumptions(config: TrainConfig, device: Mapping[str, Any]) -> list[str]:
    batch = config["trainer"]["per_device_train_batch_size"]
    rate = device["flops_per_second"]
    speed = f"{rate / 1e12:.3g} TFLOP/s on" if rate else "no rate known for"
    return [
        "adapter_bytes: tensors as training saves them; lora_bytes: as a LoRA in fp32",
        f"memory: batch {batch} x {config['data']['max_seq_length']} tokens at full length;"
        " activations are what autograd saves in one bf16 forward pass; scratch space of kernels,"
        " fragmentation and the CUDA context come on top; paged optimizer state counts as on the"
        " device",
        f"time: training only, all batches at full length; {speed} {device['name']}",
    ]


def _memory(config: TrainConfig, anatomy: Anatomy) -> dict[str, int]:
    """Parts of the peak, in bytes."""
    from mos.activations import activations
    from mos.estimate import optimizer_bytes, weights_bytes

    trainer = config["trainer"]
    full = config["adapter"]["method"] == "full"
    memory = {
        "weights_bytes": weights_bytes(anatomy, config["quantization"]),
        "trainable_bytes": 0 if full else anatomy.trainable_bytes,
        "gradient_bytes": anatomy.trainable_bytes,
        "optimizer_bytes": optimizer_bytes(anatomy, trainer["optim"]),
        "activation_bytes": 0,
        "factor_bytes": 0,
        "dequantization_bytes": 0,
    }
    if anatomy.trainable:
        saved = activations(config, anatomy)
        memory["activation_bytes"] = saved.peak(bool(trainer.get("gradient_checkpointing")))
        if anatomy.materialised:
            # A and B of all layers in the compute type, and their gradients.
            memory["factor_bytes"] = 2 * BF16 * (anatomy.lora_parameters or 0)
    if config["quantization"]["bits"] is not None:
        memory["dequantization_bytes"] = BF16 * anatomy.largest_linear
    return memory


def _disk(config: TrainConfig, anatomy: Anatomy) -> dict[str, int]:
    from mos.estimate import optimizer_bytes

    trainer = config["trainer"]
    checkpoint = anatomy.adapter_bytes + optimizer_bytes(anatomy, trainer["optim"])
    quantised = config["quantization"]["bits"] is not None
    return {
        "adapter": anatomy.adapter_bytes,
        "checkpoints": (trainer.get("save_total_limit") or 1) * checkpoint,
        "dequantized_base_once_per_model": BF16 * anatomy.base if quantised else 0,
    }


def serving(anatomy: Anatomy, method: str, users: int) -> dict[str, Any]:
    """Bytes of `users` adapters in bf16.

    This one with its own parameters and as the LoRA that it computes, LoRAs on all linear layers
    for comparison, and the paper's 3.36 TB with its formula.
    """
    indices = anatomy.adapter_bytes - anatomy.trainable_bytes if method == "mos" else 0
    native = BF16 * anatomy.trainable + indices
    unit = BF16 * anatomy.linear_width
    kinds = {"native": native}
    if anatomy.lora_parameters is not None:
        kinds["as LoRA"] = BF16 * anatomy.lora_parameters
    if anatomy.trainable and anatomy.trainable % anatomy.linear_width == 0:
        budget = anatomy.trainable // anatomy.linear_width
        kinds[f"LoRA of equal budget, rank {budget}"] = budget * unit
    kinds |= {f"LoRA rank {r}": r * unit for r in REFERENCE_RANKS}
    return {
        "users": users,
        "dtype": "bfloat16",
        "formula": "users * (bytes of a parameter * parameters + bytes of the indices)",
        "bytes_per_user": kinds,
        "bytes": {kind: users * size for kind, size in kinds.items()},
        "paper": {
            "bytes": math.prod(PAPER_FACTORS.values()),
            "formula": PAPER_FORMULA,
            "factors": PAPER_FACTORS,
            "assumptions": PAPER_ASSUMPTIONS,
        },
    }


def sweep_total(plans: Sequence[Mapping[str, Any]], slots: int) -> dict[str, Any]:
    """What the members of a sweep take together.

    Args:
        plans: of the members.
        slots: members that run at once.
    """
    seconds = [one["seconds"] for one in plans]
    hours = None if None in seconds else sum(seconds) / 3600
    bases = {one["model"]: one["disk"]["dequantized_base_once_per_model"] for one in plans}
    runs = sum(one["disk"]["adapter"] + one["disk"]["checkpoints"] for one in plans)
    return {
        "members": len(plans),
        "hours": hours,
        "slots": slots,
        "hours_per_slot": None if hours is None else hours / min(slots, len(plans)),
        "disk_bytes": runs + sum(bases.values()),
        "fits": {
            f"{size} GB": sum(one["peak_memory_bytes"] <= size * GIB for one in plans)
            for size in GPU_SIZES
        },
    }


class Options(Strict):
    """The keys of configs/plan.yaml beside those of mos.train."""

    format: Literal["table", "json"]
    users: PositiveInt
    slots: PositiveInt
    budget: Annotated[str | int | float | None, AfterValidator(lambda b: b and parameters(b))]
    methods: list[str]


class Plans(Callback):
    """Prints the plans of a sweep's members, or the settings for a budget, when all are there."""

    def __init__(self) -> None:
        self.plans: list[tuple[Options, dict[str, Any]]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status is JobStatus.COMPLETED:
            self.plans.append(job_return.return_value)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if not self.plans:
            return
        options, plans = self.plans[0][0], [plan for _, plan in self.plans]
        if options.format == "json":
            several = (
                {"plans": plans, "total": sweep_total(plans, options.slots)}
                if options.budget is None
                else plans
            )
            print(json.dumps(plans[0] if len(plans) == 1 else several, indent=2))
        elif options.budget is not None:
            for found in plans:
                show(**found)
        else:
            console.print(plan_table(plans[0] if len(plans) == 1 else plans))
            if len(plans) > 1:
                say(total_line(sweep_total(plans, options.slots)))


@command("plan")
def main(cfg: DictConfig) -> tuple[Options, dict[str, Any]]:
    """Count one member of what was asked for; `Plans` prints all of them."""
    config = resolved(cfg)
    values = {key: config.pop(key) for key in Options.model_fields}
    check(values, Options)
    options = Options(**values)
    job = validate(OmegaConf.create(config))
    if options.budget is not None:
        return options, _for_budget(job, options.budget, options.methods)
    if options.methods:
        raise UserError("methods= are those that a budget is searched for: add budget=0.6M.")
    note(f"counting {job.adapter.method} on {job.model.name}")
    return options, plan(job, options.users)


def _for_budget(job: TrainConfig, budget: Any, methods: Sequence[str]) -> dict[str, Any]:
    overrides = HydraConfig.get().overrides.task
    if chosen := [text for text in overrides if text.startswith("adapter=")]:
        raise UserError(f"{chosen[0]} has no effect beside budget=: use methods=[...].")
    fixed = [text for text in overrides if text.lstrip("+").startswith("adapter.")]
    found = list(sized(job, budget, methods, fixed))
    return {"budget": budget, "model": job["model"]["name"], "methods": found}


if __name__ == "__main__":
    main()
