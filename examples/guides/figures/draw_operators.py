"""Draws, for each message operator, what the message to one token is computed from.

python examples/guides/figures/draw_operators.py
"""

from collections.abc import Callable
from pathlib import Path

from svg import BLUE, GREY, INK, LIGHT_BLUE, LIGHT_ORANGE, ORANGE, PALE, Drawing

IMAGES = Path(__file__).resolve().parent.parent / "images"
NUM_TOKENS, TOKEN = 5, 2  # tokens of the text; the one that the drawing is about, counted from 0
WIDTH, HEIGHT, STEP, LEFT = 54, 32, 82, 190
SOURCE, MESSAGE, TARGET = 34, 118, 202  # upper edges of the three rows
SUBSCRIPTS = "₁₂₃₄₅₆"


def middle(token: int) -> float:
    """Middle of a token's column."""
    return LEFT + token * STEP + WIDTH / 2


def draw_row(drawing: Drawing, y: float, letter: str, words: str, marked: set[int]) -> None:
    """A row of states, one for each token, with its name at the left."""
    for token in range(NUM_TOKENS):
        fill, line = (LIGHT_BLUE, BLUE) if token in marked else (PALE, GREY)
        drawing.box(middle(token) - WIDTH / 2, y, WIDTH, HEIGHT, fill, line)
        drawing.text(middle(token), y + 21, letter + SUBSCRIPTS[token], 15)
    first, second = words.split(", ")
    drawing.text(LEFT - 20, y + 14, first, 13, INK, "end")
    drawing.text(LEFT - 20, y + 31, second, 13, GREY, "end")


def draw_message(drawing: Drawing, token: int, words: str, width: float = WIDTH) -> None:
    """The message to a token, and the arrow that adds it to the token's state."""
    drawing.box(middle(token) - width / 2, MESSAGE, width, HEIGHT, LIGHT_ORANGE, ORANGE)
    drawing.text(middle(token), MESSAGE + 21, words, 15)
    drawing.line(f"M {middle(token):g} {MESSAGE + HEIGHT:g} V {TARGET - 16:g}", ORANGE, 2)
    drawing.plus(middle(token), TARGET - 9)


def draw_read(drawing: Drawing, token: int, to: float, width: float = 1.5) -> None:
    """An arrow from a source state to a message at x = `to`."""
    drawing.line(f"M {middle(token):g} {SOURCE + HEIGHT:g} L {to:g} {MESSAGE - 2:g}", BLUE, width)


def draw_receiver(drawing: Drawing, words: str) -> None:
    """An arrow from the token's own state to its message."""
    x, y = middle(TOKEN) + WIDTH / 2, TARGET + HEIGHT / 2
    drawing.line(f"M {x:g} {y:g} C {x + 34:g} {y:g} {x + 34:g} {MESSAGE + 16:g} {x + 2:g} {MESSAGE + 16:g}", BLUE)
    drawing.text(x + 34, (MESSAGE + TARGET + HEIGHT) / 2 + 4, words, 13, BLUE, "start")


def additive(drawing: Drawing) -> None:
    """One state makes one message."""
    draw_read(drawing, TOKEN, middle(TOKEN))
    draw_message(drawing, TOKEN, "m₃")


def gated(drawing: Drawing) -> None:
    """The target's input opens or closes a gate."""
    additive(drawing)
    draw_receiver(drawing, "gate")


def joint(drawing: Drawing) -> None:
    """The source's state and the target's input go through one activation."""
    additive(drawing)
    draw_receiver(drawing, "also read in iteration 1")


def attention(drawing: Drawing) -> None:
    """The target's input weighs the source's states of all tokens."""
    for token, width in enumerate((1.0, 3.5, 1.5, 0.8, 2.2)):
        draw_read(drawing, token, middle(TOKEN) + 8 * (token - TOKEN), width)
    draw_message(drawing, TOKEN, "m₃")
    draw_receiver(drawing, "query")


def temporal(drawing: Drawing) -> None:
    """Messages of neighbouring tokens are read in both directions."""
    for token in range(NUM_TOKENS):
        draw_read(drawing, token, middle(token))
        draw_message(drawing, token, "m" + SUBSCRIPTS[token])
        if token:
            start, end = middle(token - 1) + WIDTH / 2, middle(token) - WIDTH / 2
            drawing.line(f"M {start:g} {MESSAGE + 10:g} H {end - 1:g}", ORANGE)
            drawing.line(f"M {end:g} {MESSAGE + 23:g} H {start + 1:g}", ORANGE)
    drawing.text(LEFT - 20, MESSAGE + 14, "W →  ← V", 13, ORANGE, "end")


def context(drawing: Drawing) -> None:
    """One message for all tokens, from their mean."""
    whole = middle(NUM_TOKENS - 1) - middle(0) + WIDTH
    for token in range(NUM_TOKENS):
        draw_read(drawing, token, middle(token))
        draw_message(drawing, token, "")
    drawing.box(middle(0) - WIDTH / 2, MESSAGE, whole, HEIGHT, LIGHT_ORANGE, ORANGE)
    drawing.text(middle(TOKEN), MESSAGE + 21, "m, from the mean state or the class probabilities", 14)


def segment(drawing: Drawing) -> None:
    """One message for all tokens of a segment, from the mean states of the segment and its neighbours."""
    for token in range(NUM_TOKENS):
        draw_read(drawing, token, middle(TOKEN) + 12 * (token - TOKEN))
    for token in range(1, NUM_TOKENS - 1):
        draw_message(drawing, token, "")
    draw_message(drawing, TOKEN, "m, one for the segment", middle(3) - middle(1) + WIDTH)
    for token, words in ((0, "segment t − 1"), (TOKEN, "segment t"), (NUM_TOKENS - 1, "t + 1")):
        drawing.text(middle(token), SOURCE - 10, words, 13, INK if token == TOKEN else GREY)


OPERATORS: dict[str, tuple[Callable[[Drawing], None], set[int]]] = {
    "additive": (additive, {TOKEN}),
    "gated": (gated, {TOKEN}),
    "attention": (attention, set(range(NUM_TOKENS))),
    "temporal": (temporal, set(range(NUM_TOKENS))),
    "context": (context, set(range(NUM_TOKENS))),
    "joint": (joint, {TOKEN}),
    "segment": (segment, set(range(NUM_TOKENS))),
}


def main() -> None:
    """Writes `images/operator_….svg`, one drawing an operator."""
    for name, (draw, read) in OPERATORS.items():
        doc = str(draw.__doc__)
        drawing = Drawing(middle(NUM_TOKENS - 1) + WIDTH / 2 + 24, TARGET + HEIGHT + 24, f"The {name} message. {doc}")
        draw_row(drawing, SOURCE, "h", "source state, iteration k − 1", read)
        draw_row(drawing, TARGET, "x", "input of the target, iteration k", {TOKEN})
        draw(drawing)
        drawing.save(IMAGES / f"operator_{name}.svg")


if __name__ == "__main__":
    main()
