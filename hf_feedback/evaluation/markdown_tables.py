"""Tables in Markdown, and the values in them."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def half_width(values: Sequence[float]) -> float:
    """Half the width of Student's 95% interval of the mean; infinite for one value."""
    if len(values) < 2:
        return math.inf
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def format_values(values: Sequence[float], digits: int = 1) -> str:
    """Formats the mean with the half-width of Student's 95% interval.

    Args:
        values: one or more.
        digits: those after the point.
    """
    if len(values) < 2:
        return f"{values[0]:z.{digits}f}"
    return f"{np.mean(values):z.{digits}f} ± {half_width(values):.{digits}f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
