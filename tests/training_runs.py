"""What tests of training share: files of labelled texts, the training command, tiny models, data and arguments."""

import csv
import json

import torch
from datasets import Dataset
from families import tiny_backbone, tiny_batch

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.training import FeedbackTrainingArguments

WORDS = {"late": "where is my parcel", "lost": "the refund has not come", "fine": "please help it"}


def rows(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = list(WORDS)
    found = []
    for i in range(count):
        words = WORDS[labels[i % 3]].split()
        order = torch.randperm(len(words), generator=generator).tolist()
        found.append({"text": " ".join(words[j] for j in order), "label": labels[i % 3]})
    return found


def write(folder, name, records):
    """Writes records in the format that the name's ending says."""
    file = folder / name
    if file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(record) for record in records))
    elif file.suffix == ".parquet":
        Dataset.from_list(records).to_parquet(file)
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return str(file)


def train_command(backbone, folder, *more, train="train.csv", validation="validation.csv"):
    files = ["--train-file", train] + (["--validation-file", validation] if validation else [])
    fast = "--num-train-epochs 2 --per-device-train-batch-size 8 --disable-tqdm True --feedback-rank 4 --bf16 False"
    return ["train", "--model", backbone, *files, "--output-dir", str(folder), *fast.split(), *more]


def make(family="bert", **options):
    options = {"feedback_rank": 8, "num_labels": 3, **options}
    return FeedbackForSequenceClassification.from_backbone(tiny_backbone(family), **options)


def tiny_data(count=24):
    rows = []
    for seed in range(count // 2):
        batch = tiny_batch(seed)
        rows += [
            {"input_ids": batch["input_ids"][i], "attention_mask": batch["attention_mask"][i], "labels": (seed + i) % 3}
            for i in range(2)
        ]
    return rows


def arguments(folder, **options):
    defaults = dict(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
    )
    return FeedbackTrainingArguments(**{**defaults, **options})
