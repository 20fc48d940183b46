"""Hyperparameter search from the command line: trials of a task, with the options that are given left as they are."""

import copy
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from transformers import set_seed
from transformers.integrations import is_optuna_available
from transformers.trainer_utils import IntervalStrategy

from ..configuration_base import OptionsConfig
from ..configuration_feedback import EDGE_OPTIONS, FeedbackConfig
from ..configuration_fnn import FNNConfig
from ..validation import check_integer, option
from .arguments import FeedbackTrainingArguments
from .data.splits import FileArguments
from .finite_steps import NonFiniteStepError
from .frozen_layers.prefix_arguments import PREFIX_FOLDER
from .output_folder import check_nothing_is_lost, check_writable
from .resuming.checkpoints import Record
from .resuming.run_record import describe_differences
from .run import make_trainer, record_of_task, set_best_epoch_arguments
from .search import (
    FEEDBACK_SPACE,
    RATE_SPACE,
    Direction,
    default_search_space,
    objective_of,
    searched_feedback_options,
)
from .starting_model.model_arguments import ModelArguments
from .starting_model.model_sources import read_config
from .tasks.task import Model, Task

if TYPE_CHECKING:
    import optuna
    from optuna.trial import BaseTrial

BEST_OPTIONS, DATABASE, STUDY = "best_options.yaml", "study.db", "search"
SEARCHED = {*FEEDBACK_SPACE, *RATE_SPACE}
BACKBONE_RATES = ("backbone_lr", "layer_lr_decay")


