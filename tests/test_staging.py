"""Training in stages: gradual unfreezing, warm-up of the feedback, early stopping."""

import json
import os
from pathlib import Path

import pytest
import torch
from builders import without_dropout
from fresh_processes import run_ranks
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from training_runs import arguments, make, rows, tiny_data, train_command, write
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hf_feedback.cli import main
from hf_feedback.training import (
    FeedbackTrainer,
    GradualUnfreezing,
    UnfreezingCallback,
    parameter_groups,
    peft_options,
)
from hf_feedback.training.parameters.model_parts import parts_of

TESTS = Path(__file__).parent


def trained_parts(model):
    parts = parts_of(model)
    return {parts[name] for name, parameter in model.named_parameters() if parameter.requires_grad}


def fresh_model(**options):
    torch.manual_seed(0)
    return make(**options)


class Observed(TrainerCallback):
    """Which parts train at every step, and the weights before it."""

    def __init__(self):
        self.parts, self.weights = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.parts.append(trained_parts(model))
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def train(folder, model, resume=None, callbacks=(), **options):
    trainer = FeedbackTrainer(
        model=model, args=arguments(folder, **options), train_dataset=tiny_data(), callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# Gradual unfreezing

FIRST = {"feedback", "head"}
LAYERS = ["layer 3", "layer 2", "layer 1", "layer 0", "embeddings"]
SCHEDULES = {  # 6 steps, 6 an epoch: how many parts of the backbone train at each
    "steps": (dict(unfreeze_every="1 step"), [0, 1, 2, 3, 4, 5]),
    "fractions of epochs": (dict(unfreeze_every="0.3 epochs"), [0, 0, 1, 1, 2, 2]),
    "warm-up alone": (dict(feedback_warmup="4 steps"), [0, 0, 0, 0, 5, 5]),
    "warm-up in epochs": (dict(feedback_warmup="0.5 epochs"), [0, 0, 0, 5, 5, 5]),
    "both": (dict(unfreeze_every="1 step", feedback_warmup="3 steps"), [0, 0, 0, 1, 2, 3]),
    "top layer at once": (dict(unfreeze_every="3 steps", feedback_warmup="0 steps"), [1, 1, 1, 2, 2, 2]),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_parts_of_the_backbone_begin_to_train_when_they_should(case, tmp_path):
    options, opened = SCHEDULES[case]
    model, observed = fresh_model(), Observed()
    trainer = train(tmp_path, model, callbacks=[observed], weight_decay=0.1, **options)
    assert observed.parts == [{*FIRST, *LAYERS[:number]} for number in opened]
    assert trained_parts(model) == {*FIRST, *LAYERS}  # again, when training is over
    parts = parts_of(model)
    for before, after, open_now in zip(observed.weights, observed.weights[1:], observed.parts, strict=False):
        assert {parts[name] for name, weight in before.items() if not torch.equal(weight, after[name])} == open_now
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(parts)


def test_what_is_frozen_for_good_stays_so(tmp_path):
    model, observed = fresh_model(), Observed()
    freeze = ["embeddings", "layers:2", "head"]
    train(tmp_path, model, callbacks=[observed], unfreeze_every="2 steps", freeze=freeze)
    assert observed.parts[::2] == [{"feedback"}, {"feedback", "layer 3"}, {"feedback", "layer 3", "layer 1"}]
    assert trained_parts(model) == {"feedback", "layer 3", "layer 1", "layer 0"}


def test_each_parameter_is_updated_as_by_an_optimizer_that_starts_with_it(tmp_path):
    """A plain loop over the same batches, with one AdamW a parameter, made when that begins to train."""
    model, batches = without_dropout(fresh_model().double()), []
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: batches.append(kwargs), with_kwargs=True)
    train(
        tmp_path, model, unfreeze_every="2 steps", feedback_warmup="1 step", weight_decay=0.1, max_grad_norm=0.0,
        lr_scheduler_type="constant",
    )  # fmt: skip
    hook.remove()
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.load_state_dict(weights, strict=False)
    parts, optimizers = parts_of(model), {}
    for step, batch in enumerate(batches):
        loss = model(**batch).loss
        names = [n for n in parts if parts[n] in FIRST or step >= 1 + 2 * LAYERS.index(parts[n])]
        gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            parameter = model.get_parameter(name)
            decay = 0.1 if parameter.ndim >= 2 else 0.0
            optimizers.setdefault(name, torch.optim.AdamW([parameter], lr=1e-3, weight_decay=decay))
            parameter.grad = gradient
            optimizers[name].step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, trained[name], rtol=0, atol=1e-12)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("step", [2, 3])
