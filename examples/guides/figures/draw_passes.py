"""Draws K = 3 passes through a backbone of 6 layers with feedback edges 4 → 1 and 4 → 2.

python examples/guides/figures/draw_passes.py
"""

from pathlib import Path

from svg import BLUE, GREY, LIGHT_BLUE, ORANGE, PALE, Drawing

IMAGES = Path(__file__).resolve().parent.parent / "images"
NUM_ITERATIONS, NUM_LAYERS, SOURCE, TARGETS = 3, 6, 4, (1, 2)
SEGMENT = range(TARGETS[0], SOURCE + 1)
WIDTH, HEIGHT = 116, 32  # of a layer's box
LEFT, COLUMN, FLOOR, STEP = 136, 236, 392, 60  # x of the first box, distances of columns and layers, y of layer 0
DESCRIPTION = (
    "Three passes through six layers. Layer 0 runs once, layers 1 to 4 run three times, layer 5 and the head run once "
    "at the end. The output of layer 4 is added, as a message, to the inputs of layers 1 and 2 of the next pass."
)


def left(k: int) -> float:
    """Left edge of the boxes of iteration k."""
    return LEFT + (k - 1) * COLUMN


def middle(k: int) -> float:
    """Middle of the boxes of iteration k."""
    return left(k) + WIDTH / 2


def top(layer: int) -> float:
    """Upper edge of a layer's box."""
    return FLOOR - layer * STEP


def bottom(layer: int) -> float:
    """Lower edge of a layer's box."""
    return top(layer) + HEIGHT


def draw_layer(drawing: Drawing, k: int, layer: int) -> None:
    """One layer in iteration k, with the arrow that leads into it from below."""
    looped = layer in SEGMENT
    drawing.box(left(k), top(layer), WIDTH, HEIGHT, LIGHT_BLUE if looped else PALE, BLUE if looped else GREY)
    drawing.text(middle(k), top(layer) + 21, f"layer {layer}")
    if k == 1 or layer != SEGMENT[0]:
        drawing.line(f"M {middle(k):g} {top(layer - 1) if layer else bottom(0) + 26:g} V {bottom(layer):g}")


def draw_entry(drawing: Drawing) -> None:
    """The output of layer 0, which enters every iteration."""
    y = top(0) + HEIGHT / 2
    drawing.line(f"M {left(1) + WIDTH:g} {y:g} H {middle(NUM_ITERATIONS):g}", GREY, dashed=True, head=False)
    for k in range(2, NUM_ITERATIONS + 1):
        drawing.line(f"M {middle(k):g} {y:g} V {bottom(SEGMENT[0]):g}", GREY, dashed=True)


def draw_messages(drawing: Drawing, k: int) -> None:
    """The messages from iteration k − 1 to iteration k."""
    x, y = left(k - 1) + WIDTH, top(SOURCE) + HEIGHT / 2
    for target in TARGETS:
        end_x, end_y = middle(k), bottom(target) + 13
        drawing.line(f"M {x:g} {y:g} C {x + 110:g} {y:g} {x - 25:g} {end_y:g} {end_x - 8:g} {end_y:g}", ORANGE, 2.2)
        drawing.plus(end_x, end_y)


def draw_words(drawing: Drawing) -> None:
    """Everything that is written beside the layers."""
    last = NUM_ITERATIONS
    for k in range(1, last + 1):
        drawing.text(middle(k), 26, f"iteration {k}", 15)
    drawing.text(middle(1), bottom(0) + 44, "embeddings", 14)
    drawing.text(middle(last), top(NUM_LAYERS) + 24, "head → logits", 14)
    drawing.line(f"M {middle(last):g} {top(NUM_LAYERS - 1):g} V {top(NUM_LAYERS) + 31:g}")
    drawing.text(left(1) - 12, top(0) + 21, "runs once", 13, GREY, "end")
    drawing.text(left(1) - 12, (top(SOURCE) + bottom(SEGMENT[0])) / 2, "runs K times", 13, BLUE, "end")
    drawing.text(left(last) - 12, top(NUM_LAYERS - 1) + 21, "runs once, at the end", 13, GREY, "end")
    drawing.text(middle(2), bottom(0) + 44, "messages: layer 4 → layers 1 and 2", 14, ORANGE)
    drawing.text(left(last) - 12, bottom(0) - 2, "the same entry state", 13, GREY, "end")


def main() -> None:
    """Writes `images/passes.svg`."""
    drawing = Drawing(left(NUM_ITERATIONS) + WIDTH + 40, bottom(0) + 60, DESCRIPTION)
    draw_entry(drawing)
    for k in range(1, NUM_ITERATIONS + 1):
        first = 0 if k == 1 else SEGMENT[0]
        end = NUM_LAYERS if k == NUM_ITERATIONS else SEGMENT[-1] + 1
        for layer in range(first, end):
            draw_layer(drawing, k, layer)
        if k > 1:
            draw_messages(drawing, k)
    draw_words(drawing)
    drawing.save(IMAGES / "passes.svg")


if __name__ == "__main__":
    main()
