"""`FeedbackTrainer`: transformers' Trainer with freezing and discriminative learning rates."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, rotate_checkpoints
from transformers.training_args import ParallelMode

from ..model_card import RunFacts, write_model_card
from .arguments import FeedbackTrainingArguments
from .checkpoints import MANIFEST_NAME, best_checkpoint, newest_checkpoint, write_manifest
from .distributed import spare_the_search
from .outputs import naming
from .parameter_groups import (
    any_model_in,
    format_groups,
    freeze_parameters,
    parameter_groups,
    parts_of,
)
from .sampling import draw_iterations


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[None]:
    """Gives parameters and buffers back the tensors that they had, whatever they were cast to meanwhile."""
    tensors = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    try:
        yield
    finally:
        for parameter, tensor in tensors:
            parameter.data = tensor
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


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
        self.card_facts: RunFacts | None = None
        self.run_record: dict[str, Any] | None = None
        self._resting: list[nn.Parameter] = []
        if model is not None:
            freeze_parameters(model, args.freeze)
        super().__init__(model=model, args=args, **kwargs)
        self._check_loss()

    def _check_loss(self) -> None:
        """A loss that the trainer takes from the last logits would leave out what the model adds to its own."""
        config = any_model_in(cast(nn.Module, self.model))[1].config
        if self.label_smoother is not None and config.problem_type == "regression":
            raise ValueError(
                f"`label_smoothing_factor`={self.args.label_smoothing_factor} smooths classes, and the model predicts "
                "values; leave it out."
            )
        theirs = "label_smoothing_factor" if self.label_smoother is not None else "compute_loss_func"
        if self.label_smoother is None and self.compute_loss_func is None:
            return
        for name, plain in (("iteration_loss", "last"), ("jacobian_penalty", 0.0)):
            if getattr(config, name, plain) != plain:
                raise ValueError(
                    f"`{name}`={getattr(config, name)!r} is part of the model's own loss, which `{theirs}` replaces; "
                    "leave one out."
                )

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As in transformers; the new model is frozen as `args.freeze` says."""
        model = super().call_model_init(trial)
        freeze_parameters(model, self.args.freeze)
        self._rest_idle_feedback(model)
        return model

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in transformers; `resume_from_checkpoint=True` takes the newest complete checkpoint. With K = 1 in every
        step nothing reads the feedback, and distributed training refuses idle parameters: it rests while training
        lasts.

        Raises:
            ValueError: no checkpoint is complete.
        """
        if resume_from_checkpoint is True:
            folder = Path(str(self.args.output_dir))
            newest = newest_checkpoint(folder, self.args.world_size, self.args.load_best_model_at_end)
            if newest is None:
                raise ValueError(f"`resume_from_checkpoint`: {folder} has no complete checkpoint.")
            resume_from_checkpoint = str(newest)
        self._rest_idle_feedback(cast(nn.Module, self.model))
        try:
            if self.args.parallel_mode == ParallelMode.DISTRIBUTED and not self.is_fsdp_enabled:
                spare_the_search(self)
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for parameter in self._resting:
                parameter.requires_grad_(True)
            self._resting = []

    def _rest_idle_feedback(self, model: nn.Module) -> None:
        core = any_model_in(model)[1]
        adapts = getattr(getattr(core, "feedback", None), "adapts", False)
        if core.config.num_iterations == 1 and self.args.train_iterations == "fixed" and not adapts:
            parts = parts_of(model)
            idle = [p for name, p in model.named_parameters() if parts[name] == "feedback" and p.requires_grad]
            self._resting += idle
            for parameter in idle:
                parameter.requires_grad_(False)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with K drawn as `args.train_iterations` says."""
        if not model.training or "num_iterations" in inputs:
            return super().compute_loss(model, inputs, *args, **kwargs)
        core = any_model_in(model)[1]
        k = core.config.num_iterations
        if self.args.train_iterations != "fixed":
            k = self._draw_iterations(k)
            inputs = {**inputs, "num_iterations": k}
        found = super().compute_loss(model, inputs, *args, **kwargs)
        if k > 1:
            return found
        # distributed training refuses parameters that nothing touched
        feedback = getattr(core, "feedback", None)
        idle = [] if feedback is None else [p for p in feedback.parameters() if p.requires_grad]
        nothing = sum(parameter.sum() for parameter in idle) * 0.0
        return (found[0] + nothing, *found[1:]) if isinstance(found, tuple) else found + nothing

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in transformers; where examples stop by themselves, `mean_iterations` is among the metrics.

        Weights and random numbers are afterwards what they were: transformers casts the weights in place for
        `bf16_full_eval` and `fp16_full_eval`, and a data loader draws a number.
        """
        taken: list[torch.Tensor] = []

        def note(module: nn.Module, args: tuple, output: Any) -> None:
            if getattr(output, "iterations", None) is not None:
                taken.append(output.iterations)

        hook = any_model_in(cast(nn.Module, self.model))[1].register_forward_hook(note)
        casts = (self.args.bf16_full_eval or self.args.fp16_full_eval) and not self.is_in_train
        with _weights_kept(cast(nn.Module, self.model)) if casts else nullcontext(), torch.random.fork_rng(devices=[]):
            try:
                found = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
            finally:
                hook.remove()
        if taken:
            counted = torch.cat(taken).float()
            total = self.accelerator.reduce(torch.stack((counted.sum(), torch.ones_like(counted).sum())))
            metrics = cast(dict[str, float], found.metrics)
            metrics[f"{metric_key_prefix}_mean_iterations"] = (total[0] / total[1]).item()
        return found

    def _draw_iterations(self, mean: int) -> int:
        args, state = self.args, self.state
        most = args.max_train_iterations
        if most is None:
            most = 4 * mean if args.train_iterations == "poisson" else mean
        if not 1 <= args.min_train_iterations <= min(mean, most):
            raise ValueError(
                f"`min_train_iterations` must be between 1 and the model's K ({mean}) and `max_train_iterations` "
                f"({most}), got {args.min_train_iterations}."
            )
        if args.min_train_iterations == (mean if args.train_iterations == "poisson" else most):
            raise ValueError(
                f"`train_iterations`={args.train_iterations!r} has nothing to draw from {args.min_train_iterations} to "
                f"{most} with the model's K = {mean}; raise K or `max_train_iterations`, lower `min_train_iterations`, "
                "or use 'fixed'."
            )
        progress = state.global_step / max(1, state.max_steps)
        return draw_iterations(
            args.train_iterations, args.min_train_iterations, mean, most, args.seed, state.global_step, progress
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in transformers. The checkpoint is complete with its manifest; older ones are removed only then."""
        run_folder, limit = self._get_output_dir(trial), self.args.save_total_limit
        folder = Path(run_folder) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
        self.args.save_total_limit = None
        try:
            with naming(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # every process writes its random state
        if self.args.should_save:
            write_manifest(folder, self.run_record)
            rotate_checkpoints(run_folder, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _init_training_state(
        self, max_steps: int, steps_an_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """As in transformers, which takes the best checkpoint for lost where the folder has moved."""
        trained = super()._init_training_state(max_steps, steps_an_epoch, epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint is not None:
            self._find_best(Path(resume_from_checkpoint))
        return trained

    def _find_best(self, checkpoint: Path) -> None:
        """The best checkpoint is one beside this one, or none, wherever the state says that it was."""
        folder, best = Path(str(self.args.output_dir)), best_checkpoint(checkpoint)
        if best is not None and folder.resolve() == checkpoint.resolve().parent:
            best = folder / best.name  # spelled as it is when old checkpoints are removed
        self.state.best_model_checkpoint = str(best) if best is not None and best.is_dir() else None

    def load_finished(self, checkpoint: str) -> bool:
        """Loads what a training ended with that had this checkpoint after its last step.

        Returns:
            `False` if steps are left to train; nothing is loaded then.
        """
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        if state.global_step < steps:
            return False
        self.state = state
        self._load_from_checkpoint(checkpoint)
        self._find_best(Path(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        return True

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of the run's facts where `card_facts` is set (it is pushed with the model), else transformers'."""
        if self.card_facts is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            write_model_card(
                Path(str(self.args.output_dir)),
                any_model_in(cast(nn.Module, self.model))[1].config,
                self.card_facts,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As in transformers, which leaves out the code files that the config refers to."""
        if self.is_world_process_zero():
            for file in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(file, str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers.

        Raises:
            ValueError: the schedule does not take what `args.lr_scheduler_kwargs` holds.
        """
        try:
            return super().create_scheduler(*args, **kwargs)
        except TypeError as error:
            raise ValueError(f"`lr_scheduler_kwargs`={self.args.lr_scheduler_kwargs}: {error}.") from error

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `args.optim` names, over `parameter_groups`; prints them as a table.

        Raises:
            ValueError: `args.optim` is an optimizer that makes its own groups.
        """
        if self.optimizer is not None:
            return self.optimizer
        args: FeedbackTrainingArguments = self.args
        trained: Any = self.model if model is None else model
        given = self.optimizer_cls_and_kwargs
        optimizer_class, options = given or self.get_optimizer_cls_and_kwargs(args, trained)
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
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = given
