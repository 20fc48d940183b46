"""A Trainer whose runs resume exactly: complete checkpoints, and the order of the data."""

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput, has_length, rotate_checkpoints

from ...feedback_checkpoint import WEIGHTS_NAME as FEEDBACK_WEIGHTS
from ..arguments import FeedbackTrainingArguments
from ..output_folder import name_folder_in_errors
from ..parameters.staging import has_stopped_early
from ..search import SearchTrainer, Trial
from .checkpoints import MANIFEST_NAME, Record, best_checkpoint, newest_checkpoint, write_manifest
from .data_order import SeededLengthGroups, stream_position
from .restarts import TrainingStart

# Files of a whole model; `global_step*` and `pytorch_model*` are also folders, of DeepSpeed and FSDP.
WHOLE_WEIGHTS = ("model*.safetensors*", "pytorch_model*", "global_step*")
ADAPTER_CONFIG = "adapter_config.json"
# Tensors that the optimizers of torch keep for each parameter, of its shape.
SHAPED_LIKE_PARAMETERS = {"exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum"}


@contextmanager
def _names_as_in_memory(model: nn.Module) -> Iterator[None]:
    """Context in which a model is saved by the names that its tensors have in memory. transformers saves some families
    by those of their first checkpoints, which its Trainer does not find again."""
    conversions = getattr(model, "_weight_conversions", None)
    model._weight_conversions = []  # type: ignore[assignment]
    try:
        yield
    finally:
        model._weight_conversions = conversions  # type: ignore[assignment]


def check_optimizer_state(optimizer: Optimizer, names: Sequence[str | None]) -> None:
    """Checks that a state that was loaded is of the parameters of an optimizer.

    Args:
        optimizer: after its state was loaded.
        names: of its groups before that, `None` where a group has none.

    Raises:
        ValueError: the loaded state belongs to other parameters.
    """
    for name, group in zip(names, optimizer.param_groups, strict=True):
        if None not in (name, group.get("name")) and name != group["name"]:
            raise ValueError(f"there the group of {name!r} is of {group['name']!r}")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for key in SHAPED_LIKE_PARAMETERS & state.keys():
                if state[key].shape != parameter.shape:
                    raise ValueError(
                        f"there one in the group of {name!r} has the shape {tuple(state[key].shape)}, not "
                        f"{tuple(parameter.shape)}"
                    )


