"""Matched comparisons of feedback with alternatives, their statistics, and reports on trained models."""

from .comparison.compare import compare
from .comparison.plan import make_plan
from .comparison.result import ComparisonResult
from .comparison.settings import Comparison
from .comparison.statistics import Difference, compare_paired, holm, seeds_needed
from .noise import add_noise
from .report.building import make_report
from .report.labelled_examples import load_examples
from .report.trainer_figures import IterationFigures

__all__ = [
    "Comparison",
    "ComparisonResult",
    "Difference",
    "IterationFigures",
    "add_noise",
    "compare",
    "compare_paired",
    "holm",
    "load_examples",
    "make_plan",
    "make_report",
    "seeds_needed",
]
