"""Charts as SVG, written here: no script, no picture file, colours from the page's style sheet.

Every chart has a title and a description that say in words what it shows. Bars place everything in percent of their
width, so they fit any screen without scaling their text; the others scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]
_BAR_HEIGHT = 22
_RADAR_SIZE, _RADAR_RADIUS = 460, 150
_PLOT_SIZE, _PLOT_MARGIN, _PLOT_END = 220, 40, 18


@dataclass(frozen=True)
class Scale:
    """The values at the left and right end of a bar's box."""

    low: float
    high: float

    def percent(self, value: float) -> float:
        """Where a value stands, 0 to 100; values outside stand at the end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


def scale_for(unit: str, values: Sequence[float], chance: float | None) -> Scale:
    """Shares from 0 to 1 and points from 0 to 100, to -1 and -100 if any is negative; other numbers from 0 to the
    largest, or both ways about 0 where they can be negative."""
    values = [value for value in (*values, chance) if value is not None and math.isfinite(value)]
    lowest, highest = min(values, default=0.0), max(values, default=1.0)
    if unit in ("share", "points"):
        top = 1.0 if unit == "share" else 100.0
        return Scale(-top if lowest < 0 else 0.0, top)
    if lowest < 0:
        ends = max(abs(lowest), abs(highest), 1.0 if max(abs(lowest), abs(highest)) <= 1 else 0.0)
        return Scale(-ends, ends)
    if chance == 0.0 and highest <= 1:
        return Scale(-1.0, 1.0)
    return Scale(0.0, highest * 1.05 or 1.0)


def bar(
    scale: Scale,
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    chance: float | None,
    colour: str,
    words: str,
    published: bool = False,
) -> Markup:
    """One value as a bar from 0, its interval as a whisker, chance as a dashed line.

    Args:
        colour: class of the style sheet (``m0`` ...).
        words: what it shows, for who cannot see it.
    """
    parts = [f'<svg class="bar {colour}{" published" if published else ""}" role="img" height="{_BAR_HEIGHT}">']
    parts.append(f"<title>{escape(words)}</title>")
    parts.append('<rect class="track" x="0" y="5" width="100%" height="12" rx="2"/>')
    if value is not None:
        zero, end = scale.percent(0.0), scale.percent(value)
        width = max(abs(end - zero), 0.4)
        parts.append(f'<rect class="value" x="{min(zero, end)}%" y="5" width="{width:.2f}%" height="12" rx="2"/>')
        if scale.low < 0:
            parts.append(f'<line class="zero" x1="{zero}%" x2="{zero}%" y1="2" y2="20"/>')
    if low is not None and high is not None:
        left, right = scale.percent(low), scale.percent(high)
        parts.append(f'<line class="whisker" x1="{left}%" x2="{right}%" y1="11" y2="11"/>')
        parts += [f'<line class="whisker" x1="{x}%" x2="{x}%" y1="7" y2="15"/>' for x in (left, right)]
    if chance is not None:
        at = scale.percent(chance)
        parts.append(f'<line class="chance" x1="{at}%" x2="{at}%" y1="0" y2="22"/>')
    return Markup("".join([*parts, "</svg>"]))


@dataclass(frozen=True)
class Spoke:
    """One model's value on an axis, 0 to 1, with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Polygon:
    """One model in a radar chart; ``spokes`` in the order of the axes."""

    label: str
    colour: str
    spokes: Sequence[Spoke]


def radar(axes: Sequence[str], polygons: Sequence[Polygon], chance: Sequence[float]) -> Markup:
    """Polygons over at least three axes from 0 to 1, with intervals along the axes and chance as a dashed polygon."""
    assert len(axes) >= 3
    words = "; ".join(
        f"{one.label}: " + ", ".join(f"{axis} {s.value:.0%}" for axis, s in zip(axes, one.spokes, strict=True))
        for one in polygons
    )
    centre = _RADAR_SIZE / 2

    def at(axis: int, value: float) -> Point:
        angle = 2 * math.pi * axis / len(axes) - math.pi / 2
        radius = _RADAR_RADIUS * min(1.0, max(0.0, value))
        return round(centre + radius * math.cos(angle), 1), round(centre + radius * math.sin(angle), 1)

    parts = [
        f'<svg class="radar" role="img" viewBox="0 0 {_RADAR_SIZE} {_RADAR_SIZE}" aria-labelledby="radar-t radar-d">',
        '<title id="radar-t">Results by kind of task</title>',
        f'<desc id="radar-d">{escape(words)}</desc>',
        *_radar_grid(axes, at),
        f'<polygon class="chance" points="{_points(at(axis, value) for axis, value in enumerate(chance))}"/>',
    ]
    for one in polygons:
        corners = [at(axis, spoke.value) for axis, spoke in enumerate(one.spokes)]
        parts.append(f'<g class="{one.colour}"><polygon class="area" points="{_points(corners)}"/>')
        for axis, spoke in enumerate(one.spokes):
            (x1, y1), (x2, y2) = at(axis, spoke.low), at(axis, spoke.high)
            parts.append(f'<line class="whisker" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')
        parts += [_marker(one.colour, corner) for corner in corners]
        parts.append("</g>")
    return Markup("".join([*parts, "</svg>"]))


