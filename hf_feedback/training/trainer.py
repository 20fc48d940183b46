"""`FeedbackTrainer`: transformers' Trainer with freezing and discriminative learning rates."""

from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.utils import logging

from .arguments import FeedbackTrainingArguments
from .parameter_groups import feedback_model_in, format_groups, freeze_parameters, parameter_groups

logger = logging.get_logger(__name__)


class FeedbackTrainer(Trainer):
    """The HF Trainer; it freezes what `args.freeze` names and gives every part the rate that `args` asks for.

    Args:
        model: a feedback model, also one wrapped by PEFT.
        args: `FeedbackTrainingArguments`.
        **kwargs: as in `transformers.Trainer`.

    Raises:
        ValueError: a part or pattern matches no parameter, or nothing is left to train.
    """

    args: FeedbackTrainingArguments

    def __init__(
        self, model: nn.Module | None = None, args: FeedbackTrainingArguments | None = None, **kwargs: Any
    ) -> None:
        if args is not None and not isinstance(args, FeedbackTrainingArguments):
            raise TypeError(f"`args` must be FeedbackTrainingArguments, got {type(args).__name__}.")
        args = FeedbackTrainingArguments(output_dir="tmp_trainer") if args is None else args
        if model is not None:
            freeze_parameters(model, args.freeze)
            core = feedback_model_in(model)[1]
            if core.config.num_iterations == 1:  # nothing reads it: distributed training refuses idle parameters
                core.feedback.requires_grad_(False)
        super().__init__(model=model, args=args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `args.optim` names, over `parameter_groups`; prints them as a table.

        Raises:
            ValueError: `args.optim` is an optimizer that makes its own groups.
        """
        if self.optimizer is not None:
            return self.optimizer
        args: FeedbackTrainingArguments = self.args
        trained: Any = self.model if model is None else model
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, trained)
        if {"params", "model", "optimizer_dict"} & options.keys():
            raise ValueError(
                f"`optim`={args.optim!s} makes its own parameter groups and cannot take those of FeedbackTrainer; use "
                "an AdamW variant, or the plain Trainer."
            )
        groups = parameter_groups(
            trained,
            args.learning_rate,
            weight_decay=args.weight_decay,
            backbone_lr=args.backbone_lr,
            feedback_lr=args.feedback_lr,
            head_lr=args.head_lr,
            layer_lr_decay=args.layer_lr_decay,
            learning_rate_mapping=args.learning_rate_mapping,  # type: ignore[arg-type]
        )
        if self.is_world_process_zero():
            print(format_groups(groups), flush=True)
        self.optimizer_cls_and_kwargs = (optimizer_class, {**options, "params": groups})
        return super().create_optimizer(model)
