"""Matched comparisons of feedback with alternatives, their statistics, and reports on trained models."""

from .compare import compare
from .comparison import Comparison
from .comparison_plan import make_plan
from .comparison_result import ComparisonResult
from .noise import add_noise
from .statistics import Difference, compare_paired, holm, seeds_needed
from .trainer_figures import IterationFigures

__all__ = [
    "Comparison",
    "ComparisonResult",
    "Difference",
    "IterationFigures",
    "add_noise",
    "compare",
    "compare_paired",
    "holm",
    "make_plan",
    "seeds_needed",
]
