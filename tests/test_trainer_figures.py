"""Figures of iterations reach TensorBoard and trackio after every evaluation."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import labelled_model, task_model
from datasets import Dataset
from transformers import default_data_collator
from transformers.integrations import TrackioCallback

from hf_feedback.evaluation.diagnostics import confusion
from hf_feedback.evaluation.report import trainer_figures
from hf_feedback.evaluation.report.building import summarize_edges
from hf_feedback.evaluation.report.observation import observe
from hf_feedback.evaluation.report.trainer_figures import IterationFigures, curves, draw_figure, send
from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments


@pytest.fixture(autouse=True)
def matplotlib():
    return pytest.importorskip("matplotlib", reason="needs the extra hf-feedback[plots]")


def rows(count=8):
    ids = torch.randint(4, 90, (count, 6), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": [i % 3 for i in range(count)]})


def trainer_of(folder, model=None, report_to="tensorboard", **options):
    options = {"num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "no", "disable_tqdm": True, **options}
    args = FeedbackTrainingArguments(str(folder), report_to=report_to, use_cpu=True, **options)
    model = labelled_model() if model is None else model
    return FeedbackTrainer(model, args, train_dataset=rows(), eval_dataset=rows(), data_collator=default_data_collator)


def observed(model, num_iterations):
    batch = {name: torch.tensor(rows()[:][name]) for name in ("input_ids", "labels")}
    return observe(model, [batch], num_iterations)


def test_tensorboard_gets_curves_and_a_figure_at_every_evaluation(tmp_path, monkeypatch):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra hf-feedback[tensorboard]"
    )
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = trainer_of(tmp_path)
    trainer.add_callback(IterationFigures(trainer))
    state = torch.get_rng_state()
    trainer.evaluate()
    assert torch.equal(state, torch.get_rng_state())
    trainer.train()
    trainer.evaluate(metric_key_prefix="test")  # which has none
    events = accumulator.EventAccumulator(str(tmp_path / "logs"), size_guidance={"images": 9}).Reload()
    names = {f"iterations/{what}_{k}" for what in ("accuracy", "calibration_error") for k in range(1, 6)}
    names |= {f"iterations/{what}_{k}" for what in ("residual", "fixed", "broken") for k in range(2, 6)}
    names.add("iterations/contraction")
    scalars = events.Tags()["scalars"]
    assert names <= set(scalars)
    assert {event.step for event in events.Scalars("iterations/accuracy_3")} >= {1, 2}
    assert [event.step for event in events.Images("iterations/figure")] == [0, 1, 2]
    assert events.Scalars("iterations/accuracy_3")[-1].value == pytest.approx(
        observed(trainer.model, 5).answers.accuracy[2]
    )
    factors = trainer.model.estimate_contraction({"input_ids": torch.tensor(rows()["input_ids"])})
    assert events.Scalars("iterations/contraction")[-1].value == pytest.approx(factors.median().item(), rel=1e-4)


def test_the_figure_shows_what_iterations_change_in_the_confusion_matrix():
    model = labelled_model()
    seen = observed(model, 5)
    last = draw_figure(seen, summarize_edges(model, seen.messages, 5), 3).axes[3]
    shown = last.images[0].get_array()
    assert shown.sum() == 0  # every item is counted once before and once after
    assert (shown == confusion(seen.answers, 3) - confusion(seen.answers, 1)).all()


def test_curves_count_what_an_iteration_changes():
    seen = observed(labelled_model(), 4)
    values, right = curves(seen), seen.answers.is_right
    for k in range(2, 5):
        before, after = right[k - 2], right[k - 1]
        assert values[f"fixed_{k}"] == (after & ~before).mean()
        assert values[f"broken_{k}"] == (before & ~after).mean()
        assert values[f"residual_{k}"] == pytest.approx(seen.residuals[:, k - 2].mean())


def test_trackio_gets_the_same_in_the_run_that_transformers_opened():
    model, logged = labelled_model(), []
    receiver = object.__new__(TrackioCallback)
    receiver._trackio = SimpleNamespace(Image=lambda pixels: pixels, log=logged.append)
    seen = observed(model, 5)
    edges = summarize_edges(model, seen.messages, 5)
    values, figure = curves(seen), draw_figure(seen, edges, 3)
    receiver._initialized = False
    send(receiver, values, figure, step=7)
    assert logged == []
    receiver._initialized = True
    send(receiver, values, figure, step=7)
    picture = logged[0].pop("iterations/figure")
    named = {f"iterations/{name}": value for name, value in values.items()}
    assert logged == [{**named, "train/global_step": 7}]
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_evaluation_sets_have_curves_of_their_own(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs the extra hf-feedback[tensorboard]")
    trainer, sent = trainer_of(tmp_path), []
    monkeypatch.setattr(trainer_figures, "send", lambda receiver, values, figure, step, data: sent.append(data))
    trainer.add_callback(IterationFigures(trainer))
    trainer.evaluate({"a": rows(2), "b_c": rows(4)})
    trainer.evaluate()
    assert sent == ["a", "b_c", ""]


def test_data_have_a_place_of_their_own():
    receiver, logged = object.__new__(TrackioCallback), []
    receiver._trackio, receiver._initialized = SimpleNamespace(Image=lambda pixels: pixels, log=logged.append), True
    seen, model = observed(labelled_model(), 5), labelled_model()
    figure = draw_figure(seen, summarize_edges(model, seen.messages, 5), 3)
    send(receiver, {"accuracy_1": 0.5}, figure, step=7, data="a")
    assert set(logged[0]) == {"iterations/a/accuracy_1", "iterations/a/figure", "train/global_step"}


def test_a_trainer_that_reports_to_neither_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, report_to="none")
    with pytest.raises(ValueError, match="`report_to` must have 'tensorboard' or 'trackio' for figures, got"):
        IterationFigures(trainer)


@pytest.mark.parametrize("name", ["MaskedLM", "QuestionAnswering"])
def test_a_model_without_classes_is_refused(tmp_path, name):
    pytest.importorskip("tensorboard", reason="needs the extra hf-feedback[tensorboard]")
    with pytest.raises(ValueError, match=f"FeedbackFor{name} with `problem_type`=None does not"):
        IterationFigures(trainer_of(tmp_path, task_model(name)))


def test_matplotlib_is_asked_for_at_once(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, report_to="none")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="matplotlib"):
        IterationFigures(trainer)
