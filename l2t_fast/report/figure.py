"""One drawing, two files: a PNG for elsewhere and an inline SVG whose colours follow the page's theme."""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy import optimize

from l2t_fast.files import write_whole
from l2t_fast.report.style import LIGHT

NARROW = 4.6
"""Inches. A phone shows a figure of this width without scrolling at 9 px a text line or more."""

RC = {
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.facecolor": LIGHT["paper"],
    "axes.facecolor": "none",
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    # Names of layers, classes and methods are shown as they are: a dollar sign in one is no formula.
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
}


@dataclass(frozen=True)
class Plot:
    """A finished figure of the page. ``svg`` is markup that matplotlib wrote, with all text escaped."""

    name: str
    title: str
    caption: str
    svg: str
    across: bool = False
    """Whether the page shows it over its whole width."""


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` x ``height`` inches in the report's style, without touching pyplot's global state.

    Nor does that touch the figure: somebody's own settings, LaTeX for one, are for their figures.
    """
    with matplotlib.style.context(["default", RC]):
        yield Figure(figsize=(width, height), layout="constrained")


def save_plot(figure: Figure, plots_dir: Path, name: str, title: str, caption: str) -> Plot:
    """Write ``plots_dir/name.png`` and give the figure back as a ``Plot``. Call inside ``drawing``."""
    plots_dir.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=160, metadata={"Software": None})
    write_whole(picture.getbuffer(), plots_dir / f"{name}.png")
    figure.set_layout_engine("none")  # the layout is found by now; to find it again takes as long as to draw
    text = io.StringIO()
    # The salt keeps ids of several figures in one page apart, and the same from run to run.
    salt = hashlib.sha256(f"{plots_dir.name}/{name}".encode()).hexdigest()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Plot(name, title, caption, _themed(text.getvalue(), figure.get_figwidth(), title))


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Fractions shown as percent."""
    formatter = FuncFormatter(lambda fraction, _: f"{round(100 * fraction, 6):g}\N{NO-BREAK SPACE}%")
    (axes.yaxis if which == "y" else axes.xaxis).set_major_formatter(formatter)


def short(name: str, limit: int = 22) -> str:
    """``name`` on one line, with an ellipsis in its middle where it is longer than ``limit``."""
    name = " ".join(name.split())
    half = (limit - 1) // 2
    return name if len(name) <= limit else f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def spread_apart(positions: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move label ``positions`` as little as possible (least squares) so that neighbours are ``gap`` apart and, if they
    fit, all lie within the bounds."""
    order = np.argsort(positions, kind="stable")
    steps = gap * np.arange(len(positions))
    moved = optimize.isotonic_regression(np.asarray(positions, dtype=float)[order] - steps).x
    placed = np.empty(len(positions))
    placed[order] = np.minimum(np.maximum(moved, low), high - steps[-1]) + steps
    return placed.tolist()


def _themed(svg: str, width: float, title: str) -> str:
    """Drop what belongs to a file of its own, and turn the light theme's colours into CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    variables = {color: f"var(--{name})" for name, color in LIGHT.items()}
    svg = re.sub(
        r"((?:fill|stroke)(?:: ?|=\"))(#[0-9a-f]{6})\b",
        lambda found: found[1] + variables.get(found[2], found[2]),
        svg,
    )
    opening, rest = svg.split(">", 1)
    view_box = re.search(r'viewBox="[-0-9. ]+"', opening)
    box = view_box[0] if view_box else ""
    # A figure that is wider than NARROW scrolls sideways on a phone; shrinking it would make its text unreadable.
    minimum = f' style="min-width: {width * 80:.0f}px"' if width > NARROW else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="plot" role="img" '
        f'aria-label="{html.escape(title)}" {box}{minimum}>{rest}'
    )
