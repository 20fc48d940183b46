"""Fine-tune an audio backbone with feedback to tell recordings apart.

    python examples/run_audio_classification.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/tones/train.parquet --validation-file examples/data/tones/validation.parquet

Files: parquet with a column of recordings (the bytes of WAV files) and one of labels, or a folder with one folder of
WAV files a class. Recordings are brought to one channel and the sampling rate of the model. Works under
`accelerate launch` and `torchrun` too, with all options of `hf-feedback train`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Audio, Dataset
from transformers import AutoConfig, AutoFeatureExtractor, DataCollatorWithPadding

from hf_feedback import FeedbackForAudioClassification
from hf_feedback.training import FeedbackTrainingArguments
from hf_feedback.training.arguments import FileArguments, ModelArguments
from hf_feedback.training.command import script
from hf_feedback.training.data import read_splits
from hf_feedback.training.labels import LabelSet, classes_of, label_numbers
from hf_feedback.training.media import as_bytes, bytes_of, read_media, read_wave
from hf_feedback.training.metrics import make_compute_metrics
from hf_feedback.training.run import Split, Task, prepare_run, run_task
from hf_feedback.training.sources import hub_options
from hf_feedback.training.starting import make_model


@dataclass
class AudioArguments(FileArguments):
    """What of a file is what."""

    audio_column: str = field(default="audio", metadata={"help": "Column of the recordings."})
    label_column: str = field(default="label", metadata={"help": "Column of the labels."})
    max_seconds: float = field(default=20.0, metadata={"help": "Cut recordings at so many seconds."})


def encode(data: Dataset, source: str, args: AudioArguments, extractor: Any, labels: LabelSet) -> Dataset:
    """Recordings → what the feature extractor makes of their waves, and `labels`."""
    rate = extractor.sampling_rate

    def extract(row: dict[str, Any]) -> dict[str, Any]:
        wave = read_wave(bytes_of(row[args.audio_column]), rate)[: max(1, int(args.max_seconds * rate))]
        return {name: values[0] for name, values in extractor(wave, sampling_rate=rate).items()}

    numbers = label_numbers(data, args.label_column, labels, source)
    return data.map(extract, remove_columns=data.column_names, load_from_cache_file=False).add_column("labels", numbers)


def train(model_args: ModelArguments, data_args: AudioArguments, args: FeedbackTrainingArguments) -> dict[str, Any]:
    """Fine-tunes, evaluates and saves; see `run_task`."""
    prepare_run(args)
    if not data_args.max_seconds > 0:
        raise ValueError(f"`max_seconds` must be above 0, got {data_args.max_seconds}.")
    read = {
        split: (as_bytes(data, data_args.audio_column, Audio(decode=False), source, read_wave), source)
        for split, (data, source) in read_splits(data_args, partial(read_media, kind="audiofolder")).items()
    }
    labels = classes_of(*read["train"], data_args.label_column)
    if args.process_index == 0:
        columns = f"recordings in {data_args.audio_column!r}, labels in {data_args.label_column!r}"
        print(f"{read['train'][1]}: {columns}; {labels}", flush=True)
    hub = hub_options(model_args.revision)
    extractor = AutoFeatureExtractor.from_pretrained(model_args.model, **hub)
    backbone = AutoConfig.from_pretrained(model_args.model, **hub)
    # layers that are skipped at random cannot be looped
    overrides = {"layerdrop": 0.0} if getattr(backbone, "layerdrop", 0.0) else None
    model = make_model(FeedbackForAudioClassification, model_args, labels, overrides)
    names = ["accuracy", "macro_f1"]
    compute_metrics = make_compute_metrics("single_label_classification", names)
    known = LabelSet.of_model(model)
    task = Task(
        model=model,
        processor=extractor,
        splits={
            split: Split(encode(data, source, data_args, extractor, known), source, None, compute_metrics)
            for split, (data, source) in read.items()
        },
        collator=DataCollatorWithPadding(extractor),
        metrics=dict.fromkeys(names, True),
    )
    return run_task(task, model_args, args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return script(train, AudioArguments, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