def test_a_resumed_run_is_the_uninterrupted_one(step, tmp_path):
    """Before a layer begins to train, and when it has just begun."""
    options = dict(unfreeze_every="0.5 epochs", save_strategy="steps", save_steps=1, weight_decay=0.1)
    whole, observed = fresh_model(classifier_dropout=0.5), Observed()
    train(tmp_path, whole, **options)
    resumed = fresh_model(classifier_dropout=0.5)
    train(tmp_path, resumed, str(tmp_path / f"checkpoint-{step}"), [observed], **options)
    assert observed.parts == [FIRST | ({"layer 3"} if over >= 3 else set()) for over in range(step, 6)]
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())


def test_activation_checkpointing_changes_nothing(tmp_path):
    models = {}
    for checkpointing in (False, True):
        models[checkpointing] = fresh_model(classifier_dropout=0.5)
        train(tmp_path, models[checkpointing], unfreeze_every="2 steps", activation_checkpointing=checkpointing)
    for name, weight in weights(models[True]).items():
        torch.testing.assert_close(weight, weights(models[False])[name], rtol=0, atol=1e-6)


def test_adapters_begin_to_train_with_their_layers(tmp_path):
    model = fresh_model()
    lora = LoraConfig(r=2, **peft_options(model))
    observed = Observed()
    train(tmp_path, get_peft_model(model, lora), callbacks=[observed], unfreeze_every="2 steps")
    assert observed.parts[0] == FIRST
    assert observed.parts[-1] == {*FIRST, "layer 3", "layer 2"}


def test_a_second_attempt_with_smaller_batches_starts_with_the_first_stage(tmp_path):
    class OutOfMemory(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.train_batch_size == 4 and state.global_step == 3:
                raise RuntimeError("CUDA out of memory.")

    observed = Observed()
    options = dict(unfreeze_every="2 steps", auto_find_batch_size=True, max_steps=4)
    trainer = train(tmp_path, fresh_model(), callbacks=[OutOfMemory(), observed], **options)
    assert trainer.state.train_batch_size < 4
    assert [len(parts) for parts in observed.parts] == [2, 2, 3, 2, 2, 3, 3]
    assert trained_parts(trainer.model) == {*FIRST, *LAYERS}


def test_own_loop_and_plain_trainer(tmp_path):
    model = fresh_model()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3))
    unfreezing = GradualUnfreezing(model, "1 epoch", "0 epochs")
    found = []
    for step in range(4):
        unfreezing.update(step, step / 2)
        found.append(trained_parts(model) - FIRST)
    assert found == [{"layer 3"}, {"layer 3"}, {"layer 3", "layer 2"}, {"layer 3", "layer 2"}]
    unfreezing.finish()
    observed = Observed()
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no")
    callbacks = [UnfreezingCallback(feedback_warmup="1 step"), observed]
    trainer = Trainer(model, args, train_dataset=tiny_data(), optimizers=(optimizer, None), callbacks=callbacks)
    trainer.train()
    assert observed.parts == [FIRST, {*FIRST, *LAYERS}]
    assert trained_parts(model) == {*FIRST, *LAYERS}


