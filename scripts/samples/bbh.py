"""BIG-Bench Hard: `bbh/<task>.json`, `cot-prompts/<task>.txt` of tasks that programs can solve.

Every task has the kind of problem and the form of answer of the published one, in our own words.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from samples import logic, things
from samples.files import held_out, seeded, write_json, write_text
from samples.solved import Solved

EXAMPLES, SHOTS = 10, 3
HEADER = "Worked examples written for this project; the two first lines are no part of the prompt."

TASKS: dict[Callable[[Random], Solved], str] = {
    logic.boolean_expressions: "Work out whether a Boolean expression is True or False.",
    logic.date_understanding: "Find a date from what a short text says about another one.",
    logic.dyck_languages: "Write the brackets that close an expression of four kinds of brackets.",
    things.hyperbaton: "Choose the phrase whose adjectives stand in the usual English order.",
    logic.logical_deduction_three_objects: "Find the place of one of three things in their order.",
    logic.multistep_arithmetic_two: "Calculate the value of an expression with several brackets.",
    logic.navigate: "Say whether a series of moves leads back to where it began.",
    things.object_counting: "Count the things of one kind in a list that may hold others.",
    things.reasoning_about_colored_objects: "Answer a question about coloured things in a row.",
    things.tracking_shuffled_objects_three_objects: "Find out who has what after three swaps.",
    logic.web_of_lies: "Decide whether the last person of a chain tells the truth.",
    things.word_sorting: "Sort words by the alphabet.",
}


def write(root: Path) -> None:
    for solve, description in TASKS.items():
        rng = seeded(f"bbh {solve.__name__}")
        shots: dict[str, Solved] = {}
        examples: dict[str, Solved] = {}
        while len(shots) < SHOTS or len(examples) < EXAMPLES:
            problem = solve(rng)
            group, size = (examples, EXAMPLES) if held_out(problem.question) else (shots, SHOTS)
            if len(group) < size:
                group[problem.question] = problem
        blocks = [
            f"Q: {question}\nA: Let's think step by step.\n{reasoning} So the answer is {target}."
            for question, reasoning, target in shots.values()
        ]
        prompt = "\n\n".join([description, *blocks])
        folder, name = root / "bbh", solve.__name__
        write_text(folder / "cot-prompts" / f"{name}.txt", f"{HEADER}\n-----\n{prompt}")
        rows = [{"input": question, "target": target} for question, _, target in examples.values()]
        write_json(folder / "bbh" / f"{name}.json", {"examples": rows}, indent=None)
