"""Tables of text as Markdown, LaTeX, HTML, CSV and on the terminal; what runs say is escaped."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup, escape
from pandas.io.formats.style import Styler
from rich.table import Table
from rich.text import Text

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
% A character that pdfTeX's fonts lack: its number there, itself in XeTeX and LuaTeX.
\def\othercharacter#1{\ifdefined\Uchar\Uchar"#1 \else U+#1\fi}
% As wide as the column at most, where graphicx is loaded.
\def\fitcolumn#1{\setbox0\hbox{#1}\ifdim\wd0>\linewidth
  \ifdefined\resizebox\resizebox{\linewidth}{!}{\box0}\else{\tiny #1}\fi\else\box0\fi}
"""
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "†": r"$^\dagger$", "±": r"$\pm$", "–": "--", "<": r"$<$", ">": r"$>$", "−": "$-$",
}  # fmt: skip
_LATEX_MARKS = {"bold": "textbf", "underline": "underline"}


@dataclass
class Sheet:
    """A titled table of texts.

    Attributes:
        frame: the texts.
        marks: (row, column) -> "bold", " underline" or "bold underline".
        texts: how many columns from the left are names, not figures.
    """

    title: str
    frame: pd.DataFrame
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    texts: int = 1

    def mark(self, row: int, column: int) -> str:
        return self.marks.get((row, column), "")


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


def _styled(sheet: Sheet, escaped: Callable[[Any], str]) -> Styler:
    """The table for pandas to write; its columns are numbers, for titles may occur twice."""
    titles: Any = dict(enumerate(map(escaped, sheet.frame.columns)))
    frame = sheet.frame.set_axis(list(titles), axis=1)
    styler = Styler(frame, uuid="t", cell_ids=False).hide(axis="index")
    return styler.format(escaped).format_index(titles.get, axis=1)


def latex(sheets: Sequence[Sheet], label: str) -> str:
    """booktabs tables that compile by themselves and can be \\input."""
    parts = [_LATEX_HEAD]
    for number, sheet in enumerate(sheets):
        styler = _styled(sheet, _latex)
        for at, mark in sheet.marks.items():
            css = ";".join(f"{_LATEX_MARKS[name]}:--rwrap" for name in mark.split())
            styler = styler.map(lambda _, css=css: css, subset=at)
        # LaTeX numbers its tables itself.
        caption = " ".join([f"{re.sub(r'^Table [0-9]: ', '', sheet.title)}.", *sheet.notes])
        lines = styler.to_latex(
            hrules=True,
            column_format="l" * sheet.texts + "c" * (sheet.frame.shape[1] - sheet.texts),
            position="htbp",
            position_float="centering",
            caption=_latex(caption),
            label=f"tab:{label}{'-' + str(number) if number else ''}",
        ).splitlines()
        text = "\n".join(lines).replace(r"\begin{tabular}", r"\fitcolumn{\small\begin{tabular}")
        parts += [text.replace(r"\end{tabular}", r"\end{tabular}}"), ""]
    return "\n".join([*parts, r"\finishtable", ""])


def _latex(text: str) -> str:
    """The text for LaTeX; what no font of its default encoding has is given by its number."""
    return "".join(
        _LATEX.get(c) or (c if ord(c) < 256 else f"\\othercharacter{{{ord(c):04X}}}")
        for c in str(text)
    )


def html(sheet: Sheet) -> Markup:
    """The table as HTML, with the classes `text`, `rule`, `bold` and `underline`."""
    classes = pd.DataFrame(
        [
            [
                f"{'text' * (i < sheet.texts)} {sheet.mark(row, i)}"
                for i in range(sheet.frame.shape[1])
            ]
            for row in range(len(sheet.frame))
        ],
        columns=range(sheet.frame.shape[1]),
    )
    styler = _styled(sheet, lambda text: str(escape(text)))
    return Markup(styler.set_td_classes(classes).to_html())


def to_csv(frame: pd.DataFrame) -> str:
    """CSV in which no text is a formula to a spreadsheet, unless it is "+ " and a name, or "-"."""
    formula = re.compile(r"[=@\t\r]|[+-](?!$|[ \d.])")

    def safe(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and formula.match(value) else value

    rows = [list(map(safe, row)) for row in frame.itertuples(index=False, name=None)]
    # As objects: whole numbers stay whole beside cells that are empty.
    table = pd.DataFrame(rows, columns=[*map(safe, frame)], dtype=object)
    return table.to_csv(index=False, lineterminator="\n")


def terminal(sheet: Sheet) -> Table:
    """A table for the terminal, whose words do not break inside: names stand on lines of words."""
    caption = Text("\n".join(sheet.notes))
    table = Table(title=Text(sheet.title), caption=caption, box=None, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    frame = sheet.frame
    used = [i for i in range(frame.shape[1]) if frame.empty or (frame.iloc[:, i] != "").any()]
    for index in used:
        short = str(frame.columns[index]).partition(" (")[0].removeprefix("# ").replace(" P@1", "")
        words = re.sub(r"([._])(?=[a-z])", r"\1\n", short.replace("HumanEval", "Human Eval"))
        table.add_column(
            Text(words.replace(" ", "\n")),
            justify="left" if index < min(sheet.texts, 2) else "right",
            no_wrap=True,
        )
    for row in range(len(frame)):
        texts = [textwrap.fill(str(frame.iat[row, i]), 30, break_long_words=False) for i in used]
        table.add_row(*map(Text, texts, (sheet.mark(row, i) for i in used)))
    return table
