"""Training in two processes beside the same training in one, written out as a plain loop."""

import os
from itertools import groupby
from pathlib import Path

import pytest
import torch
from distributed_runs import CASES, EVALUATED, GLOBAL_BATCH, TRAINED, collate, make, rows, trainer_of, weights
from fresh_processes import run_ranks

from hf_feedback.training import FGM, IterationAgreement, Objectives
from hf_feedback.training.techniques.batch_loss import model_loss

PROGRAM = Path(__file__).parent / "distributed_runs.py"
RELATIVE = 1e-6


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("distributed")
    found = run_ranks(str(PROGRAM), str(folder), env={**os.environ, "TRANSFORMERS_VERBOSITY": "warning"})
    assert found.returncode == 0, found.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def global_batches(ranks, name):
    """The rows that all processes read in each step."""
    batches = [batch for rank in zip(*(rank[name]["batches"] for rank in ranks), strict=True) for batch in rank]
    return [[row for _, read in step for row in read] for _, step in groupby(batches, key=lambda batch: batch[0])]


def perturbed_loss(model, batch):
    return FGM().compute_loss(model, batch, Objectives([IterationAgreement(0.5)]).compute_loss)


# How the loss of a case is computed where it is not the model's own.
PASSES = {"perturbed words and agreement": perturbed_loss}


def train_alone(folder, name, batches, drawn):
    """The losses and weights of a plain loop over these batches in one process."""
    head, count, options = CASES[name]
    data, model = rows(count, head), make(head)
    trainer = trainer_of(folder, model, data, **options)
    trainer.create_optimizer_and_scheduler(len(batches))
    losses = []
    for read, k in zip(batches, drawn, strict=True):
        compute_loss = PASSES.get(name, model_loss)
        loss = compute_loss(model.train(), {**collate([data[row] for row in read]), "num_iterations": k}).loss
        loss.backward()
        for parameter in model.parameters():  # a drawn K of 1 reads no feedback, whose gradient is 0 then
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.optimizer.zero_grad()
        losses.append(loss.item())
    return losses, weights(model)


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=RELATIVE, atol=RELATIVE, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(ranks, name, tmp_path):
    one, two = (rank[name] for rank in ranks)
    assert (one["world_size"], one["wrapped"]) == (2, "DistributedDataParallel")
    batches = global_batches(ranks, name)
    count = CASES[name][1]
    assert len(batches) == 2 * -(-count // GLOBAL_BATCH)
    steps = [step for step, _ in one["batches"]]
    drawn = [one["drawn"][steps.index(step)] for step in range(len(batches))]
    losses, expected = train_alone(tmp_path, name, batches, drawn)
    assert one["losses"] == two["losses"] == pytest.approx(losses, rel=2e-6)
    assert one["train_loss"] == pytest.approx([sum(losses) / len(losses)], rel=2e-6)
    assert_same_weights(one["weights"], expected)
    assert all(torch.equal(one["weights"][key], weight) for key, weight in two["weights"].items())


@pytest.mark.parametrize("name", CASES)
def test_each_epoch_reads_every_row(ranks, name):
    """The last batches are filled up with rows from the beginning of the epoch, so that all processes have as many."""
    count, batches = CASES[name][1], global_batches(ranks, name)
    half = len(batches) // 2
    for epoch in (batches[:half], batches[half:]):
        read = [row for batch in epoch for row in batch]
        assert set(read) == set(range(count))
        assert len(read) - count < GLOBAL_BATCH
    assert batches[:half] != batches[half:]


def test_all_processes_draw_the_same_k(ranks):
    one, two = (rank["drawn iterations"]["drawn"] for rank in ranks)
    assert one == two
    assert 1 in one
    assert len(set(one)) > 1


def test_evaluation_reads_every_row_once(ranks, tmp_path):
    alone = trainer_of(tmp_path, make("texts"), rows(7)).predict(rows(7))
    for rank in ranks:
        found = rank["evaluation"]
        assert found["labels"].tolist() == [int(row["labels"]) for row in rows(7)]
        torch.testing.assert_close(torch.tensor(found["logits"]), torch.tensor(alone.predictions))
        assert found["loss"] == pytest.approx(alone.metrics["test_loss"], rel=1e-6)


@pytest.mark.parametrize(("head", "count"), EVALUATED)
def test_the_loss_of_an_evaluation_is_that_of_one_batch(ranks, head, count):
    """The mean over all labels, of however many processes and batches."""
    with torch.no_grad():
        expected = make(head).eval()(**collate(rows(count, head))).loss.item()
    for rank in ranks:
        assert rank["losses of evaluations"][head, count] == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_a_resumed_run_ends_as_one_run(ranks, sampling):
    """From a checkpoint in the second epoch, with dropout: to the last bit."""
    for rank in ranks:
        whole, resumed = rank["resumed"][sampling]
        assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_all_processes_stop_where_one_loses_a_number(ranks):
    one, two = (rank["not finite"] for rank in ranks)
    assert one["message"] == two["message"]
    assert one["step"] == two["step"]
    batch = next(read for _, read in (*one["batches"], *two["batches"]) if 13 in read)
    expected = ", ".join(str(row + 1) for row in sorted(batch))
    assert f"The loss of step {one['step'] + 1} is nan (rows {expected} of the encoded" in one["message"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fully_sharded_training_is_that_of_one_process(ranks, checkpointing):
    one, two = (rank["fully_shard"][checkpointing] for rank in ranks)
    assert one["sharded"]
    assert two["sharded"]
    model, data, losses = make("texts").train(), rows(24), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINED["learning_rate"], eps=TRAINED["adam_epsilon"])
    for step in range(3):
        loss = model(**collate(data[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    both = torch.stack(one["losses"]) + torch.stack(two["losses"])
    assert (both.view(3, 2).sum(1) / 2).tolist() == pytest.approx(losses, rel=1e-6)
    assert_same_weights(one["weights"], weights(model))
