"""Line charts as SVG for a page of our own: drawn by matplotlib, coloured by the page.

Colours are CSS variables (``--ink``, ``--faint``, ``--series-1`` to ``--series-6``), so that a chart follows the page
from light to dark. Text is text: it can be searched, and letters of every script come from the reader's fonts.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SERIES = 6
"""Colours that the page must give."""
STYLE = """
:root { --ink: #24292f; --faint: #d0d7de; --paper: #ffffff;
  --series-1: #0969da; --series-2: #bc4c00; --series-3: #1a7f37; --series-4: #8250df; --series-5: #bf3989;
  --series-6: #57606a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #3d444d; --paper: #0d1117;
  --series-1: #58a6ff; --series-2: #f0883e; --series-3: #3fb950; --series-4: #bc8cff; --series-5: #f778ba;
  --series-6: #9198a1; } }
"""
"""The variables, for light and for dark pages."""

# What is drawn with these is a variable on the page.
_INK, _FAINT = "#010203", "#010204"
_COLOURS = [f"#0102{16 + index:02x}" for index in range(SERIES)]
_VARIABLES = {_INK: "var(--ink)", _FAINT: "var(--faint)"} | {
    colour: f"var(--series-{index + 1})" for index, colour in enumerate(_COLOURS)
}
_FONT = "DejaVu Sans"  # matplotlib measures with it; it brings it along


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: in the legend; "" for none.
        x, y: the points, in order.
        colour: 1 to :data:`SERIES`.
        markers: points are marked.
        faint: drawn thin and pale, behind the others.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    markers: bool = False
    faint: bool = False


def line_chart(
    lines: Sequence[Line], *, x_label: str, y_label: str, label: str, width: float = 6.4, height: float = 2.6
) -> str:
    """An ``<svg>`` element of ``width`` by ``height`` (in 1/96 of its view box's 72nds; it fills the room it is given).

    Args:
        label: says in a sentence what is to be seen, for readers who do not see it.

    Needs matplotlib, of the extras ``tune`` and ``eval``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": label, "font.family": [_FONT], "font.size": 9}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the reader's fonts have it
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        for line in sorted(lines, key=lambda line: not line.faint):
            axes.plot(
                line.x,
                line.y,
                color=_COLOURS[line.colour - 1],
                linewidth=0.8 if line.faint else 1.8,
                alpha=0.35 if line.faint else 1.0,
                marker="o" if line.markers or len(line.x) == 1 else None,
                markersize=4,
                label=line.name or None,
            )
        axes.set_xlabel(x_label, color=_INK)
        axes.set_ylabel(y_label, color=_INK)
        axes.tick_params(colors=_INK)
        axes.grid(color=_FAINT, linewidth=0.6)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_FAINT)
        if any(line.name for line in lines):
            axes.legend(frameon=False, labelcolor=_INK)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(target.getvalue(), label)


def _for_page(svg: str, label: str) -> str:
    """The element alone, in the page's colours and fonts, without names that a second chart would repeat."""
    from html import escape

    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL).replace("xlink:href", "href")
    svg = re.sub(
        r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{escape(label)}">', svg
    )
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace(f"'{_FONT}'", "system-ui, sans-serif")