def _radar_grid(axes: Sequence[str], at: Callable[[int, float], Point]) -> list[str]:
    parts = []
    for ring in (0.25, 0.5, 0.75, 1.0):
        parts.append(f'<polygon class="grid" points="{_points(at(axis, ring) for axis in range(len(axes)))}"/>')
    for axis, name in enumerate(axes):
        (x, y), centre = at(axis, 1.0), _RADAR_SIZE / 2
        parts.append(f'<line class="grid" x1="{centre}" y1="{centre}" x2="{x}" y2="{y}"/>')
        anchor = "middle" if abs(x - centre) < 20 else ("start" if x > centre else "end")
        out_x, out_y = centre + (x - centre) * 1.1, centre + (y - centre) * 1.12 + 5
        parts.append(f'<text x="{out_x:.1f}" y="{out_y:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    x, y = at(0, 0.5)
    parts.append(f'<text class="tick" x="{x + 4}" y="{y + 4}">50%</text>')
    return parts


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _marker(colour: str, at: Point, size: float = 4.5) -> str:
    """A form for each colour, for who cannot tell colours apart."""
    x, y = at
    forms = {
        "m1": f"M{x - size},{y - size}h{2 * size}v{2 * size}h{-2 * size}z",
        "m2": f"M{x},{y - size - 1}L{x + size + 1},{y + size}H{x - size - 1}z",
        "m3": f"M{x},{y - size - 1.5}L{x + size + 1.5},{y}L{x},{y + size + 1.5}L{x - size - 1.5},{y}z",
        "m5": f"M{x},{y + size + 1}L{x + size + 1},{y - size}H{x - size - 1}z",
    }
    if colour in forms:
        return f'<path class="mark" d="{forms[colour]}"/>'
    hollow = " hollow" if colour in ("m4", "m6") else ""
    return f'<circle class="mark{hollow}" cx="{x}" cy="{y}" r="{size}"/>'


def key(colour: str) -> Markup:
    """A model's colour and form, to stand before its name."""
    return Markup(
        f'<svg class="key {colour}" width="14" height="14" aria-hidden="true">{_marker(colour, (7.0, 7.0))}</svg>'
    )


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence."""

    count: int
    confidence: float
    accuracy: float


def calibration(name: str, curves: Sequence[tuple[str, str, Sequence[Bin]]]) -> Markup:
    """Accuracy over confidence for (label, colour, bins) of each model; the diagonal is perfect calibration. A mark is
    larger the more answers it stands for."""
    size, margin = _PLOT_SIZE, _PLOT_MARGIN
    inner = size - margin - _PLOT_END

    def at(x: float, y: float) -> Point:
        return round(margin + inner * x, 1), round(10 + inner * (1 - y), 1)

    said = "; ".join(
        f"{label}: " + ", ".join(f"{b.count} at {b.confidence:.0%} are right in {b.accuracy:.0%}" for b in bins)
        for label, _, bins in curves
    )
    (left, bottom), (right, top) = at(0, 0), at(1, 1)
    parts = [
        f'<svg class="plot" role="img" viewBox="0 0 {size} {size}"><title>Calibration: {escape(name)}</title>',
        f"<desc>{escape(said)}</desc>",
        f'<rect class="grid" x="{left}" y="{top}" width="{inner}" height="{inner}"/>',
        f'<line class="chance" x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"/>',
        *(
            f'<text class="tick" x="{at(v, 0)[0]}" y="{bottom + 13}" text-anchor="middle">{v:.0%}</text>'
            f'<text class="tick" x="{left - 4}" y="{at(0, v)[1] + 4}" text-anchor="end">{v:.0%}</text>'
            for v in (0, 0.5, 1)
        ),
        f'<text class="tick" x="{(left + right) / 2}" y="{size - 3}" text-anchor="middle">confidence</text>',
        f'<text class="tick" x="{left + 6}" y="{top + 14}">share right</text>',
    ]
    for _, colour, bins in curves:
        total = sum(one.count for one in bins) or 1
        points = [at(one.confidence, one.accuracy) for one in bins]
        parts.append(f'<g class="{colour}"><polyline class="curve" points="{_points(points)}"/>')
        for point, one in zip(points, bins, strict=True):
            parts.append(_marker(colour, point, 2.5 + 4 * math.sqrt(one.count / total)))
        parts.append("</g>")
    return Markup("".join([*parts, "</svg>"]))
