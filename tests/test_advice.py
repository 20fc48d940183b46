"""After a run: what to try next, only where its own numbers suggest it."""

import numpy as np
import pytest
from training_runs import arguments, make, tiny_data, train_command, write
from transformers import EvalPrediction

from hf_feedback.cli import main
from hf_feedback.training import FeedbackTrainer
from hf_feedback.training.advice import (
    PredictionCounter,
    advice_on_classes,
    advice_on_course,
    advice_on_data,
    read_history,
)
from hf_feedback.training.data.labels import LabelSet

LABELS = LabelSet("single_label_classification", ("late", "lost", "fine"))


def counter_of(predicted, right):
    counter = PredictionCounter(lambda prediction: {"accuracy": 0.5}, LABELS)
    logits = np.eye(3)[predicted]
    assert counter(EvalPrediction((logits, logits), np.asarray(right))) == {"accuracy": 0.5}
    return counter


CLASSES = {
    "one class alone": ([0, 0, 0, 0], [0, 1, 2, 0], ["All 4 predictions are late"]),
    "a class never": ([0, 0, 1, 1], [0, 1, 2, 2], ["Never predicted: fine (in 2 rows)"]),
    "every class": ([0, 1, 2, 2], [2, 1, 0, 0], []),
    "one class, which is right": ([0, 0], [0, 0], []),
    "a class that is not there": ([0, 1], [0, 1], []),
}


@pytest.mark.parametrize("case", CLASSES)
def test_classes(case):
    predicted, right, beginnings = CLASSES[case]
    advice = advice_on_classes(counter_of(predicted, right))
    assert [one[: len(begin)] for one, begin in zip(advice, beginnings, strict=True)] == beginnings


def course(train, losses, accuracies):
    return [{"loss": loss} for loss in train] + [
        {"eval_loss": loss, "eval_accuracy": accuracy} for loss, accuracy in zip(losses, accuracies, strict=True)
    ]


COURSES = {
    "rising to the end": (course([1, 0.8], [1, 0.9, 0.8], [0.1, 0.2, 0.3]), ["Validation is best at the last"]),
    "as good as before": (course([1, 0.8], [1, 0.9, 0.9], [0.1, 0.3, 0.3]), []),
    "one evaluation": (course([1, 0.8], [1], [0.9]), []),
    "overfitting": (course([1, 0.1], [1, 0.8, 1.2], [0.1, 0.3, 0.2]), ["The model overfits"]),
    "no progress": (course([1, 1.2], [1, 1], [0.3, 0.2]), ["The training loss has not fallen (1.0000 at first"]),
    "no validation": ([{"loss": 1.0}, {"loss": 0.5}], []),
}


@pytest.mark.parametrize("case", COURSES)
def test_the_course(case):
    history, beginnings = COURSES[case]
    advice = advice_on_course(history, "accuracy", greater_is_better=True)
    assert [one[: len(begin)] for one, begin in zip(advice, beginnings, strict=True)] == beginnings


def test_less_is_better():
    history = course([1, 0.8], [1, 0.9, 0.8], [0.1, 0.1, 0.1])
    assert "(loss 0.9000, then 0.8000)" in advice_on_course(history, None, None)[0]
    assert advice_on_course(history[:-1] + history[-2:-1], "eval_loss", False) == []


def test_the_data():
    assert advice_on_data({"late": 10, "lost": 9}, 0.01, 64) == []
    assert advice_on_data({}, 0.0, 64) == []
    cut, uneven = advice_on_data({"late": 100, "lost": 9}, 0.5, 64)
    assert cut.startswith("50.0% of the texts are cut at 64 tokens")
    assert uneven.startswith("Classes are uneven (late has 100 rows, lost 9)")


def test_the_command_ends_with_it(backbone, tmp_path, capsys):
    """A rate of zero predicts as before training: one class alone, for texts that are all the same."""
    texts = [{"text": "where is it " * 30, "label": label} for label in ("late", "lost") * 4]
    train = write(tmp_path, "train.csv", texts)
    options = ["--learning-rate", "0", "--validation-split", "0.5"]
    assert main(train_command(backbone, tmp_path / "out", *options, train=train, validation=None)) == 0
    printed = capsys.readouterr().out
    assert "To try next: All 4 predictions are" in printed
    assert "To try next: 100.0% of the texts are cut at 32 tokens" in printed
    assert printed.index("eval_accuracy") < printed.index("To try next") < printed.index("Model, tokenizer")


def test_nothing_is_advised_of_a_model_that_was_not_trained(backbone, tmp_path, capsys):
    train = write(tmp_path, "train.csv", [{"text": "where is it", "label": label} for label in ("late", "lost") * 4])
    options = ["--num-train-epochs", "0", "--validation-split", "0.5"]
    assert main(train_command(backbone, tmp_path / "out", *options, train=train, validation=None)) == 0
    assert "To try next" not in capsys.readouterr().out


def test_the_evaluation_after_training_is_no_part_of_the_course(tmp_path):
    """A run whose last epoch is the best evaluates the same model twice: in the end as the one that is kept."""
    options = dict(num_train_epochs=3, max_steps=-1, eval_strategy="epoch", learning_rate=1e-2)
    trainer = FeedbackTrainer(
        make(), arguments(tmp_path, **options), train_dataset=tiny_data(), eval_dataset=tiny_data()
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_state()
    evaluations = [entry["epoch"] for entry in read_history(tmp_path) if "eval_loss" in entry]
    assert evaluations == [1, 2, 3]
    assert "Validation is best at the last evaluation" in advice_on_course(read_history(tmp_path), None, False)[0]
