"""`hf-feedback train --dry-run`: model, groups, data and cost, and nothing else."""

import re

import pytest
import torch
from builders import task_model
from families import tiny_batch
from training_runs import arguments, rows, tiny_data, train_command, write
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_feedback.cli import main
from hf_feedback.training import FeedbackTrainer
from hf_feedback.training.dry_run import measure_step


def test_it_prints_and_writes_nothing(backbone, tmp_path, capsys):
    train, validation = write(tmp_path, "train.csv", rows()), write(tmp_path, "validation.csv", rows(6))
    before = {*tmp_path.rglob("*")}
    more = ["--dry-run", "--gradient-accumulation-steps", "2", "--freeze", "embeddings"]
    assert main(train_command(backbone, tmp_path / "out", *more, train=train, validation=validation)) == 0
    assert {*tmp_path.rglob("*")} == before
    printed = capsys.readouterr().out
    for words in (
        "parameters of feedback",
        "layer 3",  # a group
        f"train: {train}, 24 examples",
        f"validation: {validation}, 6 examples",
        "steps: 4 of 16 examples",
        "FLOPs of matrix products",
        "memory: at least",
    ):
        assert words in printed, words
    found = re.search(r"parameters: (.*), of which (.*) train", printed)
    count, trained = (int(one.replace(",", "")) for one in found.groups())
    assert 0 < trained < count


@pytest.mark.parametrize(
    ("given", "head", "expected"),
    [
        ([], "new", {"layer 0": "5e-05", "feedback": "0.001", "head": "0.001"}),
        (["--learning-rate", "2e-4"], "new", {"layer 0": "5e-05", "feedback": "0.0002", "head": "0.0002"}),
        (["--backbone-lr", "1e-4"], "new", {"layer 0": "0.0001", "feedback": "0.001", "head": "0.001"}),
        ([], "backbone", {"layer 0": "5e-05", "feedback": "0.001", "head": "5e-05"}),
        (["--head-lr", "1e-2"], "backbone", {"layer 0": "5e-05", "feedback": "0.001", "head": "0.01"}),
    ],
)
def test_new_parts_have_a_larger_rate_than_trained_ones(given, head, expected, backbone, tmp_path, capsys):
    """Also a trained head counts as trained."""
    train, folder = write(tmp_path, "train.csv", rows()), backbone
    if head == "backbone":
        folder = tmp_path / "tuned"
        names = dict(enumerate(("fine", "late", "lost")))
        tuned = AutoModelForSequenceClassification.from_pretrained(backbone, id2label=names)
        tuned.save_pretrained(folder)
        AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)
    more = ["--dry-run", "--head", head, *given]
    command = train_command(str(folder), tmp_path / "out", *more, train=train, validation=None)
    assert main(command) == 0
    printed = capsys.readouterr().out
    for part, rate in expected.items():
        rates = {line.split()[-2] for line in printed.splitlines() if line.startswith(part)}
        assert rates == {rate}, part


def test_what_is_wrong_is_said_before_a_run(backbone, tmp_path, capsys):
    train = write(tmp_path, "train.csv", rows())
    more = ["--dry-run", "--search-trials", "2"]
    assert main(train_command(backbone, tmp_path / "out", *more, train=train, validation=train)) == 2
    assert "`dry_run` plans one run, and `search_trials` asks for several" in capsys.readouterr().err
    more = ["--dry-run", "--freeze", "bakbone"]
    assert main(train_command(backbone, tmp_path / "out", *more, train=train, validation=None)) == 2
    assert "'bakbone' matches no parameter" in capsys.readouterr().err


def test_the_cost_has_what_training_adds_to_a_step(tmp_path):
    model, costs = task_model("SequenceClassification"), {}
    for name, options in {
        "plain": {},
        "pgd": {"adversarial": "pgd"},
        "bf16": {"bf16": True},
        "checkpointing": {"activation_checkpointing": True},
    }.items():
        trainer = FeedbackTrainer(model=model, args=arguments(tmp_path, **options), train_dataset=tiny_data(4))
        costs[name] = measure_step(trainer, {**tiny_batch(), "labels": torch.tensor([0, 1])})
        assert trainer.techniques._adversarial is None
    assert not model.is_activation_checkpointing
    plain = costs["plain"]
    assert 3 * plain.flops < costs["pgd"].flops <= 4 * plain.flops  # the backward passes of its steps end at the words
    assert costs["bf16"].activations < plain.activations
    assert costs["checkpointing"].flops > plain.flops
    assert costs["checkpointing"].activations < plain.activations


@pytest.mark.parametrize("k", [1, 3])
def test_the_cost_is_that_of_a_step(tmp_path, k):
    model = task_model("SequenceClassification", num_iterations=k)
    trainer = FeedbackTrainer(model=model, args=arguments(tmp_path), train_dataset=tiny_data(4))
    batch = {**tiny_batch(), "labels": torch.tensor([0, 1])}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost = measure_step(trainer, batch)
    forward_only = torch.utils.flop_counter.FlopCounterMode(display=False)
    with forward_only, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
        model(**batch)
    assert 2 * forward_only.get_total_flops() < cost.flops <= 3 * forward_only.get_total_flops()
    assert cost.activations > 0
    assert cost.seconds > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
