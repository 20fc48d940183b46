"""Fine-tune a vision backbone with feedback to tell images apart.

    python examples/run_image_classification.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/shapes/train.parquet --validation-file examples/data/shapes/validation.parquet

Files: parquet with a column of images (PNG or JPEG bytes) and one of labels, or a folder with one folder of images a
class. Images are prepared as the model's own image processor says, without augmentation. Works under
`accelerate launch` and `torchrun` too, with all options of `hf-feedback train`. Needs Pillow (the extra `vision`).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from transformers import AutoImageProcessor

from hf_feedback import FeedbackForImageClassification
from hf_feedback.training import FeedbackTrainingArguments
from hf_feedback.training.arguments import FileArguments, ModelArguments
from hf_feedback.training.command import script
from hf_feedback.training.data import read_splits
from hf_feedback.training.labels import LabelSet, classes_of, label_numbers
from hf_feedback.training.media import as_bytes, read_media
from hf_feedback.training.metrics import make_compute_metrics
from hf_feedback.training.run import Split, Task, prepare_run, run_task
from hf_feedback.training.sources import hub_options
from hf_feedback.training.starting import make_model


@dataclass
class ImageArguments(FileArguments):
    """What of a file is what."""

    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    label_column: str = field(default="label", metadata={"help": "Column of the labels."})


def check_image(content: bytes) -> None:
    """Raises where the bytes are no image."""
    PILImage.open(BytesIO(content)).verify()


def encode(data: Dataset, source: str, args: ImageArguments, labels: LabelSet) -> Dataset:
    """Images, to be decoded when a batch needs them, and `labels`."""
    numbers = label_numbers(data, args.label_column, labels, source)
    images = data.select_columns([args.image_column]).cast_column(args.image_column, Image(mode="RGB"))
    return images.add_column("labels", numbers)


class ImageCollator:
    """Images → `pixel_values`, as the processor prepares them.

    Args:
        processor: the model's image processor.
        column: of the images.
    """

    def __init__(self, processor: Any, column: str) -> None:
        self.processor, self.column = processor, column

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = self.processor([row[self.column] for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


def train(model_args: ModelArguments, data_args: ImageArguments, args: FeedbackTrainingArguments) -> dict[str, Any]:
    """Fine-tunes, evaluates and saves; see `run_task`."""
    prepare_run(args)
    read = {
        split: (as_bytes(data, data_args.image_column, Image(decode=False), source, check_image), source)
        for split, (data, source) in read_splits(data_args, partial(read_media, kind="imagefolder")).items()
    }
    labels = classes_of(*read["train"], data_args.label_column)
    if args.process_index == 0:
        columns = f"images in {data_args.image_column!r}, labels in {data_args.label_column!r}"
        print(f"{read['train'][1]}: {columns}; {labels}", flush=True)
    processor = AutoImageProcessor.from_pretrained(model_args.model, **hub_options(model_args.revision))
    model = make_model(FeedbackForImageClassification, model_args, labels)
    names = ["accuracy", "macro_f1"]
    compute_metrics = make_compute_metrics("single_label_classification", names)
    args.remove_unused_columns = False  # the collator makes the model's inputs of them
    task = Task(
        model=model,
        processor=processor,
        splits={
            split: Split(encode(data, source, data_args, LabelSet.of_model(model)), source, None, compute_metrics)
            for split, (data, source) in read.items()
        },
        collator=ImageCollator(processor, data_args.image_column),
        metrics=dict.fromkeys(names, True),
    )
    return run_task(task, model_args, args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return script(train, ImageArguments, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
