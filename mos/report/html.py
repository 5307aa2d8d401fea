"""The report as one HTML file without others: tables, verdicts, plots, what was left out."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mos.report.cells import MISSING, Cell, Column, shown
from mos.report.claims import Comparison, Verdict
from mos.report.sheets import Sheet, difference, measured
from mos.report.tables import Filled

if TYPE_CHECKING:
    from mos.report.build import Report

MAX_LISTED = 300
TEMPLATE = Path(__file__).with_name("report.html.j2")


def render(report: Report, sheets: Mapping[str, Sheet]) -> str:
    """The page; `sheets` are the tables besides the paper's."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"svg": _image, "shown": shown}
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        report=report,
        sheets=sheets,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        tables=[_table(filled) for filled in report.filled],
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


def _table(filled: Filled) -> dict[str, Any]:
    """A table with, in every cell, what stands below the mean: spread, n, the paper's figure."""
    sheet = measured(filled)
    fixed = sheet.frame.shape[1] - len(filled.columns)
    rows = []
    for index, line in enumerate(filled.lines):
        cells = zip(filled.columns, filled.cells(line), filled.figures(line), strict=True)
        rows.append(
            {
                "fixed": list(sheet.frame.iloc[index, :fixed]),
                "rule": index in sheet.rules,
                "missing": line.group is None,
                "cells": [
                    _cell(*cell, sheet.mark(index, fixed + place))
                    for place, cell in enumerate(cells)
                ],
            }
        )
    heads = [title.partition(" (") for title in sheet.frame.columns]
    return {
        "name": filled.table.name,
        "title": sheet.title,
        "header": [(head, f"({tail}" if mark else "") for head, mark, tail in heads],
        "rows": rows,
        "notes": sheet.notes,
        "empty": filled.empty,
        "comparable": filled.comparable,
    }


def _cell(
    column: Column | None, cell: Cell | None, figure: float | None, mark: str
) -> dict[str, Any]:
    spread = ""
    if cell is not None:
        deviation = "" if cell.std is None else f"±{shown(cell.std, column)} · "
        spread = f"{deviation}n={cell.n}"
    delta = "" if cell is None or figure is None else difference(cell, figure)
    return {
        "value": MISSING if cell is None else shown(cell.mean, column),
        "mark": mark,
        "spread": spread,
        "figure": "" if figure is None else f"{figure:.2f}",
        "difference": delta,
        "sign": "down" if delta.startswith("-") else "up",
    }


def _comparisons(verdicts: Sequence[Verdict]) -> list[tuple[str, Comparison]]:
    """Each pair of rows once, under the table and column of the claim that compares them."""
    seen: dict[Any, tuple[str, Comparison]] = {}
    for verdict in verdicts:
        table = verdict.claim.table.replace("table", "Table ")
        where = f"{table}, {verdict.claim.column or 'average'}"
        for comparison in verdict.comparisons:
            seen.setdefault((where, comparison.first, comparison.other), (where, comparison))
    return list(seen.values())
