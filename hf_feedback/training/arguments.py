"""`FeedbackTrainingArguments`: the `TrainingArguments` of transformers with the options of feedback training."""

import copy
import json
import os
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from ..validation import check_choice, check_integer, option
from .frozen_layers.prefix_arguments import PrefixArguments, check_prefix
from .iteration_logs.iteration_log_arguments import IterationLogArguments
from .lora import LoraArguments
from .parameters.staging import StagingArguments, check_unfreezing
from .resuming.resume_arguments import ResumeArguments
from .techniques.adversarial_arguments import AdversarialArguments
from .techniques.objective_arguments import ObjectiveArguments
from .train_iterations import ITERATION_RULES

JSON_EXAMPLE = '{"name": 1e-5}'


def read_json(option: str, text: str, example: str) -> Any:
    """Parses the value of an option that is written as JSON.

    Args:
        option: name of the option, for the message.
        text: its text.
        example: a valid text, for the message.

    Raises:
        ValueError: the text is not valid JSON, or gives one name several values.

    Example:

    ```python
    >>> read_json("feedback_edges", "[[3, 0]]", "[[3, 0], [3, 1]]")
    [[3, 0]]

    ```
    """

    def with_different_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = next(name for name in values if [other for other, _ in pairs].count(name) > 1)
            raise ValueError(f"`{option}` gives {twice!r} several values; keep one, or name the others otherwise.")
        return values

    try:
        return json.loads(text, object_pairs_hook=with_different_names)
    except (json.JSONDecodeError, RecursionError) as error:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        raise ValueError(f"`{option}` must be JSON such as {example}, got {shown!r} ({error}).") from error


