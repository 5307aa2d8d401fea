"""The command `mos`: `mos train ...` is `python -m mos.train ...`, and so on for each command."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import entry_points, version
from pathlib import Path

from mos.console import exit_on_user_error, fail
from mos.errors import UserError, unknown

COMMANDS = {
    "train": "train one adapter and evaluate it; -m for a sweep",
    "evaluate": "evaluate runs, adapters or a bare model",
    "summarize": "make the paper's tables, plots and a report from runs",
    "plan": "count parameters, memory, disk and time before anything is loaded",
    "export": "write an adapter as a plain LoRA, or merged into its model",
    "runs": "list runs: state, progress, scores, what failed; or show one, or its records",
    "chat": "try an adapter in the terminal",
    "inspect": "show what a model is trained on and asked",
    "run": "another tool that uses PEFT, with mos's methods known: mos run -- lm_eval ...",
}
USAGE = "\n".join(
    [
        "usage: mos COMMAND [key=value ...] | --version",
        "",
        *(f"  {name:<10} {line}" for name, line in COMMANDS.items()),
        "",
        "mos COMMAND --help lists its keys; what follows `run --` is the other tool's.",
    ]
)


def main() -> None:
    """Run the command that `sys.argv` names, with the arguments that follow it."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
    elif command == "--version":
        print(f"mos {version('mos-tuning')}")
    elif command not in COMMANDS:
        fail(str(unknown("command", command, COMMANDS)))
        sys.exit(2)
    elif command == "run":
        with exit_on_user_error():
            run_tool(sys.argv[2:])
    else:
        del sys.argv[1]
        runpy.run_module(f"mos.{command}", run_name="__main__", alter_sys=True)


def run_tool(arguments: Sequence[str]) -> None:
    """Run the command line of another Python program in this process, after `import mos`.

    Processes that the program starts anew (`accelerate launch`) do not know of mos: launch
    `mos run` with them instead.

    Args:
        arguments: a command that a package installed (`lm_eval`), a `.py` file or a module
            (`vllm.entrypoints.openai.api_server`), and its own arguments; a leading "--" is left
            out.

    Raises:
        UserError: there is no such program.
        SystemExit: as the program ends.
    """
    name, *rest = arguments[arguments[:1] == ["--"] :] or [""]
    scripts = entry_points(group="console_scripts", name=name)
    is_file = name.endswith(".py") and Path(name).is_file()
    is_module = False
    with suppress(ImportError, ValueError):  # of its package; there is no name
        is_module = importlib.util.find_spec(name) is not None
    if not (scripts or is_file or is_module):
        raise UserError(
            f"run: there is no Python program '{name}' here. Expected, after `mos run --`, a"
            " command that a package installed in this environment, a .py file or a module."
        )
    sys.argv = [name, *rest]
    if scripts:
        sys.exit(next(iter(scripts)).load()())
    if is_file:
        sys.path.insert(0, str(Path(name).resolve().parent))  # as Python does for a script
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
