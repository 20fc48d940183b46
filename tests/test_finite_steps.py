"""Training ends at the first loss or gradient that is no finite number, and says which rows it read."""

import re

import pytest
import torch
from builders import task_model
from training_runs import arguments, make, rows, tiny_data, train_command, write
from transformers import TrainerCallback

from hf_feedback.cli import main
from hf_feedback.training import FeedbackTrainer
from hf_feedback.training.finite_steps import NonFiniteStepError, check_step
from hf_feedback.training.resuming.checkpoints import checkpoint_fault

BAD_ROW, MARK = 13, 89  # the row whose loss is NaN, and the token by which it is known


def data():
    found = tiny_data()
    for row in found:
        row["input_ids"] = row["input_ids"].masked_fill(row["input_ids"] == MARK, MARK - 1)
    found[BAD_ROW]["input_ids"][0] = MARK
    return found


class BadRowTrainer(FeedbackTrainer):
    """The loss of a batch that has the bad row is NaN; notes the numbers of the rows of every batch."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        rows = [i for ids in inputs["input_ids"] for i, row in enumerate(data()) if torch.equal(row["input_ids"], ids)]
        self.rows_read = [*getattr(self, "rows_read", []), rows]
        return loss * torch.nan if (inputs["input_ids"] == MARK).any() else loss


class Weights(TrainerCallback):
    """The weights after every step."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append([p.detach().clone() for p in model.parameters()])


@pytest.mark.parametrize(
    ("sampling", "accumulation"), [("random", 1), ("random", 2), ("sequential", 1), ("group_by_length", 2)]
)
def test_the_rows_of_a_loss_that_is_no_number(tmp_path, sampling, accumulation):
    """In the first epoch, and where a run resumes in the middle of it."""
    options = dict(save_strategy="steps", save_steps=1, gradient_accumulation_steps=accumulation, learning_rate=1e-4)

    def trained(resume):
        weights = Weights()
        args = arguments(tmp_path, per_device_train_batch_size=3, train_sampling_strategy=sampling, **options)
        trainer = BadRowTrainer(model=make(), args=args, train_dataset=data(), callbacks=[weights])
        before = [p.detach().clone() for p in trainer.model.parameters()]
        with pytest.raises(NonFiniteStepError) as error:
            trainer.train(resume_from_checkpoint=resume)
        now = trainer.model.parameters()
        if weights.steps or not resume:
            assert all(torch.equal(p, q) for p, q in zip(now, (weights.steps or [before])[-1], strict=True))
        return trainer, str(error.value)

    trainer, message = trained(False)
    step = trainer.state.global_step
    assert f"The loss of step {step + 1} is nan (rows " in message
    bad = next(batch for batch in trainer.rows_read if BAD_ROW in batch)
    expected = ", ".join(str(i + 1) for i in sorted(bad))
    assert f"(rows {expected} of the encoded training data, counted from 1)" in message
    saved = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert saved == list(range(1, step + 1))
    if step:
        assert checkpoint_fault(tmp_path / f"checkpoint-{step}", 1, False) is None
        assert f"checkpoint-{step} is the last checkpoint" in message
        if accumulation > 1:
            assert trained(True)[1] == message


def test_a_gradient_that_is_no_number(tmp_path):
    class RootTrainer(FeedbackTrainer):
        def compute_loss(self, model, *args, **kwargs):
            loss = super().compute_loss(model, *args, **kwargs)
            return loss + (model.classifier.bias.sum() * 0).abs().sqrt()

    trainer = RootTrainer(model=make(), args=arguments(tmp_path), train_dataset=tiny_data())
    with pytest.raises(NonFiniteStepError, match=r"gradient of step 1 is nan, though its loss is finite \(rows "):
        trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_batch_without_labels_counts_nothing(tmp_path, accumulation):
    """The mean over no labels is not a number: such a batch, as masking may draw it, is no reason to stop."""
    rows = tiny_data()
    for row in rows[4:8]:
        row["labels"] = -100
    options = dict(train_sampling_strategy="sequential", gradient_accumulation_steps=accumulation, max_steps=2)
    trainer = FeedbackTrainer(model=make(), args=arguments(tmp_path, **options), train_dataset=rows)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert (losses[1] == 0) == (accumulation == 1)
    assert losses[0] > 0.5


def test_answers_beyond_their_texts_count_nothing(tmp_path):
    rows = [
        {**{name: row[name] for name in ("input_ids", "attention_mask")}, "start_positions": 50, "end_positions": 50}
        for row in tiny_data(8)
    ]
    rows[0]["start_positions"] = rows[0]["end_positions"] = 1
    options = dict(train_sampling_strategy="sequential", max_steps=2)
    trainer = FeedbackTrainer(
        model=task_model("QuestionAnswering"), args=arguments(tmp_path, **options), train_dataset=rows
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[0] > 0.5
    assert losses[1] == 0
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_deepspeed_has_made_the_step(tmp_path):
    """It makes its step with the gradients, and does not know their norm at first."""
    trainer = FeedbackTrainer(model=make(), args=arguments(tmp_path), train_dataset=tiny_data())
    check_step(trainer, [torch.tensor(1.0)], None)
    trainer.callback_handler.train_dataloader = trainer.get_train_dataloader()
    trainer.is_deepspeed_enabled = True
    with pytest.raises(NonFiniteStepError, match="This step may be in the weights, but nothing was saved since"):
        check_step(trainer, [torch.tensor(torch.nan)], None)


def test_a_loss_of_ones_own_may_train_on_rows_without_labels(tmp_path):
    rows = [{**row, "labels": -100} for row in tiny_data(4)]
    trainer = FeedbackTrainer(
        model=make(), args=arguments(tmp_path, max_steps=1), train_dataset=rows,
        compute_loss_func=lambda outputs, labels, num_items_in_batch: outputs.logits.square().mean() + 1,
    )  # fmt: skip
    assert trainer.train().training_loss > 1


def test_infinite_gradients_are_part_of_scaling(tmp_path):
    """As with fp16: steps whose scaled gradient overflows are left out until the scale is found."""
    args = arguments(tmp_path, max_grad_norm=0.0)
    trainer = FeedbackTrainer(model=make(), args=args, train_dataset=tiny_data())
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-60)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert scaler.get_scale() < 2.0**127
    assert any("inf" in str(log.get("grad_norm")) for log in trainer.state.log_history)
    assert any(not torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))


def test_the_command_ends_with_a_line(backbone, tmp_path, capsys):
    file = write(tmp_path, "train.csv", rows())
    more = ["--learning-rate", "1e30", "--warmup-steps", "0", "--resume", "auto"]
    assert main(train_command(backbone, tmp_path / "out", *more, train=file, validation=None)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: The loss of step \d+ is nan \(rows \d.*; row \d+ begins '[a-z ]+'\)\. Nothing", error), (
        error
    )
    assert "there is no checkpoint yet. Look at these rows; or lower `learning_rate` (1e+30)" in error
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_rows_are_numbered_in_the_file_that_they_come_from(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=24, train_sampling_strategy="sequential")
    trainer = BadRowTrainer(model=make(), args=args, train_dataset=data()[10:16])
    trainer.training_parts = (("train.csv", 4), ("more.csv", 2))
    with pytest.raises(NonFiniteStepError, match=r"\(rows 1, 2, 3, 4 of train.csv and rows 1, 2 of more.csv, counted"):
        trainer.train()
