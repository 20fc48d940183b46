"""Observation of a trained model by iteration, for more iterations than it is used with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from ...evaluation_mode import evaluating
from ...modeling_base import FeedbackPreTrainedModel
from ...training.data.labels import IGNORED
from ...training.iteration_logs.message_recorder import MessageRecord, record_messages
from ...validation import Keywords
from ..diagnostics import IterationAnswers

Batches = Iterable[Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Observation:
    """The predictions, residuals and messages of a model on labelled examples.

    Args:
        answers: predictions for every item after every iteration.
        examples: number of the example of each item, `(N,)`.
        numbers: number of each item within its example, `(N,)`.
        residuals: `‖h^(k) − h^(k−1)‖ / ‖h^(k)‖` of each example in iterations 2 to K, `(examples, K − 1)`.
        messages: size of the messages.
    """

    answers: IterationAnswers
    examples: np.ndarray
    numbers: np.ndarray
    residuals: np.ndarray
    messages: MessageRecord


@contextmanager
def without_halting(model: FeedbackPreTrainedModel) -> Iterator[None]:
    """Context in which no example halts."""
    halting, model.config.halting = model.config.halting, "none"
    try:
        yield
    finally:
        model.config.halting = halting


def observe(model: FeedbackPreTrainedModel, batches: Batches, num_iterations: int) -> Observation:
    """Observes a model on batches with `labels`, one class per example or, for tokens, per token.

    Args:
        model: a model that predicts classes.
        batches: what `forward` takes.
        num_iterations: number of observed iterations.
    """
    parts: list[_BatchPart] = []
    first = 0
    with evaluating(model), without_halting(model), record_messages(model) as messages:
        for batch in tqdm(batches, desc=f"{num_iterations} iterations", disable=None, leave=False):
            part = _observe_batch(model, dict(batch), num_iterations, first)
            first += len(part.residuals)
            parts.append(part)

    def joined(name: str, axis: int = 0) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts], axis)

    return Observation(
        answers=IterationAnswers(joined("probabilities", axis=1), joined("labels")),
        examples=joined("examples"),
        numbers=joined("numbers"),
        residuals=joined("residuals"),
        messages=messages,
    )


@dataclass(frozen=True)
class _BatchPart:
    """The arrays of an `Observation` for one batch."""

    probabilities: np.ndarray
    labels: np.ndarray
    examples: np.ndarray
    numbers: np.ndarray
    residuals: np.ndarray


def _observe_batch(model: FeedbackPreTrainedModel, batch: Keywords, num_iterations: int, first: int) -> _BatchPart:
    """Observes one batch, whose first example has the number `first`."""
    batch = {name: value.to(model.device) for name, value in batch.items()}
    labels = batch.pop("labels")
    examples = len(labels)
    output = model(**batch, num_iterations=num_iterations, output_iterations=True, return_dict=True)
    logits = torch.stack(repeat_last(output.iteration_logits, num_iterations)).float()  # (K, B, C) or (K, B, T, C)
    labels = labels if labels.dim() == logits.dim() - 2 else labels.view(logits.shape[1:-1])
    labelled = labels != IGNORED
    number = (labelled if labelled.dim() == 2 else labelled[:, None]).long().cumsum(1) - 1
    # the choices of a question: it has moved as far as any of them
    residuals = output.residuals.float().unflatten(0, (examples, len(output.residuals) // examples)).amax(1)
    missing = num_iterations - 1 - residuals.shape[1]  # a fixed point was reached before
    return _BatchPart(
        probabilities=logits[:, labelled].softmax(-1).cpu().numpy(),
        labels=labels[labelled].cpu().numpy(),
        examples=labelled.nonzero()[:, 0].cpu().numpy() + first,
        numbers=number.view(labelled.shape)[labelled].cpu().numpy(),
        residuals=np.pad(residuals.cpu().numpy(), ((0, 0), (0, missing))),
    )


def repeat_last(values: Sequence[torch.Tensor], number: int) -> list[torch.Tensor]:
    """Repeats the last value for the iterations after the fixed point was reached; an empty sequence stays empty.

    Args:
        values: one for each iteration.
        number: number of iterations.
    """
    return [*values, *list(values[-1:]) * (number - len(values))]
