"""Options for logging the iterations during training."""

from dataclasses import dataclass

from ...validation import check_integer, option


@dataclass
class IterationLogArguments:
    """Logging of iterations.

    With `report_to`, such as `tensorboard` or `trackio`, training also logs β of each edge and the size of its
    messages, and evaluation the accuracy of each iteration.

    Args:
        report_batches: batches of the evaluation data on which the accuracy of each iteration is logged, which costs
            one more pass over them; 0: none.
    """

    report_batches: int = option(8, "Evaluation batches on which the accuracy of each iteration is logged; 0: none.")

    def check_report(self) -> None:
        """Raises `ValueError` where an option has a value that is not allowed."""
        check_integer(
            "report_batches", self.report_batches, 0, "batches on which the accuracy of each iteration is logged"
        )
