"""The settings that all runs of a comparison share: task, data, arms, seeds, and the initial head of each seed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import set_seed

from ...loading import draw_head
from ...modeling_base import FeedbackPreTrainedModel
from ...training.arguments import FeedbackTrainingArguments
from ...training.data.splits import FileArguments, Split, draw_rows
from ...training.starting_model.model_arguments import ModelArguments
from ...training.starting_model.model_sources import read_config
from ...training.tasks import Task
from ...training.tasks.task import PreparedTask
from .arms import Arm, Budget
from .example_scores import EXAMPLE_SCORES, ExampleScore


@dataclass(frozen=True)
class Comparison:
    """The settings that all runs share.

    Args:
        task: the task.
        model_args: the backbone, and the feedback options.
        data_args: options of the data.
        args: the training arguments.
        arms: by name; those with feedback among them.
        seeds: seeds of the data order, new parameters and dropout.
        rate_factors: factors on all rates; each arm uses the best on validation with the first seed.
        margin: smallest difference that matters, in points.
        also_test: further test files for every trained model, such as noisy or adversarial ones.
        most_steps: maximum number of training steps, before an arm's factor; `None`: those of the epochs.
    """

    task: type[Task[FileArguments]]
    model_args: ModelArguments
    data_args: FileArguments
    args: FeedbackTrainingArguments
    arms: Mapping[str, Arm]
    seeds: tuple[int, ...] = (0, 1, 2)
    rate_factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    margin: float = 1.0
    also_test: tuple[str, ...] = ()
    most_steps: int | None = None

    @property
    def folder(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def freeze(self) -> list[str]:
        return list(self.args.freeze or [])

    @property
    def limits_steps(self) -> bool:
        """Whether the number of steps is given or limited, and not that of the epochs."""
        return self.args.max_steps > 0 or self.most_steps is not None

    @property
    def pipeline_tag(self) -> str:
        """The task as the Hub names it."""
        return self.task(self.model_args, self.data_args).card.pipeline_tag

    def prepare(self, arm: Arm, seed: int, budget: Budget) -> tuple[PreparedTask, nn.Module]:
        """Returns the task with the arm's data and model; the initial head is the same for all arms of a seed."""
        set_seed(seed)
        model_args = replace(self.model_args, **arm.model_options())
        task = self.task(model_args, replace(self.data_args, **arm.data_options(budget)))
        task.check_training(self.args)
        prepared = task.prepare(announce=False)
        more = {}
        sampling = replace(self.data_args, validation_split=None)
        for file in self.also_test:
            further = draw_rows({"test": task.check_split(Split(task.read(file), file))}, sampling, None)
            split = task.encode("test", further["test"])
            if split is None:
                raise ValueError(f"`also_test`: {file} has no labels.")
            more[name_of_test_file(file)] = split
        model = cast(FeedbackPreTrainedModel, prepared.model)
        if read_config(self.model_args.model, self.model_args.revision).get("model_type") != model.config.model_type:
            # and not a feedback model that is trained further
            torch.manual_seed(seed)  # for a head that does not depend on what the arm drew before
            draw_head(model)
        return replace(prepared, splits={**prepared.splits, **more}), arm.adapt_model(model, budget)

    def score_of(self, prepared: PreparedTask) -> tuple[str, ExampleScore]:
        """Returns the name of the deciding metric, and its score by example.

        Raises:
            ValueError: the metric cannot be resampled.
        """
        names = [name for name in prepared.metrics if name in EXAMPLE_SCORES]
        name = (self.args.metric_for_best_model or next(iter(prepared.metrics), "")).removeprefix("eval_")
        if name not in names:
            raise ValueError(
                f"`metric_for_best_model` must be one of {', '.join(names)}, which a comparison of this task can "
                f"resample, got {name!r}."
            )
        return name, EXAMPLE_SCORES[name]


def name_of_test_file(file: str) -> str:
    """Returns the name of a further test file: the file name without its ending."""
    return Path(file).stem
