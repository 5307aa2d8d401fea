"""How plots look, and how they become SVG and PDF. matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from mos.methods import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
UNKNOWN = "#6b7280"  # a method that this installation does not have
MARKERS = "osD^vP*Xh<>p"
MAX_PANELS = 6
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


def panels(count: int, width: float, height: float, across: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot's global state, and the axes of its panels.

    Args:
        count: of panels, at most `across` beside each other.
        width, height: of one, in inches.
    """
    from matplotlib.figure import Figure

    columns = min(across, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def with_legend(figure: Figure, entries: dict[str, Any]) -> Figure:
    """Put the legend beside the panels, in room of its own."""
    figure.set_figwidth(figure.get_figwidth() + 0.6 + 0.068 * max(map(len, entries)))
    figure.legend(entries.values(), entries.keys(), loc="outside right upper")
    return figure


def colour(method: str, label: str) -> str:
    """The colour of a method's row."""
    return METHODS[method].colour_of(label) if method in METHODS else UNKNOWN
