"""The model card of an adapter: its README.md, with metadata as the hub reads them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Literal

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mos.console import say
from mos.errors import UserError
from mos.files import hash_json, write_atomically
from mos.records import ScoreRow
from mos.run import Run

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.j2")
MARK = re.compile(r"\n\n<!-- mos wrote this card .*? -->\n")
SCORES = re.compile(r"## Scores\n.*?(?=## How it was made\n)", re.DOTALL)  # of the template
USE = {
    "adapter": "An adapter as PEFT saves it. `import mos` (package mos-tuning) before PEFT or"
    " transformers load it, if its method is not one of PEFT's own.",
    "lora": "The adapter as a plain LoRA, the same update: PEFT and vLLM load it as they are.",
    "merged": "The base model with the adapter merged: a plain transformers model.",
}


def write_card(run: Run) -> None:
    """Write the card of a run's adapter from what the run has come to; again after each evaluation.

    A README.md that is not as this function wrote it stays. A card that cannot be written is said,
    and stops nothing.
    """
    file = run.adapter_dir / CARD
    if not run.adapter_dir.is_dir():
        return
    try:
        text = file.read_text("utf-8", errors="replace") if file.exists() else None
        if text is None or text == _marked(MARK.sub("", text)):
            write_atomically(file, _marked(str(_card(run))))
    except Exception as error:  # a full disk, or a manifest of an earlier version
        say(f"{file} was not written: {error}")


def carry_card(
    adapter_dir: Path, out_dir: Path, form: Literal["lora", "merged"], scores: bool = True
) -> None:
    """Write the card of an adapter, if it has one, for what was made of the adapter; without
    `scores` where they are not those of its weights."""
    file = adapter_dir / CARD
    if not file.is_file():
        return
    try:
        card = ModelCard.load(file)
        tags = [tag for tag in card.data.tags or [] if not tag.startswith("base_model:")]
        card.data.tags = [*tags, "lora"] if form == "lora" else tags
        card.data["library_name"] = "peft" if form == "lora" else "transformers"
        if form == "merged" and card.data.base_model:
            card.data["base_model_relation"] = "finetune"
        card.text = MARK.sub("", card.text).replace(USE["adapter"], USE[form])
        if not scores:
            card.data.eval_results = None
            card.text = SCORES.sub("", card.text)
        card.save(out_dir / CARD)
    except Exception as error:  # YAML and the hub's classes pass on whatever a value causes
        say(f"{file} cannot be read, so the export has no card: {error}")


def _marked(text: str) -> str:
    sha256 = hash_json(text)
    return f"{text}\n\n<!-- mos wrote this card ({sha256}) and renews it until it is edited -->\n"


def _card(run: Run) -> ModelCard:
    config, manifest, results = run.config, run.manifest, run.results
    method, base = manifest.method, config.model.path
    if method is None:
        raise UserError(f"{run.path} is not trained yet.")
    scores = results.rows() if results else []
    on_hub = ":" not in base and not Path(base).expanduser().exists()
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name="transformers" if method.name == "full" else "peft",
        pipeline_tag="text-generation",
        tags=["mos-tuning", method.name],
        model_name=f"{config.model.name} {method.label} {run.id}",
        eval_results=[_eval_result(score) for score in scores] or None,
    )
    command = manifest.command
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text("utf-8"),
        use=USE["adapter"],
        run=run,
        config=config,
        manifest=manifest,
        adapter=yaml.safe_dump(method.config, sort_keys=False),
        command=shlex.join(command) if command[:2] == ["mos", "train"] else None,
        scores=scores,
    )


def _eval_result(score: ScoreRow) -> EvalResult:
    about = {"n": score.n, "stderr": score.error, "partial": score.note}
    return EvalResult(
        task_type="text-generation",
        dataset_type=score.benchmark,
        dataset_name=score.benchmark,
        metric_type=score.metric,
        metric_value=score.value,
        metric_args={key: value for key, value in about.items() if value not in (None, "")},
    )
