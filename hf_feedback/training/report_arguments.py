"""What training reports of the iterations."""

from dataclasses import dataclass

from ..validation import check_integer, option


@dataclass
class ReportArguments:
    """What is reported of iterations.

    Where `report_to` names a receiver, such as `tensorboard` or `trackio`, β of each edge and the size of its messages
    are among the logs of training, and the accuracy after each iteration is among those of an evaluation.

    Args:
        report_batches: batches of the evaluation data whose accuracy after each iteration is reported, which costs one
            more pass over these; 0: none.
    """

    report_batches: int = option(8, "Batches of the evaluation data to report the accuracy of each iteration on.")

    def check_report(self) -> None:
        """Raises `ValueError` where an option has a value that is not allowed."""
        check_integer("report_batches", self.report_batches, 0, "batches to report the accuracy of each iteration on")
