"""Logs of training and evaluation have what iterations do, for every receiver of reports."""

import pytest
import torch
from builders import task_model
from training_runs import arguments, make, tiny_data
from transformers.integrations import TensorBoardCallback

from hf_feedback.evaluation.report.observation import observe
from hf_feedback.training import FeedbackTrainer
from hf_feedback.training.callbacks import format_logs
from hf_feedback.training.iteration_logs.iteration_curves import IterationCurves, count_right
from hf_feedback.training.iteration_logs.message_recorder import swish_betas


def train(folder, report_to, **options):
    torch.manual_seed(0)
    model = make(num_iterations=3)
    options = dict(max_steps=4, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=5, **options)
    args = arguments(folder, report_to=report_to, learning_rate=1e-2, **options)
    trainer = FeedbackTrainer(model=model, args=args, train_dataset=tiny_data(), eval_dataset=tiny_data())
    torch.manual_seed(1)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    pytest.importorskip("tensorboard", reason="needs the extra hf-feedback[tensorboard]")
    folder = tmp_path_factory.mktemp("reported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "logs"))
        return train(folder, "tensorboard"), folder / "logs"


def edges_of(trainer):
    return [f"{source}_to_{target}" for source, target in trainer.model.config.edges()]


def test_tensorboard_gets_them(reported):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer, folder = reported
    events = accumulator.EventAccumulator(str(folder)).Reload()
    names = {f"train/{what}_{edge}" for what in ("beta", "message") for edge in edges_of(trainer)}
    names |= {f"eval/accuracy_iteration_{k}" for k in (1, 2, 3)}
    assert names <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("eval/accuracy_iteration_3")] == [2, 4]
    assert any(isinstance(one, TensorBoardCallback) for one in trainer.callback_handler.callbacks)


def test_they_are_those_of_the_model(reported):
    trainer, _ = reported
    model, log = trainer.model, [log for log in trainer.state.log_history if "loss" in log]
    seen = observe(model, [trainer._curves.batch], 3)
    for (source, target), beta in swish_betas(model).items():
        assert log[-1][f"beta_{source}_to_{target}"] == pytest.approx(beta)
        share = seen.messages.means((source, target), 3)[1][2]
        assert log[-1][f"message_{source}_to_{target}"] == pytest.approx(share, rel=1e-5)
        assert log[0][f"message_{source}_to_{target}"] != log[-1][f"message_{source}_to_{target}"]
    whole = observe(model, trainer.get_eval_dataloader(), 3).answers.accuracy
    found = next(log for log in trainer.state.log_history[::-1] if "eval_accuracy_iteration_1" in log)
    assert [found[f"eval_accuracy_iteration_{k}"] for k in (1, 2, 3)] == pytest.approx(list(whole))


def test_test_has_curves_of_its_own(tmp_path):
    trainer = train(tmp_path, "none")
    trainer.add_callback(IterationCurves(trainer))
    before = len(trainer.state.log_history)
    trainer.evaluate(metric_key_prefix="test")
    names = {name for log in trainer.state.log_history[before:] for name in log}
    assert "test_accuracy_iteration_3" in names
    assert not any(name.startswith("eval_") for name in names)


def test_reports_change_nothing(reported, tmp_path):
    plain = train(tmp_path, "none").model.parameters()
    assert all(torch.equal(p, q) for p, q in zip(plain, reported[0].model.parameters(), strict=True))


def test_there_is_nothing_to_do_without_a_receiver(tmp_path):
    trainer = train(tmp_path, "none")
    assert not any("beta" in name or "iteration" in name for log in trainer.state.log_history for name in log)
    trainer = train(tmp_path, "none", report_batches=0)
    trainer.add_callback(IterationCurves(trainer))
    trainer.evaluate()
    assert not any("iteration" in name for log in trainer.state.log_history for name in log)


def test_only_classes_are_counted():
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[0.5]])}
    assert count_right(make(num_labels=1), [batch]) is None
    positions = {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])}
    assert count_right(task_model("QuestionAnswering"), [{"input_ids": batch["input_ids"], **positions}]) is None
    tokens = {"input_ids": batch["input_ids"], "labels": torch.tensor([[0, -100, 1]])}
    assert count_right(task_model("TokenClassification"), [tokens])[-1] == 2


def test_the_line_of_a_log_leaves_single_edges_out():
    assert format_logs({"loss": 0.5, "beta_3_to_0": 1.0, "message_3_to_0": 0.1}) == "loss 0.5"


def test_wrong_number_of_batches(tmp_path):
    with pytest.raises(ValueError, match="`report_batches` must be an integer of at least 0"):
        arguments(tmp_path, report_batches=-1)
