"""`hf-feedback evaluate`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from transformers import EvalPrediction

from ...prediction.example_arguments import LabelledColumnArguments, PreprocessingArguments
from ...prediction.predictions_file import check_other_file
from ...prediction.trained_model import TrainedModelArguments
from ...training.commands.options import OptionParser, options_with_model
from ...training.data.labels import LabelSet
from ...training.data.text_files import TextFormatArguments
from ...training.metrics import METRICS, format_metrics
from ...training.output_folder import check_writable
from ...training.starting_model.model_arguments import HaltingArguments
from ...validation import option
from ...whole_files import finite, whole_file
from ..class_report import format_report, has_confusion, report_of
from ..confusion_picture import check_picture, draw_confusion
from ..evaluation_run import EvaluationRun

DESCRIPTION = """Evaluate a trained model on labelled examples; the model determines the task. Prints the metrics of
training, precision, recall and F1 of each class with their averages, and calibration."""


@dataclass
class FileArgument:
    """Labelled examples."""

    file: str = field(
        metadata={"help": "CSV, TSV, JSON-lines or parquet file of examples; a folder of images or recordings."}
    )


@dataclass(kw_only=True)
class LabelledArguments(LabelledColumnArguments, PreprocessingArguments):
    """Labels and metrics (each task reads some of these)."""

    label_separator: str | None = option(
        None, "Separator of several labels in one cell, such as ; (default: as in training, else none)."
    )
    mlm_probability: float | None = option(
        None, "Share of the tokens to predict, above 0 and at most 1 (default: as in training)."
    )
    whole_word_masking: bool | None = option(
        None, "Mask either all tokens of a word or none (default: as in training)."
    )
    packing: bool | None = option(None, "Join texts into blocks (default: as in training).")
    metrics: list[str] | None = option(
        None, f"Metrics: {', '.join(METRICS)}, or others of the evaluate library (default: those that suit the labels)."
    )


@dataclass
class ResultArguments:
    """Output."""

    output: str | None = option(None, "JSON file for the metrics and the report.")
    confusion_matrix: str | None = option(None, "Picture of the confusion matrix, such as confusion.png.")
    force: bool = option(False, "Overwrite existing files.")

    def check(self, source: str) -> None:
        """Refuses to begin where the results could not be written.

        Args:
            source: the file of examples, which is not written over.

        Raises:
            ValueError: a file cannot be written, or would be lost.
        """
        for name in ("output", "confusion_matrix"):
            file = getattr(self, name)
            if file is None:
                continue
            check_writable(str(Path(file).parent), name)
            if Path(file).is_dir():
                raise ValueError(f"`{name}`: {file} is a folder; name a file.")
            check_other_file(file, source, name)
            if Path(file).exists() and not self.force:
                raise ValueError(f"`{name}`: {file} already exists; name another, or overwrite it (`--force`).")
        if self.confusion_matrix is not None:
            check_picture(self.confusion_matrix)


def make_parser(arguments: Sequence[str] = ()) -> OptionParser:
    """Returns the parser of the command."""
    parts = (
        TrainedModelArguments,
        FileArgument,
        LabelledArguments,
        TextFormatArguments,
        ResultArguments,
        HaltingArguments,
    )
    return OptionParser(parts, "hf-feedback evaluate", DESCRIPTION)


def run(arguments: Sequence[str]) -> int:
    """Runs `hf-feedback evaluate` and returns the exit status.

    Args:
        arguments: those after the name of the command; the first may be the model, or a file of options.
    """
    model, source, data, file_format, results, halting = make_parser().parse(options_with_model(arguments))
    results.check(source.file)
    options = {name: value for name, value in asdict(data).items() if value is not None}
    labelled = EvaluationRun.load(model.trained(halting), source.file, {**options, **asdict(file_format)})
    if results.confusion_matrix is not None and not has_confusion(labelled.task):
        raise ValueError(
            f"`confusion_matrix`: {model.model} does not answer with one class for each item; leave the option out."
        )
    found = labelled.predict()
    report = report_of(labelled.task, EvalPrediction(found.predictions, cast(np.ndarray, found.label_ids)))
    print(format_metrics(found.metrics or {}))
    if report is not None:
        print(f"\n{format_report(report)}")
    if results.output is not None:
        content = {"model": model.model, "file": source.file, "metrics": found.metrics, "report": report}
        with whole_file(Path(results.output)) as partial:
            partial.write_text(json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if results.confusion_matrix is not None and report is not None:
        names = LabelSet.of_model(labelled.task.model).names
        draw_confusion(report["confusion"], names, results.confusion_matrix)
    return 0
