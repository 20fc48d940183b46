"""The figures of a comparison: differences with intervals, the metric against compute, the metric by iteration."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .contrasts import Contrast
from .result import ComparisonResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DARK, LIGHT, ACCENT = "#333333", "#999999", "#1f77b4"


def plot_comparison(result: ComparisonResult) -> Path:
    """Draws the three figures side by side into `comparison.png` in the output folder.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 0.6 + max(3.4, 0.32 * len(result.contrasts))), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _plot_differences(left, result.contrasts, result.comparison.margin)
    _plot_compute(middle, result)
    _plot_iterations(right, result)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    file = result.comparison.folder / "comparison.png"
    figure.savefig(file)
    return file


def _plot_differences(axes: "Axes", contrasts: Sequence[Contrast], margin: float) -> None:
    several = len({contrast.feedback for contrast in contrasts}) > 1
    for row, contrast in enumerate(reversed(contrasts)):
        difference = contrast.difference
        color = {"ahead": ACCENT, "behind": "#d62728"}.get(contrast.verdict, LIGHT)
        axes.plot([difference.low, difference.high], [row, row], color=color, linewidth=2)
        axes.plot(difference.mean, row, "o", color=color)
    names = [f"{c.feedback} over {c.other}" if several else c.other for c in reversed(contrasts)]
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0, color=DARK, linewidth=0.8)
    axes.axvspan(-margin, margin, color=LIGHT, alpha=0.15, linewidth=0)
    axes.set_title("Lead of feedback over each alternative")
    axes.set_xlabel("points, 95% interval; shaded: the margin")


def _plot_compute(axes: "Axes", result: ComparisonResult) -> None:
    scale = abs(result.unit)
    for name, runs in result.by_arm.items():
        values = [scale * run.test_value() for run in runs]
        flops = result.plan.costs[name].total / 1e12
        color = ACCENT if result.comparison.arms[name].is_feedback else LIGHT
        axes.plot([flops] * len(values), values, "o", color=color, alpha=0.35, markersize=4)
        axes.plot(flops, np.mean(values), "o", color=color)
        axes.annotate(name, (flops, float(np.mean(values))), xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.margins(x=0.2)
    axes.set_title("Test against compute")
    axes.set_xlabel("TFLOPs of a training run")
    axes.set_ylabel(f"{result.metric} (%)" if scale == 100 else result.metric)


def _plot_iterations(axes: "Axes", result: ComparisonResult) -> None:
    for name, runs in result.by_arm.items():
        if result.comparison.arms[name].is_feedback:
            values = abs(result.unit) * np.array([run.facts["by_iteration"] for run in runs], float)  # None: not finite
            axes.plot(range(1, values.shape[1] + 1), values.mean(0), "o-", label=name)
            axes.set_xticks(range(1, values.shape[1] + 1))
    axes.legend(frameon=False)
    axes.set_title("Validation by number of iterations")
    axes.set_xlabel("iterations (one more than in training)")
