"""The report as one HTML file without others: tables, verdicts, plots, what was left out."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mos.report.cells import MISSING, shown
from mos.report.claims import Comparison, Verdict
from mos.report.sheets import Sheet, difference, measured
from mos.report.tables import Filled

if TYPE_CHECKING:
    from mos.report.build import Report

MAX_LISTED = 300
_SMALL = Markup("<small>{}</small>")
_FIGURE = Markup('{} <span class="{}">{}</span>')
_SPAN = Markup('<span class="{}">{}</span>{}')
TEMPLATE = Path(__file__).with_name("report.html.j2")


def render(report: Report) -> str:
    """The page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"svg": _image, "shown": shown}
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        report=report,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        tables={filled.table.name: _detailed(filled) for filled in report.filled},
        counts=Counter(verdict.verdict for verdict in report.verdicts),
        comparisons=_comparisons(report.verdicts),
        problems=report.problems[:MAX_LISTED],
        runs=report.runs.frame.head(MAX_LISTED),
        columns=report.runs.columns,
        max_listed=MAX_LISTED,
        missing=MISSING,
    )


def _image(svg: str, alt: str) -> Markup:
    data = base64.b64encode(svg.encode()).decode()
    return Markup('<img alt="{}" src="data:image/svg+xml;base64,{}">').format(alt, data)


def _detailed(filled: Filled) -> Sheet:
    """A table with, in every cell, what stands below the mean: spread, n, the paper's figure."""
    sheet = measured(filled)
    frame = sheet.frame.astype(object)
    fixed = frame.shape[1] - len(filled.columns)
    for row, line in enumerate(filled.lines):
        cells = zip(filled.columns, filled.cells(line), filled.figures(line), strict=True)
        for place, (column, cell, figure) in enumerate(cells, fixed):
            below = Markup()
            if cell is not None:
                deviation = "" if cell.std is None else f"±{shown(cell.std, column)} · "
                below += _SMALL.format(f"{deviation}n={cell.n}")
            if figure is not None:
                delta = difference(cell, figure)
                sign = "down" if delta.startswith("-") else "up"
                below += _SMALL.format(_FIGURE.format(f"{figure:.2f}", sign, delta))
            frame.iat[row, place] = _SPAN.format(
                sheet.mark(row, place), frame.iat[row, place], below
            )
    notes = sheet.notes
    if not filled.empty:
        paper = "; then the paper's figure and measured minus paper" if filled.comparable else ""
        notes = [*notes, f"Below each mean: standard deviation and number of seeds{paper}."]
    return replace(sheet, frame=frame, marks=None, notes=notes)


def _comparisons(verdicts: Sequence[Verdict]) -> list[tuple[str, Comparison]]:
    """Each pair of rows once, under the table and column of the claim that compares them."""
    seen: dict[Any, tuple[str, Comparison]] = {}
    for verdict in verdicts:
        table = verdict.claim.table.replace("table", "Table ")
        where = f"{table}, {verdict.claim.column or 'average'}"
        for comparison in verdict.comparisons:
            seen.setdefault((where, comparison.first, comparison.other), (where, comparison))
    return list(seen.values())
