"""The page for people: one self-contained HTML file with the figures and tables of all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from l2t_fast.bench.groups import Group
from l2t_fast.bench.tables import Table
from l2t_fast.report.figure import Plot
from l2t_fast.report.style import DARK, LIGHT
from l2t_fast.report.templates import templates


def render_page(
    groups: Sequence[Group], tables: Mapping[str, Sequence[Table]], plots: Sequence[Plot], sources: Sequence[Path]
) -> str:
    """The page's HTML, without a script and without a request to anywhere."""
    environment = templates(Path(__file__).parent)
    # The cells are Markdown: emphasis and code of theirs are dropped here.
    environment.filters["plain"] = lambda cell: cell.replace("**", "").replace("`", "")
    devices = ", ".join(dict.fromkeys(group.first.device for group in groups))
    return environment.get_template("page.html").render(
        title="l2t_fast: speed and memory",
        headline=f"Measured on {devices}." if groups else "There are no rows yet.",
        rows=sum(len(group.rows) + len(group.parts) for group in groups),
        groups=len(groups),
        sources=", ".join(path.name for path in sources),
        plots=[(plot, Markup(plot.svg)) for plot in plots],
        tables=tables,
        light=LIGHT,
        dark=DARK,
    )
