"""The study's rows, its pages of random words, and the training that both of its scripts do.

Needs torch, transformers and peft; `mos.adapters` brings pydantic and omegaconf. How a run is
defined and what it measures: docs/study.md.
"""

from __future__ import annotations

import csv
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from mos.adapters import attach  # noqa: E402

WORDS = 4096  # 12 bits each
PAGE = 64  # words
EPOCHS = 30
WARMUP = 0.05  # share of the steps
CLIP = 1.0
VALIDATION, TEST = 128, 512  # examples of a corpus that are held out
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_MOS = {"method": "mos", "equivalent_rank": 2, "mos_alpha": 16, "mos_dropout": 0.0}
_LORA = {"method": "lora", "lora_alpha": 16, "lora_dropout": 0.0}
# All but LoRA r=16 have the parameters of LoRA r=2, or as near as their settings get.
ROWS: dict[str, Mapping[str, Any]] = {
    "lora_r2": {**_LORA, "r": 2},
    "mos_r8": {**_MOS, "r": 8},
    "lora_r16": {**_LORA, "r": 16},
    "pure_sharing": {
        **_MOS, "r": "all", "shards_per_vector": 1, "private_rank": 0, "pair_dissociation": False,
    },
    "mos_r4": {**_MOS, "r": 4},
    "mos_r8_sp": {**_MOS, "r": 8, "private_rank": 0},
    "mos_r8_vs": {**_MOS, "r": 8, "shards_per_vector": 1},
    "mos_r8_pd": {**_MOS, "r": 8, "pair_dissociation": False},
    "mos_r16_sp": {**_MOS, "r": 16, "private_rank": 0},
    "prolora_r8": {
        "method": "prolora", "r": 8, "unshared_rank": 1, "reduction_a": 7, "reduction_b": 7,
        "prolora_alpha": 16, "prolora_dropout": 0.0,
    },
    "tied_lora_r14": {
        "method": "tied_lora", "r": 14, "tied_lora_alpha": 16, "tied_lora_dropout": 0.0,
    },
    "vera_r3648": {"method": "vera", "r": 3648, "vera_dropout": 0.0},
    # alpha / r as LoRA r=2 has it
    "mos_r8_alpha": {**_MOS, "r": 8, "mos_alpha": 64},
    "lora_r16_alpha": {**_LORA, "r": 16, "lora_alpha": 128},
}  # fmt: skip


COLUMNS = (
    "run", "row", "load", "rate", "seed", "epochs", "dtype", "parameters", "pages", "loss", "bits",
    "validation", "seconds", "code",
)  # fmt: skip
Table = dict[str, Mapping[str, Any]]  # the lines of runs.csv by their run


@dataclass(frozen=True)
class Setting:
    """What all rows of a comparison share.

    `blocks` last blocks are adapted; what is before them is frozen, so that its outputs for the
    pages are computed once. `unit` is the number of parameters that loads are counted in.
    """

    model: str
    modules: tuple[str, ...] = ("down_proj",)
    blocks: int = 8
    unit: int = 33_792
    batch: int = 4  # pages a step at load 1; in proportion at others, so that steps are as many
    dtype: str = "bfloat16"
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    """A run as it is asked for. `load` is in bits a parameter of LoRA r=2, None on text."""

    row: str
    load: float | None
    rate: float
    seed: int
    epochs: int = EPOCHS
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        where = "text" if self.load is None else f"load{self.load:g}"
        name = f"{self.row}-{where}-rate{self.rate:g}-seed{self.seed}"
        if self.load is not None and self.epochs != EPOCHS:
            name += f"-epochs{self.epochs}"
        return name if self.dtype == "bfloat16" else f"{name}-{self.dtype}"


def read(out: Path) -> Table:
    path = out / "runs.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {line["run"]: line for line in csv.DictReader(file)}


def search(table: Table, first: Job) -> tuple[Job | None, list[Job]]:
    """The best rate of a row, and the runs that are missing to know it: one of the two is empty.

    `first`, its half and its double, and on by factors of two until the best is not the last on
    either side. On text the best is by the validation examples.
    """

    def loss(job: Job) -> float:
        line = table[job.name]
        found = float(line["validation"] or line["loss"])
        return math.inf if math.isnan(found) else found

    rates = [first.rate, first.rate / 2, first.rate * 2]
    while True:
        tried = {rate: replace(first, rate=rate) for rate in rates}
        if missing := [job for job in tried.values() if job.name not in table]:
            return None, missing
        best = min(tried.values(), key=loss)
        if best.rate not in (min(rates), max(rates)):
            return best, []
        rates.append(best.rate / 2 if best.rate == min(rates) else best.rate * 2)


