"""Options of auxiliary losses, class weights and focal loss."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ...validation import check_choice, is_number, option
from .objectives import TEACHERS, DropoutAgreement, IterationAgreement, MaskedWords, Objective, Objectives

BALANCED = "balanced"


@dataclass
class ObjectiveArguments:
    """Auxiliary losses, class weights and focal loss.

    Args:
        agreement_weight: weight of the agreement of earlier iterations with the last one, see `IterationAgreement`.
        agreement_teacher: one of `TEACHERS`: whether the last iteration teaches the earlier ones.
        dropout_agreement_weight: weight of the agreement of two dropout masks, see `DropoutAgreement`.
        masked_lm_weight: weight of a masked language model on the texts of the task, see `MaskedWords`.
        class_weights: numbers, one a class in the order of the model's labels, or `"balanced"` for
            `balanced_class_weights` of the training data; see `ClassLoss`.
        focal_gamma: γ of the focal loss, see `ClassLoss`; 0 is cross-entropy.
    """

    agreement_weight: float = option(
        0.0, "Weight of the divergence between the predictions of earlier iterations and those of the last one."
    )
    agreement_teacher: str = option(
        "last", "Iteration whose predictions are the fixed target: last, or none: they move towards each other.",
        choices=dict.fromkeys(TEACHERS),
    )  # fmt: skip
    dropout_agreement_weight: float = option(
        0.0, "Weight of the divergence between predictions under two dropout masks (R-Drop; costs a second pass)."
    )
    masked_lm_weight: float = option(
        0.0, "Weight of a masked-language-model loss on the texts of the task (costs a second pass)."
    )
    class_weights: list[str] | None = option(
        None,
        "Weights of the classes in the loss, in the order of their numbers, or 'balanced': all classes count the same.",
    )
    focal_gamma: float = option(
        0.0,
        "γ of the focal loss, which reduces the weight of examples that are already right; 0 is cross-entropy, 2 is "
        "usual.",
    )

    def check_objectives(self) -> None:
        """Raises `ValueError` where an option has a value that is not allowed."""
        names = ("agreement_weight", "dropout_agreement_weight", "masked_lm_weight", "focal_gamma")
        for name in names:
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ValueError(f"`{name}` must be a number of at least 0, got {value!r}.")
        check_choice("agreement_teacher", self.agreement_teacher, TEACHERS)
        self.read_class_weights()

    def read_class_weights(self) -> Sequence[float] | str | None:
        """Returns the class weights as numbers, or `"balanced"`.

        Raises:
            ValueError: they are neither.
        """
        given: str | Sequence[str | float] | None = self.class_weights
        if given is None or given == BALANCED or list(given) == [BALANCED]:
            return None if given is None else BALANCED
        try:
            weights = [float(weight) for weight in given]
        except ValueError:
            weights = []
        if not weights or not all(is_number(weight) and weight >= 0 for weight in weights):
            raise ValueError(
                f"`class_weights` must be numbers of at least 0, one a class, or 'balanced', got {given!r}."
            )
        return weights

    def make_objectives(self, processor: object) -> Objectives | None:
        """Returns the objectives whose weight is above 0; `None` if there is none.

        Args:
            processor: the tokenizer, for `masked_lm_weight`.

        Raises:
            ValueError: there is no tokenizer with a mask token.
        """
        chosen: list[Objective] = []
        if self.agreement_weight:
            chosen.append(IterationAgreement(self.agreement_weight, self.agreement_teacher))
        if self.dropout_agreement_weight:
            chosen.append(DropoutAgreement(self.dropout_agreement_weight))
        if self.masked_lm_weight:
            if not isinstance(processor, PreTrainedTokenizerBase) or processor.mask_token_id is None:
                raise ValueError(
                    f"`masked_lm_weight`={self.masked_lm_weight} needs a tokenizer with a mask token as "
                    f"`processing_class`, got {type(processor).__name__}."
                )
            tokens = processor.mask_token_id, processor.all_special_ids
            chosen.append(MaskedWords(self.masked_lm_weight, *tokens))
        return Objectives(chosen) if chosen else None