class ResumableTrainer(SearchTrainer):
    """The Trainer of transformers; its checkpoints are complete or passed over, and runs resume from them exactly.

    Attributes:
        run_record: settings that the training depends on, for the manifest of each checkpoint.
    """

    args: FeedbackTrainingArguments
    run_record: Record | None = None
    _start: TrainingStart | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in transformers; `resume_from_checkpoint=True` takes the newest complete checkpoint.

        By default `args.resume` applies, except in a search; of a finished run only the state is loaded, and so it is
        of one that stopped early, however it is named.

        Raises:
            ValueError: no checkpoint is complete, or it is not one of this model and its optimizer.
        """
        if resume_from_checkpoint is None and self.args.resume is not None and self.hp_search_backend is None:
            resume_from_checkpoint = self.args.resume
            if self.args.resume == "auto":
                resume_from_checkpoint = self._newest_checkpoint()
            if resume_from_checkpoint is not None and self.load_finished(resume_from_checkpoint):
                return TrainOutput(self.state.global_step, 0.0, {})
        elif resume_from_checkpoint is True:
            resume_from_checkpoint = self._newest_checkpoint()
            if resume_from_checkpoint is None:
                raise ValueError(f"`resume_from_checkpoint`: {self.args.output_dir} has no complete checkpoint.")
        if resume_from_checkpoint and self._stopped_early_at(resume_from_checkpoint):
            self.load_finished(resume_from_checkpoint)  # a further interval would be one more than it was trained for
            return TrainOutput(self.state.global_step, 0.0, {})
        self._start = None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _stopped_early_at(self, checkpoint: str) -> bool:
        file = Path(checkpoint) / "trainer_state.json"
        return file.is_file() and has_stopped_early(TrainerState.load_from_json(str(file)), self.args)

    def _newest_checkpoint(self) -> str | None:
        folder, args = Path(str(self.args.output_dir)), self.args
        newest = newest_checkpoint(folder, args.world_size, args.load_best_model_at_end)
        return None if newest is None else str(newest)

    def _save_or_restore_start(self) -> None:
        """Saves the initial state, or restores it where training starts again with smaller batches."""
        if self._start is None:
            self._start = TrainingStart(self)
        else:
            self._start.restore(self)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """As in transformers; groups of similar length have an order that a resumed run repeats."""
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return SeededLengthGroups(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        """As in transformers, but not in groups of similar length: predictions are matched with rows by their order."""
        sampler = super()._get_eval_sampler(eval_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        # of several processes accelerate divides the rows, in order
        return SequentialSampler(cast(Sized, eval_dataset)) if self.args.world_size <= 1 else None

    def _save_checkpoint(self, model: nn.Module, trial: Trial) -> None:
        """As in transformers. The checkpoint is complete with its manifest; older ones are removed only then."""
        run_folder, limit = self._get_output_dir(trial), self.args.save_total_limit
        folder = Path(run_folder) / f"checkpoint-{self.state.global_step}"
        if self._start is not None:
            self._start.checkpoints.append(folder)
        if self.args.should_save:
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
        self.args.save_total_limit = None
        try:
            with name_folder_in_errors(folder), _names_as_in_memory(cast(nn.Module, self.model)):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # every process writes its random state
        if self.args.should_save:
            with name_folder_in_errors(folder):
                write_manifest(folder, self.run_record)
            rotate_checkpoints(run_folder, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As in transformers; folders that hold a part of a model alone are named as such.

        Raises:
            ValueError: there is no checkpoint of the model.
        """
        folder, model = Path(resume_from_checkpoint), cast(nn.Module, self.model if model is None else model)
        if not any(True for pattern in WHOLE_WEIGHTS for _ in folder.glob(pattern)):
            if (folder / FEEDBACK_WEIGHTS).is_file():
                raise ValueError(
                    f"`resume_from_checkpoint`: {folder} holds feedback alone, as `save_feedback` writes it, and no "
                    "state of a training; load it with `from_pretrained` and train that model in a new run."
                )
            if (folder / ADAPTER_CONFIG).is_file() and not hasattr(model, "peft_config"):
                raise ValueError(
                    f"`resume_from_checkpoint`: {folder} holds PEFT adapters, and the model to train is a "
                    f"{type(model).__name__} without any; wrap it (`get_peft_model`) as in the run that wrote them."
                )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in transformers, but an optimizer state of other parameters is refused: torch compares only their number,
        and moments of another shape would then be written out of bounds.

        Raises:
            ValueError: the optimizer state belongs to other parameters.
        """
        if checkpoint is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:  # states by their names
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer = cast(Optimizer, self.optimizer)
        names = [group.get("name") for group in optimizer.param_groups]
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
            check_optimizer_state(optimizer, names)
        except ValueError as error:
            raise ValueError(
                f"`resume_from_checkpoint`: the optimizer in {checkpoint} is of other parameters than those that are "
                f"trained now ({error}). Use the model, `freeze` and learning rates of the run that wrote it; to go on "
                "with others, load its weights with `from_pretrained` and start a new run."
            ) from error

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As in transformers, but a checkpoint that lacks weights of the model is refused.

        Raises:
            ValueError: weights are missing.
        """
        tensors, missing = cast(nn.Module, self.model).state_dict(), {*load_result.missing_keys}
        loaded = {tensor.data_ptr() for name, tensor in tensors.items() if name not in missing}
        tied = {*(getattr(self.model, "_keys_to_ignore_on_save", None) or ())}
        if lost := sorted(name for name in missing - tied if tensors[name].data_ptr() not in loaded):
            raise ValueError(
                f"The checkpoint does not hold {len(lost)} of the tensors of the model, such as {lost[0]}: it is of "
                "another model, or was written by another version. Start anew, with another `output_dir`."
            )
        super()._issue_warnings_after_load(load_result)

    def _init_training_state(
        self, max_steps: int, steps_an_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Trial
    ) -> tuple[int, int]:
        """As in transformers, also for a folder that was moved, and for the position in a stream."""
        progress = super()._init_training_state(max_steps, steps_an_epoch, epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint is None:
            return progress
        self._locate_best(Path(resume_from_checkpoint))
        if has_length(self.train_dataset):
            return progress
        before = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / "trainer_state.json"))
        passes, batches = stream_position(before, self.args.gradient_accumulation_steps)
        self.state.epoch = passes + batches / (max_steps * self.args.gradient_accumulation_steps)
        return passes, 0 if self.args.ignore_data_skip else batches

    def _locate_best(self, checkpoint: Path) -> None:
        """Sets the best checkpoint to that in the same folder, or to `None`, wherever it was when the state was
        saved."""
        folder, best = Path(str(self.args.output_dir)), best_checkpoint(checkpoint)
        if best is not None and folder.resolve() == checkpoint.resolve().parent:
            best = folder / best.name  # spelled as in the removal of old checkpoints
        self.state.best_model_checkpoint = str(best) if best is not None and best.is_dir() else None

    def load_finished(self, checkpoint: str) -> bool:
        """Loads the final state of training, if the checkpoint was written after the last step or at an early stop.

        Args:
            checkpoint: folder of the checkpoint.

        Returns:
            `False`, with nothing loaded, if steps are left to train.
        """
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        if state.global_step < steps and not has_stopped_early(state, self.args):
            return False
        self.state = state
        self._load_from_checkpoint(checkpoint)
        self._locate_best(Path(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        return True
