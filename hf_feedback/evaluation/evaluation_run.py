"""The evaluation of a trained model of any task on a file of labelled examples."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput

from ..prediction.trained_model import TrainedModel
from ..training.arguments import FeedbackTrainingArguments
from ..training.callbacks import show_plain_metrics
from ..training.starting_model.model_arguments import ModelArguments, Options
from ..training.starting_model.model_sources import read_config
from ..training.tasks import NetworkTextClassification, Task, TextClassification, TokenClassification
from ..training.tasks.task import EncodedSplit
from ..training.trainer import FeedbackTrainer


def load_labelled(trained: TrainedModel, file: str, options: Options | None = None) -> tuple[Task, EncodedSplit]:
    """Loads a model and encodes a file of labelled examples for it.

    Args:
        trained: the model.
        file: path of the file, or of a folder of images or recordings.
        options: options of the task's data by name, such as `label_column`.

    Returns:
        The task, with its model, and the examples.

    Raises:
        ValueError: the model, the file or a label is invalid, or an option is not one of the task.
    """
    task_class, options = trained.task(), options or {}
    stored = task_class.stored_evaluation_options(read_config(trained.name, trained.revision))
    if "max_length" in options:  # which the windows of training may not suit
        stored.pop("stride", None)
    options = {**stored, **options}
    if task_class is NetworkTextClassification:  # which would make a new network
        task_class = TextClassification
    known = {one.name for one in fields(task_class.data_arguments)}
    if unknown := next((name for name in options if name not in known), None):
        raise ValueError(f"`{unknown}`: {trained.name} is {task_class.card.model_with_article}; leave the option out.")
    model_options = {"num_iterations": trained.num_iterations, **trained.halting}
    model_args = ModelArguments(model=trained.name, revision=trained.revision, dtype="auto", **model_options)
    task = task_class(model_args, task_class.data_arguments(test_file=file, **options))
    return task, task.prepare_trained(file)


@dataclass(frozen=True)
class EvaluationRun:
    """A trained model, its trainer, and the labelled examples that it is evaluated on.

    Args:
        task: the task, with its model.
        trainer: trainer that evaluates the model.
        data: the encoded examples.
    """

    task: Task
    trainer: FeedbackTrainer
    data: Dataset

    @classmethod
    def load(cls, trained: TrainedModel, file: str, options: Options | None = None) -> "EvaluationRun":
        """Loads a model and encodes a file for it, see `load_labelled`."""
        task, encoded = load_labelled(trained, file, options)
        return cls(task, _make_trainer(task, trained, encoded.compute_metrics), cast(Dataset, encoded.data))

    def predict(self) -> PredictionOutput:
        """Returns predictions (logits for most tasks), labels, and the metrics by name."""
        return self.trainer.predict(self.data, metric_key_prefix="eval")


def _make_trainer(
    task: Task, trained: TrainedModel, compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None
) -> FeedbackTrainer:
    preprocess = task.preprocess_logits()
    if isinstance(task, TokenClassification) and compute_metrics is not None:
        preprocess, compute_metrics = tags_with_confidence, _metrics_of_tags(compute_metrics)
    args = FeedbackTrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_eval_batch_size=trained.batch_size,
        bf16=trained.bf16,
        report_to=[],
        remove_unused_columns=not task.keep_all_columns,
        use_cpu=not torch.accelerator.is_available(),
    )
    trainer = FeedbackTrainer(
        model=task.model,
        args=args,
        processing_class=task.processor,
        data_collator=task.make_collator(),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=preprocess,
    )
    show_plain_metrics(trainer)
    return trainer


def tags_with_confidence(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the number of the best tag of each token and its probability, `(B, T, 2)`."""
    confidence, tags = logits.float().softmax(-1).max(-1)
    return torch.stack((tags.float(), confidence), -1)


def _metrics_of_tags(
    compute_metrics: Callable[[EvalPrediction], dict[str, float]],
) -> Callable[[EvalPrediction], dict[str, float]]:
    """The metrics of tags without their confidence."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        tags = np.asarray(prediction.predictions)[..., 0].astype(int)
        return compute_metrics(EvalPrediction(tags, prediction.label_ids))

    return compute
