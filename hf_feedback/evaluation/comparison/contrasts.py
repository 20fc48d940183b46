"""Feedback compared with one alternative: the difference, as a sentence and as a row of a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..markdown_tables import markdown_table
from .example_scores import EXAMPLE_SCORES
from .statistics import Difference

TOO_FEW_SEEDS = "too few seeds"  # for a p-value that could be small


@dataclass(frozen=True)
class Contrast:
    """Feedback compared with one alternative.

    Args:
        feedback: name of the arm with feedback.
        other: name of the alternative, or of the replacement of its own messages.
        test: name of the test file.
        difference: lead of feedback over the alternative in points: feedback minus it, or the other way round where
            smaller is better.
        verdict: see `Difference.verdict`.
        seeds_needed: number of seeds to detect a difference of the margin, if known.
    """

    feedback: str
    other: str
    difference: Difference
    verdict: str
    seeds_needed: int | None
    test: str = "test"


def write_verdict(contrasts: Sequence[Contrast], metric: str, margin: float) -> str:
    """Returns the verdict in one sentence.

    Args:
        contrasts: feedback compared with every alternative.
        metric: name of the metric.
        margin: smallest difference that matters, in points.
    """
    by_verdict: dict[str, list[Contrast]] = {}
    for contrast in sorted(contrasts, key=lambda contrast: contrast.difference.mean):
        by_verdict.setdefault(contrast.verdict, []).append(contrast)
    is_greater_better = EXAMPLE_SCORES[metric].greater_is_better
    seeds = f"{(count := contrasts[0].difference.num_seeds)} seed{'s' * (count != 1)}"

    def hardest(verdict: str) -> tuple[str, str]:
        """Returns the strongest alternative, and the difference to it."""
        worst = by_verdict[verdict][0]
        d = worst.difference
        numbers = f"{d.mean:+z.1f} points of {metric} [{d.low:+z.1f}, {d.high:+z.1f}]"
        return worst.other, numbers if is_greater_better else f"{numbers} ({worst.other} minus feedback)"

    if "behind" in by_verdict:
        name, numbers = hardest("behind")
        minus = "feedback minus it " if is_greater_better else ""
        return f"Feedback does not help: {name} is better, {minus}{numbers}, {seeds}."
    if "cannot tell" in by_verdict:
        name, numbers = hardest("cannot tell")
        needed = by_verdict["cannot tell"][0].seeds_needed
        more = f"about {needed} seeds would see {margin:g} points" if needed else "more test examples or seeds would"
        return f"This cannot tell whether feedback helps: against {name} {numbers}, {seeds}; {more}."
    if "equivalent" in by_verdict:
        name, numbers = hardest("equivalent")
        return f"Feedback makes no difference that matters: within {margin:g} points of {name}, {numbers}, {seeds}."
    name, numbers = hardest("ahead")
    return f"Feedback helps: it is ahead of every alternative, least of {name}, by {numbers}, {seeds}."


def contrast_table(contrasts: Sequence[Contrast], margin: float, metric: str) -> str:
    """Returns differences as a Markdown table.

    Args:
        contrasts: what is compared.
        margin: smallest difference that matters, in points.
        metric: name of the metric; where smaller is better, the difference is that by which feedback is better.
    """
    rows = [
        (
            contrast.feedback, contrast.other,
            format_difference(contrast.difference), format_p_value(contrast.difference), contrast.verdict,
            _needed(contrast, margin),
        )
        for contrast in contrasts
    ]  # fmt: skip
    columns = ("minus", "difference") if EXAMPLE_SCORES[metric].greater_is_better else ("beside", "better by")
    return markdown_table(("feedback", *columns, "p", "verdict", f"seeds to see {margin:g} points"), rows)


def _needed(contrast: Contrast, margin: float) -> str:
    """Describes the number of seeds that would detect a difference of the margin."""
    if contrast.difference.needs_more_examples(margin):
        return "more test examples"
    return "unknown" if contrast.seeds_needed is None else str(contrast.seeds_needed)


def format_difference(difference: Difference) -> str:
    """Formats the mean with its interval."""
    return f"{difference.mean:+z.1f} [{difference.low:+z.1f}, {difference.high:+z.1f}]"


def format_p_value(difference: Difference) -> str:
    """Formats the p-value of the permutation test, or that there are too few seeds for one."""
    if difference.p_value is None or difference.least_p_value > 0.05:
        return f"{TOO_FEW_SEEDS} (≥ {difference.least_p_value:.2g})"
    return f"{difference.p_value:.2g}"
