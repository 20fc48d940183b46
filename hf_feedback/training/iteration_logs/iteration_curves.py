"""Curves of the iterations during training, for TensorBoard, trackio and others: β, size of messages, accuracy."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...evaluation_mode import evaluating
from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_feedback import FeedbackForCausalLM
from ..data.labels import IGNORED
from ..parameters.model_parts import any_model_in
from .message_recorder import record_messages, swish_betas

CURVES = ("beta_", "message_")  # prefixes of the names of values by edge
Batch = Mapping[str, Any]


def edge_curves(model: FeedbackPreTrainedModel, batch: Batch) -> dict[str, float]:
    """Returns β of each edge whose activation has one, and the mean size of its messages in a batch.

    Args:
        model: a feedback model.
        batch: what `forward` takes.

    Returns:
        `beta_<source>_to_<target>`, and `message_<source>_to_<target>`: ‖message‖ / ‖input of the target‖ in the last
        iteration, left out if no message is sent.
    """
    with evaluating(model), record_messages(model) as messages:
        model(**batch)
    curves = {f"beta_{source}_to_{target}": beta for (source, target), beta in swish_betas(model).items()}
    for source, target in model.config.edges():
        shares = messages.means((source, target), model.config.num_iterations)[1]
        if shares[-1] is not None:
            curves[f"message_{source}_to_{target}"] = shares[-1]
    return curves


def count_right(model: FeedbackPreTrainedModel, batches: Iterable[Batch]) -> torch.Tensor | None:
    """Counts the correct predictions after each iteration.

    Args:
        model: a feedback model.
        batches: what `forward` takes, with `labels`.

    Returns:
        `(K + 1,)`: the number of correct predictions after each iteration, then the number of all predictions. `None`
        if the labels are not one class for each prediction.
    """
    total: torch.Tensor | None = None
    with evaluating(model):
        for batch in batches:
            labels = batch.get("labels")
            if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
                return None
            by_iteration = model(**batch, output_iterations=True).iteration_logits
            missing = model.config.num_iterations - len(by_iteration)  # a fixed point was reached before
            if by_iteration[0].shape[:-1] != labels.shape:
                return None
            counted = labels != IGNORED
            right = [((logits.argmax(-1) == labels) & counted).sum() for logits in by_iteration]
            counts = torch.stack([*right, *right[-1:] * missing, counted.sum()])
            total = counts if total is None else total + counts
    return total


def evaluated_split(metrics: Mapping[str, float]) -> str:
    """The prefix of the metrics of an evaluation.

    Example:

    ```python
    >>> evaluated_split({"test_loss": 0.5, "test_runtime": 1.0})
    'test'

    ```
    """
    return next((name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")), "eval")


class IterationCurves(TrainerCallback):
    """Adds curves of the iterations to the logs of a trainer, without changing training.

    Each log of training gets β and the size of messages on the first training batch. After an evaluation, the accuracy
    of each iteration is logged as `eval_accuracy_iteration_<k>`, on test as `test_accuracy_iteration_<k>`.

    Args:
        trainer: the trainer.

    Attributes:
        batch: the batch whose messages are measured.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.batch: Batch | None = None

    def edge_values(self) -> dict[str, float]:
        """Returns the values by edge, for a log of training; every process must call it."""
        model = any_model_in(cast(nn.Module, self.trainer.model))[1]
        if self.batch is None or not isinstance(model, FeedbackPreTrainedModel):
            return {}
        with torch.random.fork_rng(devices=[]), self.trainer.compute_loss_context_manager():
            return edge_curves(model, self.trainer._prepare_inputs(cast(Any, self.batch)))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Logs the accuracy of every iteration, counted over all processes."""
        model = any_model_in(cast(nn.Module, self.trainer.model))[1]
        most = getattr(args, "report_batches", 0)
        next_tokens = isinstance(model, FeedbackForCausalLM)  # labels of token t are those of token t + 1
        if not most or not isinstance(model, FeedbackPreTrainedModel) or next_tokens:
            return
        batches = (self.trainer._prepare_inputs(batch) for batch in islice(kwargs["eval_dataloader"], most))
        with torch.random.fork_rng(devices=[]), self.trainer.compute_loss_context_manager():
            counts = count_right(model, batches)
        if counts is not None:
            *right, count = self.trainer.accelerator.reduce(counts).tolist()
            prefix = evaluated_split(kwargs["metrics"])
            values = {f"{prefix}_accuracy_iteration_{k}": number / max(1, count) for k, number in enumerate(right, 1)}
            self.trainer.log(values)
