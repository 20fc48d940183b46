"""Feedback compared with one alternative: the difference, as a sentence and as a row of a table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..markdown_tables import markdown_table
from .example_scores import EXAMPLE_SCORES
from .statistics import Difference

TOO_FEW_SEEDS = "too few seeds"  # for a p-value that could be small
NOT_FINITE = "not finite"


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
        learned: whether one of the two is shown to be ahead of the same answer for every example.
    """

    feedback: str
    other: str
    difference: Difference
    verdict: str
    seeds_needed: int | None
    test: str = "test"
    learned: bool = True


def write_verdict(
    contrasts: Sequence[Contrast], metric: str, margin: float, constant: float | None = None, name: str | None = None
) -> str:
    """Returns the verdict in one sentence.

    Args:
        contrasts: feedback compared with every alternative.
        metric: name of the metric.
        margin: smallest difference that matters, in points.
        constant: the metric of the same answer for every example, in points, where no arm is ahead of it.
        name: which feedback it is about, where there are several.
    """
    feedback = "feedback" if name is None else f"feedback ({name})"
    subject = f"F{feedback[1:]}"
    if constant is not None:
        return (
            f"This cannot tell whether {feedback} helps: no arm is shown to be ahead of the same answer for every "
            f"example ({constant:.1f} points of {metric}); train longer, or at other rates."
        )
    by_verdict: dict[str, list[Contrast]] = {}
    for contrast in sorted(contrasts, key=lambda contrast: contrast.difference.mean):
        by_verdict.setdefault(contrast.verdict, []).append(contrast)
    is_greater_better = EXAMPLE_SCORES[metric].greater_is_better
    seeds = f"{(count := contrasts[0].difference.num_seeds)} seed{'s' * (count != 1)}"

    def numbers_of(contrast: Contrast) -> str:
        d = contrast.difference
        numbers = f"{d.mean:+z.1f} points of {metric} [{d.low:+z.1f}, {d.high:+z.1f}]"
        return numbers if is_greater_better else f"{numbers} ({contrast.other} minus {feedback})"

    def deciding(verdict: str) -> Contrast:
        """The plain model if it has this verdict, else the strongest alternative that has."""
        plain = (contrast for contrast in by_verdict[verdict] if contrast.other == "plain")
        return next(plain, by_verdict[verdict][0])

    lead = next((one for one in by_verdict.get("ahead", ()) if one.other == "plain"), None)
    ahead = None if lead is None else f"{subject} is ahead of plain, by {numbers_of(lead)}"
    if "behind" in by_verdict:
        one = deciding("behind")
        minus = f"{feedback} minus it " if is_greater_better else ""
        begin = f"{ahead}, but" if ahead else f"{subject} does not help:"
        return f"{begin} {one.other} is better, {minus}{numbers_of(one)}, {seeds}."
    if "cannot tell" in by_verdict:
        one = deciding("cannot tell")
        more = f"{_what_would_tell(one, margin)} are needed to detect a difference of {format_points(margin)}"
        if not one.learned:
            more = "neither is shown to be ahead of the same answer for every example"
        begin = f"{ahead}, but cannot be told from" if ahead else f"This cannot tell whether {feedback} helps: against"
        return f"{begin} {one.other}, {numbers_of(one)}, {seeds}; {more}."
    if "equivalent" in by_verdict:
        one = deciding("equivalent")
        begin = f"{ahead}, but" if ahead else f"{subject} makes no difference that matters:"
        return f"{begin} within {format_points(margin)} of {one.other}, {numbers_of(one)}, {seeds}."
    one = by_verdict["ahead"][0]
    return f"{subject} helps: it is ahead of every alternative, least of {one.other}, by {numbers_of(one)}, {seeds}."


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
    return markdown_table(("feedback", *columns, "p", "verdict", f"seeds to detect {format_points(margin)}"), rows)


def format_points(points: float) -> str:
    """Formats a difference in points."""
    return f"{points:g} point{'s' * (points != 1)}"


def _what_would_tell(contrast: Contrast, margin: float) -> str:
    if contrast.difference.needs_more_examples(margin):
        return "more test examples"
    if contrast.seeds_needed is None or contrast.seeds_needed <= contrast.difference.num_seeds:
        return "more test examples or seeds"
    return f"about {contrast.seeds_needed} seeds"


def _needed(contrast: Contrast, margin: float) -> str:
    """Describes the number of seeds that would detect a difference of the margin."""
    if not contrast.learned:
        return "nothing learned"
    if contrast.difference.needs_more_examples(margin):
        return "more test examples"
    if contrast.seeds_needed is None:
        is_known = contrast.difference.num_seeds > 1 and np.isfinite(contrast.difference.by_seed).all()
        return "over 1,000" if is_known else "unknown"
    return str(contrast.seeds_needed)


def format_difference(difference: Difference) -> str:
    """Formats the mean with its interval."""
    return f"{difference.mean:+z.1f} [{difference.low:+z.1f}, {difference.high:+z.1f}]"


def format_p_value(difference: Difference) -> str:
    """Formats the p-value of the permutation test, or the reason why there is none."""
    if not difference.is_finite:
        return NOT_FINITE
    if difference.p_value is None or difference.least_p_value > 0.05:
        return TOO_FEW_SEEDS
    return f"{difference.p_value:.2g}"