def keep(out: Path, table: Table, job: Job, done: dict[str, Any], code: str) -> None:
    """Add a finished run to the tables of a folder, and to `table`."""
    losses = " ".join(f"{x:.4f}" for x in done.pop("losses"))
    line = {**dict.fromkeys(COLUMNS, ""), **vars(job), **done, "run": job.name, "code": code}
    line["load"] = "" if job.load is None else job.load
    for key in ("loss", "bits", "validation", "seconds"):
        if line[key] != "":
            line[key] = f"{line[key]:.{0 if key == 'seconds' else 6}f}"
    out.mkdir(parents=True, exist_ok=True)
    append(out / "losses.csv", {"run": job.name, "losses": losses})
    append(out / "runs.csv", line)
    table[job.name] = line
    print(f"{job.name}: {line['loss']} nats, {line['seconds']} s", flush=True)


def revision() -> str:
    """The commit of the code, or nothing where there is no git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True
        )
    except OSError:
        return ""
    return done.stdout.strip()


def append(path: Path, line: Mapping[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(line), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)


def words(tokenizer: Any) -> list[int]:
    """The ids of the first 4,096 tokens that are a space and three or more small letters."""
    found = []
    for i in range(len(tokenizer)):
        text = tokenizer.decode([i])
        word = text[1:]
        small = text[:1] == " " and len(word) > 2 and word.isascii() and word.isalpha()
        if small and word.islower() and tokenizer.encode(text, add_special_tokens=False) == [i]:
            found.append(i)
        if len(found) == WORDS:
            return found
    raise SystemExit(f"the tokenizer has {len(found)} such words, {WORDS} are needed.")


def pages_of(load: float, unit: int) -> int:
    """How many pages are `load` bits for each of `unit` parameters."""
    return round(load * unit / (PAGE * math.log2(WORDS)))


def pages(tokenizer: Any, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (pages, prompt + 64) of all pages, and which of the 4,096 words each answer is."""
    known, draw = words(tokenizer), random.Random(seed)
    first = 100 if count <= 900 else 10_000  # all numbers have as many digits: no padding
    answers = [[draw.randrange(WORDS) for _ in range(PAGE)] for _ in range(count)]
    prompts = [
        tokenizer.encode(f"<|user|>\nPage {first + i}\n<|assistant|>\n", add_special_tokens=False)
        for i in range(count)
    ]
    ids = [p + [known[w] for w in a] for p, a in zip(prompts, answers, strict=True)]
    return torch.tensor(ids), torch.tensor(answers)


