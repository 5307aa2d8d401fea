"""The command `mos`: `mos train ...` is `python -m mos.train ...`, and so on for each command."""

from __future__ import annotations

import runpy
import sys

from mos.console import fail
from mos.errors import unknown

COMMANDS = {
    "train": "train one adapter and evaluate it; -m for a sweep",
    "evaluate": "evaluate runs, adapters or a bare model",
    "summarize": "make the paper's tables, plots and a report from runs",
    "plan": "count parameters, memory, disk and time before anything is loaded",
    "export": "write an adapter as a plain LoRA, or merged into its model",
    "runs": "a table of runs: state, progress, scores, age, what failed",
    "show": "records of an evaluation to read: prompt, answer, target",
    "chat": "try an adapter in the terminal",
    "inspect": "show what a model is trained on and asked",
}
MODULES = {"runs": "mos.list_runs"}
USAGE = "\n".join(
    [
        "usage: mos COMMAND [key=value ...]",
        "",
        *(f"  {name:<10} {line}" for name, line in COMMANDS.items()),
        "",
        "mos COMMAND --help lists its keys.",
    ]
)


def main() -> None:
    """Run the command that `sys.argv` names, with the arguments that follow it."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
    elif command not in COMMANDS:
        fail(str(unknown("command", command, COMMANDS)))
        sys.exit(2)
    else:
        del sys.argv[1]
        module = MODULES.get(command, f"mos.{command}")
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
