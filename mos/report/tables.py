"""Sheets as Markdown, LaTeX and CSV, and on the terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text as RichText

from mos.report.filled import Filled
from mos.report.sheets import Sheet, Text, difference, flatten, measured, points

# Makes a file compile by itself as well as \input into a document that loads booktabs.
_LATEX_HEAD = r"""\expandafter\ifx\csname @nodocument\endcsname\relax
  \let\finishtable\relax
\else
  \documentclass{article}
  \usepackage[T1]{fontenc}
  \usepackage[utf8]{inputenc}
  \usepackage{booktabs}
  \usepackage[a4paper,landscape,margin=15mm]{geometry}
  \def\finishtable{\end{document}}
  \begin{document}
\fi
"""
_TEXT_COLUMNS = ("Model", "Method", "Rank", "# Param.", "Settings")
_LATEX_SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"$^\dagger$",
    "±": r"$\pm$",
    "–": "--",
    "<": r"$<$",
    ">": r"$>$",
}


def markdown(sheets: Sequence[Sheet]) -> str:
    """GitHub-flavoured Markdown: `**bold**`, `<u>underlined</u>`."""
    parts = []
    for level, sheet in enumerate(sheets):
        parts.append(f"{'##' if level else '#'} {sheet.title}\n")
        lines = [[_markdown_escape(title) for title in sheet.header], ["---"] * len(sheet.header)]
        lines += [[_markdown_cell(cell) for cell in row] for row in sheet.rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        parts += [f"{note}\n" for note in sheet.notes]
    return "\n".join(parts)


def _markdown_cell(cell: Text) -> str:
    text = _markdown_escape(cell.text)
    text = f"**{text}**" if cell.bold else text
    return f"<u>{text}</u>" if cell.underline else text


def _markdown_escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def latex(sheets: Sequence[Sheet], label: str) -> str:
    """booktabs tables that compile by themselves and can be \\input."""
    parts = [_LATEX_HEAD]
    for index, sheet in enumerate(sheets):
        # LaTeX numbers its tables itself.
        title = re.sub(r"^Table \d: ", "", sheet.title)
        caption = " ".join([f"{title}.", *sheet.notes])
        # A title in two lines where it has a parenthesis keeps ten columns on a page.
        first, second = zip(*(_two_lines(title) for title in sheet.header), strict=True)
        header = [_latex_line(first)] + ([_latex_line(second)] if any(second) else [])
        body = []
        for number, row in enumerate(sheet.rows):
            if number in sheet.rules:
                body.append(r"\midrule")
            body.append(" & ".join(_latex_cell(cell) for cell in row) + r" \\")
        text_columns = sum(title in _TEXT_COLUMNS for title in sheet.header)
        alignment = "l" * text_columns + "c" * (len(sheet.header) - text_columns)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}[htbp]",
                    r"\centering\small\setlength{\tabcolsep}{3pt}",
                    rf"\caption{{{_latex_escape(caption)}}}",
                    rf"\label{{tab:{label}{'abcdefgh'[index] if index else ''}}}",
                    rf"\begin{{tabular}}{{{alignment}}}",
                    r"\toprule",
                    *header,
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                    "",
                ]
            )
        )
    return "\n".join([*parts, r"\finishtable", ""])


def _two_lines(title: str) -> tuple[str, str]:
    head, mark, tail = title.partition(" (")
    return head, f"({tail}" if mark else ""


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(_latex_escape(cell) for cell in cells) + r" \\"


def _latex_cell(cell: Text) -> str:
    text = _latex_escape(cell.text)
    text = rf"\textbf{{{text}}}" if cell.bold else text
    return rf"\underline{{{text}}}" if cell.underline else text


def _latex_escape(text: str) -> str:
    return "".join(_LATEX_SPECIAL.get(c, c) for c in text)


def paper_csv(filled: Filled) -> str:
    """One line a row: mean, std and n of every column, the paper's figure and the difference."""
    fixed = ["Method", "Rank", "# Param."]
    titles = [*(column.title for column in filled.table.columns), "Avg."]
    suffixes = ["", " std", " n"] + ([" paper", " difference"] if filled.comparable else [])
    lines: list[list[str]] = [[*fixed, *(t + suffix for t in titles for suffix in suffixes)]]
    for line in filled.lines:
        parameters = line.group.parameters if line.group else ""
        row = [line.row.label, line.rank, str(parameters)]
        cells = [*(line.cell(column) for column in filled.table.columns), line.average]
        for cell, figure in zip(cells, [*line.row.figures, line.row.average], strict=True):
            mean = points(cell.mean) if cell else ""
            deviation = points(cell.std) if cell and cell.std is not None else ""
            row += [mean, deviation, str(cell.n) if cell else ""]
            if filled.comparable:
                row += [f"{figure:.2f}", difference(mean, figure) if mean else ""]
        lines.append(row)
    return _csv(lines)


def sheet_csv(sheet: Sheet) -> str:
    return _csv([sheet.header, *(flatten(row) for row in sheet.rows)])


def _csv(lines: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def terminal(filled: Filled) -> Table:
    """The rows of a table that have results, within 80 columns."""
    sheet = measured(filled)
    table = Table(title=sheet.title, caption=_caption(filled), box=None, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    for title in sheet.header:
        short = title.partition(" (")[0].removeprefix("# ").replace("HumanEval", "Human Eval")
        text = title in ("Method", "Rank")
        table.add_column(
            short.replace(" P@1", "").replace(" ", "\n"),
            justify="left" if text else "right",
            no_wrap=True,
        )
    for line, row in zip(filled.lines, sheet.rows, strict=True):
        if line.group is not None:
            table.add_row(line.row.label, *(_rich_cell(cell) for cell in row[1:]))
    return table


def _caption(filled: Filled) -> str:
    seeds = f"{filled.seeds} seed{'s' * (filled.seeds != 1)}"
    absent = sum(line.group is None for line in filled.lines)
    missing = f"; {absent} of {len(filled.lines)} rows not run" if absent else ""
    cut = f"; PARTIAL ({filled.cut})" if filled.cut else ""
    return f"{filled.model}, scale {filled.scale}, means over {seeds}{missing}{cut}"


def sheet_terminal(sheet: Sheet) -> Table:
    table = Table(title=sheet.title, title_justify="left", box=None)
    for title in sheet.header:
        table.add_column(title)
    for row in sheet.rows:
        table.add_row(*(_rich_cell(cell) for cell in row))
    return table


def _rich_cell(cell: Text) -> RichText:
    style = " ".join(name for name in ("bold", "underline") if getattr(cell, name))
    return RichText(cell.text, style=style)
