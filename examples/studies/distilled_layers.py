"""Fewer layers, read again: with LoRA of its own for each iteration, and with a teacher.

    python examples/studies/distilled_layers.py --model MINILM --data DIR/trec50 --work FOLDER --seeds 0 1 2 3 4

Some layers of a backbone are kept and fine-tuned: as they are, also for twice the epochs, which costs what a second
iteration does; repeated without messages; and with feedback, K = 2. The last two also with LoRA of its own for each
iteration, in all linear maps of the layers, beside the shared weights, which are trained too (Bae et al. 2024, Relaxed
Recursive Transformers, arXiv 2410.20672). Each of them learns from the labels of the data, or is "taught": its target
is half the label and half the probabilities of a teacher (Hinton et al. 2015, Distilling the Knowledge in a Neural
Network, arXiv 1503.02531, at a temperature of 1), the whole backbone, fine-tuned on the same texts with the same seed
for twice the epochs.

Fixed before it is run: sizes, epochs, seeds, and the rates that every arm chooses from on validation with the first
seed. Finished runs stay in FOLDER/results.jsonl and are not run again.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark_parts import fit, interval, measure, read_files, runs_of_arms
from datasets import Dataset
from study import comparison_parser, smaller_copy
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, set_seed

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.evaluation.machine import machine_and_versions
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.summary import count_parameters
from hf_feedback.training import FeedbackTrainer
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.flops import count_flops
from hf_feedback.validation import Keywords

# Options of the model, and whether it has LoRA for each iteration
MODELS: dict[str, tuple[Keywords, bool]] = {
    "layers alone": (dict(num_iterations=1), False),
    "twice the epochs": (dict(num_iterations=1), False),
    "repeated": (dict(feedback_state="carry"), False),
    "repeated, LoRA": (dict(feedback_state="carry"), True),
    "feedback": ({}, False),
    "feedback, LoRA": ({}, True),
}
TAUGHT = ", taught"
ARMS = (*MODELS, *(f"{name}{TAUGHT}" for name in MODELS))
TEACHER_RATE = 2e-4
NEW = 10  # the rate of new parts, relative to that of the backbone
SETTINGS = "backbone kept data_set sizes epochs rank max_length".split()


class IterationLoRA(nn.Module):
    """LoRA in all linear maps of the looped layers, of its own for each iteration; it starts at zero.

    Args:
        model: the feedback model; it keeps hooks.
        rank: r.
    """

    def __init__(self, model: FeedbackForSequenceClassification, rank: int) -> None:
        super().__init__()
        self.iteration, self.down, self.up = -1, nn.ParameterList(), nn.ParameterList()
        first, last = model.layout.looped_range
        model.register_forward_pre_hook(lambda *_: self._set_iteration(-1))
        model.layers[first].register_forward_pre_hook(lambda *_: self._set_iteration(self.iteration + 1))
        for layer in model.layers[first : last + 1]:
            for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
                linear.register_forward_hook(self._adapter_of(linear, model.config.num_iterations, rank))

    def _set_iteration(self, iteration: int) -> None:
        self.iteration = iteration

    def _adapter_of(self, linear: nn.Linear, num_iterations: int, rank: int) -> Callable[..., torch.Tensor]:
        number = len(self.up)
        self.down.append(torch.randn(num_iterations, rank, linear.in_features) / linear.in_features**0.5)
        self.up.append(torch.zeros(num_iterations, linear.out_features, rank))

        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            at = self.iteration
            return output + F.linear(F.linear(inputs[0], self.down[number][at]), self.up[number][at])

        return add


def build(arm: str, kept: list[int] | None, num_labels: int, args: argparse.Namespace) -> Any:
    """The model of an arm with these layers of the backbone; the others where there are none given."""
    options, has_lora = MODELS[arm.removesuffix(TAUGHT)]
    model = FeedbackForSequenceClassification.from_backbone(
        args.model, num_labels=num_labels, backbone_layers=kept, **{"num_iterations": 2, **options}
    )
    if has_lora:
        model.iteration_lora = IterationLoRA(model, args.rank)
    return model


def has_messages(model: Any) -> bool:
    """Whether the model is one of feedback; messages of others are never read, or stay at zero."""
    return model.config.num_iterations > 1 and model.config.feedback_state != "carry"


def cross_entropy(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
    """Of classes, or of probabilities of them."""
    return F.cross_entropy(outputs.logits, labels)


def train(
    model: Any,
    data: dict[str, Dataset],
    labels: LabelSet,
    seed: int,
    rate: float,
    epochs: float,
    args: argparse.Namespace,
) -> FeedbackTrainer:
    """Fine-tunes a model; the last epoch is kept."""
    return fit(
        model, data, labels, AutoTokenizer.from_pretrained(args.model), seed, ["accuracy"], cross_entropy,
        num_train_epochs=epochs, learning_rate=NEW * rate, backbone_lr=rate, per_device_train_batch_size=16,
        freeze=[] if has_messages(model) else ["feedback"], eval_strategy="no", save_strategy="no",
        load_best_model_at_end=False, bf16=False,
    )  # fmt: skip


def teacher_of(seed: int, data: dict[str, Dataset], labels: LabelSet, args: argparse.Namespace) -> dict[str, Any]:
    """What the teacher of a seed has found: its probabilities for the training texts, and its accuracies."""
    file = args.work / f"teacher {args.data_set} {args.train} {args.epochs} {seed}.pt"
    if not file.is_file():
        set_seed(seed)
        model = build("layers alone", None, labels.num_labels, args)
        trainer = train(model, data, labels, seed, TEACHER_RATE, 2 * args.epochs, args)
        found: dict[str, Any] = {"probabilities": torch.tensor(trainer.predict(data["train"]).predictions).softmax(-1)}
        torch.save(found | measure(trainer, data, ["validation", "test"], ["accuracy"]), file)
    return torch.load(file)


def flops_of(model: Any, data: dict[str, Dataset]) -> int:
    """Of a training step with one text."""
    row = data["train"][0]
    ids = torch.tensor([row["input_ids"]])
    return count_flops(lambda: model(ids, attention_mask=torch.ones_like(ids)).logits.sum().backward())


def run(arm: str, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one arm and measures it."""
    files = smaller_copy(args.data[0], args.work / "data" / args.data_set, args)
    data, labels = read_files(files, args.data[0], AutoTokenizer.from_pretrained(args.model), args.max_length)
    teacher = teacher_of(seed, data, labels, args)
    found = {f"teacher_{split}": 100 * teacher[f"{split}_accuracy"] for split in ("validation", "test")}
    if arm.endswith(TAUGHT):
        classes = F.one_hot(torch.tensor(data["train"]["labels"]), labels.num_labels)
        targets = (classes + teacher["probabilities"]) / 2
        data["train"] = data["train"].remove_columns("labels").add_column("labels", targets.tolist())
    set_seed(seed)
    model = build(arm, args.kept, labels.num_labels, args)
    epochs = args.epochs * (2 if arm.startswith("twice") else 1)
    unread = 0 if has_messages(model) else count_parameters(model.feedback)
    found["parameters"] = count_parameters(model) - unread
    found["flops"] = flops_of(model, data) * epochs
    model.zero_grad()
    trainer = train(model, data, labels, seed, rate, epochs, args)
    measured = measure(trainer, data, ["validation", "test"], ["accuracy"])
    found |= {split: 100 * measured[f"{split}_accuracy"] for split in ("validation", "test")}
    return found | {"machine": machine_and_versions()}