@dataclass
class SearchArguments:
    """Hyperparameter search."""

    search_trials: int = option(
        0,
        "Number of trials of a search over the rates and the feedback options that are not given, by the metric on "
        f"validation data; the best are written to {BEST_OPTIONS} in the output folder. Needs the extra "
        "hf-feedback[search]. 0: train once, without a search.",
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
    if args.feedback_lr is not None and args.head_lr is not None:
        fixed.add("learning_rate")  # the backbone has a rate of its own
    if "backbone" in (args.freeze or ()):
        fixed |= {*BACKBONE_RATES}
    if args.lora_rank is not None:
        fixed.add("backbone_lr")  # adapters start at random, and have the rate of feedback and head
    if args.train_iterations != "fixed":
        fixed.add("num_iterations")  # its limits are given for one K
    if not isinstance(model_args, ModelArguments):  # a network from scratch
        return fixed | {*FEEDBACK_SPACE, *BACKBONE_RATES}
    options = model_args.config_options()
    fixed |= options.keys()
    if options.keys() & {*EDGE_OPTIONS}:
        fixed.add("feedback_topology")
    if options.get("num_iterations") == 1:  # no message is sent
        fixed |= {*FEEDBACK_SPACE}
    model_type = read_config(model_args.model, model_args.revision).get("model_type")
    if model_type == FNNConfig.model_type:
        fixed |= {*FEEDBACK_SPACE, *BACKBONE_RATES}
    if model_type == FeedbackConfig.model_type:  # trained with its own
        fixed |= {*FEEDBACK_SPACE}
    return fixed


def contradicting_options(config: OptionsConfig) -> set[str]:
    """Returns the options of `FEEDBACK_SPACE` of which a value contradicts another option of a config.

    Args:
        config: config of a model with the options that are given.
    """
    contradicting = set()
    for name, values in FEEDBACK_SPACE.items():
        for value in values:
            changed = copy.deepcopy(config)
            setattr(changed, name, value)
            try:
                changed.check_options()
            except ValueError:
                contradicting.add(name)
    return contradicting


def search_task(
    task: Task[FileArguments], args: FeedbackTrainingArguments, n_trials: int, given: Collection[str] = ()
) -> "optuna.Study":
    """Searches for options of a task with Optuna and writes the best into the output folder.

    A trial is judged by its last epoch; one that is behind the median of the others at an epoch stops there. Trials are
    kept in `study.db` in the output folder: a search that was interrupted resumes with them, until there are `n_trials`
    in all. A trial whose loss is not finite fails, and the next one follows.

    Args:
        task: the task with its options.
        args: the training arguments.
        n_trials: number of all trials.
        given: names of training options that are given; they are not searched.

    Returns:
        The study; its `best_params` are in `best_options.yaml` too.

    Raises:
        ValueError: there is no validation split, nothing to search, or the output folder has another search or a model.
        ImportError: Optuna is not installed.
    """
    folder, model_args = Path(str(args.output_dir)), task.model_args
    _check_arguments(args, folder, n_trials)
    fixed = fixed_options(model_args, args, given)
    _check_searched(fixed)
    prepared = task.prepare()
    if "validation" not in prepared.splits:
        raise ValueError(
            f"`search_trials`={n_trials} compares trials on a validation split; give `validation_file` or "
            "`validation_split`."
        )
    if isinstance(prepared.model.config, FeedbackConfig):
        fixed |= contradicting_options(prepared.model.config)
        _check_searched(fixed)
    args.save_strategy = "epoch"
    set_best_epoch_arguments(args, prepared.metrics, validated=True)
    record = record_of_task(prepared, args, ("train", "validation"))
    args.save_strategy, args.load_best_model_at_end = "no", False  # no checkpoints of trials

    def model_init(trial: "BaseTrial | None" = None) -> Model:
        task.model_args = replace(model_args, **searched_feedback_options(trial, fixed))
        model = task.load()[1]
        set_seed(args.seed)  # the same numbers for data and dropout as in a run without a search
        return model

    trainer = make_trainer(prepared, args, model_init=model_init)
    storage = f"sqlite:///{folder / DATABASE}"
    if args.overwrite_output_dir:
        (folder / DATABASE).unlink(missing_ok=True)
    study = _open_study(storage, objective_of(args)[1], {**record, "searched": sorted(SEARCHED - fixed)})
    try:
        trainer.hyperparameter_search(
            lambda trial: default_search_space(trial, fixed),
            n_trials=n_trials, storage=storage, study_name=STUDY, catch=(NonFiniteStepError,),
        )  # fmt: skip
    finally:
        shutil.rmtree(folder / PREFIX_FOLDER, ignore_errors=True)
    (folder / BEST_OPTIONS).write_text(yaml.safe_dump(study.best_params, sort_keys=False), encoding="utf-8")
    return study


def _check_arguments(args: FeedbackTrainingArguments, folder: Path, n_trials: int) -> None:
    """Refuses training arguments and output folders that a search cannot have."""
    if not is_optuna_available():
        raise ImportError("`search_trials` needs Optuna; pip install -e '.[search]'.", name="optuna")
    if args.world_size > 1:
        raise ValueError("`search_trials` works in one process; start it without torchrun or accelerate launch.")
    if args.early_stopping_patience is not None:
        raise ValueError(
            f"`early_stopping_patience`={args.early_stopping_patience} and `search_trials`={n_trials} exclude each "
            "other, since trials are compared after as many epochs; leave one out."
        )
    if args.eval_strategy != "epoch":
        raise ValueError(
            f"`search_trials`={n_trials} compares trials on a validation split after each epoch, got `eval_strategy`="
            f"{IntervalStrategy(args.eval_strategy).value!r}; give `validation_file` or `validation_split`, and leave "
            "`eval_strategy` out."
        )
    if "?" in str(folder):
        raise ValueError(f"`output_dir`: the database of a search cannot be in a folder with '?', got {folder}.")
    if not args.overwrite_output_dir:
        check_nothing_is_lost(folder)
    check_writable(str(folder))


def _check_searched(fixed: Collection[str]) -> None:
    if not SEARCHED - {*fixed}:
        raise ValueError(
            "`search_trials`: nothing is left to search; leave out some of "
            f"{', '.join(f'`{name}`' for name in sorted(SEARCHED))}."
        )


def _open_study(storage: str, direction: Direction, record: Record) -> "optuna.Study":
    """Returns the study of an output folder; refuses one whose trials were made with other options or data."""
    import optuna

    study = optuna.create_study(study_name=STUDY, storage=storage, direction=direction, load_if_exists=True)
    before = study.user_attrs.get("record")
    if before is None:
        study.set_user_attr("record", record)
    elif differences := describe_differences(before, record):
        raise ValueError(
            f"`output_dir`: it holds a search with other options ({'; '.join(differences.values())}); choose another "
            "folder, or overwrite it (`--overwrite-output-dir`)."
        )
    return study
