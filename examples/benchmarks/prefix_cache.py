"""Cost of an epoch with frozen lower layers, whose states are computed every time or read from a file.

    python examples/benchmarks/prefix_cache.py --data DIR --model BACKBONE [--num-iterations 2]

DIR holds train.csv, validation.csv and test.csv. Both ways see the same texts in the same order; the seconds are those
of the processor, of each epoch but the first, in which the file is written. The last columns show that both ways train
the same model.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import read
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments
from hf_feedback.training.data.labels import LabelSet


def cases(frozen_layers: int) -> dict[str, dict[str, Any]]:
    """Options of training and of the model for each row of the table."""
    top, lower = frozen_layers - 1, ["embeddings", f"layers:0-{frozen_layers - 1}"]
    return {
        f"layers 0-{top} frozen, feedback to every layer": dict(freeze=lower),
        f"layers 0-{top} frozen, feedback to layer {frozen_layers}": dict(
            freeze=lower, feedback_layers=[frozen_layers, frozen_layers]
        ),
        "backbone frozen, feedback to every layer": dict(freeze=["backbone"]),
    }


class EpochClock(TrainerCallback):
    """Measures the processor time of every epoch."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.times.append(-time.process_time())

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.times[-1] += time.process_time()


def train(
    options: dict[str, Any],
    cache: bool,
    args: argparse.Namespace,
    data: dict[str, Dataset],
    labels: LabelSet,
    tokenizer: Any,
) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Trains one way; returns the seconds of an epoch, the validation loss and the trained weights."""
    options, clock = dict(options), EpochClock()
    set_seed(0)
    model = FeedbackForSequenceClassification.from_backbone(
        args.model,
        num_labels=labels.num_labels,
        num_iterations=args.num_iterations,
        feedback_layers=options.pop("feedback_layers", None),
    )
    trainer = FeedbackTrainer(
        model=model,
        args=FeedbackTrainingArguments(
            tempfile.mkdtemp(),
            cache_prefix=cache,
            num_train_epochs=args.num_train_epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=1e-3,
            backbone_lr=1e-4,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **options,
        ),
        train_dataset=data["train"],
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    )
    trainer.train()
    loss = trainer.evaluate(data["validation"])["eval_loss"]
    return sum(clock.times[1:]) / len(clock.times[1:]), loss, dict(model.named_parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--num-iterations", type=int, default=2)
    parser.add_argument("--frozen-layers", type=int, default=4)
    parser.add_argument("--num-train-epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--train-texts", type=int, help="all by default")
    args = parser.parse_args()
    if args.num_train_epochs < 2:
        parser.error("--num-train-epochs: the first epoch fills the cache and is not timed; give 2 or more")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data, labels = read(args.data, tokenizer, args.max_length)
    data["train"] = data["train"].take(args.train_texts or len(data["train"]))
    rows = []
    for case, options in cases(args.frozen_layers).items():
        (plain, plain_loss, weights), (cached, loss, others) = (
            train(options, cache, args, data, labels, tokenizer) for cache in (False, True)
        )
        apart = max((weights[name] - others[name]).abs().max().item() for name in weights)
        rows.append((case, f"{plain:.2f}", f"{cached:.2f}", f"{plain_loss:.6f}", f"{loss:.6f}", f"{apart:.1e}"))
        print(rows[-1], flush=True)
    head = ("", "s an epoch", "with `cache_prefix`", "validation loss", "with `cache_prefix`", "weights differ by")
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
