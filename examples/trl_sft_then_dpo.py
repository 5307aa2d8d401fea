"""TRL with MoS: supervised fine-tuning, then DPO that continues the same adapter.

    pip install trl
    python examples/trl_sft_then_dpo.py [model folder or hub id]

Without an argument it trains a tiny random LLaMA on a few rows, offline, in seconds. A command of
TRL's own, or any other that loads adapters, needs `import mos` before it, which registers the
method: python -c "import mos; from trl.cli import main; main()" sft ...
"""

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from mos import MosConfig
from mos.models.sources import build_random

PROMPTS = ["Name a colour.", "Count to three.", "Say a word.", "Greet me."] * 4
GOOD, BAD = [" Blue.", " 1 2 3.", " Tree.", " Hello!"] * 4, [" Seven.", " Red.", " 9.", " No."] * 4


def arguments(cls, output_dir):
    return cls(
        output_dir,
        max_steps=8,
        learning_rate=2e-3,
        logging_steps=1,
        report_to="none",
        bf16=torch.cuda.is_available(),  # TRL's default is true, which a CPU run refuses
    )


def main(model_path: str, output_dir: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    rows = Dataset.from_dict({"prompt": PROMPTS, "completion": GOOD})
    config = MosConfig(task_type="CAUSAL_LM", r=16, equivalent_rank=8)  # was: LoraConfig(r=8, ...)
    trainer = SFTTrainer(
        model,
        arguments(SFTConfig, f"{output_dir}/sft"),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=config,
    )
    trainer.train()
    trainer.save_model(f"{output_dir}/adapter")

    # The reference is the adapter as it is loaded here: the first loss is log 2 = 0.693.
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, f"{output_dir}/adapter", is_trainable=True)
    rows = Dataset.from_dict({"prompt": PROMPTS, "chosen": GOOD, "rejected": BAD})
    DPOTrainer(
        model,
        args=arguments(DPOConfig, f"{output_dir}/dpo"),
        train_dataset=rows,
        processing_class=tokenizer,
    ).train()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = sys.argv[1] if len(sys.argv) > 1 else build_random(Path(folder) / "tiny")
        main(str(path), "outputs/trl" if len(sys.argv) > 1 else folder)
