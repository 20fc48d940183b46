"""Search for hyperparameters: the default space, trials, and studies that go on."""

import optuna
import pytest
from optuna.trial import FixedTrial
from training_runs import arguments, make, tiny_data

from hf_feedback.training import FeedbackTrainer, default_search_space, searched_feedback_options
from hf_feedback.training.model_parts import parts_of
from hf_feedback.training.search import objective_of

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Search:
    """A search over tiny models; notes the model and the rates of each training."""

    def __init__(self, folder, **options):
        self.models, self.rates = [], []
        defaults = dict(max_steps=1, eval_strategy="steps", eval_steps=1, metric_for_best_model="accuracy")
        self.trainer = FeedbackTrainer(
            model_init=self.model_init,
            args=arguments(folder, **{**defaults, **options}),
            train_dataset=tiny_data(8),
            eval_dataset=tiny_data(4),
            compute_metrics=lambda _: {"accuracy": self.rates[-1]["learning_rate"], "other": -9.0},
        )
        create_scheduler = self.trainer.create_scheduler

        def note_rates(*args, **kwargs):
            self.rates.append({group["name"]: group["lr"] for group in self.trainer.optimizer.param_groups})
            self.rates[-1]["learning_rate"] = self.trainer.args.learning_rate
            return create_scheduler(*args, **kwargs)

        self.trainer.create_scheduler = note_rates

    def model_init(self, trial=None):
        self.models.append(make(**{"num_labels": 3, **searched_feedback_options(trial)}))
        return self.models[-1]


def test_trials_train_what_was_chosen_for_them(tmp_path):
    search = Search(tmp_path, save_strategy="steps", save_steps=1, load_best_model_at_end=True)
    storage = f"sqlite:///{tmp_path}/study.db"
    best = search.trainer.hyperparameter_search(n_trials=2, storage=storage)
    trials = optuna.load_study(study_name=tmp_path.name, storage=storage).trials
    assert len(trials) == 2
    for trial, model, rates in zip(trials, search.models[1:], search.rates, strict=True):
        options = searched_feedback_options(FixedTrial(trial.params))
        assert {name: getattr(model.config, name) for name in options} == options
        assert rates["feedback"] == rates["head"] == trial.params["learning_rate"]
        assert rates["layer 3"] == trial.params["backbone_lr"]
        assert rates["layer 2"] == pytest.approx(trial.params["backbone_lr"] * trial.params["layer_lr_decay"])
        assert set(trial.params) == {*options, *default_search_space(FixedTrial(trial.params))}
        assert (tmp_path / f"run-{trial.number}" / "checkpoint-1" / "training_manifest.json").is_file()
    assert best.objective == max(trial.params["learning_rate"] for trial in trials)  # "accuracy", the more the better


def test_a_search_goes_on_where_it_was_interrupted(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"

    class Interrupted(Exception):
        pass

    def interrupt(*_, **__):
        raise Interrupted

    first = Search(tmp_path)
    first.trainer.hyperparameter_search(n_trials=1, storage=storage)
    first.trainer.compute_loss = interrupt
    with pytest.raises(Interrupted):
        first.trainer.hyperparameter_search(n_trials=3, storage=storage)
    second = Search(tmp_path)
    best = second.trainer.hyperparameter_search(n_trials=3, storage=storage)
    trials = optuna.load_study(study_name=tmp_path.name, storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert len(second.models) == 1 + 2
    assert second.trainer.hyperparameter_search(n_trials=3, storage=storage) == best
    assert len(second.models) == 1 + 2


def test_trials_of_another_search_are_not_written_over(tmp_path):
    (tmp_path / "run-0" / "checkpoint-9").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds run-0 of another search"):
        Search(tmp_path).trainer.hyperparameter_search(n_trials=1)
    Search(tmp_path, overwrite_output_dir=True).trainer.hyperparameter_search(n_trials=1)
    assert not (tmp_path / "run-0" / "checkpoint-9").exists()


def test_the_loss_is_the_objective_where_no_metric_chooses(tmp_path):
    objective, direction = objective_of(arguments(tmp_path))
    assert objective({"eval_accuracy": 0.1, "eval_loss": 2.0}) == 2.0
    assert objective({"eval_one_loss": 2.0, "eval_other_loss": 1.0, "eval_other_accuracy": 0.1}) == 3.0
    assert direction == "minimize"


def test_what_a_trial_freezes_is_frozen_in_its_model(tmp_path):
    search, parts = Search(tmp_path, freeze=["head"]), iter((["feedback"], ["backbone"]))
    frozen = []

    def note(model, *_, **__):
        frozen.append({part for name, part in parts_of(model).items() if not model.get_parameter(name).requires_grad})
        raise optuna.TrialPruned

    search.trainer.compute_loss = note
    with pytest.raises(ValueError, match="No trials are completed"):
        search.trainer.hyperparameter_search(lambda _: {"freeze": next(parts)}, n_trials=2)
    assert frozen == [
        {"feedback"},
        {part for part in parts_of(search.models[0]).values() if part not in ("feedback", "head")},
    ]


def test_objective_and_space_of_ones_own(tmp_path):
    search = Search(tmp_path)
    best = search.trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 0.1, 0.2)},
        lambda metrics: metrics["eval_other"], n_trials=1, direction="maximize",
    )  # fmt: skip
    assert best.objective == -9.0
    assert 0.1 <= search.rates[0]["learning_rate"] <= 0.2
