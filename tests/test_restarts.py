"""Training that begins again with smaller batches, or goes on where it was, without the command."""

import shutil

import pytest
import torch
from torch.utils.data import IterableDataset
from training_runs import arguments, make, tiny_data
from transformers import TrainerCallback, default_data_collator

from hf_feedback.training import FeedbackTrainer


class StepEnds(TrainerCallback):
    """The numbers of the steps that are trained."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


def test_smaller_batches_begin_with_the_users_optimizer_and_no_checkpoints(tmp_path):
    """Memory is used up after a checkpoint: the optimizer and schedule of the user begin again, the checkpoint goes."""
    runs = []
    for size, options in ((4, dict(auto_find_batch_size=True, save_steps=2)), (2, dict(save_steps=3))):

        class SmallMemory(FeedbackTrainer):
            def compute_loss(self, model, inputs, *args, **kwargs):
                if len(inputs["input_ids"]) > 2 and self.state.global_step == 2:
                    self.args.save_steps = self.state.save_steps = 3
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
                return super().compute_loss(model, inputs, *args, **kwargs)

        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        folder = tmp_path / str(size)
        args = arguments(folder, per_device_train_batch_size=size, max_steps=3, save_strategy="steps", **options)
        trainer = SmallMemory(model, args, train_dataset=tiny_data(), optimizers=(optimizer, schedule))
        torch.manual_seed(1)
        trainer.train()
        assert trainer.optimizer.optimizer is optimizer
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]
        runs.append([p.detach().clone() for p in model.parameters()] + [torch.tensor(schedule.get_last_lr())])
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


def test_the_option_to_resume_counts_without_the_command(tmp_path):
    """As `train(resume_from_checkpoint=...)`; a folder without a run begins one, a finished run is loaded."""

    def steps_of(**options):
        args = arguments(tmp_path / "run", max_steps=4, save_strategy="steps", save_steps=1, **options)
        steps = []
        trainer = FeedbackTrainer(make(), args, train_dataset=tiny_data())
        trainer.add_callback(StepEnds(steps))
        trainer.train()
        return steps

    assert steps_of(resume="auto") == [1, 2, 3, 4]
    assert steps_of(resume="auto") == []
    assert steps_of(resume=str(tmp_path / "run" / "checkpoint-2")) == [3, 4]
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert steps_of(resume="auto") == [4]


class Stream(IterableDataset):
    """Twelve rows that are read one after another."""

    def __iter__(self):
        yield from tiny_data(12)


class PassNumbers:
    """Notes the pass and the tokens of every batch."""

    def __init__(self):
        self.epoch, self.batches = None, []

    def start_epoch(self, seed, epoch):
        self.epoch = epoch

    def __call__(self, rows):
        batch = default_data_collator(rows)
        self.batches.append((self.epoch, batch["input_ids"][:, 1].tolist()))
        return batch


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stream_goes_on_in_its_later_passes(tmp_path, accumulation):
    """Three batches a pass; from the middle of the first, the second and the third pass, and from the end of one."""

    def trained(resume=None, steps=8):
        collator = PassNumbers()
        options = dict(gradient_accumulation_steps=accumulation, save_strategy="steps", save_steps=1, max_steps=steps)
        torch.manual_seed(0)
        args = arguments(tmp_path, **options)
        trainer = FeedbackTrainer(make(), args, data_collator=collator, train_dataset=Stream())
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / f"checkpoint-{resume}"))
        return [p.detach().clone() for p in trainer.model.parameters()], collator.batches, trainer.state.epoch

    weights, batches, epoch = trained()
    assert {number for number, _ in batches} == set(
        range(3 if accumulation == 1 else 8)
    )  # one step a pass of three batches
    for step in (2, 3, 5, 7):
        resumed, read, last = trained(step)
        assert last == epoch
        assert read[-2:] == batches[-2:]
        assert all(torch.equal(p, q) for p, q in zip(resumed, weights, strict=True))


def test_a_stream_goes_on_to_more_steps(tmp_path):
    """Shares of a pass are shares of the number of steps, which is another one now."""
    numbers = []
    for steps, resume in ((2, None), (4, str(tmp_path / "checkpoint-2"))):
        collator = PassNumbers()
        args = arguments(tmp_path, save_strategy="steps", save_steps=1, max_steps=steps)
        trainer = FeedbackTrainer(make(), args, data_collator=collator, train_dataset=Stream())
        trainer.train(resume_from_checkpoint=resume)
        numbers.append([number for number, _ in collator.batches])
    assert numbers[1] == [0, 0, 0, 1, 1]  # the last one is read ahead
