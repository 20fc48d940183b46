"""The option to go on with a run."""

from dataclasses import dataclass

from ..validation import option


@dataclass
class ResumeArguments:
    """How a run that was begun before goes on.

    Args:
        resume: `"auto"` goes on with the run in the output folder, begins it if there is none, and trains nothing if it
            is finished: one command from the first start on. A folder is the checkpoint to go on from. It is a short
            name of `resume_from_checkpoint`, `"true"` there, and counts in `FeedbackTrainer.train()` too.

    Raises:
        ValueError: `resume_from_checkpoint` has another value.
    """

    resume: str | None = option(
        None, "auto: go on with the run in the output folder, or begin it. Or the checkpoint to go on from."
    )

    def checkpoint_setting(self, other: str | None) -> str | None:
        """Returns the value of `resume_from_checkpoint` that `resume` stands for.

        Args:
            other: its value as it is set; remains where `resume` is left out.
        """
        if self.resume is None:
            return other
        meant = "true" if self.resume == "auto" else self.resume
        if other not in (None, meant):
            raise ValueError(
                f"`resume`={self.resume!r} and `resume_from_checkpoint`={other!r} contradict; leave one out."
            )
        return meant
