"""What each iteration of a trained model does: the HTML report, figures during training, and single texts."""

from .building import make_report
from .labelled_examples import load_examples
from .report import write_report

__all__ = ["load_examples", "make_report", "write_report"]
