"""Fine-tune one backbone three ways on one data set: plain, K = 1, and with feedback.

    python examples/benchmarks/finetune.py --data DIR --model BACKBONE [--num-iterations 2] [--seeds 0 1 2]

DIR holds train.csv, validation.csv and test.csv. All systems see the same texts in the same order, with the same
rates, schedule and number of steps; the test split is read once, after the last epoch. "plain" is the family's own
`AutoModelForSequenceClassification` under the plain HF Trainer.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import interval, read
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.metrics import default_metrics, make_compute_metrics
from hf_feedback.training.run import bf16_is_fast


def run(
    system: str, seed: int, args: argparse.Namespace, data: dict[str, Any], labels: LabelSet, tokenizer: Any
) -> dict:
    """Trains one system and measures it."""
    set_seed(seed)
    about_labels = dict(num_labels=labels.num_labels, problem_type=labels.problem_type)
    options = dict(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=args.num_train_epochs,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=64,
        warmup_steps=0.1,
        weight_decay=0.01,
        seed=seed,
        bf16=bf16_is_fast(),
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=100,
    )
    if system == "plain":
        model = AutoModelForSequenceClassification.from_pretrained(args.model, **about_labels)
        trainer_class, trainer_args = Trainer, TrainingArguments(**options)
    else:
        model = FeedbackForSequenceClassification.from_backbone(
            args.model,
            num_iterations=1 if system == "K = 1" else args.num_iterations,
            feedback_topology=args.feedback_topology,
            feedback_rank=args.feedback_rank,
            **about_labels,
        )
        trainer_class, trainer_args = FeedbackTrainer, FeedbackTrainingArguments(**options)
    names = default_metrics(labels.problem_type, labels.num_labels)
    set_seed(seed)  # the same order of texts, whatever building the model drew
    trainer = trainer_class(
        model=model,
        args=trainer_args,
        train_dataset=data["train"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=make_compute_metrics(labels.problem_type, names),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    found = {"system": system, "seed": seed, "seconds": seconds}
    for split in ("validation", "test"):
        metrics = trainer.evaluate(data[split], metric_key_prefix=split)
        found.update({f"{split}_{name}": metrics[f"{split}_{name}"] for name in names})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--num-iterations", type=int, default=2)
    parser.add_argument("--feedback-topology", default="top")
    parser.add_argument("--feedback-rank", type=int, default=32)
    parser.add_argument("--num-train-epochs", type=float, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, help="also write the figures as JSON lines")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data, labels = read(args.data, tokenizer, args.max_length)
    results = []
    for seed in args.seeds:
        for system in ("plain", "K = 1", f"K = {args.num_iterations}"):
            results.append(run(system, seed, args, data, labels, tokenizer))
            print(results[-1], flush=True)
            if args.output:
                args.output.write_text("".join(json.dumps(result) + "\n" for result in results))
    keys = [key for key in results[0] if key not in ("system", "seed")]
    rows = []
    for system in dict.fromkeys(result["system"] for result in results):
        mine = [result for result in results if result["system"] == system]
        rows.append((system, *(interval([result[key] for result in mine], 4) for key in keys)))
    print(markdown_table((args.data.name, *keys), rows))


if __name__ == "__main__":
    main()
