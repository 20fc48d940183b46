"""`hf-feedback choose-iterations`: what it measures is what the model does, and the choice is kept."""

import json
import math
import re

import pytest
import torch
from builders import labelled_model, save_task_model, task_model, tiny_tokenizer
from training_runs import rows, write

from hf_feedback import FeedbackForSequenceClassification, cli
from hf_feedback.evaluation import iteration_choice
from hf_feedback.evaluation.commands import choose_iterations
from hf_feedback.evaluation.evaluation_run import EvaluationRun
from hf_feedback.evaluation.iteration_choice import IterationChoice, candidates, choose, measure_choice
from hf_feedback.prediction.trained_model import TrainedModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of three classes with messages, and a file of texts."""
    folder = tmp_path_factory.mktemp("chosen")
    labelled_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write(folder, "validation.csv", rows(12))
    return folder


@pytest.fixture
def few(monkeypatch):
    """Two rules alone."""
    monkeypatch.setattr(
        iteration_choice,
        "HALTING_CANDIDATES",
        {"convergence": [{"halting_threshold": 10.0}], "patience": [{"halting_patience": 2}]},
    )


def test_every_candidate_is_measured_as_the_model_answers(folder, few):
    labelled = EvaluationRun.load(TrainedModel(str(folder / "model")), str(folder / "validation.csv"))
    trainer, data = labelled.trainer, labelled.data
    model = FeedbackForSequenceClassification.from_pretrained(folder / "model").eval()
    rows_ = [{name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")} for row in data]
    labels = torch.tensor(data["labels"])
    for options in candidates(3, model.config):
        found = measure_choice(trainer, data, options, rounds=1)
        for name, value in options.items():
            setattr(model.config, name, value)
        with torch.no_grad():
            outputs = [model(**row) for row in rows_]
        right = torch.cat([output.logits for output in outputs]).argmax(-1) == labels
        taken = [options["num_iterations"] if one.iterations is None else one.iterations.item() for one in outputs]
        assert found.metric == pytest.approx(right.float().mean().item())
        assert found.iterations == pytest.approx(sum(taken) / len(taken))
        assert found.milliseconds > 0
    assert found.options["halting"] == "patience"
    assert found.iterations < 3  # it did halt


def test_the_choice_is_the_fastest_of_the_best_within_the_budget():
    def one(k, metric, milliseconds):
        return IterationChoice({"num_iterations": k, "halting": "none"}, metric, k, milliseconds)

    measured = [one(1, 0.80, 1.0), one(2, 0.898, 2.0), one(3, 0.90, 3.0)]
    assert choose(measured, None, 0.005).name == "K = 2"
    assert choose(measured, None, 0.0).name == "K = 3"
    assert choose(measured, 1.5, 0.0).name == "K = 1"
    halting = {"num_iterations": 3, "halting": "confidence", "halting_threshold": 0.9}
    noisy = [one(2, 0.9, 2.0), IterationChoice(halting, 0.9, 2.0, 1.9), IterationChoice(halting, 0.9, 2.5, 1.95)]
    assert choose(noisy, None, 0.0).name == "K = 2"  # as fast, and without a rule that saves nothing
    slower = IterationChoice(halting, 0.9, 1.9, 2.15)
    assert choose([noisy[0], slower], None, 0.0).name == "K = 2"
    assert choose([*noisy, IterationChoice(halting, 0.9, 1.4, 1.5)], None, 0.0).iterations == 1.4
    saves_nothing = IterationChoice(halting, 0.9, 3.0, 1.0)  # by the clock alone
    assert choose([one(3, 0.9, 3.0), saves_nothing], None, 0.0).name == "K = 3"
    diverged = one(4, -math.inf, 1.0)
    assert choose([one(1, 0.5, 1.0), diverged], None, 1.0).name == "K = 1"
    with pytest.raises(ValueError, match="`model`: its answers are NaN"):
        choose([diverged], None, 0.0)
    with pytest.raises(ValueError, match=r"`milliseconds`=0.5 is less than K = 1 takes, 1.00 a text"):
        choose(measured, 0.5, 0.0)


def test_a_model_that_answers_nan_is_refused(folder, few, tmp_path, capsys):
    broken = FeedbackForSequenceClassification.from_pretrained(folder / "model")
    torch.nn.init.constant_(broken.classifier.bias, math.nan)
    broken.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    given = ["--model", str(tmp_path / "broken"), "--file", str(folder / "validation.csv")]
    assert cli.main(["choose-iterations", *given, "--max-iterations", "2"]) == 2
    assert "`model`: its answers are NaN" in capsys.readouterr().err
    assert cli.main(["report", *given, "--output", str(tmp_path / "report")]) == 2
    assert "answers are NaN within its" in capsys.readouterr().err
    assert list((tmp_path / "report").iterdir()) == []


def test_what_it_says_can_be_given_to_a_shell(folder, few, capsys, monkeypatch):
    halting = {"num_iterations": 2, "halting": "confidence|patience"}
    monkeypatch.setattr(choose_iterations, "measure_choice", lambda *_: IterationChoice(halting, 0.9, 2, 1.0))
    assert (
        cli.main(["choose-iterations", "--model", str(folder / "model"), "--file", str(folder / "validation.csv")]) == 0
    )
    printed = capsys.readouterr().out
    assert "To use it: --num-iterations 2 --halting 'confidence|patience', or" in printed
    table = [line.replace(r"\|", "") for line in printed.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {6}


def test_the_command_writes_its_choice_into_the_model(folder, few, capsys):
    arguments = ["--model", str(folder / "model"), "--file", str(folder / "validation.csv"), "--max-iterations", "2"]
    assert cli.main(["choose-iterations", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "To use it: --num-iterations" in shown
    assert "| accuracy (%) |" in shown
    before = (folder / "model" / "config.json").read_text()
    assert cli.main(["choose-iterations", *arguments, "--tolerance", "100", "--save"]) == 0
    saved, old = json.loads((folder / "model" / "config.json").read_text()), json.loads(before)
    assert "now answers with" in capsys.readouterr().out
    changed = {name for name in saved if saved[name] != old.get(name)}
    assert changed <= {"num_iterations", "halting", "halting_threshold", "halting_patience", "min_iterations"}
    assert FeedbackForSequenceClassification.from_pretrained(folder / "model").config.halting == saved["halting"]


def test_a_value_is_measured_without_rules_for_classes(tmp_path, capsys):
    model = task_model("SequenceClassification", num_labels=1, problem_type="regression")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    file = write(tmp_path, "scores.csv", [{**row, "label": i / 7} for i, row in enumerate(rows(12))])
    command = ["choose-iterations", "--model", str(tmp_path / "model"), "--file", file, "--max-iterations", "2"]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "convergence, threshold 0.01" in shown
    assert "confidence" not in shown
    assert re.search(r"\| options +\| pearson +\| iterations", shown)
    assert re.search(r"(?m)^K = 1: -?0\.\d{3}$", shown)


def test_a_network_from_scratch_is_refused_before_anything_is_read(tmp_path, capsys):
    folder = save_task_model(tmp_path, "Network")
    assert cli.main(["choose-iterations", "--model", str(folder), "--file", "none.csv"]) == 2
    assert "has no pretrained backbone, and does not halt by itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-iterations", "0"], "`max_iterations` must be an integer of at least 1"),
        (["--milliseconds", "0"], "`milliseconds` must be a finite number above 0"),
        (["--milliseconds", "1e-9"], "which is the fastest; allow more"),
        (["--milliseconds", "nan"], "`milliseconds` must be a finite number above 0"),
        (["--tolerance", "-1"], "`tolerance` must be a finite number of at least 0"),
        (["--tolerance", "nan"], "`tolerance` must be a finite number of at least 0"),
        (["--model", "org/name", "--save"], "`save` writes into a folder, and org/name is not one"),
    ],
)
def test_wrong_options(folder, few, capsys, options, message):
    arguments = ["--model", str(folder / "model"), "--file", str(folder / "validation.csv"), "--max-iterations", "1"]
    assert cli.main(["choose-iterations", *arguments, *options]) == 2
    assert message in capsys.readouterr().err


def test_texts_in_another_encoding(folder, few, tmp_path, capsys):
    file = tmp_path / "latin.csv"
    file.write_bytes((folder / "validation.csv").read_bytes().replace(b"parcel", b"parc\xe9l"))
    command = ["choose-iterations", "--model", str(folder / "model"), "--file", str(file), "--max-iterations", "1"]
    assert cli.main(command) == 2
    assert "name the encoding" in capsys.readouterr().err
    assert cli.main([*command, "--encoding", "latin-1"]) == 0
