"""Sheets as Markdown, LaTeX and CSV, and on the terminal. Names in them are escaped."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from mos.report import paper
from mos.report.cells import shown
from mos.report.sheets import Sheet, difference
from mos.report.tables import Filled

# Makes a file compile by itself as well as \input into a document that loads booktabs.
_LATEX_HEAD = r"""\expandafter\ifx\csname @nodocument\endcsname\relax
  \let\finishtable\relax
\else
  \documentclass{article}
  \usepackage[T1]{fontenc}
  \usepackage[utf8]{inputenc}
  \usepackage{booktabs,graphicx}
  \usepackage[a4paper,landscape,margin=15mm]{geometry}
  \def\finishtable{\end{document}}
  \begin{document}
\fi
% As wide as the column at most, where graphicx is loaded.
\def\fitcolumn#1{\setbox0\hbox{#1}\ifdim\wd0>\linewidth
  \ifdefined\resizebox\resizebox{\linewidth}{!}{\box0}\else{\tiny #1}\fi\else\box0\fi}
"""
_LABELS = {row.label for table in paper.TABLES for row in table.rows}


def markdown(sheets: Sequence[Sheet]) -> str:
    """GitHub-flavoured Markdown: `**bold**`, `<u>underlined</u>`."""
    parts = []
    for level, sheet in enumerate(sheets):
        lines = [[_markdown(str(t)) for t in sheet.frame.columns], ["---"] * sheet.frame.shape[1]]
        for row, texts in enumerate(sheet.frame.itertuples(index=False, name=None)):
            lines.append([_marked(_markdown(t), sheet.mark(row, i)) for i, t in enumerate(texts)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = [f"{_markdown(note)}\n" for note in sheet.notes]
        parts += [f"{'##' if level else '#'} {_markdown(sheet.title)}\n", f"{table}\n", *notes]
    return "\n".join(parts)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text).replace("<", "&lt;")


def _marked(text: str, mark: str) -> str:
    text = f"**{text}**" if "bold" in mark else text
    return f"<u>{text}</u>" if "underline" in mark else text


def latex(sheets: Sequence[Sheet], label: str) -> str:
    """booktabs tables that compile by themselves and can be \\input."""
    parts = [_LATEX_HEAD]
    for index, sheet in enumerate(sheets):
        width = sheet.frame.shape[1]
        styler = sheet.frame.map(_latex).set_axis(range(width), axis=1).style.hide(axis="index")
        if sheet.marks is not None:
            marks = sheet.marks.map(_latex_style).set_axis(range(width), axis=1)
            styler = styler.apply(lambda _, marks=marks: marks, axis=None)
        lines = styler.to_latex(
            hrules=True, column_format="l" * sheet.texts + "c" * (width - sheet.texts)
        ).splitlines()
        body = lines.index(r"\midrule") + 1
        for number in sorted(sheet.rules, reverse=True):
            lines.insert(body + number, r"\midrule")
        # A title in two lines where it has a parenthesis keeps ten columns on a page.
        titles = [str(title).partition(" (") for title in sheet.frame.columns]
        header = [[head for head, _, _ in titles], [m.strip() + tail for _, m, tail in titles]]
        lines[body - 2 : body - 1] = [
            " & ".join(map(_latex, line)) + r" \\" for line in header if any(line)
        ]
        # LaTeX numbers its tables itself.
        caption = " ".join([f"{re.sub(r'^Table [0-9]: ', '', sheet.title)}.", *sheet.notes])
        parts += [
            r"\begin{table}[htbp]",
            r"\centering\small\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_latex(caption)}}}",
            rf"\label{{tab:{label}{'abcdefgh'[index] if index else ''}}}",
            r"\fitcolumn{" + "\n".join(lines) + "}",
            r"\end{table}",
            "",
        ]
    return "\n".join([*parts, r"\finishtable", ""])


def _latex_style(mark: str) -> str:
    css = {"bold": "textbf:--rwrap", "underline": "underline:--rwrap"}
    return ";".join(css[name] for name in mark.split())


def _latex(text: str) -> str:
    """The text for LaTeX; what no font of its default encoding has becomes "?"."""
    special = {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "†": r"$^\dagger$", "±": r"$\pm$", "–": "--", "<": r"$<$", ">": r"$>$", "−": "$-$",
    }  # fmt: skip
    return "".join(special.get(c) or (c if ord(c) < 256 else "?") for c in text)


def paper_csv(filled: Filled) -> str:
    """One line a row: mean, std and n of every column, the paper's figure and the difference."""
    titles = filled.table.header[3 if filled.table.show_parameters else 2 :]
    lines = []
    for line in filled.lines:
        parameters = line.group.parameters if line.group else ""
        row = {"Method": line.row.label, "Rank": line.rank, "# Param.": parameters}
        cells = zip(titles, filled.columns, filled.cells(line), filled.figures(line), strict=True)
        for title, column, cell, wanted in cells:
            row[title] = shown(cell.mean, column) if cell else ""
            row[f"{title} std"] = shown(cell.std, column) if cell and cell.std is not None else ""
            row[f"{title} n"] = cell.n if cell else ""
            if wanted is not None:
                row[f"{title} paper"] = f"{wanted:.2f}"
                row[f"{title} difference"] = difference(cell, wanted) if cell else ""
        lines.append(row)
    return to_csv(pd.DataFrame(lines))


def to_csv(frame: pd.DataFrame) -> str:
    """CSV in which no text is a formula to a spreadsheet."""
    rows = [map(_no_formula, row) for row in frame.itertuples(index=False, name=None)]
    # As objects: whole numbers stay whole beside cells that are empty.
    safe = pd.DataFrame(rows, columns=[_no_formula(c) for c in frame], dtype=object)
    return safe.to_csv(index=False, lineterminator="\n")


def _no_formula(value: object) -> object:
    if not isinstance(value, str) or value in _LABELS or not re.match(r"[=+\-@\t\r]", value):
        return value
    return value if re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?|-", value) else f"'{value}"


def terminal(sheet: Sheet, caption: str = "") -> Table:
    """A table for the terminal, whose words do not break inside: names stand on lines of words."""
    table = Table(title=Text(sheet.title), caption=caption, box=None, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    frame = sheet.frame
    used = [i for i in range(frame.shape[1]) if frame.empty or (frame.iloc[:, i] != "").any()]
    for index in used:
        short = frame.columns[index].partition(" (")[0].removeprefix("# ").replace(" P@1", "")
        words = re.sub(r"\.(?=[a-z])", ".\n", short.replace("HumanEval", "Human Eval"))
        table.add_column(
            Text(words.replace(" ", "\n")),
            justify="left" if index < min(sheet.texts, 2) else "right",
            no_wrap=True,
        )
    for row in range(len(frame)):
        texts = [textwrap.fill(str(frame.iat[row, i]), 30, break_long_words=False) for i in used]
        styles = [sheet.mark(row, i).strip() for i in used]
        table.add_row(*map(Text, texts, styles))
    return table
