"""What the training commands and scripts share: options, their defaults, and messages instead of tracebacks."""

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from .arguments import FeedbackTrainingArguments, ModelArguments
from .networks import FNNArguments
from .run import Interrupted, bf16_is_fast

Train = Callable[[Any, Any, FeedbackTrainingArguments], dict[str, Any]]


class _HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Keeps the lines of a script's docstring, and shows the defaults."""


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Metrics as a table, one a line; what the Trainer counts besides is left out."""
    besides = ("_flos", "_per_second", "_preparation_time", "epoch")
    rows = [(k, f"{v:.4f}" if isinstance(v, float) else str(v)) for k, v in metrics.items() if not k.endswith(besides)]
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"  {key.ljust(width)}  {value}" for key, value in rows)


def options_from_file(arguments: Sequence[str]) -> list[str]:
    """Options, with those of a leading YAML or JSON file (`{"model": …, "freeze": ["embeddings"]}`) before them."""
    if not arguments or not arguments[0].endswith((".json", ".yaml", ".yml")):
        return list(arguments)
    try:
        values = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))  # JSON is YAML too
    except yaml.YAMLError as error:
        raise ValueError(f"{arguments[0]}: cannot be read ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{arguments[0]}: must hold option names with their values.")
    found: list[str] = []
    for key, value in values.items():
        name = key.replace("-", "_")
        if name == "feedback_rank" and value is None:
            value = "none"
        if value is None or value == []:  # as if it were not there
            continue
        if name.endswith("strategy") and value is False:  # YAML reads `no` as false
            value = "no"
        if name == "learning_rate_mapping":  # YAML reads 1e-5 as text
            value = {pattern: float(rate) for pattern, rate in value.items()}
        if isinstance(value, dict) or name == "feedback_edges":
            value = json.dumps(value)
        found += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return [*found, *arguments[1:]]


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
    """
    parts: list[Any] = [model_arguments, data_arguments, FeedbackTrainingArguments]
    parser = HfArgumentParser(
        parts,
        prog=prog,
        description=description,
        formatter_class=_HelpFormatter,
    )
    use_bf16 = bf16_is_fast() and not any(argument.startswith("--fp16") for argument in arguments)
    parser.set_defaults(bf16=use_bf16, use_cpu=not torch.accelerator.is_available(), report_to=["none"])
    if any(argument.replace("_", "-").startswith(("--validation-file", "--dataset-name")) for argument in arguments):
        parser.set_defaults(eval_strategy="epoch")
    parser.set_defaults(hub_strategy="end")
    learning_rate = getattr(model_arguments, "learning_rate", 5e-5)
    parser.set_defaults(learning_rate=learning_rate, warmup_steps=0.1, logging_steps=50, save_strategy="epoch")
    parser.set_defaults(per_device_train_batch_size=16, per_device_eval_batch_size=32)
    return parser.parse_args_into_dataclasses(arguments)  # type: ignore[return-value]


def run_training(
    arguments: Sequence[str],
    data_arguments: Any,
    train: Train,
    prog: str | None = None,
    description: str | None = None,
    model_arguments: type[ModelArguments | FNNArguments] = ModelArguments,
) -> int:
    """Trains as the arguments say and prints the metrics. Returns the exit status."""
    model_args, data_args, args = parse_training(
        options_from_file(arguments), data_arguments, prog, description, model_arguments
    )
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
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
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
    return guarded(lambda found: run_training(found, data_arguments, train, description=description), given)
