"""Hyperparameter search from the command line: trials of a task, with the options that are given left as they are."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yaml
from transformers.trainer_utils import BestRun

from ..configuration_feedback import EDGE_OPTIONS, FeedbackConfig
from ..validation import check_integer, option
from .arguments import FeedbackTrainingArguments
from .checkpoints import Record
from .data.splits import FileArguments
from .model_arguments import ModelArguments
from .model_sources import read_config
from .output_folder import check_writable
from .run import keep_best_epoch, make_trainer, record_of_task
from .run_record import describe_differences
from .search import (
    FEEDBACK_SPACE,
    RATE_SPACE,
    default_search_space,
    objective_of,
    searched_feedback_options,
)
from .tasks.task import Model, Task

if TYPE_CHECKING:
    import optuna
    from optuna.trial import BaseTrial

BEST_OPTIONS = "best_options.yaml"
BACKBONE_RATES = ("backbone_lr", "layer_lr_decay")


@dataclass
class SearchArguments:
    """Hyperparameter search."""

    search_trials: int = option(
        0,
        "Number of trials of a search over the rates and the feedback options that are not given; the best are written "
        f"to {BEST_OPTIONS} in the output folder (0: train once, without a search).",
    )

    def __post_init__(self) -> None:
        check_integer("search_trials", self.search_trials, 0, "trials of a search")


def fixed_options(model_args: object, args: FeedbackTrainingArguments, given: Collection[str]) -> set[str]:
    """Returns the options that a search leaves as they are: those that are given, and those without effect.

    Args:
        model_args: options of the model.
        args: the training arguments.
        given: training options that are given.
    """
    fixed = {*given}
    if not isinstance(model_args, ModelArguments):  # a network from scratch
        return fixed | {*FEEDBACK_SPACE, *BACKBONE_RATES}
    options = model_args.config_options().keys()
    fixed |= options
    if options & {*EDGE_OPTIONS}:
        fixed.add("feedback_topology")
    if read_config(model_args.model, model_args.revision).get("model_type") == FeedbackConfig.model_type:
        fixed |= {*FEEDBACK_SPACE}  # it is trained with its own
    if "backbone" in (args.freeze or ()):
        fixed |= {*BACKBONE_RATES}
    return fixed


def search_task(
    task: Task[FileArguments], args: FeedbackTrainingArguments, n_trials: int, given: Collection[str] = ()
) -> BestRun:
    """Searches for options of a task with Optuna and writes the best into the output folder.

    A trial is judged by its last epoch. Trials are kept in `study.db` in the output folder: a search that was
    interrupted resumes with them, until there are `n_trials` in all.

    Args:
        task: the task with its options.
        args: the training arguments.
        n_trials: number of all trials.
        given: names of training options that are given; they are not searched.

    Returns:
        The best trial; its `hyperparameters` are in `best_options.yaml` too.

    Raises:
        ValueError: there is no validation split, nothing to search, or the output folder has another search.
    """
    import optuna

    folder, model_args = Path(str(args.output_dir)), task.model_args
    fixed = fixed_options(model_args, args, given)
    if fixed >= {*FEEDBACK_SPACE, *RATE_SPACE}:
        raise ValueError("`search_trials`: all options of the search are given; leave some out.")
    if args.world_size > 1:
        raise ValueError("`search_trials` works in one process; start it without torchrun or accelerate launch.")
    check_writable(str(folder))
    prepared = task.prepare()
    if "validation" not in prepared.splits or args.eval_strategy == "no":
        raise ValueError(
            f"`search_trials`={n_trials} compares trials on a validation split; give `validation_file` or "
            "`validation_split`, and leave `eval_strategy` out."
        )
    keep_best_epoch(args, prepared.metrics, validated=True)
    args.save_strategy, args.load_best_model_at_end = "no", False  # no checkpoints of trials

    def model_init(trial: "BaseTrial | None" = None) -> Model:
        task.model_args = replace(model_args, **searched_feedback_options(trial, fixed))
        return task.load()[1]

    trainer = make_trainer(prepared, args, model_init=model_init)
    database = folder / "study.db"
    storage = f"sqlite:///{database}"
    if args.overwrite_output_dir:
        database.unlink(missing_ok=True)
    study = optuna.create_study(
        study_name=folder.name, storage=storage, direction=objective_of(args)[1], load_if_exists=True
    )
    _check_study(study, {**record_of_task(prepared, args), "searched": sorted({*FEEDBACK_SPACE, *RATE_SPACE} - fixed)})
    best = cast(
        BestRun,
        trainer.hyperparameter_search(
            lambda trial: default_search_space(trial, fixed), n_trials=n_trials, storage=storage
        ),
    )
    (folder / BEST_OPTIONS).write_text(yaml.safe_dump(best.hyperparameters, sort_keys=False), encoding="utf-8")
    return best


def _check_study(study: "optuna.Study", record: Record) -> None:
    """Raises `ValueError` where the trials of a study were made with other options or data."""
    before = study.user_attrs.get("record")
    if before is None:
        study.set_user_attr("record", record)
    elif differences := describe_differences(before, record):
        raise ValueError(
            f"`output_dir`: it holds a search with other options ({'; '.join(differences.values())}); choose another "
            "folder, or overwrite it (`--overwrite-output-dir`)."
        )
