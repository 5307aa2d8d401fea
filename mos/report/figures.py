"""How plots look, and how they become SVG and PDF. matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from mos.adapters import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
UNKNOWN = "#6b7280"  # a method that this installation does not have
MARKERS = "osD^vP*Xh<>p"
STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "mos",
    "pdf.fonttype": 42,
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Attributes:
        name: of its files.
        title, caption: for the report.
    """

    name: str
    title: str
    caption: str
    svg: str
    pdf: bytes


def available() -> bool:
    """Whether matplotlib is installed (the `report` extra)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def plot(
    name: str, title: str, caption: str
) -> Callable[[Callable[P, Figure | None]], Callable[P, Plot | None]]:
    """Make a `Plot` of what a function draws in the report's style; None stays None."""

    def decorate(draw: Callable[P, Figure | None]) -> Callable[P, Plot | None]:
        @wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> Plot | None:
            from matplotlib import rc_context

            with rc_context(STYLE):
                figure = draw(*args, **kwargs)
                if figure is None:
                    return None
                svg, pdf = io.StringIO(), io.BytesIO()
                figure.savefig(svg, format="svg", metadata={"Date": None})
                figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
            return Plot(name, title, caption, svg.getvalue(), pdf.getvalue())

        return drawn

    return decorate


def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list]:
    """A figure without pyplot's global state, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def colour(method: str, label: str) -> str:
    """The colour of a method's row."""
    return METHODS[method].colour_of(label) if method in METHODS else UNKNOWN
