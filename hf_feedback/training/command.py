"""What the training commands and scripts share: options, their defaults, and messages instead of tracebacks."""

import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .arguments import FeedbackTrainingArguments, ModelArguments
from .networks import FNNArguments
from .options import OptionParser, options_from_file
from .run import Interrupted, bf16_is_fast
from .sources import check_source

Train = Callable[[Any, Any, FeedbackTrainingArguments], dict[str, Any]]


class _HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Keeps the lines of a script's docstring, and shows the defaults."""


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Metrics as a table, one a line; what the Trainer counts besides is left out."""
    besides = ("_flos", "_per_second", "_preparation_time", "epoch")
    rows = [(k, f"{v:.4f}" if isinstance(v, float) else str(v)) for k, v in metrics.items() if not k.endswith(besides)]
    width = max((len(key) for key, _ in rows), default=0)
    return "\n".join(f"  {key.ljust(width)}  {value}" for key, value in rows)


def parse_training(
    arguments: Sequence[str],
    data_arguments: Any,
    prog: str | None = None,
    description: str | None = None,
    model_arguments: type[ModelArguments | FNNArguments] = ModelArguments,
) -> tuple[ModelArguments | FNNArguments, Any, FeedbackTrainingArguments]:
    """Model, data and training arguments; what is left out gets the defaults of `hf-feedback train`.

    Args:
        arguments: as on the command line.
        data_arguments: the dataclass of the task's data options.
        prog, description: for `--help`.
        model_arguments: the dataclass of the model's options.

    Raises:
        ValueError: an option is unknown, missing or has a wrong value.
    """
    parts: list[Any] = [model_arguments, data_arguments, FeedbackTrainingArguments]
    parser = OptionParser(
        parts,
        prog=prog,
        description=description,
        formatter_class=_HelpFormatter,
    )
    use_bf16 = bf16_is_fast() and not any(argument.split("=")[0] == "--fp16" for argument in arguments)
    parser.set_defaults(bf16=use_bf16, use_cpu=not torch.accelerator.is_available(), report_to=["none"])
    if any(argument.replace("_", "-").startswith(("--validation-file", "--dataset-name")) for argument in arguments):
        parser.set_defaults(eval_strategy="epoch")
    parser.set_defaults(hub_strategy="end")
    learning_rate = getattr(model_arguments, "learning_rate", 5e-5)
    parser.set_defaults(learning_rate=learning_rate, warmup_steps=0.1, logging_steps=50, save_strategy="epoch")
    parser.set_defaults(per_device_train_batch_size=16, per_device_eval_batch_size=32)
    model_args, data_args, args = parser.parse(arguments)
    return model_args, data_args, args


def run_training(
    arguments: Sequence[str],
    data_arguments: Any,
    train: Train,
    prog: str | None = None,
    description: str | None = None,
    model_arguments: type[ModelArguments | FNNArguments] = ModelArguments,
) -> int:
    """Trains as the arguments say and prints the metrics. Returns the exit status.

    Args:
        arguments: as on the command line, without a file of options.
        data_arguments, prog, description, model_arguments: as in `parse_training`.
        train: the task.
    """
    model_args, data_args, args = parse_training(arguments, data_arguments, prog, description, model_arguments)
    if model_args.model is not None:
        check_source(model_args.model, model_args.revision)
    found = train(model_args, data_args, args)
    if args.process_index == 0:
        print(f"\nTrained from {model_args.model or 'scratch'}:")
        print(format_metrics(found))
        print(f"\nModel, {'tokenizer' if _reads_tokens(args) else 'processor'} and model card are in {args.output_dir}")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads may abort a process that ends under them
    return 0


def _reads_tokens(args: FeedbackTrainingArguments) -> bool:
    return (Path(str(args.output_dir)) / "tokenizer_config.json").is_file()


def about_user_error(error: Exception) -> str | None:
    """In one line, what whoever gave the command can mend; `None` for a mistake of the program."""
    words = " ".join(str(error).split())
    if isinstance(error, ImportError):
        ours = (error.name or "").split(".")[0] == __name__.split(".")[0]
        return None if ours else f"a package is missing: {words}"
    if isinstance(error, ValueError | OSError):
        return words
    if isinstance(error, RuntimeError) and "to be installed" in words:  # transformers' callbacks for logs
        return f"a package is missing: {words}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in words:
        return f"there is not enough memory ({words.split('. ')[0]}); use a smaller batch or model."
    return None


def guarded(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs a command; what is wrong with its input is one line on stderr and exit status 2."""
    try:
        return command(arguments)
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except Exception as error:
        line = about_user_error(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2


def script(train: Train, data_arguments: Any, description: str | None, arguments: Sequence[str] | None = None) -> int:
    """The whole of a training script: options, training, messages. Returns the exit status.

    Args:
        train: the task.
        data_arguments: the dataclass of its data options.
        description: for `--help`; the script's docstring.
        arguments: those of the command line by default.
    """
    given = sys.argv[1:] if arguments is None else arguments
    return guarded(
        lambda found: run_training(options_from_file(found), data_arguments, train, description=description), given
    )
