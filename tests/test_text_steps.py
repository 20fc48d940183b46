"""A text is followed through its iterations, and the app shows it."""

import importlib
from pathlib import Path

import pytest
from builders import LABELS, labelled_model, task_model, tiny_tokenizer
from families import tiny_backbone

from hf_feedback import FeedbackForSequenceClassification, FNNConfig, FNNForSequenceClassification
from hf_feedback.evaluation.report.text_steps import TextSteps, check_text_classifier, step_through
from hf_feedback.training.commands.errors import run_command

STEPS = TextSteps(
    ("late", "lost"), [[0.75, 0.25], [0.25, 0.75], [0.125, 0.875]], ["it", "is"], [[0.5, 0.25], [0, 1]], [0.5, 0.25]
)


def test_the_steps_are_those_of_the_model():
    model, tokenizer = labelled_model(), tiny_tokenizer()
    steps = step_through(model, tokenizer, "where is my parcel", 4)
    inputs = tokenizer("where is my parcel", return_tensors="pt")
    for k in range(1, 5):
        expected = model(**inputs, num_iterations=k).logits.softmax(-1)[0].tolist()
        assert list(steps.class_probabilities(k).values()) == pytest.approx(expected, abs=1e-6)
    assert steps.tokens == ["[CLS]", "where", "is", "my", "parcel", "[SEP]"]
    assert list(steps.class_probabilities(1)) == list(LABELS["label2id"])
    residuals = model(**inputs, num_iterations=4, output_iterations=True).residuals[0].tolist()
    assert steps.residuals == pytest.approx(residuals, rel=1e-5)
    assert [len(line) for line in steps.movement] == [6, 6, 6]


def test_movement_is_a_share_of_the_largest():
    assert STEPS.moved_tokens(1) == [("it", 0.0), ("is", 0.0)]
    assert STEPS.moved_tokens(2) == [("it", 0.5), ("is", 0.25)]
    assert STEPS.moved_tokens(3) == [("it", 0.0), ("is", 1.0)]


def test_a_text_whose_tokens_are_not_followed_has_no_movement():
    steps = TextSteps(("late", "lost"), [[1, 0], [0, 1]], ["it"], [], [0.5])
    assert steps.moved_tokens(2) == [("it", 0.0)]


def test_each_iteration_is_described():
    assert STEPS.describe(1) == "Iteration 1 answers late (75.0%)."
    assert STEPS.describe(2) == (
        "Iteration 2 changes the answer from late to lost (25.0% → 75.0%) and moves the states by 50.0% of their size."
    )
    assert STEPS.describe(3).startswith("Iteration 3 still answers lost (75.0% → 87.5%)")


def test_the_chart_names_the_most_probable_classes():
    chart = STEPS.chart(most=1)
    assert ">lost<" in chart
    assert ">late<" not in chart


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("SequenceClassification", {"num_labels": 1}, "regression"),
        ("TokenClassification", {}, "single_label_classification"),
        ("MaskedLM", {}, "single_label_classification"),
    ],
)
def test_a_model_that_gives_a_text_no_class_is_refused(name, options, problem):
    model = task_model(name, **options)
    message = f"must be a FeedbackForSequenceClassification .* got FeedbackFor{name} for {problem}"
    with pytest.raises(ValueError, match=message):
        check_text_classifier(model)
    with pytest.raises(ValueError, match=message):
        step_through(model, tiny_tokenizer(), "it", 2)


def test_a_feedback_network_is_refused():
    network = FNNForSequenceClassification(FNNConfig(vocab_size=9))
    with pytest.raises(ValueError, match=r"FeedbackForSequenceClassification .* got FNNForSequenceClassification"):
        check_text_classifier(network)


@pytest.fixture
def app(monkeypatch):
    pytest.importorskip("gradio", reason="needs the extra hf-feedback[app]")
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    return importlib.import_module("app")


def test_the_app_shows_what_the_package_computes(app, tmp_path):
    model = labelled_model()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    blocks = app.build(str(tmp_path))
    read, show = (function.fn for function in blocks.fns.values() if function.fn.__name__ in ("read", "show"))
    steps, chart, *shown = read("where is my parcel", 3)
    loaded = FeedbackForSequenceClassification.from_pretrained(tmp_path)
    assert steps == step_through(loaded, tiny_tokenizer(), "where is my parcel", 5)
    assert chart == steps.chart()
    assert shown == list(show(steps, 3)) == [steps.describe(3), steps.class_probabilities(3), steps.moved_tokens(3)]
    assert show(None, 1) == ("", None, [])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (None, {}, "nowhere"),
        ("backbone", {}, "is not a feedback model; train one with"),
        ("SequenceClassification", {"num_labels": 1}, "got FeedbackForSequenceClassification for regression"),
    ],
)
def test_the_app_ends_in_one_line(name, options, words, app, tmp_path, capsys):
    folder = tmp_path / ("nowhere" if name is None else "model")
    if name is not None:
        model = tiny_backbone("bert") if name == "backbone" else task_model(name, **options)
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    capsys.readouterr()
    assert run_command(app.main, [str(folder)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_the_app_has_help(app, capsys):
    with pytest.raises(SystemExit) as end:
        app.main(["--help"])
    assert end.value.code == 0
    assert "Folder of a text classifier" in capsys.readouterr().out


def test_one_iteration_has_no_movement():
    model, tokenizer = labelled_model(), tiny_tokenizer()
    steps = step_through(model, tokenizer, "where is my parcel", 1)
    expected = model(**tokenizer("where is my parcel", return_tensors="pt"), num_iterations=1).logits.softmax(-1)
    assert steps.probabilities[0] == pytest.approx(expected[0].tolist(), abs=1e-6)
    assert (steps.movement, steps.residuals) == ([], [])
    assert steps.moved_tokens(1)[0] == ("[CLS]", 0.0)


def test_an_empty_text_without_special_tokens():
    """Is read as `predict` reads it."""
    model, tokenizer = labelled_model(), tiny_tokenizer()
    tokenizer._tokenizer.post_processor = None  # which adds them
    assert tokenizer("")["input_ids"] == []
    steps = step_through(model, tokenizer, "", 3)
    model.set_num_iterations(3)
    (answer,) = model.predict([""], tokenizer)
    assert steps.class_probabilities(3) == pytest.approx(answer["probabilities"], abs=1e-6)
