"""Small charts as SVG text, for pages without external resources, sized for the width of a phone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from ..diagnostics import Bin

INK, GREY, RULE, ACCENT = "#1f2937", "#6b7280", "#d1d5db", "#1d4ed8"
# Colour and dashes of the series of a line chart, in order.
STYLES = ((ACCENT, ""), (GREY, "5 4"), (INK, "2 3"))
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 34, 34  # margins of the plotted area


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns round numbers from just below `low` to just above `high`.

    Args:
        low: the smallest value.
        high: the largest value.
        most: approximate number of ticks.

    Example:

    ```python
    >>> nice_ticks(0.83, 0.91)
    [0.82, 0.84, 0.86, 0.88, 0.9, 0.92]

    ```
    """
    span = high - low or abs(high) or 1.0
    magnitude = 10 ** math.floor(math.log10(span / most))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if span / (factor * magnitude) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, max(last, first + 1) + 1)]


def line_chart(
    series: Mapping[str, Sequence[float | None]],
    x: Sequence[int],
    description: str,
    marked: int | None = None,
    percent: bool = False,
) -> str:
    """Draws up to three lines over the numbers of iterations.

    Args:
        series: values by name, one for each `x`; `None` is a gap.
        x: integers, ascending.
        description: what the diagram shows, for readers who do not see it.
        marked: value of `x` that gets a vertical line, such as the K of training.
        percent: whether values are shares of 1.
    """
    values = [value for line in series.values() for value in line if value is not None and math.isfinite(value)]
    ticks = nice_ticks(min(values, default=0.0), max(values, default=1.0))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place_x(value: float) -> float:
        return LEFT + width * (value - x[0]) / max(x[-1] - x[0], 1)

    def place_y(value: float) -> float:
        return TOP + height * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))

    shapes = []
    for tick in ticks:
        shapes.append(_line(LEFT, place_y(tick), WIDTH - RIGHT, place_y(tick), RULE))
        words = f"{100 * tick:g}%" if percent else f"{tick:g}"
        shapes.append(_text(LEFT - 6, place_y(tick) + 4, words, anchor="end"))
    if marked is not None:
        shapes.append(_line(place_x(marked), TOP, place_x(marked), HEIGHT - BOTTOM, GREY, dashes="1 3"))
    for number in x[:: math.ceil(len(x) / 12)]:
        words = f"K = {number}" if number == marked else str(number)
        shapes.append(_text(place_x(number), HEIGHT - BOTTOM + 16, words, INK if number == marked else GREY))
    shapes.append(_text(LEFT + width / 2, HEIGHT - 3, "iteration"))
    for line, (color, dashes) in zip(series.values(), STYLES, strict=False):
        points = [
            (place_x(number), place_y(value)) if value is not None and math.isfinite(value) else None
            for number, value in zip(x, line, strict=True)
        ]
        shapes.extend(_polyline(points, color, dashes))
    return _svg(WIDTH, HEIGHT, description, [*shapes, *_legend(list(series))])


def reliability_diagram(bins: Sequence[Bin], description: str) -> str:
    """Draws accuracy over confidence; on the diagonal the two agree. Larger circles stand for more items.

    Args:
        bins: bins of `diagnostics.calibration`.
        description: what the diagram shows, for readers who do not see it.
    """
    side, left, top = 150, 34, 8
    largest = max((one["count"] for one in bins), default=1) or 1
    shapes = [_line(left, top + side, left + side, top, GREY, dashes="5 4")]
    shapes += [_line(left, top, left, top + side, RULE), _line(left, top + side, left + side, top + side, RULE)]
    for share in (0.0, 0.5, 1.0):
        shapes.append(_text(left - 5, top + side * (1 - share) + 4, f"{100 * share:g}%", anchor="end"))
        shapes.append(_text(left + side * share, top + side + 15, f"{100 * share:g}%"))
    for one in bins:
        if one["confidence"] is not None and one["accuracy"] is not None:
            radius = 2 + 6 * math.sqrt(one["count"] / largest)
            cx, cy = left + side * one["confidence"], top + side * (1 - one["accuracy"])
            shapes.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{radius:.1f}" fill="{ACCENT}" fill-opacity="0.65"/>')
    shapes.append(_text(left + side / 2, top + side + 30, "confidence"))
    return _svg(left + side + 16, top + side + 34, description, shapes)


def _legend(names: Sequence[str]) -> list[str]:
    """The legend in one line; long names are shortened to fit."""
    character, stroke = 6.3, 34
    most = int(((WIDTH - LEFT) / max(len(names), 1) - stroke) / character)
    fits = sum(stroke + character * len(name) for name in names) <= WIDTH - LEFT
    shapes, start = [], float(LEFT)
    for name, (color, dashes) in zip(names, STYLES, strict=False):
        shown = name if fits or len(name) <= most else f"{name[: most - 1]}…"
        shapes.append(_line(start, 12, start + 18, 12, color, 2, dashes))
        shapes.append(_text(start + 23, 16, shown, INK, "start"))
        start += stroke + character * len(shown)
    return shapes


def _polyline(points: Iterable[tuple[float, float] | None], color: str, dashes: str) -> list[str]:
    """A line with dots, broken at gaps."""
    shapes, path = [], ""
    for point in points:
        if point is None:
            path += " "
            continue
        px, py = point
        path += f"{'L' if path and not path.endswith(' ') else 'M'}{px:.1f},{py:.1f}"
        shapes.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>')
    stroke = f' stroke-dasharray="{dashes}"' if dashes else ""
    return [f'<path d="{path.strip()}" fill="none" stroke="{color}" stroke-width="2"{stroke}/>', *shapes]


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1, dashes: str = "") -> str:
    stroke = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width:g}"'
        f"{stroke}/>"
    )


def _text(x: float, y: float, words: str, color: str = GREY, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(width: float, height: float, description: str, shapes: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" font-size="11" '
        f'font-family="system-ui, sans-serif"><title>{escape(description)}</title>{"".join(shapes)}</svg>'
    )
