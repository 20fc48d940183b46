"""Long texts: does feedback over segments recover what cutting has cost?

    python examples/benchmarks/segments.py --data DIR/amazon_books --model BACKBONE --work FOLDER --seeds 0 1 2

Five ways to classify long texts: cut at `--segment-length` tokens; as independent windows of that length whose answers
are averaged (K = 1); the same with feedback over the segments, K = 2 and K = 3; and whole, at `--max-length` tokens.
All see the same texts in the same order with the same rates and steps; the epoch is chosen on validation, and the test
split is read once, with `--test`. Cost is counted in floating-point operations of the forward pass, per text of the
validation split (of its first 100). Finished runs stay in FOLDER/segments.jsonl.
"""

import argparse
import statistics
from typing import Any

import torch
from common import Finished, add_arms, fine_tuning_parser, fit, interval, measure, read
from transformers import AutoTokenizer, set_seed

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.training.flops import count_flops

METRICS = ("accuracy", "macro_f1")
SEGMENTS = dict(feedback_span="segment", max_segments=1000)
ROWS: dict[str, dict[str, Any]] = {
    "cut": dict(num_iterations=1),
    "windows (K = 1)": dict(num_iterations=1, **SEGMENTS),
    "segments, K = 2": dict(num_iterations=2, **SEGMENTS),
    "segments, K = 3": dict(num_iterations=3, **SEGMENTS),
    "whole": dict(num_iterations=1),
}


@torch.no_grad()
def cost(model: Any, data: Any, tokenizer: Any) -> float:
    """GFLOP of the forward pass per text of the first 100, each text by itself."""
    data = data.select(range(min(100, len(data))))

    def answer_all() -> None:
        for row in data:
            batch = {name: row[name] for name in ("input_ids", "attention_mask")}
            model(**tokenizer.pad([batch], return_tensors="pt").to(model.device))

    return count_flops(answer_all) / len(data) / 1e9


def run(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tunes one way and measures it."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    length = args.segment_length if row == "cut" else args.max_length
    data, labels = read(args.data, tokenizer, length)
    options = dict(ROWS[row])
    if "feedback_span" in options:
        options["segment_length"] = args.segment_length
    set_seed(seed)
    model = FeedbackForSequenceClassification.from_backbone(
        args.model, num_labels=labels.num_labels, backbone_layers=args.backbone_layers, pooling=args.pooling, **options
    )
    trainer = fit(
        model, data, labels, tokenizer, seed, METRICS,
        num_train_epochs=args.num_train_epochs, learning_rate=args.learning_rate, feedback_lr=args.feedback_lr,
        per_device_train_batch_size=16,
    )  # fmt: skip
    splits = ("validation", "test") if args.test else ("validation",)
    found = measure(trainer, data, splits, METRICS)
    return {**found, "gflop_a_text": cost(model.eval(), data["validation"], tokenizer)}


def main() -> None:
    options = fine_tuning_parser(__doc__, num_train_epochs=3, learning_rate=1e-4, max_length=512)
    options.add_argument("--segment-length", type=int, default=64)
    options.add_argument("--pooling", default="auto")
    add_arms(options, list(ROWS), "--rows")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--test", action="store_true", help="read the test split too, once all is chosen")
    args = options.parse_args()
    finished, mine = Finished(args.work / "segments.jsonl"), []
    names = (
        "model", "backbone_layers", "pooling", "segment_length", "max_length",
        "num_train_epochs", "learning_rate", "feedback_lr",
    )  # fmt: skip
    for seed in args.seeds:
        for row in args.rows:
            settings = dict(row=row, data=args.data.name, seed=seed, **{name: getattr(args, name) for name in names})
            wanted = f"{'test' if args.test else 'validation'}_accuracy"
            mine.append(finished.find(settings, wanted, lambda row=row, seed=seed: run(row, seed, args)))
    lines = []
    for row in args.rows:
        found = [one for one in mine if one["row"] == row]
        accuracies = [
            interval([100 * one[key] for one in found if key in one])
            for key in ("validation_accuracy", "test_accuracy")
        ]
        lines.append((row, *accuracies, f"{statistics.mean(one['gflop_a_text'] for one in found):.2f}"))
    print(markdown_table((args.data.name, "validation accuracy (%)", "test accuracy (%)", "GFLOP a text"), lines))


if __name__ == "__main__":
    main()
