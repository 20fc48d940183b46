"""A Trainer whose runs resume exactly: complete checkpoints, and the order of the data."""

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput, has_length, rotate_checkpoints

from .arguments import FeedbackTrainingArguments
from .checkpoints import MANIFEST_NAME, Record, best_checkpoint, newest_checkpoint, write_manifest
from .data_order import SeededLengthGroups, stream_position
from .output_folder import name_folder_in_errors
from .restarts import TrainingStart
from .search import SearchTrainer, Trial
from .staging import has_stopped_early


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

        By default `args.resume` applies, except in a search; of a finished run only the state is loaded.

        Raises:
            ValueError: no checkpoint is complete.
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
        self._start = None
        return super().train(resume_from_checkpoint, *args, **kwargs)

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

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As in transformers, but a checkpoint that lacks weights of the model is refused.

        Raises:
            ValueError: it does.
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
