"""The report as one HTML file without others: tables, verdicts, plots, what was left out."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mos.report.aggregate import Average, Cell
from mos.report.claims import Comparison, Verdict
from mos.report.filled import Filled
from mos.report.results import Problem, Result
from mos.report.sheets import MISSING, Sheet, difference, measured, points

MAX_LISTED = 300
TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass
class Report:
    """All that the page shows."""

    sources: Sequence[str]
    scale: str
    folders: int
    results: Sequence[Result]
    filled: Sequence[Filled]
    verdicts: Sequence[Verdict]
    problems: Sequence[Problem]
    others: Sheet
    grouped: Sheet | None = None
    plots: Sequence[tuple[str, str, str]] = field(default_factory=list)
    plots_missing: str = ""


def render(report: Report) -> str:
    """The page; `plots` are (title, what it shows, SVG)."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = _image
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    consequences = Counter(problem.consequence for problem in report.problems)
    return template.render(
        report=report,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        tables=[_table(filled) for filled in report.filled],
        counts=Counter(verdict.verdict for verdict in report.verdicts),
        comparisons=list(_comparisons(report.verdicts)),
        consequences=consequences,
        problems=report.problems[:MAX_LISTED],
        runs=sorted(report.results, key=lambda r: str(r.path))[:MAX_LISTED],
        max_listed=MAX_LISTED,
        missing=MISSING,
        points=points,
    )


def _image(svg: str, alt: str) -> Markup:
    data = base64.b64encode(svg.encode()).decode()
    return Markup('<img alt="{}" src="data:image/svg+xml;base64,{}">').format(alt, data)


def _table(filled: Filled) -> dict[str, Any]:
    """A table with, in every cell, what stands below the mean: spread, n, the paper's figure."""
    sheet = measured(filled)
    fixed = 3 if filled.table.show_parameters else 2
    rows = []
    for index, (line, texts) in enumerate(zip(filled.lines, sheet.rows, strict=True)):
        cells = [*(line.cell(column) for column in filled.table.columns), line.average]
        figures = [*line.row.figures, line.row.average]
        rows.append(
            {
                "fixed": texts[:fixed],
                "rule": index in sheet.rules,
                "missing": line.group is None,
                "cells": [
                    _cell(text, cell, figure if filled.comparable else None)
                    for text, cell, figure in zip(texts[fixed:], cells, figures, strict=True)
                ],
            }
        )
    heads = [title.partition(" (") for title in sheet.header]
    return {
        "name": filled.table.name,
        "title": sheet.title,
        "header": [(head, f"({tail}" if mark else "") for head, mark, tail in heads],
        "fixed": fixed,
        "rows": rows,
        "notes": sheet.notes,
        "empty": filled.empty,
        "comparable": filled.comparable,
    }


def _cell(text: Any, cell: Cell | Average | None, figure: float | None) -> dict[str, Any]:
    value = None if cell is None else points(cell.mean)
    spread = ""
    if cell is not None:
        spread = f"±{points(cell.std)} · n={cell.n}" if cell.std is not None else f"n={cell.n}"
    delta = difference(value, figure) if figure is not None else ""
    return {
        "value": MISSING if value is None else value,
        "bold": text.bold,
        "underline": text.underline,
        "spread": spread,
        "figure": "" if figure is None else f"{figure:.2f}",
        "difference": "" if value is None else delta,
        "sign": "down" if delta.startswith("-") else "up",
    }


def _comparisons(verdicts: Sequence[Verdict]) -> list[tuple[str, Comparison]]:
    """Each pair of rows once, under the table and column of the claim that compares them."""
    seen: dict[Any, tuple[str, Comparison]] = {}
    for verdict in verdicts:
        where = (
            f"{verdict.claim.table.replace('table', 'Table ')}, {verdict.claim.column or 'Avg.'}"
        )
        for comparison in verdict.comparisons:
            seen.setdefault((where, comparison.first, comparison.other), (where, comparison))
    return list(seen.values())
