"""Techniques of training compared with plain training: accuracy, also on adversarial texts, and seconds per step.

    python examples/benchmarks/techniques.py --data DIR/sst2 DIR/trec50 --also-test DIR/advglue_sst2/test.csv \
        --model BACKBONE --work FOLDER --seeds 0 1 2

The same feedback model is trained in the ways of `WAYS` on the first texts of each data set, with the same texts, rates
and epochs; the last epoch is tested once. The further file is for the data sets whose labels it has. Seconds are of the
processor, not of the clock. Finished runs stay in FOLDER/techniques.jsonl, one JSON line each, and are not run again.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from common import Finished, fine_tuning_parser, fit, interval, measure, read
from datasets import Dataset
from transformers import AutoTokenizer, set_seed

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.training.data.columns import find_columns
from hf_feedback.training.data.files import read_file
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.data.splits import Split
from hf_feedback.training.data.texts import encode_texts
from hf_feedback.validation import Keywords

# Options of the model, and of training.
WAYS: dict[str, tuple[Keywords, Keywords]] = {
    "plain": ({}, {}),
    "FGM": ({}, dict(adversarial="fgm")),
    "FreeLB": ({}, dict(adversarial="freelb")),
    "deep supervision": (dict(iteration_loss="uniform"), {}),
    "agreement": ({}, dict(agreement_weight=1.0)),
    "gradual unfreezing": ({}, dict(unfreeze_every="0.1 epochs")),
}


def read_further(file: Path, labels: LabelSet, tokenizer: Any, max_length: int) -> Dataset | None:
    """A further file of texts; `None` if it has other labels."""
    data = read_file(file)
    columns = find_columns(data.column_names, str(file))
    if not {str(label) for label in data[columns.label or ""]} <= set(labels.names):
        return None
    return encode_texts(Split(data, file.name), columns, tokenizer, max_length, labels)


def run(way: str, folder: Path, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Trains one way and measures it."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data, labels = read(folder, tokenizer, args.max_length)
    data["train"] = data["train"].shuffle(seed=0)
    for split, count in (("train", args.train_texts), ("test", args.test_texts)):
        data[split] = data[split].select(range(min(count or len(data[split]), len(data[split]))))
    splits = ["test"]
    further = read_further(args.also_test, labels, tokenizer, args.max_length) if args.also_test else None
    if further is not None:
        data["further"] = further
        splits.append("further")
    model_options, training_options = WAYS[way]
    set_seed(seed)
    model = FeedbackForSequenceClassification.from_backbone(
        args.model, num_labels=labels.num_labels, num_iterations=2, backbone_layers=args.backbone_layers,
        **model_options,
    )  # fmt: skip
    started = time.process_time()
    trainer = fit(
        model, data, labels, tokenizer, seed, ["accuracy"],
        num_train_epochs=args.num_train_epochs, learning_rate=args.learning_rate, feedback_lr=args.feedback_lr,
        eval_strategy="no", save_strategy="no", load_best_model_at_end=False, **training_options,
    )  # fmt: skip
    seconds = time.process_time() - started
    found = {name: 100 * value for name, value in measure(trainer, data, splits, ["accuracy"]).items()}
    return {**found, "seconds_per_step": seconds / trainer.state.global_step}


def main() -> None:
    options = fine_tuning_parser(__doc__, many_folders=True, num_train_epochs=1, max_length=32)
    options.add_argument("--also-test", type=Path, help="a further file of texts to test on")
    options.add_argument("--train-texts", type=int, default=600, help="0 for all")
    options.add_argument("--test-texts", type=int, default=500, help="0 for all")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    args = options.parse_args()
    finished, rows = Finished(args.work / "techniques.jsonl"), []
    names = ("backbone_layers", "num_train_epochs", "learning_rate", "feedback_lr", "max_length", "train_texts")
    for folder in args.data:
        for way in args.ways:
            runs = []
            for seed in args.seeds:
                settings = dict(way=way, data=folder.name, seed=seed, model=Path(args.model).name)
                settings |= {name: getattr(args, name) for name in (*names, "test_texts")}
                settings["also_test"] = str(args.also_test)
                runs.append(
                    finished.find(
                        settings,
                        "seconds_per_step",
                        lambda way=way, folder=folder, seed=seed: run(way, folder, seed, args),
                    )
                )
            cells = [
                interval([one[name] for one in runs if name in one], digits)
                for name, digits in (("test_accuracy", 1), ("further_accuracy", 1), ("seconds_per_step", 3))
            ]
            rows.append((folder.name, way, *cells))
    further = args.also_test.parent.name if args.also_test else "further"
    print(markdown_table(("data", "training", "test (%)", f"{further} (%)", "seconds a step"), rows))


if __name__ == "__main__":
    main()
