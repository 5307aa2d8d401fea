"""The command line: `mos train ...` is `python -m mos.train ...`, and so on for each command.

What the commands have in common is here too: Hydra around a function, exit codes, `--help`. Hydra
is imported by those that need it: it takes longer than all that `mos` alone and `mos run` do.
"""

from __future__ import annotations

import atexit
import functools
import gc
import glob
import importlib.util
import itertools
import os
import re
import runpy
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from mos.console import INTERRUPTED, exit_on_user_error, fail, override, signals_interrupt
from mos.errors import UserError, unknown
from mos.files import CONFIG_DIR

if TYPE_CHECKING:
    from hydra.errors import MissingConfigException

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
        module = "mos.evaluation.chat" if command == "chat" else f"mos.{command}"
        runpy.run_module(module, run_name="__main__", alter_sys=True)


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


def command(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a command line of a function that takes configs/<name>.yaml, composed.

    The command reads `sys.argv`. What Hydra refuses and a UserError are one message and exit status
    2, a signal that ends programs is exit status 130.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def run(cfg: DictConfig) -> Any:
            with exit_on_user_error(), hydra_errors_explained():
                return task(cfg)

        @functools.wraps(task)
        def main() -> None:
            import hydra

            from mos.config import folder_of
            from mos.training.sweep import check_sweep, sweep_ended

            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print
            signals_interrupt()
            try:
                with exit_on_user_error(), hydra_errors_explained(), sweep_ended():
                    check_words(name, sys.argv[1:])
                    check_sweep(sys.argv)
                    hydra.main(str(folder_of(name)), name, version_base="1.3")(run)()
            except KeyboardInterrupt as stop:
                kept = "interrupted; what was finished is kept, and the same command continues it"
                fail(str(stop) or kept)
                sys.exit(INTERRUPTED)

        return main

    return decorate


def check_words(name: str, arguments: Sequence[str]) -> None:
    """Raises a UserError for what is no key=value on a command line, with what may be meant."""
    from hydra._internal.utils import get_args_parser

    given, flags = get_args_parser().parse_known_args(arguments)
    for at, word in enumerate(arguments):
        if word not in (*given.overrides, *flags):
            continue
        if re.match(r"~|[^-=][^=]*=", word):
            check_choice(word)
            continue
        around = [*arguments[at - 1 : at], *arguments[at + 1 : at + 2]]
        options = [*CONFIG_DIR.rglob(f"{glob.escape(word)}.yaml")]
        if word.startswith("-"):
            key, _, value = word.lstrip("-").partition("=")
            meant = f"{key.replace('-', '_')}={value or ''.join(around[-1:])}, without dashes"
        elif "=" in word or any(one[0] == "=" or one[-1] == "=" for one in around if one):
            meant = "without spaces around '='"
        elif options:
            group = options[0].parent.name
            meant = f"{'+' * (group == 'experiment')}{group}={word}"
        else:
            meant = f"{'adapter' if name == 'export' else 'runs'}={word}"
        raise UserError(
            f"'{word}': expected key=value ({meant}?). mos {name} --help lists the keys."
        )


def check_choice(word: str) -> None:
    """Raises a UserError for several options of a group, of which Hydra would keep the last."""
    group, _, value = word.lstrip("+").partition("=")
    names = value.strip("[]").split(",")
    if group == "eval" and "base" not in names and "own" not in names:
        raise UserError(f"{word}: benchmarks stand beside base: eval=[base,{','.join(names)}].")
    if group == "eval" or not value.startswith("[") or not (CONFIG_DIR / group).is_dir():
        return
    if len(names) > 1:
        raise UserError(f"{word}: {_one_of(group, names)}")


def _one_of(group: str, names: Sequence[str]) -> str:
    more = {
        "logging": f"Several trackers: logging={names[0]} logging.report_to=[{','.join(names)}].",
        "data": "A mixture: data=messages data.source=[FILE,FILE].",
    }
    several = f"one {group} a run, or a sweep: -m {group}={','.join(names)}."
    return f"{several} {more.get(group, '')}".rstrip()


@contextmanager
def hydra_errors_explained() -> Iterator[None]:
    """Turn what Hydra and its YAML reader raise into a UserError."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException

    try:
        yield
    except MissingConfigException as error:
        raise _no_such_option(error) from None
    except OverrideParseException as error:
        key, _, value = str(error.override).partition("=")
        reason = str(error).splitlines()[0]
        quoted = shlex.quote(override(key, value))
        raise UserError(
            f"{error.override}: Hydra cannot read this ({reason}). If the value is meant as it"
            f" stands, quote it: {quoted}"
        ) from None
    except HydraException as error:
        cause: Any = error.__cause__
        if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None:
            known = [str(key) for key in cause.parent_node if key != "hydra"]
            raise unknown("key", cause.full_key, known) from None
        if several := re.match("Ambiguous value for argument '(.*)'", str(error)):
            key, _, value = several[1].partition("=")
            if (CONFIG_DIR / key.lstrip("+")).is_dir():
                names = value.split(",")
                raise UserError(f"{several[1]}: {_one_of(key.lstrip('+'), names)}") from None
            raise UserError(
                f"{several[1]}: commas stand between the values of a list, {key}=[{value}], or of"
                " a sweep (add -m). A comma that belongs to a text is quoted:"
                f" {shlex.quote(override(key, value))}"
            ) from None
        raise UserError(str(error)) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{mark.name}:{mark.line + 1}" if mark else "a config file"
        raise UserError(f"{place}: no YAML: {error.problem}.") from None


def _no_such_option(error: MissingConfigException) -> UserError:
    missing = error.missing_cfg_file or ""
    folder = next((p for p in Path(missing).parents if (CONFIG_DIR / p).is_dir()), Path())
    group, option = str(folder), missing.removeprefix(str(folder)).removeprefix("/")
    if group == "adapter" and Path(option).expanduser().is_dir():
        return UserError(
            f"adapter={option}: adapter= names a file of configs/adapter. A trained adapter is"
            f" evaluated with mos.evaluate adapters=[{option}], exported with mos.export"
            f" adapter={option}."
        )
    files = [file.stem for file in (CONFIG_DIR / folder).glob("*.yaml")]
    return unknown(f"option of {group}:", option, error.options or files)


def help_text(_root_: Any) -> str:
    """The keys of a composed config with their values, each under its comment in configs/."""
    sources = {s.provider: s.path for s in _root_.hydra.runtime.config_sources}
    config_dir = Path(sources["main"])
    name = _root_.hydra.job.config_name
    if not (config_dir / f"{name}.yaml").is_file():  # one's own, on top of train
        name = "train"
    text = (config_dir / f"{name}.yaml").read_text("utf-8").splitlines()
    lines = [line[2:] for line in itertools.takewhile(lambda line: line.startswith("#"), text)]
    comments = _comments(config_dir, name)
    choices = _root_.hydra.runtime.choices
    for group in (k for k in _root_ if k != "hydra" and (config_dir / k).is_dir()):
        options = sorted(file.stem for file in (config_dir / group).glob("*.yaml"))
        rows = ", table1_*, table2_* (configs/paper)" if group == "adapter" else ""
        lines.append(f"{group}: {', '.join(options)}{rows}")
        for option in [choices[group]] if group in choices else options:
            comments |= _comments(config_dir, f"{group}/{option}")
    lines += ["", *_documented(_root_, comments)]
    return "\n".join(lines).replace("$", "$$")  # Hydra takes it for a string.Template


def _documented(
    node: Any, comments: dict[str, str], prefix: str = "", indent: str = ""
) -> list[str]:
    lines = []
    for key, value in node.items_ex(resolve=False):
        if key == "hydra":
            continue
        path = f"{prefix}{key}"
        lines += [f"{indent}# {line}" for line in comments.get(path, "").splitlines()]
        if isinstance(value, DictConfig) and len(value):
            lines += [f"{indent}{key}:", *_documented(value, comments, f"{path}.", f"{indent}  ")]
        else:
            shown = OmegaConf.to_yaml(OmegaConf.create({key: value})).strip().splitlines()
            lines += [f"{indent}{line}" for line in shown]
        if not indent:
            lines.append("")
    return lines


def _comments(config_dir: Path, name: str) -> dict[str, str]:
    """Dotted key -> the comment above it, in a config file and those of its folder it extends."""
    comments: dict[str, str] = {}
    places = (folder / f"{name}.yaml" for folder in (config_dir, config_dir / "paper"))
    file = next((place for place in places if place.is_file()), None)
    if file is None:  # of another package
        return comments
    text = file.read_text("utf-8")
    content: Any = OmegaConf.load(file)
    for base in content.get("defaults", []):
        if isinstance(base, str) and base != "_self_":
            comments |= _comments(config_dir, str(Path(name).parent / base))
    path = [] if text.startswith("# @package _global_") else list(Path(name).parts[:-1])
    depth, above = len(path), []
    for line in text.splitlines():
        if comment := re.match(r" *# ?(.*)", line):
            above.append(comment[1])
            continue
        if key := re.match(r"( *)(\w+):", line):
            path[depth + len(key[1]) // 2 :] = [key[2]]
            if above:
                comments[".".join(path)] = "\n".join(above)
        above = []
    return comments


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="mos-")


# The interpreter ends with collections, which take seconds over what torch made and free nothing.
atexit.register(gc.freeze)
OmegaConf.register_new_resolver("mos.help", help_text, replace=True)
OmegaConf.register_new_resolver("mos.scratch", lambda: _scratch().name, replace=True)


if __name__ == "__main__":
    main()
