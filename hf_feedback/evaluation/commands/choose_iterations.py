"""`hf-feedback choose-iterations`."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from transformers.utils import logging

from ...modeling_base import FeedbackPreTrainedModel
from ...prediction.trained_model import TrainedModel
from ...training.commands.options import OptionParser, options_with_model
from ...training.data.text_files import TextFormatArguments
from ...training.metrics import METRICS
from ...training.tasks import NetworkTextClassification, TextClassification
from ...training.tasks.text_classification import LabelArguments
from ...validation import check_integer, option
from ..evaluation_run import EvaluationRun
from ..iteration_choice import candidates, choose, measure_choice, save_choice
from ..markdown_tables import markdown_table

logger = logging.get_logger(__name__)

SHARES = ("accuracy", "macro_f1")  # metrics that are shown in percent

DESCRIPTION = """Choose the number of iterations and the halting rule of a trained text classifier: every K and every
rule is evaluated on a file of labelled texts, and the fastest whose metric is within a tolerance of the best is chosen.
Use validation data: a choice made on test data overestimates the metric there."""


@dataclass
class IterationChoiceArguments:
    """Model, examples and time budget."""

    model: str = field(metadata={"help": "Folder or hub id of a trained model; also as the first argument."})
    file: str = field(metadata={"help": "CSV, TSV, JSON-lines or parquet file of labelled texts."})
    revision: str | None = option(None, "Branch, tag or commit of the hub repository.")
    batch_size: int = option(32, "Number of texts per batch.")
    milliseconds: float | None = option(
        None, "Time budget per text in milliseconds, on this machine and with this batch size (default: none)."
    )
    max_iterations: int | None = option(None, "Largest K to try (default: two more than the model's own).")
    tolerance: float = option(
        0.5, "Points (hundredths) of the metric by which a faster choice may be worse than the best one."
    )
    save: bool = option(False, "Write the choice into the config of the model, which must be a folder.")

    def __post_init__(self) -> None:
        if self.max_iterations is not None:
            check_integer("max_iterations", self.max_iterations, 1, "the largest K that is tried")
        if self.milliseconds is not None and not 0 < self.milliseconds < math.inf:
            raise ValueError(f"`milliseconds` must be a finite number above 0, got {self.milliseconds}.")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"`tolerance` must be a finite number of at least 0, got {self.tolerance}.")
        if self.save and not Path(self.model).is_dir():
            raise ValueError(f"`save` writes into a folder, and {self.model} is not one; download the model first.")


def make_parser(arguments: Sequence[str] = ()) -> OptionParser:
    """Returns the parser of the command."""
    parts = (IterationChoiceArguments, LabelArguments, TextFormatArguments)
    return OptionParser(parts, "hf-feedback choose-iterations", DESCRIPTION)


def format_metric(name: str, value: float) -> str:
    """Returns the value of a metric as the table shows it.

    Args:
        name: name of the metric.
        value: its value.

    Example:

    ```python
    >>> format_metric("accuracy", 0.9), format_metric("pearson", -0.203)
    ('90.0', '-0.203')

    ```
    """
    return f"{100 * value:.1f}" if name in SHARES else f"{value:.3f}"


def run(arguments: Sequence[str]) -> int:
    """Runs `hf-feedback choose-iterations` and returns the exit status.

    Args:
        arguments: those after the name of the command; the first may be the model, or a file of options.
    """
    args, label_args, file_format = make_parser().parse(options_with_model(arguments))
    trained = TrainedModel(args.model, args.revision, batch_size=args.batch_size)
    task = trained.task()
    if not issubclass(task, TextClassification):
        raise ValueError(f"`model`: {args.model} is {task.card.model_with_article}, and no text classifier.")
    if issubclass(task, NetworkTextClassification):
        raise ValueError(f"`model`: {args.model} has no pretrained backbone, and does not halt by itself.")
    if label_args.metrics and label_args.metrics[0] not in METRICS:
        logger.warning(f"`metrics`: the most of {label_args.metrics[0]} is taken as the best.")
    options = {name: value for name, value in asdict(label_args).items() if value is not None}
    labelled = EvaluationRun.load(trained, args.file, {**options, **asdict(file_format)})
    trainer, data = labelled.trainer, labelled.data
    model = cast(FeedbackPreTrainedModel, trainer.model)
    metric, choices = next(iter(labelled.task.metrics)), []
    for options in candidates(args.max_iterations or model.config.num_iterations + 2, model.config):
        choices.append(measure_choice(trainer, data, options))
        print(f"{choices[-1].name}: {format_metric(metric, choices[-1].metric)}", flush=True)
    choice = choose(choices, args.milliseconds, args.tolerance / 100)
    rows = [
        (
            one.name.replace("|", r"\|"),
            format_metric(metric, one.metric),
            f"{one.iterations:.2f}",
            f"{one.milliseconds:.2f}",
            "←" * (one is choice),
        )
        for one in choices
    ]
    heading = f"{metric} (%)" if metric in SHARES else metric
    print("\n" + markdown_table(("options", heading, "iterations", "ms a text", "chosen"), rows))
    if args.save:
        save_choice(args.model, choice)
        print(f"\n{args.model} now answers with {choice.name}.")
    else:
        given = [part for name, value in choice.options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        print(f"\nTo use it: {shlex.join(given)}, or this command with --save.")
    return 0
