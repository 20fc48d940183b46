"""`hf-feedback evaluate` for every task: metrics, a report by class, calibration, and the confusion matrix."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import labelled_model, task_model, tiny_tokenizer
from PIL import Image
from scipy.io import wavfile
from sklearn.metrics import classification_report
from test_prediction_run import QUESTION, TEXTS
from transformers import EvalPrediction

from hf_feedback.cli import main
from hf_feedback.evaluation.class_report import ClassAnswers, format_report, has_confusion, report_of
from hf_feedback.evaluation.confusion_picture import draw_confusion
from hf_feedback.evaluation.evaluation_run import EvaluationRun
from hf_feedback.prediction.trained_model import TrainedModel
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.metrics import make_compute_metrics

NAMES = ("late", "lost", "fine")


def write_rows(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def evaluate(model, file, *options):
    return main(["evaluate", "--model", str(model), "--file", str(file), *map(str, options)])


def plain_error(confidence, right):
    """The expected calibration error over ten bins, plainly."""
    error = 0.0
    for low in range(10):
        inside = (confidence > low / 10) & (confidence <= (low + 1) / 10)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_a_report_of_classes():
    generator = np.random.default_rng(0)
    labels, logits = generator.integers(3, size=50), generator.normal(size=(50, 3))
    answers = ClassAnswers.of_logits(EvalPrediction(logits, labels), label_set("single_label_classification"))
    report, predicted = answers.report(), logits.argmax(-1)
    expected = classification_report(labels, predicted, target_names=NAMES, output_dict=True)
    for name in NAMES:
        true = ((labels == NAMES.index(name)) & (predicted == NAMES.index(name))).sum()
        assert report["classes"][name]["precision"] == pytest.approx(true / (predicted == NAMES.index(name)).sum())
        assert report["classes"][name]["recall"] == pytest.approx(true / (labels == NAMES.index(name)).sum())
        assert report["classes"][name]["f1"] == pytest.approx(expected[name]["f1-score"])
    assert report["macro"]["f1"] == pytest.approx(np.mean([report["classes"][name]["f1"] for name in NAMES]))
    assert report["weighted"]["f1"] == pytest.approx(expected["weighted avg"]["f1-score"])
    assert report["micro"]["f1"] == pytest.approx(report["accuracy"]) == pytest.approx((labels == predicted).mean())
    assert np.sum(report["confusion"]) == 50
    assert report["confusion"][1][2] == ((labels == 1) & (predicted == 2)).sum()
    probabilities = torch.tensor(logits).softmax(-1).max(-1).values.numpy()
    assert report["calibration"]["ece"] == pytest.approx(plain_error(probabilities, predicted == labels))
    text = format_report(report)
    assert "(weighted)" in text
    assert f"expected calibration error {report['calibration']['ece']:.4f}" in text


def label_set(problem_type):
    return LabelSet(problem_type, NAMES)


def test_a_report_of_several_labels():
    logits = np.array([[2.0, -1.0, 0.5], [-2.0, -1.0, -0.5]])
    labels = np.array([[1.0, 0, 0], [0, 0, 0]])
    answers = ClassAnswers.of_logits(EvalPrediction(logits, labels), label_set("multi_label_classification"))
    report = answers.report()
    assert report["accuracy"] == 0.5
    assert report["micro"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)}
    assert report["classes"]["late"]["f1"] == 1.0
    assert "confusion" not in report
    sure = torch.tensor(logits).abs().sigmoid().flatten().numpy()
    right = np.array([True, True, False, True, True, True])
    assert report["calibration"]["ece"] == pytest.approx(plain_error(sure, right))


def test_averages_of_classes_are_those_of_the_metrics():
    """Also where a class is neither right nor predicted anywhere."""
    logits, labels = np.eye(3)[[0, 1, 1, 0, 0]], np.array([0, 1, 0, 0, 1])
    prediction, of = EvalPrediction(logits, labels), "single_label_classification"
    report = ClassAnswers.of_logits(prediction, label_set(of)).report()
    metrics = make_compute_metrics(of, ["accuracy", "macro_f1"])(prediction)
    assert report["macro"]["f1"] == pytest.approx(metrics["macro_f1"])
    assert report["accuracy"] == pytest.approx(metrics["accuracy"])
    assert report["classes"][NAMES[2]]["support"] == 0


def test_signs_of_mathematics_in_labels_are_drawn_as_they_are(tmp_path):
    draw_confusion([[1, 0], [0, 2]], ["$\\undefined{", "5$ or 6$"], str(tmp_path / "c.png"))
    assert Image.open(tmp_path / "c.png").size[0] > 300


LABELLED = [{"text": text, "label": NAMES[i % 3]} for i, text in enumerate(TEXTS * 2)]


def test_texts(folders, tmp_path, capsys):
    model, file = folders("SequenceClassification"), write_rows(tmp_path, LABELLED)
    output, picture = tmp_path / "metrics.json", tmp_path / "confusion.png"
    assert evaluate(model, file, "--output", output, "--confusion-matrix", picture) == 0
    printed = capsys.readouterr().out
    content = json.loads(output.read_text())
    _, trained, tokenizer = TrainedModel(model).load()
    answers = trained.predict([row["text"] for row in LABELLED], tokenizer)
    accuracy = np.mean([row["label"] == answer["label"] for row, answer in zip(LABELLED, answers, strict=True)])
    assert content["metrics"]["eval_accuracy"] == content["report"]["accuracy"] == pytest.approx(accuracy)
    assert re.search(rf"eval_accuracy +{accuracy:.4f}", printed)
    assert "precision" in printed
    assert Image.open(picture).size[0] > 300
    assert evaluate(model, file, "--output", output) == 2
    assert "already exists; name another, or overwrite it (`--force`)" in capsys.readouterr().err
    assert evaluate(model, file, "--output", file, "--force") == 2
    assert f"`output`: {file} is the input file itself; name another" in capsys.readouterr().err
    assert evaluate(model, file, "--confusion-matrix", tmp_path / "confusion.doc") == 2
    printed, errors = capsys.readouterr()
    assert "must end with one of" in errors
    assert "eval_accuracy" not in printed  # nothing was evaluated
    assert evaluate(model, write_rows(tmp_path, [{"text": "a", "label": "odd"}])) == 2
    assert "label 'odd' in row 1 is not among the training labels" in capsys.readouterr().err
    assert evaluate(model, write_rows(tmp_path, [{"text": "a", "label": None}])) == 2
    assert "it has no labels to compare answers with" in capsys.readouterr().err
    assert evaluate(model, file, "--stride", "2") == 2
    assert "is a text classifier; leave the option out" in capsys.readouterr().err


def test_several_labels_in_a_cell(tmp_path):
    labelled_model(problem_type="multi_label_classification").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    file = write_rows(tmp_path, [{"text": "a", "label": "late;fine"}, {"text": "it", "label": "lost"}])
    assert evaluate(tmp_path / "model", file, "--label-separator", ";", "--output", tmp_path / "m.json") == 0
    classes = json.loads((tmp_path / "m.json").read_text())["report"]["classes"]
    assert [classes[name]["support"] for name in NAMES] == [1, 1, 1]


def test_values(tmp_path, capsys, monkeypatch):
    model = task_model("SequenceClassification", num_labels=1)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"text": text, "label": i / 7} for i, text in enumerate(TEXTS)]
    assert evaluate(tmp_path / "model", write_rows(tmp_path, rows), "--output", tmp_path / "m.json") == 0
    report = json.loads((tmp_path / "m.json").read_text())["report"]
    values = [answer["value"] for answer in model.predict(TEXTS, tiny_tokenizer())]
    assert report["mean_absolute_error"] == pytest.approx(np.abs(np.array(values) - np.arange(4) / 7).mean(), abs=1e-5)
    assert "eval_pearson" in capsys.readouterr().out
    monkeypatch.delattr(EvaluationRun, "predict")  # refused before anything is computed
    assert evaluate(tmp_path / "model", tmp_path / "rows.jsonl", "--confusion-matrix", tmp_path / "c.png") == 2
    assert "does not answer with one class for each item" in capsys.readouterr().err


def test_a_network_from_scratch(folders, tmp_path):
    file = write_rows(tmp_path, LABELLED)
    found = EvaluationRun.load(TrainedModel(folders("Network"), num_iterations=2), file)
    assert found.task.model.config.num_iterations == 2
    assert 0 <= found.predict().metrics["eval_accuracy"] <= 1
    config = json.loads((Path(folders("Network")) / "config.json").read_text())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text(json.dumps({**config, "architectures": ["OwnNetwork"]}))
    assert TrainedModel(str(tmp_path / "own")).task() is TrainedModel(folders("Network")).task()


def test_tags_and_entities(folders, tmp_path):
    rows = [{"tokens": text.split(), "tags": [NAMES[len(word) % 3] for word in text.split()]} for text in TEXTS]
    labelled = EvaluationRun.load(TrainedModel(folders("TokenClassification")), write_rows(tmp_path, rows))
    found = labelled.predict()
    report = report_of(labelled.task, EvalPrediction(found.predictions, found.label_ids))
    assert has_confusion(labelled.task)
    assert "confusion" in report
    answers = labelled.task.model.predict([row["tokens"] for row in rows], labelled.task.processor)
    labels, tags = ([tag for row in part for tag in row["tags"]] for part in (rows, answers))
    assert report["accuracy"] == found.metrics["eval_token_accuracy"] == np.mean(np.array(labels) == tags)
    scores = [score for answer in answers for score in answer["scores"]]
    assert report["calibration"]["confidence"] == pytest.approx(np.mean(scores), abs=1e-5)

    model = task_model("TokenClassification", id2label={0: "O", 1: "B-DAY", 2: "I-DAY"})
    model.save_pretrained(tmp_path / "bio")
    tiny_tokenizer().save_pretrained(tmp_path / "bio")
    rows = [{"tokens": ["it", "is", "a"], "tags": ["O", "B-DAY", "I-DAY"]}]
    labelled = EvaluationRun.load(TrainedModel(str(tmp_path / "bio")), write_rows(tmp_path, rows))
    right = np.zeros((1, 3, 2))
    right[0, :, 0] = [0, 1, 2]
    report = report_of(labelled.task, EvalPrediction(right, np.array([[0, 1, 2]])))
    assert report["classes"] == {"DAY": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1.0}}
    assert report["micro"]["f1"] == 1.0


def test_answers_choices_and_language_models(folders, tmp_path):
    answer = {"text": ["parcel"], "answer_start": [4]}
    file = write_rows(tmp_path, [{**QUESTION, "answers": answer}])
    found = EvaluationRun.load(TrainedModel(folders("QuestionAnswering")), file)
    assert set(found.predict().metrics) >= {"eval_exact_match", "eval_f1"}
    assert report_of(found.task, None) is None
    assert not has_confusion(found.task)

    file = write_rows(tmp_path, [{"context": "where", "choices": ["is it", "help"], "label": 1}])
    found = EvaluationRun.load(TrainedModel(folders("MultipleChoice")), file)
    prediction = found.predict()
    report = report_of(found.task, EvalPrediction(prediction.predictions, prediction.label_ids))
    assert set(report) == {"accuracy", "calibration"}
    assert not has_confusion(found.task)
    assert report["accuracy"] == prediction.metrics["eval_accuracy"]

    file = write_rows(tmp_path, [{"text": text} for text in TEXTS])
    metrics = EvaluationRun.load(TrainedModel(folders("MaskedLM")), file, {"max_length": 12}).predict().metrics
    assert metrics["eval_perplexity"] == pytest.approx(np.exp(metrics["eval_loss"]), rel=1e-4)
    model, tokenizer = TrainedModel(folders("CausalLM")).load()[1:]
    ids = [*tokenizer(TEXTS[1])["input_ids"], tokenizer.eos_token_id]
    file = write_rows(tmp_path, [{"text": TEXTS[1]}])
    metrics = EvaluationRun.load(TrainedModel(folders("CausalLM")), file).predict().metrics
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert metrics["eval_perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)


def test_words_without_tokens_are_counted(folders, tmp_path, caplog):
    words = {"tokens": ["is", "", "it", " "], "tags": ["late", "lost", "lost", "late"]}
    file = write_rows(tmp_path, [words, {"tokens": ["it"], "tags": ["lost"]}])
    caplog.set_level("WARNING")
    prediction = EvaluationRun.load(TrainedModel(folders("TokenClassification")), file).predict()
    assert (prediction.label_ids != -100).sum() == 3
    assert f"{file}: 2 words, such as spaces, have no token; their tags are left out." in caplog.text


def test_images_and_recordings(folders, tmp_path):
    names = ("LABEL_0", "LABEL_1", "LABEL_2")
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "waves" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9), "red").save(tmp_path / "images" / name / "a.png")
        wavfile.write(tmp_path / "waves" / name / "a.wav", 16000, np.sin(np.arange(2000) / 9).astype(np.float32))
    for head, folder in (("ImageClassification", "images"), ("AudioClassification", "waves")):
        output = tmp_path / f"{folder}.json"
        assert evaluate(folders(head), tmp_path / folder, "--output", output) == 0
        content = json.loads(output.read_text())
        assert content["metrics"]["eval_accuracy"] == pytest.approx(1 / 3)  # all are alike
        assert list(content["report"]["classes"]) == list(names)
