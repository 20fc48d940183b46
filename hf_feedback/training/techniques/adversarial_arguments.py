"""Options of adversarial training."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

from transformers import TrainingArguments

from ...validation import check_choice, is_integer, is_number, option
from .adversarial import ADVERSARIAL, AdversarialTraining

METHODS = ("none", *ADVERSARIAL)


@dataclass
class AdversarialArguments:
    """Adversarial training on word embeddings.

    Args:
        adversarial: the method, one of `METHODS`: see `FGM`, `PGD`, `FreeLB` and `SMART`.
        adversarial_epsilon: maximum L2 norm of the perturbation of a text's word embeddings.
        adversarial_step_size: L2 norm of one step of the perturbation.
        adversarial_steps: number of steps of the perturbation.
        adversarial_weight: weight of the adversarial loss; that of the task has 1.
    """

    adversarial: str = option(
        "none",
        "Method, with its forward and backward passes per training step: fgm (2), pgd (n + 1), freelb (n), smart (n + "
        "2), where n is --adversarial-steps.",
        choices=dict.fromkeys(METHODS),
    )
    adversarial_epsilon: float | None = option(None, "Maximum L2 norm of the perturbation of a text (default: 0.05).")
    adversarial_step_size: float | None = option(
        None, "L2 norm of one step of the perturbation (default: 0.02; 0.05 for smart)."
    )
    adversarial_steps: int | None = option(
        None, "Number of steps of the perturbation (default: 3 for pgd and freelb; 1 for smart)."
    )
    adversarial_weight: float | None = option(None, "Weight of the adversarial loss, for all but freelb (default: 1).")

    def check_adversarial(self) -> None:
        """Raises `ValueError` where an option has a value that is not allowed, or that the method does not take."""
        check_choice("adversarial", self.adversarial, METHODS)
        given = self._given_options()
        for name, value in given.items():
            if not (is_integer if name == "steps" else is_number)(value):
                kind = "an integer of at least 1" if name == "steps" else "a number above 0"
                raise ValueError(f"`adversarial_{name}` must be {kind}, got {value!r}.")
        if self.adversarial == "none":
            if given:
                raise ValueError(
                    f"`adversarial_{next(iter(given))}` belongs to a method of adversarial training; choose one with "
                    f"`adversarial`, {', '.join(ADVERSARIAL)}, or leave it out."
                )
            return
        if isinstance(self, TrainingArguments) and (self.torch_compile or self.deepspeed):
            cause = "torch_compile" if self.torch_compile else "deepspeed"
            raise ValueError(
                f"`adversarial`={self.adversarial!r} cannot be used with `{cause}`, which takes one forward and one "
                "backward pass a step; leave one out."
            )
        self.make_adversarial()

    def make_adversarial(self) -> AdversarialTraining | None:
        """Returns the method with its options; `None` for ordinary training.

        Raises:
            ValueError: the method does not take an option.
        """
        if self.adversarial == "none":
            return None
        method, given = ADVERSARIAL[self.adversarial], self._given_options()
        if unknown := given.keys() - signature(method).parameters.keys():
            raise ValueError(
                f"`adversarial_{min(unknown)}` is not an option of `adversarial`={self.adversarial!r}; leave it out."
            )
        return method(**given)

    def _given_options(self) -> dict[str, Any]:
        names = ("epsilon", "step_size", "steps", "weight")
        options = {name: getattr(self, f"adversarial_{name}") for name in names}
        return {name: value for name, value in options.items() if value is not None}