def test_training_that_is_too_short_for_all_layers_warns(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        train(tmp_path, fresh_model(), unfreeze_every="2 steps")
    assert "Training ends before these parts are unfrozen: layer 1, layer 0, embeddings." in caplog.text


WRONG = {
    "no unit": (dict(unfreeze_every="0.5"), "`unfreeze_every` must be a duration such as '0.5 epochs' or '200 steps'"),
    "half a step": (dict(feedback_warmup="0.5 steps"), "`feedback_warmup` must be a duration such as"),
    "nothing": (dict(unfreeze_every="0 steps"), "`unfreeze_every` must be above 0"),
    "two units": (dict(unfreeze_every="1 step", feedback_warmup="1 epoch"), "must both be epochs, or both steps"),
    "a backbone that is frozen": (dict(unfreeze_every="1 step", freeze=["backbone"]), "which is frozen for good"),
    "nothing before the backbone": (
        dict(unfreeze_every="1 step", freeze=["feedback", "head"]), "Feedback and head are frozen, so that",
    ),
    "reentrant": (
        dict(unfreeze_every="1 step", activation_checkpointing=True,
             activation_checkpointing_kwargs={"use_reentrant": True}),
        "'use_reentrant' computes no gradients above frozen embeddings",
    ),
    "DDP that looks for none": (
        dict(unfreeze_every="1 step", ddp_find_unused_parameters=False), "`ddp_find_unused_parameters`=False"
    ),
    "no patience": (dict(early_stopping_patience=0), "`early_stopping_patience` must be an integer of at least 1"),
    "negative": (dict(early_stopping_threshold=-1.0), "`early_stopping_threshold` must be a finite number of at"),
    "no evaluation": (dict(early_stopping_patience=2), "`early_stopping_patience`=2 .* needs validation data"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_stages_are_refused(case, tmp_path):
    options, words = WRONG[case]
    model = fresh_model()
    with pytest.raises(ValueError, match=words):
        train(tmp_path, model, **options)


def test_a_stream_has_no_epochs_to_count(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(tiny_data())

    args = arguments(tmp_path, unfreeze_every="1 epoch")
    with pytest.raises(ValueError, match="whose length a stream does not tell; count steps"):
        FeedbackTrainer(model=fresh_model(), args=args, train_dataset=Stream()).train()


RANKS = """
import sys
sys.path.insert(0, "{tests}")
from test_staging import *

for number, case in enumerate(RANK_CASES):
    model = without_dropout(fresh_model().double())
    train("out", model, ddp_backend="gloo", per_device_train_batch_size=2, **case)
    assert torch.distributed.get_world_size() == 2
    torch.save(model.state_dict(), f"weights-{{number}}-{{torch.distributed.get_rank()}}.pt")
torch.distributed.destroy_process_group()
"""
RANK_CASES = [
    dict(unfreeze_every="2 steps", max_steps=5),
    dict(unfreeze_every="2 steps", max_steps=5, activation_checkpointing=True, gradient_accumulation_steps=2),
    dict(freeze=["embeddings", "layers:0-1"], max_steps=9, cache_prefix=True),  # 6 steps an epoch
]


@pytest.mark.slow
def test_two_processes_train_in_stages_as_one_does(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(tests=TESTS))
    found = run_ranks(str(script), env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    for number, case in enumerate(RANK_CASES):
        # float64: Adam divides gradients that are zero but for rounding, as of the bias of keys, by themselves
        model = without_dropout(fresh_model().double())
        train(tmp_path / "one", model, per_device_train_batch_size=4, **{**case, "cache_prefix": False})
        for rank in range(2):
            for name, weight in torch.load(tmp_path / f"weights-{number}-{rank}.pt").items():
                torch.testing.assert_close(weight, model.state_dict()[name], rtol=0, atol=1e-11)


# Early stopping

ACCURACY = [0.5, 0.6, 0.6, 0.55, 0.7, 0.7]  # at steps 1 to 6


def stopping(folder, patience, resume=None, threshold=0.0, runs=1):
    """Trains with these accuracies; returns the trainer."""
    args = arguments(
        folder, early_stopping_patience=patience, early_stopping_threshold=threshold, load_best_model_at_end=True,
        metric_for_best_model="accuracy", eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    trainer = FeedbackTrainer(
        model=fresh_model(), args=args, train_dataset=tiny_data(), eval_dataset=tiny_data(4),
        compute_metrics=lambda _: {"accuracy": ACCURACY[trainer.state.global_step - 1]},
    )  # fmt: skip
    for _ in range(runs):
        trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(("patience", "threshold", "last", "best"), [(1, 0.0, 3, 2), (2, 0.0, 4, 2), (2, 0.2, 3, 2)])
def test_training_ends_early_with_the_best_model(patience, threshold, last, best, tmp_path):
    trainer = stopping(tmp_path, patience, threshold=threshold)
    assert trainer.state.global_step == last
    kept = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(weight, kept[name]) for name, weight in trainer.model.named_parameters())


def test_a_resumed_run_ends_early_where_the_uninterrupted_one_does(tmp_path):
    whole = stopping(tmp_path, 2)
    resumed = stopping(tmp_path, 2, str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == whole.state.global_step == 4
    assert all(torch.equal(weight, weights(resumed.model)[name]) for name, weight in weights(whole.model).items())
    assert resumed.load_finished(str(tmp_path / "checkpoint-4"))
    assert not resumed.load_finished(str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize("resume", [True, "checkpoint-4"])
def test_a_run_that_stopped_early_is_not_trained_further(resume, tmp_path):
    """A fifth step would be better, and then there would be a sixth."""
    whole = stopping(tmp_path, 2)
    resumed = stopping(tmp_path, 2, resume if resume is True else str(tmp_path / resume))
    assert resumed.state.global_step == 4
    assert resumed.state.best_metric == 0.6
    assert all(torch.equal(weight, weights(resumed.model)[name]) for name, weight in weights(whole.model).items())
    assert stopping(tmp_path, 3, str(tmp_path / "checkpoint-4")).state.global_step == 6


def test_a_second_run_counts_anew(tmp_path):
    trainer = stopping(tmp_path, 2, runs=2)
    assert trainer.state.global_step == 4
    assert not any(isinstance(one, EarlyStoppingCallback) for one in trainer.callback_handler.callbacks)


def test_the_command_stops_early_and_asks_for_validation_data(backbone, tmp_path, capsys):
    train = write(tmp_path, "train.csv", rows())
    command = train_command(backbone, tmp_path / "out", "--learning-rate", "0", train=train, validation=train)
    command = [*command, "--num-train-epochs", "9", "--early-stopping-patience", "2", "--unfreeze-every", "0.5 epochs"]
    assert main(command) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["epoch"] == 3.0
    without = train_command(backbone, tmp_path / "other", train=train, validation=None)
    assert main([*without, "--early-stopping-patience", "2"]) == 2
    assert "needs validation data" in capsys.readouterr().err
