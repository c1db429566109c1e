"""One drawing, two files: a PNG for elsewhere and an inline SVG whose colours follow the page's theme."""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

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
    "hatch.color": LIGHT["muted"],
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


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` x ``height`` inches in the report's style, without touching pyplot's global state."""
    with matplotlib.rc_context(RC):
        yield Figure(figsize=(width, height), layout="constrained")


def save_plot(figure: Figure, plots_dir: Path, name: str, title: str, caption: str) -> Plot:
    """Write ``plots_dir/name.png`` and give the figure back as a ``Plot``. Call inside ``drawing``."""
    plots_dir.mkdir(parents=True, exist_ok=True)
    figure.savefig(plots_dir / f"{name}.png", dpi=160, metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout is found by now; to find it again takes as long as to draw
    text = io.StringIO()
    # The salt keeps ids of several figures in one page apart, and the same from run to run.
    with matplotlib.rc_context({"svg.hashsalt": hashlib.sha256(name.encode()).hexdigest()}):
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
    """Move label ``positions`` so that neighbours are ``gap`` apart and, if they fit, all lie within the bounds."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = [min(max(position, low), high) for position in positions]
    for before, after in itertools.pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    for index, after in reversed(list(itertools.pairwise(order))):
        if placed[after] > high:
            placed[after] = high
        high = min(high, placed[after]) - gap
        placed[index] = min(placed[index], high)
    return placed


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
