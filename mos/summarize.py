"""The paper's tables from runs: `python -m mos.summarize runs=outputs out=outputs/summary`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from mos.cli import command
from mos.config import resolved
from mos.console import say
from mos.files import check_output
from mos.runs import find_runs

if TYPE_CHECKING:
    from mos.report.build import Report


def summarize(cfg: DictConfig) -> Report:
    """Read runs, write tables and the report, print the short of it.

    Args:
        cfg: configs/summarize/summarize.yaml composed with overrides.

    Raises:
        UserError: no runs there, an impossible filter or key, a folder that cannot be written.
    """
    config = resolved(cfg)
    del config["select"]  # other names
    out, plots = config.pop("out"), config.pop("plots")
    sources = _names(config.pop("runs"))
    always = ("table?.*", "claims.md", "problems.csv", "runs.csv", "report.html")
    check_output(out, "summarize", always)
    say(f"run folders found: {len(find_runs(sources))}")

    # pandas takes a second to import.
    from mos.report import screen
    from mos.report.build import build, write

    report = build(
        sources,
        rows=_names(config.pop("rows")),
        columns=_names(config.pop("columns")),
        where=config.pop("filter"),
        **config,
    )
    write(report, out, plots)
    screen.show(report, out)
    return report


def _names(given: str | list[str] | None) -> list[str]:
    """ "a,b" or a list as a list of names."""
    items = given.split(",") if isinstance(given, str) else given or []
    return [str(item).strip() for item in items if str(item).strip()]


@command("summarize")
def main(cfg: DictConfig) -> None:
    """The command line around `summarize`: exit status 1 if a run was refused."""
    report = summarize(cfg)
    from mos.report.results import REFUSED

    if report.counts[REFUSED]:
        sys.exit(1)


if __name__ == "__main__":
    main()