def load_model(setting: Setting) -> tuple[Any, Any]:
    """Model, in the dtype and on the device of the setting, and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=getattr(torch, setting.dtype))
    return model.to(setting.device), AutoTokenizer.from_pretrained(setting.model)


@torch.no_grad()
def cut(model: Any, blocks: int, ids: torch.Tensor) -> torch.Tensor:
    """Leave the model its last blocks; return what the others make of `ids`, (rows, T, hidden)."""
    inner = model.model
    layers, norm = inner.layers, inner.norm
    depth = len(layers) - blocks
    inner.layers, inner.norm, inner.config.num_hidden_layers = (
        layers[:depth], torch.nn.Identity(), depth,
    )  # fmt: skip
    hidden = torch.cat([inner(rows, use_cache=False).last_hidden_state for rows in ids.split(32)])
    inner.layers, inner.norm, inner.config.num_hidden_layers = layers[depth:], norm, blocks
    return hidden


def capacity(
    setting: Setting, row: str, load: float, rate: float, seed: int, epochs: int
) -> dict[str, Any]:
    """Train a row on pages of random words.

    Returns:
        `loss`, nats a word over the last epoch; `bits`, stored for each trainable parameter;
        `losses`, of each epoch; `parameters`, `pages`, `seconds`.
    """
    started = time.monotonic()
    model, tokenizer = load_model(setting)
    count = pages_of(load, setting.unit)
    ids, answers = (t.to(setting.device) for t in pages(tokenizer, count, seed))
    head = model.lm_head.weight[words(tokenizer)].detach().T
    hidden = cut(model, setting.blocks, ids)
    model = attached(model, setting, row, seed)
    inner = model.get_base_model().model
    trained = [p for p in model.parameters() if p.requires_grad]

    def loss_of(chosen: list[int]) -> torch.Tensor:
        state = inner(inputs_embeds=hidden[chosen], use_cache=False).last_hidden_state
        logits = state[:, -PAGE - 1 : -1].reshape(-1, head.shape[0]) @ head
        return cross_entropy(logits.float(), answers[chosen].reshape(-1))

    batch = max(round(setting.batch * load), 1)
    losses = fit(setting, trained, loss_of, count, batch, rate, seed, epochs)
    size = sum(p.numel() for p in trained)
    bits = count * PAGE * (math.log2(WORDS) - losses[-1] / math.log(2))
    return {
        "loss": losses[-1], "bits": bits / size, "losses": losses, "parameters": size,
        "pages": count, "seconds": time.monotonic() - started,
    }  # fmt: skip


def text(
    setting: Setting, row: str, encoded: Path, train: int, rate: float, seed: int, epochs: int
) -> dict[str, Any]:
    """Train a row on the examples of a corpus.

    Args:
        encoded: jsonl of `input_ids` and `labels`, -100 where nothing is trained (study.py writes
            it). The first `VALIDATION` are for choosing rates, the next `TEST` for tables.
        train: how many of the others are trained on.

    Returns:
        `loss`, nats a trained token of the test examples; `validation`, of the others held out;
        `losses`, mean over the batches of each epoch; `parameters`, `seconds`.
    """
    started = time.monotonic()
    with encoded.open() as file:
        examples = [json.loads(line) for line in file]
    held, kept = VALIDATION + TEST, examples[VALIDATION + TEST :][:train]
    if len(kept) < train:
        raise SystemExit(f"{encoded} has {len(examples)} examples, {held + train} are needed.")
    model, _ = load_model(setting)
    model = attached(model, setting, row, seed)
    trained = [p for p in model.parameters() if p.requires_grad]

    def losses_of(rows: list[Mapping[str, list[int]]]) -> torch.Tensor:
        """Nats of all their trained tokens. Padding is on the right, so it needs no mask."""
        padded = [
            pad_sequence([torch.tensor(r[key]) for r in rows], True, filler).to(setting.device)
            for key, filler in (("input_ids", 0), ("labels", -100))
        ]
        wanted = padded[1][:, 1:] != -100
        state = model.get_base_model().model(padded[0], use_cache=False).last_hidden_state
        logits = model.get_base_model().lm_head(state[:, :-1][wanted])
        return cross_entropy(logits.float(), padded[1][:, 1:][wanted], reduction="none")

    def loss_of(chosen: list[int]) -> torch.Tensor:
        return losses_of([kept[i] for i in chosen]).mean()

    losses = fit(setting, trained, loss_of, train, setting.batch, rate, seed, epochs)
    measured = []
    model.eval()
    for rows in (examples[:VALIDATION], examples[VALIDATION:held]):
        with torch.no_grad(), products(setting):
            parts = [losses_of(rows[i : i + 8]) for i in range(0, len(rows), 8)]
        measured.append(torch.cat(parts).mean().item())
    return {
        "loss": measured[1], "validation": measured[0], "losses": losses,
        "parameters": sum(p.numel() for p in trained), "seconds": time.monotonic() - started,
    }  # fmt: skip


def attached(model: Any, setting: Setting, row: str, seed: int) -> Any:
    """The model with the row's adapter. Initialisation and routing follow from the seed."""
    torch.manual_seed(seed)
    options = {**ROWS[row], "target_modules": list(setting.modules)}
    if options["method"] == "mos":
        options["routing_seed"] = seed
    return attach(model, options)


def products(setting: Setting) -> torch.autocast:
    """Matrix products in the setting's dtype."""
    return torch.autocast(setting.device, torch.bfloat16, enabled=setting.dtype == "bfloat16")


def fit(
    setting: Setting, trained: list[Any], loss_of: Any, count: int, batch: int, rate: float,
    seed: int, epochs: int,
) -> list[float]:  # fmt: skip
    """AdamW, the rate rising and then falling to 0; the mean loss of each epoch."""
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    steps = epochs * math.ceil(count / batch)
    rising = max(round(WARMUP * steps), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / rising, (steps - n) / max(steps - rising, 1))
    )
    losses = []
    for epoch in range(epochs):
        total = 0.0
        for chosen in batches(count, batch, seed, epoch):
            with products(setting):
                loss = loss_of(chosen)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(chosen)
        losses.append(total / count)
    return losses


def batches(count: int, size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """The order of an epoch, the same for every row."""
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)
    yield from (order[i : i + size] for i in range(0, count, size))
