"""Search for hyperparameters: the default space, trials, and studies that go on."""

import json

import optuna
import pytest
import torch
import yaml
from builders import fnn_model
from optuna.trial import FixedTrial
from training_runs import arguments, make, rows, tiny_data, train_command, write

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.cli import main
from hf_feedback.training import FeedbackTrainer, default_search_space, searched_feedback_options
from hf_feedback.training.parameters.model_parts import parts_of
from hf_feedback.training.search import objective_of
from hf_feedback.training.starting_model.model_arguments import FNNArguments, ModelArguments
from hf_feedback.training.task_search import contradicting_options, fixed_options

optuna.logging.set_verbosity(optuna.logging.WARNING)
CHOICES = dict(num_iterations=3, feedback_topology="top", feedback_type="gated", feedback_rank=16)


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


def search_command(backbone, folder, *more):
    train, validation = write(folder, "train.csv", rows()), write(folder, "validation.csv", rows(6))
    fast = "--num-train-epochs 1 --feedback-type additive --backbone-lr 1e-4 --max-length 8".split()
    return [*train_command(backbone, folder / "out", *fast, *more, train=train, validation=validation)]


def test_the_command_searches_what_is_not_given_and_resumes(backbone, tmp_path, capsys):
    parts = [
        *search_command(backbone, tmp_path),
        *"--save-strategy no --freeze embeddings layers:0-1 --cache-prefix true".split(),
    ]
    parts = [part for part in parts if part not in ("--feedback-rank", "4")]
    assert main([*parts, "--search-trials", "1"]) == 0
    assert main([*parts, "--search-trials", "2"]) == 0
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/out/study.db")
    searched = {"num_iterations", "feedback_topology", "feedback_rank", "learning_rate", "layer_lr_decay"}
    assert [{*trial.params} for trial in study.trials] == [searched, searched]
    best = yaml.safe_load((tmp_path / "out" / "best_options.yaml").read_text())
    assert best == study.best_params
    printed = capsys.readouterr().out
    assert f"Best of 2 trials (number {study.best_trial.number}): accuracy {study.best_value:.4f}" in printed
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"study.db", "best_options.yaml"}

    again = [argument.replace(str(tmp_path / "out"), str(tmp_path / "best")) for argument in parts]
    assert main([*again, *printed.split("`--output-dir`:")[-1].split("\n")[1].split()]) == 0
    model = FeedbackForSequenceClassification.from_pretrained(tmp_path / "best")
    of_model = ("num_iterations", "feedback_topology", "feedback_rank")
    assert [getattr(model.config, name) for name in of_model] == [best[name] for name in of_model]
    args = torch.load(tmp_path / "best" / "training_args.bin", weights_only=False)
    assert (args.learning_rate, args.layer_lr_decay) == (best["learning_rate"], best["layer_lr_decay"])
    assert json.loads((tmp_path / "best" / "all_results.json").read_text())["eval_accuracy"] == study.best_value

    assert main([*parts, "--search-trials", "3", "--validation-file", write(tmp_path, "other.csv", rows(6, 1))]) == 2
    assert "holds a search with other options (`rows of validation` was" in capsys.readouterr().err
    assert main([*again, "--search-trials", "1"]) == 2
    assert "`output_dir`" in capsys.readouterr().err  # it holds a model


def test_the_best_options_train_the_model_of_their_trial(backbone, tmp_path):
    parts = search_command(backbone, tmp_path, "--metric-for-best-model", "loss")
    assert main([*parts, "--search-trials", "2"]) == 0
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/out/study.db")
    for trial in study.trials:  # the first and the next model of a process
        folder = tmp_path / f"again-{trial.number}"
        options = [part for name, value in trial.params.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        assert main([*(part.replace(str(tmp_path / "out"), str(folder)) for part in parts), *options]) == 0
        assert json.loads((folder / "all_results.json").read_text())["eval_loss"] == trial.value


def test_a_trial_that_diverges_is_followed_by_the_next(backbone, tmp_path, monkeypatch):
    losses, compute_loss = [], FeedbackTrainer.compute_loss

    def diverge(self, *args, **kwargs):
        loss = compute_loss(self, *args, **kwargs)
        losses.append(loss)
        return loss * float("nan") if len(losses) == 1 else loss

    monkeypatch.setattr(FeedbackTrainer, "compute_loss", diverge)
    assert main(search_command(backbone, tmp_path, "--search-trials", "2")) == 0
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/out/study.db")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--eval-strategy no --search-trials 2", "`search_trials`=2 compares trials on a validation split"),
        ("--early-stopping-patience 1 --search-trials 2", "`early_stopping_patience`=1 and `search_trials`=2 exclude"),
        ("--search-trials -1", "`search_trials` must be"),
        ("--search-trials 2 --output-dir out?x", "cannot be in a folder with '?', got out?x"),
        ("--search-trials 2 --layer-lr 0.9", "there is no option --layer-lr (did you mean --layer-lr-decay?)"),
        ("--search-trials 2 --learning-rate 1e-3 --layer-lr-decay 0.9 --num-iterations 1", "nothing is left to search"),
    ],
)
def test_searches_that_the_command_refuses(backbone, tmp_path, capsys, options, message):
    assert main(search_command(backbone, tmp_path, *options.split())) == 2
    assert message in capsys.readouterr().err


def test_options_without_effect_are_not_searched(backbone, tmp_path):
    def fixed(*, given=(), training=(), model=backbone, **options):
        return fixed_options(ModelArguments(model=model, **options), arguments(tmp_path, **dict(training)), given)

    assert fixed() == set()
    assert fixed(given=["learning_rate"]) == {"learning_rate"}
    assert fixed(feedback_edges="[[3, 0]]") == {"feedback_edges", "feedback_topology"}
    assert fixed(training={"freeze": ["backbone"]}) == {"backbone_lr", "layer_lr_decay"}
    assert fixed(training={"feedback_lr": 1e-3, "head_lr": 1e-3}) == {"learning_rate"}
    assert fixed(training={"train_iterations": "uniform"}) == {"num_iterations"}
    assert fixed(num_iterations=1) == {*CHOICES}
    make().save_pretrained(tmp_path / "trained")
    assert fixed(model=str(tmp_path / "trained")) == {*CHOICES}
    fnn_model().save_pretrained(tmp_path / "network")
    assert fixed(model=str(tmp_path / "network")) == {"backbone_lr", "layer_lr_decay", *CHOICES}
    assert {"backbone_lr", *CHOICES} <= fixed_options(
        FNNArguments(fnn="stacked", tokenizer=backbone), arguments(tmp_path), ()
    )
    assert contradicting_options(make().config) == set()
    segments = make(feedback_span="segment", segment_length=8, feedback_rank=30, segment_special_tokens=[0, 0])
    assert contradicting_options(segments.config) == {"feedback_type"}