@dataclass
class FeedbackTrainingArguments(
    AdversarialArguments,
    ObjectiveArguments,
    LoraArguments,
    StagingArguments,
    PrefixArguments,
    ResumeArguments,
    IterationLogArguments,
    TrainingArguments,
):
    """`TrainingArguments` with the options of `freeze_parameters`, `parameter_groups`, `draw_iterations`,
    `AdversarialArguments`, `ObjectiveArguments`, `LoraArguments`, `StagingArguments`, `PrefixArguments`,
    `ResumeArguments` and `IterationLogArguments`.

    New feedback and a new head need a larger learning rate than a pretrained backbone. The default of transformers,
    5e-5 for everything, hardly trains them; `hf-feedback train` has `learning_rate=1e-3` with `backbone_lr=5e-5`.

    Args:
        freeze: parts, layers or regular expressions over parameter names that are not trained.
        backbone_lr: learning rate of the backbone; `learning_rate` by default.
        feedback_lr: learning rate of the feedback; `learning_rate` by default.
        head_lr: learning rate of the head; `learning_rate` by default.
        layer_lr_decay: factor in (0, 1] from the learning rate of a layer to that of the layer below.
        learning_rate_mapping: regular expression over parameter names → learning rate (JSON on the command line).
        train_iterations: rule for K of each training step, one of `ITERATION_RULES`. The model's own K is the mean of
            `"poisson"`, and used in evaluation.
        min_train_iterations: smallest K of a training step.
        max_train_iterations: largest K of a training step; the model's K by default, four times that for `"poisson"`.
        overwrite_output_dir: whether to overwrite a model, a card or checkpoints in the output folder.

    Attributes:
        default_metric: value of `metric_for_best_model` that transformers has set; `None` if it was given.
        default_direction: the same of `greater_is_better`.

    Raises:
        ValueError: an option has a value that is not allowed.

    Example:

    ```python
    >>> from hf_feedback.training import FeedbackTrainingArguments
    >>> args = FeedbackTrainingArguments("out", freeze=["embeddings"], learning_rate=1e-3, backbone_lr=5e-5)
    >>> args.backbone_lr
    5e-05

    ```
    """

    freeze: list[str] | None = option(
        None,
        "Parts that are not trained: backbone, embeddings, feedback, head, layers:0-3, or regular expressions over "
        "parameter names.",
    )
    backbone_lr: float | None = option(None, "Learning rate of the backbone.")
    feedback_lr: float | None = option(None, "Learning rate of the feedback (default: --learning-rate).")
    head_lr: float | None = option(
        None, "Learning rate of the head (default: --learning-rate; for a trained head of the backbone --backbone-lr)."
    )
    layer_lr_decay: float = option(
        1.0, "Factor from the learning rate of a layer to that of the layer below, at most 1."
    )
    learning_rate_mapping: dict | str | None = option(
        None, 'Learning rates by regular expression over parameter names, as JSON: {"LayerNorm": 1e-5}.'
    )

    train_iterations: str = option(
        "fixed",
        "Rule for K of each training step: fixed (the model's K), uniform or poisson (drawn at random), or curriculum "
        "(rising during training).",
        choices=ITERATION_RULES,
    )
    min_train_iterations: int = option(2, "Smallest K of a training step, unless fixed.")
    max_train_iterations: int | None = option(
        None, "Largest K of a training step, unless fixed (default: the model's K; four times that for poisson)."
    )
    overwrite_output_dir: bool = option(
        False, "Overwrite the results of an earlier run in the output folder; its checkpoints are deleted."
    )

    # Options that transformers parses as JSON if they are text.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "learning_rate_mapping"]  # noqa: RUF012

    def __post_init__(self) -> None:
        self._check_batches()
        if self.num_train_epochs < 0:
            raise ValueError(f"`num_train_epochs` must be at least 0, got {self.num_train_epochs}.")
        if self.optim_args and any("=" not in part for part in self.optim_args.split(",")):
            raise ValueError(f"`optim_args` must have the form a=1,b=2, got {self.optim_args!r}.")
        for name in self._VALID_DICT_FIELDS:
            self._check_dictionary(name)
        if self.torch_compile_mode is not None:
            try:
                torch.compile(torch.nn.Identity(), mode=self.torch_compile_mode)
            except RuntimeError as error:
                raise ValueError(f"`torch_compile_mode`: {error}.") from error
        self.check_staging()
        if self.early_stopping_patience is not None:
            self.restore_callback_states_from_checkpoint = True  # it counts the evaluations without improvement
        self.check_report()
        self.resume_from_checkpoint = self.checkpoint_setting(self.resume_from_checkpoint)
        metric, direction = self.metric_for_best_model, self.greater_is_better
        try:
            super().__post_init__()
        except ValueError as error:
            if self.ddp_backend is None or "RANK" in os.environ or "process group" not in str(error):
                raise
            raise ValueError(
                f"`ddp_backend` {self.ddp_backend!r} is for several processes, and this is one: start them with "
                "torchrun or accelerate launch, or leave the option out."
            ) from error
        self.default_metric: str | None = self.metric_for_best_model if metric is None else None
        self.default_direction: bool | None = self.greater_is_better if direction is None else None
        if self.unfreezes:
            check_unfreezing(self)
        check_prefix(self)
        self.check_lora()
        self.check_adversarial()
        self.check_objectives()
        check_choice("train_iterations", self.train_iterations, ITERATION_RULES)
        check_integer("min_train_iterations", self.min_train_iterations, 1, "the smallest K of a training step")
        if self.max_train_iterations is not None:
            check_integer("max_train_iterations", self.max_train_iterations, 1, "the largest K of a training step")
            if self.train_iterations == "fixed":
                others = ", ".join(rule for rule in ITERATION_RULES if rule != "fixed")
                raise ValueError(
                    f"`max_train_iterations`={self.max_train_iterations} has no effect with "
                    f"`train_iterations`='fixed'; choose one of {others}, or leave it out."
                )

    def _check_batches(self) -> None:
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            check_integer(name, getattr(self, name), 1, "examples of a batch, or batches of a step")

    def _check_dictionary(self, name: str) -> None:
        """Raises `ValueError` for an option that must be a dictionary and is neither one nor the path of one."""
        value = getattr(self, name)
        may_be_path = name in ("accelerator_config", "fsdp_config", "deepspeed")
        if isinstance(value, str) and (value.startswith("{") or (value and not may_be_path)):
            text, value = value, read_json(name, value, JSON_EXAMPLE)
            if not isinstance(value, dict):
                raise ValueError(f"`{name}` must be JSON such as {JSON_EXAMPLE}, got {text!r:.60}.")
        if name == "accelerator_config" and isinstance(value, dict):
            known = AcceleratorConfig.__dataclass_fields__
            if unknown := [key for key in value if key not in known]:
                raise ValueError(f"`{name}` must hold {', '.join(known)}, got {unknown[0]!r:.60}.")

    def __getstate__(self) -> dict[str, object]:
        """Leaves out the token: the Trainer pickles this into `training_args.bin`, which is pushed with the model."""
        return {**self.__dict__, "hub_token": None}

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        twin = copy.copy(self)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin
