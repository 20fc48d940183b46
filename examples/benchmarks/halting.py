"""Savings by halting: accuracy, mean iterations and time of a K = 4 model, for each rule and for fixed K.

    python examples/benchmarks/halting.py --data DIR/trec50 --model BACKBONE --work FOLDER

The model is trained once, with a loss at every iteration, and stays in FOLDER/halting_model. For each rule, the
threshold with the fewest iterations that loses no more than half a point against K = 4 on validation is taken, and the
test split is read with that one alone. Time is that of the whole split, the best of `--repeats`, on one thread.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import fine_tuning_parser, fit, is_made, read
from transformers import AutoTokenizer, set_seed

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.evaluation.markdown_tables import markdown_table

# Options that the trained model depends on.
MADE_OF = ("model", "data", "backbone_layers", "num_train_epochs", "learning_rate", "feedback_lr", "max_length")
RULES: dict[str, list[dict[str, Any]]] = {
    "convergence": [dict(halting_threshold=t) for t in (0.3, 0.2, 0.1, 0.05, 0.02, 0.01)],
    "confidence": [dict(halting_confidence=c) for c in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)],
    "confidence, margin": [dict(halting_confidence=c, halting_measure="margin") for c in (0.3, 0.5, 0.7, 0.9, 0.98)],
    "patience": [dict(halting_patience=n) for n in (2, 3)],
    "confidence|patience": [dict(halting_confidence=c, halting_patience=2) for c in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)],
}


def train(args: argparse.Namespace, folder: Path, tokenizer: Any) -> None:
    """The K = 4 model."""
    data, labels = read(args.data, tokenizer, args.max_length)
    set_seed(0)
    model = FeedbackForSequenceClassification.from_backbone(
        args.model, num_labels=labels.num_labels, num_iterations=4, iteration_loss="uniform",
        backbone_layers=args.backbone_layers,
    )  # fmt: skip
    fit(
        model, data, labels, tokenizer, 0, ["accuracy"],
        num_train_epochs=args.num_train_epochs, learning_rate=args.learning_rate, feedback_lr=args.feedback_lr,
    )  # fmt: skip
    model.save_pretrained(folder)


@torch.no_grad()
def answer(
    model: Any, rows: Any, tokenizer: Any, args: argparse.Namespace, **options: Any
) -> tuple[float, float, float]:
    """Accuracy, mean iterations and seconds with these options of halting."""
    plain = dict(halting="none", halting_measure="probability", min_iterations=1)
    for name, value in {**plain, **options}.items():
        setattr(model.config, name, value)
    model.config.check_options()
    batches = []
    for start in range(0, len(rows), args.batch_size):
        part = rows[start : start + args.batch_size]
        found = tokenizer.pad({n: part[n] for n in ("input_ids", "attention_mask")}, return_tensors="pt")
        batches.append((found, torch.tensor(part["labels"])))
    times = []
    for _ in range(args.repeats):
        right, iterations, started = 0, 0.0, time.perf_counter()
        for batch, labels in batches:
            output = model(**batch)
            right += int((output.logits.argmax(-1) == labels).sum())
            taken = output.iterations
            iterations += float(len(labels) * model.config.num_iterations if taken is None else taken.sum())
        times.append(time.perf_counter() - started)
    return 100 * right / len(rows), iterations / len(rows), min(times)


def main() -> None:
    options = fine_tuning_parser(__doc__)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args()
    torch.set_num_threads(1)
    tokenizer, folder = AutoTokenizer.from_pretrained(args.model), args.work / "halting_model"
    if not is_made(folder, args, MADE_OF):
        train(args, folder, tokenizer)
    model = FeedbackForSequenceClassification.from_pretrained(folder).eval()
    data, _ = read(args.data, tokenizer, args.max_length)
    lines = []
    for k in range(1, 5):
        values = [answer(model, data[split], tokenizer, args, num_iterations=k) for split in ("validation", "test")]
        lines.append((f"K = {k}", values))
    model.config.num_iterations = 4
    least = lines[-1][1][0][0] - 0.5
    for rule, choices in RULES.items():
        measured = [
            (answer(model, data["validation"], tokenizer, args, halting=rule.split(",")[0], **choice), choice)
            for choice in choices
        ]
        good = [one for one in measured if one[0][0] >= least] or [max(measured, key=lambda one: one[0][0])]
        found, choice = min(good, key=lambda one: one[0][1])
        on_test = answer(model, data["test"], tokenizer, args, halting=rule.split(",")[0], **choice)
        shown = ", ".join(f"{v}" for v in choice.values() if v != "margin")
        lines.append((f"{rule}, {shown}", [found, on_test]))
    columns = ("accuracy (%)", "iterations", "seconds")
    head = [f"{split}: {column}" for split in ("validation", "test") for column in columns]
    rows = []
    for name, values in lines:
        rows.append((name, *(text for a, i, t in values for text in (f"{a:.1f}", f"{i:.2f}", f"{t:.2f}"))))
    print(markdown_table((args.data.name, *head), rows))


if __name__ == "__main__":
    main()
