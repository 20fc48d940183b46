"""`FeedbackTrainer`: the Trainer of transformers for feedback models."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.training_args import ParallelMode

from ..modeling_base import FeedbackPreTrainedModel
from .arguments import FeedbackTrainingArguments
from .batch_weights import batch_weights, count_items
from .callbacks import EpochCallback
from .evaluation_state import count_iterations, count_real_rows, first_rows, keep_weights
from .finite_steps import check_step
from .frozen_layers.prefix_arguments import make_frozen_prefix
from .iteration_logs.iteration_curves import IterationCurves
from .lora import with_adapters
from .model_card import RunFacts, write_model_card
from .parameters.freezing import freeze_parameters
from .parameters.model_parts import any_model_in, parts_of
from .parameters.parameter_groups import format_groups, parameter_groups
from .parameters.staging import check_early_stopping, staged
from .parameters.unused_parameters import skip_unused_search
from .resuming.data_order import EpochOrder
from .resuming.resumable_trainer import ResumableTrainer
from .search import Trial
from .techniques.class_loss_setup import use_loss
from .techniques.trainer_techniques import TrainerTechniques
from .train_iterations import draw_iterations, iteration_range
from .trainer_checks import check_batches, check_loss, check_own_loss, check_precision, check_rates, check_targets


class FeedbackTrainer(ResumableTrainer):
    """The Trainer of transformers with the options of `FeedbackTrainingArguments`.

    Args:
        model: A feedback model, also one wrapped by PEFT.
        args: the training arguments.
        **kwargs: as in `transformers.Trainer`.

    A subclass with a `compute_loss` of its own calls `super().compute_loss(…)`, which applies the options of the loss.

    Attributes:
        applied_options: whether the running step applied the options of the loss.
        card_facts: facts of the run for the model card; `None`: the card of transformers.
        run_record: settings that the training depends on, for the manifest of each checkpoint.
        techniques: adversarial training and auxiliary losses.
        training_parts: the source and the number of rows of each part of the training data, in order, by which messages
            name rows; empty: they are named as rows of the encoded training data.

    Raises:
        ValueError: a part or pattern matches no parameter, or `compute_loss_func` would replace terms of the model's
            own loss; in training, a `compute_loss` of a subclass leaves out options that are set.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny))
    >>> args = FeedbackTrainingArguments("out", freeze=["backbone"], feedback_lr=1e-3, use_cpu=True)
    >>> trainer = FeedbackTrainer(model, args)
    >>> any(parameter.requires_grad for parameter in trainer.model.backbone.parameters())
    False

    ```
    """

    def __init__(
        self, model: nn.Module | None = None, args: FeedbackTrainingArguments | None = None, **kwargs: Any
    ) -> None:
        if args is not None and not isinstance(args, FeedbackTrainingArguments):
            raise TypeError(f"`args` must be FeedbackTrainingArguments, got {type(args).__name__}.")
        args = FeedbackTrainingArguments(output_dir="tmp_trainer") if args is None else args
        self.applied_options = False
        self.card_facts: RunFacts | None = None
        self.training_parts: Sequence[tuple[str, int]] = ()
        self._paused: list[nn.Parameter] = []
        check_early_stopping(args)
        self._losses: list[torch.Tensor] = []  # of the batches of the running step
        self._batch_weights: torch.Tensor | None = None
        self._iteration_counts: list[torch.Tensor] = []  # of the batches of an evaluation
        self._loss_sums: list[torch.Tensor] = []  # of these too: the sum of the losses of all items, and their number
        self.techniques = TrainerTechniques(self)
        if model is not None:
            model = with_adapters(model, args)
            freeze_parameters(model, args.freeze)
        super().__init__(model=model, args=args, **kwargs)
        if hasattr(self.data_collator, "start_epoch"):
            self.add_callback(EpochCallback(self.data_collator))
        self.add_callback(EpochOrder())
        self.techniques.set_up()
        self._curves = IterationCurves(self) if self.args.report_to else None
        if self._curves is not None:
            self.add_callback(self._curves)
        if self.compute_loss_func is None:
            self.label_smoother = None  # the model's own loss smooths, at every iteration
        check_loss(self)
        check_targets(self)
        check_precision(self)
        check_rates(self)
        check_batches(self)

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> DataLoader:
        """As in transformers, but `dataloader_drop_last` is for training: an evaluation counts every example."""
        drops = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops and description == "Training"
        try:
            return super()._get_dataloader(dataset, description, *args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drops

    def call_model_init(self, trial: Trial = None) -> nn.Module:
        """As in transformers; the new model is frozen as `args.freeze` says, after the trial's options are set."""
        model = with_adapters(super().call_model_init(trial), self.args)
        if trial is None:
            self._freeze(model)
        return model

    def _hp_search_setup(self, trial: Trial) -> None:
        """As in transformers, called after the model of a trial is made."""
        super()._hp_search_setup(trial)
        if trial is not None:
            check_targets(self)
            self._freeze(cast(nn.Module, self.model))

    def _freeze(self, model: nn.Module) -> None:
        freeze_parameters(model, self.args.freeze)
        self._pause_unused_feedback(model)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in `ResumableTrainer`. Feedback that no step uses (K = 1) is frozen during training, since distributed
        training refuses parameters without a gradient."""
        try:
            if self.model is not None:  # in a search, each trial makes its own
                self._pause_unused_feedback(self.model)
                if self.args.parallel_mode == ParallelMode.DISTRIBUTED and not self.is_fsdp_enabled:
                    skip_unused_search(self)
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for parameter in self._paused:
                parameter.requires_grad_(True)
            self._paused = []
            self.techniques.end()

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in transformers, in the stages that `args` asks for; frozen layers run without dropout."""
        self._losses, self._batch_weights = [], None
        self.techniques.start()
        if self.args.auto_find_batch_size:
            self._save_or_restore_start()
        with make_frozen_prefix(self), staged(self):
            return super()._inner_training_loop(*args, **kwargs)

    def _pause_unused_feedback(self, model: nn.Module) -> None:
        core = any_model_in(model)[1]
        used = isinstance(core, FeedbackPreTrainedModel) and core.feedback.acts_in_first_iteration
        if core.config.num_iterations == 1 and self.args.train_iterations == "fixed" and not used:
            parts = parts_of(model)
            unused = [p for name, p in model.named_parameters() if parts[name] == "feedback" and p.requires_grad]
            self._paused += unused
            for parameter in unused:
                parameter.requires_grad_(False)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in transformers.

        Raises:
            ValueError: a `compute_loss` of a subclass leaves out options that are set.
        """
        if self._curves is not None and self._curves.batch is None:
            self._curves.batch = dict(inputs)
        with check_own_loss(self, model):
            loss = super().training_step(model, inputs, *args, **kwargs)
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | float | None = None) -> torch.Tensor | float:
        """As in transformers; raises before the optimizer's step if loss or gradient is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        losses, self._losses = self._losses, []
        check_step(self, losses, norm)
        return norm

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As in transformers, with the K that `args.train_iterations` draws, and the techniques that `args` chooses."""
        self.applied_options, plain_loss = True, super().compute_loss
        with use_loss(model, self.techniques.class_loss):
            if not model.training:
                # the mean over the batch itself, which `evaluation_loop` weighs
                items = None if self.compute_loss_func is None else num_items_in_batch
                return plain_loss(model, inputs, return_outputs, items)
            if self.args.train_iterations != "fixed" and "num_iterations" not in inputs:
                inputs = {**inputs, "num_iterations": self.iterations_of(self.state.global_step, self.state.max_steps)}
            result = self.techniques.compute_loss(model, inputs, num_items_in_batch, plain_loss)
        return (result.loss, result.outputs) if return_outputs else result.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in transformers; adds the parts of the loss, without their weights, and the curves of the edges."""
        parts = self.techniques.log.read(self.accelerator) if "loss" in logs else {}
        if self._curves is not None and "loss" in logs:
            parts |= self._curves.edge_values()
        super().log({**logs, **parts}, start_time)

    @property
    def batch_number(self) -> int:
        """Number of the current batch in its step, counted from 0."""
        return len(self._losses)

    @property
    def batch_weight(self) -> torch.Tensor | float:
        """Weight of the current batch in the mean loss of its step; see `batch_weights`."""
        return 1.0 if self._batch_weights is None else self._batch_weights[self.batch_number]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """As in transformers; notes what each batch counts in its step."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._batch_weights = batch_weights(self, batches) if batches else None
        self.techniques.begin_step(batches)
        self._losses = []  # a pass through a stream may end within a step
        return batches, items

    def iterations_of(self, step: int, num_steps: int) -> int:
        """Returns the K of a training step, which `args.train_iterations` draws.

        Args:
            step: number of the step.
            num_steps: number of all steps.
        """
        args, mean = self.args, any_model_in(cast(nn.Module, self.model))[1].config.num_iterations
        limits = iteration_range(args.train_iterations, args.min_train_iterations, mean, args.max_train_iterations)
        return draw_iterations(args.train_iterations, limits, args.seed, step, step / max(1, num_steps))

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """As in transformers; padding rows of the last batch of a process do not count in the loss."""
        before = len(self._iteration_counts)
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is None:
            return loss, logits, labels
        real = count_real_rows(self.accelerator, inputs)
        if real is not None:
            del self._iteration_counts[before:]
            inputs = first_rows(inputs, max(real, 1))  # a pass over no rows is not possible
            loss = super().prediction_step(model, inputs, True, ignore_keys)[0]
        if real == 0:
            self._iteration_counts[before:] = [counts[:0] for counts in self._iteration_counts[before:]]
        mean = cast(torch.Tensor, loss)
        mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
        items = (self._count_items(inputs) * (real != 0)).to(mean)
        self._loss_sums.append(torch.stack((torch.where(items > 0, mean * items, 0.0), items)))
        return loss, logits, labels

    def _count_items(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The number of items in the mean that the loss of a batch is."""
        labels = batch.get("labels")
        return count_items(batch if labels is None or not self._loss_shifts_labels else {"labels": labels[..., 1:]})

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in transformers; the loss is the mean over all items of all batches, such as labelled tokens; and where
        examples halt by themselves, `mean_iterations` is among the metrics.

        Weights and random state are restored: transformers casts the weights in place for
        `bf16_full_eval` and `fp16_full_eval`, and a data loader draws a number.
        """
        model = cast(nn.Module, self.model)
        casts = (self.args.bf16_full_eval or self.args.fp16_full_eval) and not self.is_in_train
        restore, self._loss_sums = keep_weights(model) if casts else nullcontext(), []
        with restore, torch.random.fork_rng(devices=[]), count_iterations(model) as self._iteration_counts:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        metrics = cast(dict[str, float], output.metrics)
        if self._loss_sums and self.compute_loss_func is None:  # which has a mean of its own
            metrics[f"{metric_key_prefix}_loss"] = self._mean(torch.stack(self._loss_sums).sum(0))
        if self._iteration_counts:
            iterations = torch.cat(self._iteration_counts)
            total = torch.stack((iterations.sum(), torch.ones_like(iterations).sum()))
            metrics[f"{metric_key_prefix}_mean_iterations"] = self._mean(total)
        return output

    def _mean(self, total: torch.Tensor) -> float:
        """The mean over all processes of what has this sum and this number, `(2,)`, in each of them."""
        total = self.accelerator.reduce(total)
        return (total[0] / total[1]).item()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card of `card_facts`, which is pushed with the model; without them, that of transformers."""
        if self.card_facts is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            write_model_card(
                Path(str(self.args.output_dir)),
                any_model_in(cast(nn.Module, self.model))[1].config,
                self.card_facts,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As in transformers, with the code files that the config refers to."""
        if self.is_world_process_zero():
            for file in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(file, str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """As in transformers; but a share of the steps that would be all of them, such as a tenth of one, leaves one
        after the warm-up, whose steps begin with a rate of 0; and a rate that waits for a plateau of the metric waits
        for one at the top if larger is better.

        Raises:
            ValueError: the schedule does not accept the options in `args.lr_scheduler_kwargs`.
        """
        warmup, options = self.args.warmup_steps, self.args.lr_scheduler_kwargs
        if self.args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and self.args.greater_is_better:
            self.args.lr_scheduler_kwargs = {"mode": "max", **(cast(dict[str, Any] | None, options) or {})}
        if warmup < 1 and self.args.get_warmup_steps(num_training_steps) >= num_training_steps:
            self.args.warmup_steps = num_training_steps - 1
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except TypeError as error:
            raise ValueError(f"`lr_scheduler_kwargs`={self.args.lr_scheduler_kwargs}: {error}.") from error
        finally:
            self.args.warmup_steps, self.args.lr_scheduler_kwargs = warmup, options

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Returns the optimizer that `args.optim` names, over `parameter_groups`, which are printed as a table.

        Raises:
            ValueError: `args.optim` is an optimizer that makes its own groups.
        """
        if self.optimizer is not None:
            return self.optimizer
        args, trained = self.args, cast(PreTrainedModel, self.model if model is None else model)
        custom = self.optimizer_cls_and_kwargs
        optimizer_class, options = custom or self.get_optimizer_cls_and_kwargs(args, trained)
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
            learning_rate_mapping=cast(dict[str, float] | None, args.learning_rate_mapping),
        )
        if self.is_world_process_zero():
            print(format_groups(groups), flush=True)
        self.optimizer_cls_and_kwargs = (optimizer_class, {**options, "params": groups})
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = custom
