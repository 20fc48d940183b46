"""A drawing of boxes, arrows and words as SVG text."""

from pathlib import Path
from xml.sax.saxutils import escape

INK, GREY, PALE = "#1f2937", "#6b7280", "#f3f4f6"
BLUE, LIGHT_BLUE, ORANGE, LIGHT_ORANGE = "#2563eb", "#dbeafe", "#c2410c", "#ffedd5"
COLORS = {"ink": INK, "grey": GREY, "blue": BLUE, "orange": ORANGE}


class Drawing:
    """Shapes on a white card, written to a file by `save`.

    Args:
        width, height: size in pixels.
        description: what the picture shows, for readers who do not see it.
    """

    def __init__(self, width: float, height: float, description: str) -> None:
        self.width, self.height, self.description = width, height, description
        self.shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str = PALE, line: str = GREY) -> None:
        """A box with round corners; `(x, y)` is its upper left corner."""
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{line}"/>'
        )

    def plus(self, x: float, y: float, color: str = ORANGE) -> None:
        """A plus sign in a circle around `(x, y)`: a sum."""
        self.shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="7" fill="#ffffff" stroke="{color}" stroke-width="1.5"/>')
        self.shapes.append(f'<path d="M {x - 4:g} {y:g} h 8 M {x:g} {y - 4:g} v 8" stroke="{color}"/>')

    def text(self, x: float, y: float, words: str, size: int = 13, color: str = INK, anchor: str = "middle") -> None:
        """Words on one line, centred at x unless `anchor` is `"start"` or `"end"`."""
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def line(self, path: str, color: str = INK, width: float = 1.5, dashed: bool = False, head: bool = True) -> None:
        """A line along an SVG path such as `"M 0 0 L 10 0"`, with an arrow head at its end unless `head` is false."""
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        name = next(name for name, value in COLORS.items() if value == color)
        end = f' marker-end="url(#{name})"' if head else ""
        self.shapes.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{dashes}{end}/>')

    def save(self, path: Path) -> None:
        """Writes the drawing to a file."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto" '
            f'markerUnits="userSpaceOnUse"><path d="M 0 0.5 L 8 4 L 0 7.5 z" fill="{color}"/></marker>'
            for name, color in COLORS.items()
        )
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'width="{self.width:g}" height="{self.height:g}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif">',
            f"<title>{escape(self.description)}</title>",
            f"<defs>{heads}</defs>",
            f'<rect width="{self.width:g}" height="{self.height:g}" rx="10" fill="#ffffff"/>',
            *self.shapes,
            "</svg>",
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
