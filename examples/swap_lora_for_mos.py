"""A stock PEFT and Trainer script. MoS takes the place of LoRA: one import and one config.

    python examples/swap_lora_for_mos.py [model folder or hub id]

Without an argument it trains a tiny random LLaMA, offline, in seconds.
"""

import sys

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from mos import MosConfig  # was: from peft import LoraConfig

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "vocab_size": 256}


def load_model():
    if len(sys.argv) > 1:
        return AutoModelForCausalLM.from_pretrained(sys.argv[1])
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", num_attention_heads=4, num_key_value_heads=2, **TINY)
    return AutoModelForCausalLM.from_config(config)


def main() -> None:
    # was: LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), which has as many parameters
    config = MosConfig(r=16, equivalent_rank=8, shards_per_vector=4, private_rank=1)
    model = get_peft_model(load_model(), config)
    model.print_trainable_parameters()

    text = list(b"Shards of two global pools make up the matrices of every block. " * 2)
    rows = [{"input_ids": text[i : i + 64], "labels": text[i : i + 64]} for i in range(64)]
    arguments = TrainingArguments(
        "outputs/swap", max_steps=30, learning_rate=5e-3, logging_steps=10, report_to="none"
    )
    Trainer(model, arguments, train_dataset=rows).train()

    model.save_pretrained("outputs/swap/adapter")
    reloaded = PeftModel.from_pretrained(load_model(), "outputs/swap/adapter")
    batch = torch.tensor([text[:64]])
    same = torch.allclose(reloaded(batch).logits, model.cpu().eval()(batch).logits, atol=1e-5)
    print("reloaded adapter gives the same logits:", same)


if __name__ == "__main__":
    main()
