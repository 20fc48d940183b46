"""Picture of a confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

MAX_NUMBERS = 30  # maximum number of classes for which cells show their counts


def check_picture(file: str) -> None:
    """Refuses a picture that `draw_confusion` cannot write.

    Args:
        file: the picture.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there is no such format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    supported = FigureCanvasAgg.get_supported_filetypes()
    if Path(file).suffix.lower().removeprefix(".") not in supported:
        raise ValueError(f"`confusion_matrix`: {file} must end with one of .{', .'.join(sorted(supported))}.")


def draw_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], file: str) -> None:
    """Draws a confusion matrix.

    Args:
        counts: labels in rows, predictions in columns, `(C, C)`.
        names: names of the classes.
        file: the picture; its ending determines the format, see `check_picture`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix = np.asarray(counts)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = min(4 + 0.35 * len(names), 40)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks, shown = range(len(names)), [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    axes.set_xticks(ticks, shown, rotation=90, parse_math=False)  # a $ in a label is one
    axes.set_yticks(ticks, shown, parse_math=False)
    axes.set(xlabel="answer", ylabel="label")
    if len(names) <= MAX_NUMBERS:
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color)
    figure.colorbar(image, label="share of the label", shrink=0.8)
    figure.savefig(file, dpi=150)