def summary(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Accuracies, costs, and differences from twice the epochs with the same targets."""
    rows = []
    for arm, found in runs.items():
        same = runs.get(f"twice the epochs{TAUGHT}" if arm.endswith(TAUGHT) else "twice the epochs", [])
        minus = [one["test"] - other["test"] for one, other in zip(found, same, strict=False) if found is not same]
        cost = found[0]["flops"] / next(iter(runs.values()))[0]["flops"]
        cells = (interval([one[name] for one in found]) for name in ("validation", "test"))
        rows.append(
            (arm, f"{found[0]['parameters']:,}", f"{cost:.2f}", f"{found[0]['rate']:g}", *cells, interval(minus))
        )
    head = ("arm", "parameters", "FLOPs of training", "rate", "validation (%)", "test (%)", "minus twice the epochs")
    first = next(iter(runs.values()))
    teacher = ", ".join(interval([one[f"teacher_{split}"] for one in first]) for split in ("validation", "test"))
    return f"{markdown_table(head, rows)}\n\nThe teacher, validation and test: {teacher}."


def main() -> None:
    made = comparison_parser(__doc__, train=600)
    made.add_argument("--kept", type=int, nargs="+", default=[0, 2, 4], help="numbers of the layers that are kept")
    made.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="default: all")
    made.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 2e-4, 4e-4], help="of the backbone")
    made.add_argument("--epochs", type=float, default=3)
    made.add_argument("--rank", type=int, default=8, help="of LoRA")
    args = made.parse_args()
    if len(args.data) > 1:
        made.error("--data: one data set at a time.")
    args.backbone, args.data_set = Path(args.model).name, args.data[0].name
    args.sizes = [args.train, args.validation, args.test]
    print(summary(runs_of_arms(args, SETTINGS, "test", run)))


if __name__ == "__main__":
    main()
