"""Training that begins again with smaller batches, or goes on where it was, without the command."""

import shutil

import torch
from training_runs import arguments, make, tiny_data
from transformers import TrainerCallback

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
