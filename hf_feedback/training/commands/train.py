"""`hf-feedback train`, and the training scripts of all tasks."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from ...validation import option
from ..advice import advice_on_course, read_history
from ..arguments import FeedbackTrainingArguments
from ..data.splits import FileArguments
from ..dry_run import dry_run
from ..metrics import format_metrics
from ..resuming.checkpoint_choice import prepare_run
from ..run import bf16_is_fast, run_task
from ..search import RATE_SPACE
from ..starting_model.model_sources import check_source
from ..task_search import BEST_OPTIONS, SearchArguments, search_task
from ..tasks import NetworkTextClassification, Task, TextClassification
from .errors import run_command
from .options import OptionParser, options_from_file

logger = logging.get_logger(__name__)

DESCRIPTION = """Fine-tune a backbone with feedback on labelled texts, or train a feedback network from scratch with
`--fnn`. A YAML or JSON file of options may be the first argument; options of the command line win over it."""


@dataclass
class RunArguments:
    """Dry run."""

    dry_run: bool = option(
        False, "Print model, parameter groups, data and cost, then exit; nothing is trained or written."
    )


def _is_given(arguments: Sequence[str], *options: str) -> bool:
    return any(argument.split("=")[0].replace("_", "-") in options for argument in arguments)


def training_parser(
    arguments: Sequence[str],
    task: type[Task[FileArguments]],
    prog: str | None = None,
    description: str | None = None,
    more: Sequence[type] = (),
) -> OptionParser:
    """Returns the parser of model, data and training options, with the defaults of the command.

    Args:
        arguments: as on the command line, without a file of options.
        task: the task.
        prog: name of the program, for `--help`.
        description: description of the program, for `--help`.
        more: dataclasses of further options.
    """
    parts = (task.model_arguments, task.data_arguments, FeedbackTrainingArguments, *more)
    parser = OptionParser(parts, prog=prog, description=description)
    parser.set_defaults(
        bf16=bf16_is_fast() and not _is_given(arguments, "--fp16"),
        use_cpu=not torch.accelerator.is_available(),
        report_to=["none"],
        hub_strategy="end",
        learning_rate=task.model_arguments.default_learning_rate,
        backbone_lr=task.model_arguments.default_backbone_lr,
        warmup_steps=0.1,
        logging_steps=50,
        save_strategy="epoch",
        load_best_model_at_end=None,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
    )
    if _is_given(arguments, "--lora-rank"):  # adapters start at random
        parser.set_defaults(backbone_lr=None)
    if task.model_arguments.default_backbone_lr is None:
        parser.describe_default("backbone_lr", "--learning-rate")
    parser.describe_default("bf16", "where the machine is fast at it")
    parser.describe_default("use_cpu", "where there is no accelerator")
    parser.describe_default("load_best_model_at_end", "with validation data, if saved and evaluated by epoch")
    if _is_given(arguments, "--validation-file", "--validation-split", "--dataset-name"):
        parser.set_defaults(eval_strategy="epoch")
    return parser


def run_training(
    arguments: Sequence[str],
    task_class: type[Task[FileArguments]],
    prog: str | None = None,
    description: str | None = None,
) -> int:
    """Trains a model with the options of a command and prints the metrics.

    Args:
        arguments: as on the command line, without a file of options.
        task_class: the task.
        prog: name of the program, for `--help`.
        description: description of the program, for `--help`.

    Returns:
        The exit status.

    Raises:
        ValueError: an option, a file or a label is not as it must be.
        Interrupted: Ctrl-C; a checkpoint is in the output folder.
    """
    parser = training_parser(arguments, task_class, prog, description, (RunArguments, SearchArguments))
    model_args, data_args, args, run_args, search_args = parser.parse(arguments)
    task = task_class(model_args, data_args)
    task.check_training(args)
    if "backbone" in (args.freeze or ()) and _is_given(arguments, "--backbone-lr"):
        logger.warning("`backbone_lr` has no effect with `freeze` 'backbone'; leave one of them out.")
    base_model: str | None = task.model_args.model
    if base_model is not None:
        check_source(base_model, task.model_args.revision)
    if run_args.dry_run and search_args.search_trials:
        raise ValueError("`dry_run` plans one run, and `search_trials` asks for several; leave one of them out.")
    if run_args.dry_run:
        print(f"\n{dry_run(task.prepare(keeps_rows=False), args)}")
        return 0
    if search_args.search_trials:
        return _search(task, args, search_args.search_trials, arguments)
    prepare_run(args, {**vars(model_args), **vars(data_args)})
    prepared = task.prepare(announce=args.process_index == 0)
    metrics = run_task(prepared, base_model, args)
    if args.process_index == 0:
        reads_tokens = (Path(str(args.output_dir)) / "tokenizer_config.json").is_file()
        print(f"\nTrained from {base_model or 'scratch'}:")
        print(format_metrics(metrics))
        course = advice_on_course(
            read_history(Path(str(args.output_dir))), args.metric_for_best_model, args.greater_is_better
        )
        for advice in (*task.advise(prepared.splits), *course):
            print(f"\nTo try next: {advice}")
        print(f"\nModel, {'tokenizer' if reads_tokens else 'processor'} and model card are in {args.output_dir}")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads may abort a process that ends under them
    return 0


def _search(task: Task[FileArguments], args: FeedbackTrainingArguments, n_trials: int, arguments: Sequence[str]) -> int:
    """Searches for options, prints the best, and returns the exit status."""
    given = [name for name in RATE_SPACE if _is_given(arguments, f"--{name.replace('_', '-')}")]
    study = search_task(task, args, n_trials, given)
    best, finished = study.best_trial, [trial for trial in study.trials if trial.state.is_finished()]
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in best.params.items())
    print(
        f"\nBest of {len(finished)} trials (number {best.number}): {args.metric_for_best_model} {best.value:.4f}"
        f"\n\nTo train with its options, put them in place of `--search-trials`, with another `--output-dir`:"
        f"\n  {options}\n\nThey are in {Path(str(args.output_dir)) / BEST_OPTIONS} too."
    )
    return 0


def _task_of(arguments: Sequence[str]) -> type[Task[FileArguments]]:
    return NetworkTextClassification if _is_given(arguments, "--fnn") else TextClassification


def make_parser(arguments: Sequence[str]) -> OptionParser:
    """Returns the parser of the command.

    Args:
        arguments: those after the name of the command; `--fnn` decides which others there are.
    """
    return training_parser(
        arguments, _task_of(arguments), "hf-feedback train", DESCRIPTION, (RunArguments, SearchArguments)
    )


def run(arguments: Sequence[str]) -> int:
    """Runs `hf-feedback train` and returns the exit status.

    Args:
        arguments: those after the name of the command.
    """
    arguments = options_from_file(arguments)
    return run_training(arguments, _task_of(arguments), "hf-feedback train", DESCRIPTION)


def run_script(
    task: type[Task[FileArguments]], description: str | None = None, arguments: Sequence[str] | None = None
) -> int:
    """Runs a training script and returns its exit status; wrong input is one line on stderr.

    Args:
        task: the task.
        description: docstring of the script, for `--help`.
        arguments: those of the command line by default.
    """

    def command(parts: Sequence[str]) -> int:
        return run_training(options_from_file(parts), task, description=description)

    return run_command(command, sys.argv[1:] if arguments is None else arguments)
