"""The paper's tables from runs: `python -m mos.summarize runs=outputs out=outputs/summary`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from mos.config import CONFIG_DIR
from mos.console import console, exit_on_user_error, say
from mos.report import build
from mos.report.grouping import as_list, parse_filter
from mos.report.reading import read_runs
from mos.report.tables import sheet_terminal, terminal

SHOWN_PROBLEMS = 5


def summarize(cfg: DictConfig) -> build.Summary:
    """Read runs, write tables and the report, print the short of it.

    Args:
        cfg: configs/summarize.yaml composed with overrides.

    Raises:
        UserError: no runs there, an impossible filter or key, a folder that cannot be written.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    sources = as_list(config["runs"])
    summary = build.assemble(
        read_runs(sources, config["since"]),
        **config["select"],
        where=parse_filter(config["filter"]) if config["filter"] else None,
        rows=as_list(config["rows"]),
        columns=as_list(config["columns"]),
        value=config["value"],
    )
    summary.sources = sources
    build.write(summary, config["out"], config["plots"])
    _print(summary, config["out"])
    return summary


def _print(summary: build.Summary, out: str) -> None:
    shown = [terminal(filled) for filled in summary.filled if not filled.empty]
    if summary.grouped is not None:
        shown = [sheet_terminal(summary.grouped)]
    for table in shown:
        console.print(table)
        console.print()
    say(f"{len(summary.results)} of {summary.folders} run folders used (scale {summary.scale})")
    if not summary.results and any("is partial" in p.reason for p in summary.problems):
        say("all results are of cut benchmarks (eval.limit): partial=true tabulates them")
    verdicts = Counter(verdict.verdict for verdict in summary.verdicts)
    say("claims: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()))
    for problem in summary.problems[:SHOWN_PROBLEMS]:
        say(str(problem))
    if (rest := len(summary.problems) - SHOWN_PROBLEMS) > 0:
        say(f"... and {rest} more in {out}/problems.csv")
    say(f"written: {out}/report.html, table1-3 as .md, .tex, .csv, claims.md, runs.csv")


def quoted(argument: str) -> str:
    """An argument in Hydra's grammar.

    There bare commas mean a sweep, comparisons nothing, and `scale=` and `model=` config groups.

    >>> quoted("rows=method.label,seed"), quoted("filter=method.rank>=16")
    ("rows='method.label,seed'", "filter='method.rank>=16'")
    """
    argument = re.sub(r"^(scale|model|partial)=", r"select.\1=", argument)
    match = re.fullmatch(r"(runs|rows|columns|filter|value)=([^\[{'\"].*)", argument)
    return f"{match[1]}='{match[2]}'" if match else argument


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="summarize")
def main(cfg: DictConfig) -> None:
    """The command line around `summarize`."""
    with exit_on_user_error():
        summarize(cfg)


if __name__ == "__main__":
    sys.argv[1:] = [quoted(argument) for argument in sys.argv[1:]]
    main()
