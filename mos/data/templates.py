"""Instruction templates that super_ni and code_alpaca draw from (protocol section 7).

(prompt, completion, weight), in the order and with the weights, and spelling, of the reference:
the draw depends on all three.
"""

from __future__ import annotations

import random

WITH_INPUT = (
    ("{instruction}\n\n{input}\n\n", "{output}", 0.2),
    ("{instruction}\n{input}\n\n", "{output}", 0.1),
    ("{instruction}\n{input}\n", "{output}", 0.1),
    ("{instruction}\n\nInput: {input}\n\nOutput:", "{output}", 0.05),
    ("{instruction}\nInput: {input}\nOutput:", "{output}", 0.05),
    ("{instruction}\n{input}\n\nResponse:", "{output}", 0.05),
    ("{instruction}\n\nAdditional Context:\n{input}\n\nAnswer:", "{output}", 0.05),
    ("Task: {instruction}\nInput: {input}\nOutput:", "{output}", 0.05),
    ("Task: {instruction}\n\n{input}\n\n", "{output}", 0.05),
    ("Task: {instruction}\n\n{input}\n\nAnswer:", "{output}", 0.05),
    (
        "You need to complete the following task:\n\n{instruction}\n\n{input}\n\nAnswer:",
        "{output}",
        0.05,
    ),
    (
        "{instruction}\n\nNow complete the following instance -\nInput: {input}\nOutput:",
        "{output}",
        0.05,
    ),
    ("Instruction:{instruction}\n\nInput: {input}\n\n", "{output}", 0.05),
    (
        "Below is an instruction that describes a task, paired with an input that provides further"
        " context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
        "{output}",
        0.1,
    ),
)

WITHOUT_INPUT = (
    ("{instruction}\n\n", "{output}", 0.2),
    ("{instruction}\n", "{output}", 0.1),
    ("{instruction}", "\n{output}", 0.1),
    ("{instruction} Output:", "{output}", 0.05),
    ("{instruction}\nResponse:", "{output}", 0.05),
    ("{instruction}\n\nAnswer:", "{output}", 0.05),
    ("Task: {instruction}\n\n", "{output}", 0.05),
    ("Instruction: {instruction}\n", "{output}", 0.05),
    ("Instruction: {instruction}\nOutput:", "{output}", 0.05),
    ("You need to complete the following task:\n\n{instruction}\n\n", "{output}", 0.05),
    ("Can you help with this?\n\n{instruction}\n", "{output}", 0.05),
    ("Plase answer the following request: {instruction}\nAnswer:", "{output}", 0.05),
    (
        "Tell me how would you respond to the following request.\n{instruction}\n",
        "{output}",
        0.05,
    ),
    (
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:",
        "{output}",
        0.1,
    ),
)


def fill(
    instruction: str, instance_input: str | None, output: str, rng: random.Random
) -> tuple[str, str]:
    """Draw a template (one `rng.choices`) and fill it: (prompt, completion)."""
    stripped = (instance_input or "").strip()
    templates = WITH_INPUT if stripped else WITHOUT_INPUT
    prompt, completion, _ = rng.choices(templates, weights=[w for _, _, w in templates])[0]
    return (
        prompt.format(instruction=instruction.strip(), input=stripped),
        completion.format(output=output.strip()),
    )
