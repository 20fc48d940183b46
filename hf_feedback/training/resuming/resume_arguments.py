"""Option to resume a run."""

from dataclasses import dataclass

from ...validation import option


@dataclass
class ResumeArguments:
    """Resuming.

    Args:
        resume: `"auto"` resumes the run in the output folder, starts it if there is none, and trains nothing if it is
            finished, so that one command serves every start. A folder is the checkpoint to resume from. `"auto"` means
            `resume_from_checkpoint="true"`, a folder that value; `FeedbackTrainer.train()` reads it too.

    Raises:
        ValueError: `resume_from_checkpoint` has another value.
    """

    resume: str | None = option(
        None,
        "auto: resume the run in the output folder, or start it if there is none. Or the checkpoint to resume from.",
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
