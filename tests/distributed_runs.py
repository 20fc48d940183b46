"""What `tests/test_distributed.py` runs in two processes: training, evaluation, resumption and sharding.

    torchrun --nproc_per_node 2 distributed_runs.py FOLDER

Each process writes what it found to `FOLDER/<rank>.pt`.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from families import randomize_messages, tiny_backbone, tiny_config
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad
from training_runs import arguments
from transformers import AutoModelForCausalLM

from hf_feedback import FeedbackForCausalLM, FeedbackForSequenceClassification, FeedbackForTokenClassification
from hf_feedback.training import FeedbackTrainer, NonFiniteStepError

FIRST_ID = 10  # row i begins with the token 10 + i
GLOBAL_BATCH = 8
HEADS = {"texts": FeedbackForSequenceClassification, "tokens": FeedbackForTokenClassification}
TRAINED = dict(save_strategy="no", num_train_epochs=2, max_steps=-1, adam_epsilon=1e-3, learning_rate=1e-2)
ACCUMULATED = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2)
# Name → head, number of rows, arguments.
CASES = {
    "an uneven last batch": ("texts", 21, {}),
    "checkpointing": ("texts", 24, dict(activation_checkpointing=True)),
    "checkpointing and accumulation": ("texts", 24, {**ACCUMULATED, "activation_checkpointing": True}),
    "an uneven last batch and accumulation": ("texts", 19, ACCUMULATED),
    "drawn iterations": ("texts", 24, dict(train_iterations="uniform", min_train_iterations=1, max_train_iterations=4)),
    "groups of similar length": ("texts", 24, dict(train_sampling_strategy="group_by_length")),
    "labels of tokens": ("tokens", 21, ACCUMULATED),
    "LoRA": ("texts", 21, dict(lora_rank=2)),
    "language model": ("next tokens", 21, ACCUMULATED),
    "perturbed words and agreement": ("texts", 21, {**ACCUMULATED, "adversarial": "fgm", "agreement_weight": 0.5}),
}
EVALUATED = [(head, count) for head in ("tokens", "next tokens", "texts") for count in (5, 7, 8)]


def make(head, dropout=0.0):
    torch.manual_seed(0)
    if head == "next tokens":
        model = AutoModelForCausalLM.from_config(tiny_config("llama"))
        return randomize_messages(FeedbackForCausalLM.from_backbone(model, num_iterations=2, feedback_rank=8))
    options = dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    backbone = tiny_backbone("bert", **options)
    return randomize_messages(HEADS[head].from_backbone(backbone, num_labels=3, num_iterations=2, feedback_rank=8))


def rows(count, head="texts"):
    """Rows of different lengths; some of their tokens have no label."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for i in range(count):
        length = 3 + i * 5 % 7
        ids = torch.cat((torch.tensor([FIRST_ID + i]), torch.randint(60, 99, (length - 1,), generator=generator)))
        labels = {"texts": torch.tensor(i % 3), "next tokens": ids.clone()}.get(head, ids % 3)
        if head != "texts":
            labels[1 : 1 + i % 4] = -100
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


def collate(examples):
    length = max(len(example["input_ids"]) for example in examples)
    fill = {"input_ids": 1, "attention_mask": 0, "labels": -100}

    def padded(name, values):
        return values if values.dim() == 0 else pad(values, (0, length - len(values)), value=fill[name])

    return {name: torch.stack([padded(name, example[name]) for example in examples]) for name in fill}


def rows_in(batch):
    return (batch["input_ids"][:, 0] - FIRST_ID).tolist()


class RecordingTrainer(FeedbackTrainer):
    """Notes the rows of each batch and the K of each call; the loss of the row `bad_row` is NaN."""

    bad_row = None

    def training_step(self, model, inputs, *args, **kwargs):
        self.batches = [*getattr(self, "batches", []), (self.state.global_step, rows_in(inputs))]
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss * torch.nan if self.bad_row in rows_in(inputs) else loss


def trainer_of(folder, model, data, **options):
    rank_batch = GLOBAL_BATCH // 2
    options = {"per_device_train_batch_size": rank_batch, **TRAINED, **options}
    options |= {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
    args = arguments(folder, per_device_eval_batch_size=2, **options)
    return RecordingTrainer(model=model, args=args, train_dataset=data, eval_dataset=data, data_collator=collate)


def logged_losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def weights(model):
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def train(folder, name):
    head, count, options = CASES[name]
    model, drawn = make(head), []
    model.register_forward_pre_hook(lambda _, args, given: drawn.append(given.get("num_iterations")), with_kwargs=True)
    trainer = trainer_of(folder / "out", model, rows(count, head), **options)
    trainer.train()
    return {
        "world_size": trainer.args.world_size,
        "wrapped": type(trainer.model_wrapped).__name__,
        "batches": trainer.batches,
        "drawn": drawn[-len(trainer.batches) :],
        "losses": logged_losses(trainer),
        "train_loss": [log["train_loss"] for log in trainer.state.log_history if "train_loss" in log],
        "weights": weights(model),
    }


def evaluate(folder):
    """Seven rows in batches of two: the last process has one row less."""
    trainer = trainer_of(folder / "out", make("texts"), rows(7))
    output = trainer.predict(rows(7))
    return {"logits": output.predictions, "labels": output.label_ids, "loss": output.metrics["test_loss"]}


def losses_of_evaluations(folder):
    """Of tokens with different numbers of labels; of five rows the last batch of the second process has none."""
    found = {}
    for head, count in EVALUATED:
        trainer = trainer_of(folder / "out", make(head), rows(count, head))
        found[head, count] = trainer.evaluate()["eval_loss"]
    return found


def resume(folder, sampling):
    """A run of six steps, and one that goes on from its checkpoint in the middle of the second epoch."""
    found = []
    for checkpoint in (None, str(folder / sampling / "checkpoint-4")):
        model = make("texts", dropout=0.1)
        saves = dict(save_strategy="steps", save_steps=4, train_sampling_strategy=sampling)
        trainer = trainer_of(folder / sampling, model, rows(24), **saves)
        trainer.train(resume_from_checkpoint=checkpoint)
        found.append(weights(model))
    return found


def lose_a_number(folder):
    trainer = trainer_of(folder / "out", make("texts"), rows(24))
    trainer.bad_row = 13
    try:
        trainer.train()
    except NonFiniteStepError as error:
        return {"message": str(error), "batches": trainer.batches, "step": trainer.state.global_step}
    return None


def train_sharded(checkpointing):
    """Three steps of torch's own FSDP2, two batches each."""
    model = make("texts").train()
    if checkpointing:
        model.activation_checkpointing_enable()
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    sharded = all(isinstance(p, DTensor) for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)
    data, losses = rows(24), []
    for step in range(3):
        for half in range(2):
            first = step * 8 + half * 4 + dist.get_rank() * 2
            model.set_requires_gradient_sync(half == 1)
            loss = model(**collate(data[first : first + 2])).loss / 2
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return {"sharded": sharded, "losses": losses, "weights": weights(model)}


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    found = {name: train(folder, name) for name in CASES}
    found["evaluation"] = evaluate(folder)
    found["losses of evaluations"] = losses_of_evaluations(folder)
    found["resumed"] = {sampling: resume(folder, sampling) for sampling in ("random", "group_by_length")}
    found["not finite"] = lose_a_number(folder)
    found["fully_shard"] = {checkpointing: train_sharded(checkpointing) for checkpointing in (False, True)}
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
