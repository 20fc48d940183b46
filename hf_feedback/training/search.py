"""Search for hyperparameters with Optuna: a default space, and studies that resume after an interruption."""

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from transformers import Trainer, TrainingArguments
from transformers.hyperparameter_search import default_hp_search_backend
from transformers.trainer_utils import BestRun, HPSearchBackend

from ..validation import Keywords
from .output_folder import check_writable

if TYPE_CHECKING:
    import optuna
    from optuna.trial import BaseTrial

Trial: TypeAlias = "optuna.Trial | dict[str, Any] | None"
SearchObjective: TypeAlias = Callable[[dict[str, float]], float]
Direction: TypeAlias = Literal["minimize", "maximize"]

FEEDBACK_SPACE: dict[str, tuple[int | str, ...]] = {
    "num_iterations": (2, 3, 4),
    "feedback_topology": ("top", "adjacent", "dense"),
    "feedback_type": ("additive", "gated"),
    "feedback_rank": (8, 16, 32),
}
# Ranges; rates are drawn on a logarithmic scale.
RATE_SPACE = {"learning_rate": (3e-4, 1e-2), "backbone_lr": (1e-5, 1e-3), "layer_lr_decay": (0.7, 1.0)}


def searched_feedback_options(trial: "BaseTrial | None", fixed: Collection[str] = ()) -> Keywords:
    """Returns options of feedback for the model of a trial, which `model_init` passes to `from_backbone`.

    Args:
        trial: the trial; `None`, as `model_init` gets it outside of a search, for the defaults.
        fixed: names of options that are not searched.

    Example:

    ```python
    >>> from hf_feedback.training import searched_feedback_options
    >>> searched_feedback_options(None)
    {}

    ```
    """
    if trial is None:
        return {}
    choices = {name: values for name, values in FEEDBACK_SPACE.items() if name not in fixed}
    return {name: trial.suggest_categorical(name, values) for name, values in choices.items()}


def default_search_space(trial: "BaseTrial", fixed: Collection[str] = ()) -> dict[str, float]:
    """Returns the rates of a trial: the default `hp_space` of `FeedbackTrainer.hyperparameter_search`.

    Args:
        trial: the trial. Its options of feedback are chosen as well; `searched_feedback_options` returns them.
        fixed: names of options that are not searched.

    Returns:
        Training argument → value: rates of feedback and head, of the backbone, and the decay from layer to layer.

    Example:

    ```python
    >>> from optuna.trial import FixedTrial
    >>> from hf_feedback.training import default_search_space
    >>> rates = {"learning_rate": 1e-3, "backbone_lr": 1e-4, "layer_lr_decay": 0.9}
    >>> options = dict(num_iterations=3, feedback_topology="top", feedback_type="gated", feedback_rank=16)
    >>> default_search_space(FixedTrial({**rates, **options}))
    {'learning_rate': 0.001, 'backbone_lr': 0.0001, 'layer_lr_decay': 0.9}

    ```
    """
    searched_feedback_options(trial, fixed)  # other processes know what was chosen in here alone
    ranges = {name: values for name, values in RATE_SPACE.items() if name not in fixed}
    return {name: trial.suggest_float(name, *values, log=name != "layer_lr_decay") for name, values in ranges.items()}


def objective_of(args: TrainingArguments) -> tuple[SearchObjective, Direction]:
    """Returns what a search optimizes by default, and in which direction: the metric that chooses the best model.

    Args:
        args: the training arguments.

    Returns:
        Metrics → objective, the loss if no metric chooses, summed over evaluation sets; and "maximize" or "minimize".
    """
    if args.metric_for_best_model is None:
        return lambda metrics: sum(v for name, v in metrics.items() if name.endswith("_loss")), "minimize"
    name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
    return lambda metrics: metrics[name], "maximize" if args.greater_is_better else "minimize"


def continue_study(folder: Path, overwrite: bool, n_trials: int, study_options: Keywords) -> tuple[int, Keywords]:
    """Returns how many trials are left to a study, and its options with those by which it resumes.

    Args:
        folder: the output folder; each trial has a folder `run-…` in it.
        overwrite: whether a new study may overwrite the trials of another.
        n_trials: number of all trials of the study.
        study_options: keywords of `optuna.create_study`. With a `storage`, the study has the name of the folder by
            default, and resumes if it exists; trials that failed or were killed do not count.

    Raises:
        ValueError: the study is new, and the folder holds trials of another.
    """
    import optuna

    states: list[optuna.trial.TrialState] = []
    if study_options.get("storage") is not None:
        study_options = {"study_name": folder.name, "load_if_exists": True, **study_options}
        try:
            study = optuna.load_study(study_name=study_options["study_name"], storage=study_options["storage"])
            states = [trial.state for trial in study.trials]
        except KeyError:  # it begins
            pass
    runs = sorted(run for run in folder.glob("run-*") if run.name.removeprefix("run-").isdecimal())
    if runs and not states and not overwrite:
        raise ValueError(
            f"`output_dir`: {folder} holds {runs[0].name} of another search; resume that one (give its `storage` "
            "and `study_name`), overwrite it (`overwrite_output_dir`=True), or choose another folder."
        )
    if not states:
        for run in runs:
            shutil.rmtree(run, ignore_errors=True)  # of several processes, the first one removes them
    finished = sum(state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED) for state in states)
    return max(0, n_trials - finished), study_options


class SearchTrainer(Trainer):
    """transformers' Trainer with a search that has another default space, and resumes where it was interrupted."""

    def hyperparameter_search(
        self,
        hp_space: Callable[["optuna.Trial"], dict[str, float]] | None = None,
        compute_objective: SearchObjective | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[["optuna.Trial"], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """As in transformers, for Optuna with other defaults.

        Args:
            hp_space: the training arguments of a trial; by default those of `default_search_space`.
            compute_objective: metrics → objective; by default the metric that `args.metric_for_best_model` names, or
                the validation loss.
            n_trials: number of all trials, those of an earlier call with the same `storage` included.
            direction: "minimize" or "maximize"; by default that of the metric.
            backend: as in transformers.
            hp_name: as in transformers.
            **kwargs: as in transformers. With `storage="sqlite:///out/study.db"` a search that was interrupted resumes.

        Raises:
            ValueError: the output folder holds trials of another search.
        """
        if HPSearchBackend(backend or default_hp_search_backend()) == HPSearchBackend.OPTUNA:
            hp_space = hp_space or default_search_space
            folder, overwrite = str(self.args.output_dir), getattr(self.args, "overwrite_output_dir", False)
            check_writable(folder)
            n_trials, kwargs = continue_study(Path(folder), overwrite, n_trials, kwargs)
            self.accelerator.wait_for_everyone()  # all have looked before the first trial writes
        if compute_objective is None:
            compute_objective, best = objective_of(self.args)
            direction = direction or best
        return super().hyperparameter_search(
            hp_space, compute_objective, n_trials, direction or "minimize", backend, hp_name, **kwargs
        )
