"""Instruction templates that super_ni and code_alpaca draw from (protocol section 7).

Prompt -> weight, in the order and with the weights, and spelling, of the reference: the draw
depends on all three. The completion is the output, behind a line feed where the prompt is the bare
instruction.
"""

from __future__ import annotations

import random

WITH_INPUT = {
    "{instruction}\n\n{input}\n\n": 0.2,
    "{instruction}\n{input}\n\n": 0.1,
    "{instruction}\n{input}\n": 0.1,
    "{instruction}\n\nInput: {input}\n\nOutput:": 0.05,
    "{instruction}\nInput: {input}\nOutput:": 0.05,
    "{instruction}\n{input}\n\nResponse:": 0.05,
    "{instruction}\n\nAdditional Context:\n{input}\n\nAnswer:": 0.05,
    "Task: {instruction}\nInput: {input}\nOutput:": 0.05,
    "Task: {instruction}\n\n{input}\n\n": 0.05,
    "Task: {instruction}\n\n{input}\n\nAnswer:": 0.05,
    "You need to complete the following task:\n\n{instruction}\n\n{input}\n\nAnswer:": 0.05,
    "{instruction}\n\nNow complete the following instance -\nInput: {input}\nOutput:": 0.05,
    "Instruction:{instruction}\n\nInput: {input}\n\n": 0.05,
    (
        "Below is an instruction that describes a task, paired with an input that"
        " provides further context. Write a response that appropriately completes the"
        " request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    ): 0.1,
}

WITHOUT_INPUT = {
    "{instruction}\n\n": 0.2,
    "{instruction}\n": 0.1,
    "{instruction}": 0.1,
    "{instruction} Output:": 0.05,
    "{instruction}\nResponse:": 0.05,
    "{instruction}\n\nAnswer:": 0.05,
    "Task: {instruction}\n\n": 0.05,
    "Instruction: {instruction}\n": 0.05,
    "Instruction: {instruction}\nOutput:": 0.05,
    "You need to complete the following task:\n\n{instruction}\n\n": 0.05,
    "Can you help with this?\n\n{instruction}\n": 0.05,
    "Plase answer the following request: {instruction}\nAnswer:": 0.05,
    "Tell me how would you respond to the following request.\n{instruction}\n": 0.05,
    (
        "Write a response that appropriately completes the request.\n\n### Instruction:"
        "\n{instruction}\n\n### Response:"
    ): 0.1,
}


def fill(
    instruction: str, instance_input: str | None, output: str, rng: random.Random
) -> tuple[str, str]:
    """Draw a template (one `rng.choices`) and fill it: (prompt, completion)."""
    stripped = (instance_input or "").strip()
    templates = WITH_INPUT if stripped else WITHOUT_INPUT
    template = rng.choices(list(templates), weights=list(templates.values()))[0]
    prompt = template.format(instruction=instruction.strip(), input=stripped)
    return prompt, "\n" * (template == "{instruction}") + output.strip()
