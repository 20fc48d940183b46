"""Class weights, focal loss and label smoothing of a training run."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer

from ...label_options import predicts_values
from ...modeling_feedback import (
    FeedbackForCausalLM,
    FeedbackForMaskedLM,
    FeedbackForMultipleChoice,
    FeedbackForQuestionAnswering,
)
from ..data.labels import MULTI_LABEL
from ..parameters.model_parts import any_model_in
from .class_loss import ClassLoss, balanced_class_weights
from .objective_arguments import BALANCED, ObjectiveArguments

CLASS_LOSS_OPTIONS = ("class_weights", "focal_gamma", "label_smoothing_factor")


class LabelCounter:
    """Counts of the labels in training data, counted once per data object."""

    def __init__(self) -> None:
        self._data: object = None
        self._counts: Counter[int] | None = None

    def count(self, data: object) -> Counter[int]:
        """Returns the number of examples of each class number.

        Args:
            data: the training data, of texts or of tokens.

        Raises:
            ValueError: they have no length.
        """
        if self._counts is None or data is not self._data:
            self._data, self._counts = data, Counter(_labels_of(data))
        return self._counts


def make_class_loss(trainer: Trainer, counter: LabelCounter) -> ClassLoss | None:
    """Returns the replacement of the model's cross-entropy; `None` if no option needs one.

    Args:
        trainer: the trainer, with its model, arguments and training data.
        counter: counts their labels.

    Raises:
        ValueError: the model has no classes to weight, or another number of them.
    """
    args: Any = trainer.args
    given = [name for name in CLASS_LOSS_OPTIONS if getattr(args, name)]
    if not given:
        return None
    core = any_model_in(cast(nn.Module, trainer.model))[1]
    for name in given:
        if reason := _why_not(core, name):
            raise ValueError(f"`{name}`={getattr(args, name)!r} {reason}; leave it out.")
    weights, num_classes = cast(ObjectiveArguments, args).read_class_weights(), len(core.config.id2label or {})
    if weights == BALANCED:
        weights = balanced_class_weights(counter.count(trainer.train_dataset), num_classes)
    if weights is not None and len(weights) != num_classes:
        raise ValueError(
            f"`class_weights` must be {num_classes} numbers, one per class in the order of `id2label`, got "
            f"{len(weights)}."
        )
    return ClassLoss(cast(Sequence[float] | None, weights), args.focal_gamma, args.label_smoothing_factor)


def _why_not(core: nn.Module, option: str) -> str | None:
    """Returns the reason why a model cannot have an option; `None` if it can."""
    config: Any = core.config
    verb = "smooths" if option == "label_smoothing_factor" else "weights"
    if isinstance(core, FeedbackForCausalLM):
        if option == "label_smoothing_factor":
            return "would compare each prediction with the token that it is made at, not the next one"
        return f"{verb} classes, and the model predicts tokens"
    if isinstance(core, FeedbackForQuestionAnswering):
        return f"{verb} classes, and the model predicts where answers start and end"
    if isinstance(core, FeedbackForMaskedLM | FeedbackForMultipleChoice):
        named = "words" if isinstance(core, FeedbackForMaskedLM) else "choices"
        return None if option == "label_smoothing_factor" else f"{verb} classes, and the model predicts {named}"
    if predicts_values(config.problem_type, config.num_labels):
        return f"{verb} classes, and the model predicts values"
    if config.problem_type == MULTI_LABEL:
        return f"{verb} classes that exclude each other, and the model predicts several labels at once"
    return None


def _labels_of(data: object) -> Iterator[int]:
    """The class numbers of the training data, of texts or of tokens."""
    if not isinstance(data, Sequence | Dataset) or isinstance(data, str):
        raise ValueError(
            f"`class_weights`='balanced' counts the labels of `train_dataset`, which must have a length, got "
            f"{type(data).__name__}; give a list of numbers."
        )
    if isinstance(data, Dataset):
        name = next((name for name in ("labels", "label") if name in data.column_names), None)
        column: Iterable[Any] = data[name] if name is not None else ()
    else:
        column = [row["labels" if "labels" in row else "label"] for row in data]
    for label in column:
        yield from map(int, torch.as_tensor(label).flatten().tolist())


@contextmanager
def use_loss(model: nn.Module, loss: ClassLoss | None) -> Iterator[None]:
    """Context in which a model uses another loss for its labels.

    Args:
        model: a feedback model, wrapped or not.
        loss: the loss; `None` for the model's own.
    """
    core = any_model_in(model)[1]
    if loss is None:
        yield
        return
    before = vars(core).get("_loss_function")
    core.loss_function = loss
    try:
        yield
    finally:
        del core._loss_function
        if before is not None:
            core.loss_function = before
