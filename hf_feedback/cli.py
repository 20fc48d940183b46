"""`hf-feedback train | evaluate | predict`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from .training.answering import Answering
from .training.arguments import DataArguments, HaltingArguments, LabelArguments, TextArguments
from .training.classification import train
from .training.command import format_metrics, guarded, run_training
from .training.networks import FNNArguments
from .training.options import OptionParser, options_from_file

USAGE = """usage: hf-feedback {train,evaluate,predict} ...

  train     fine-tune a backbone with feedback on labelled texts; with `--fnn temporal` or `--fnn layered`, train a
            feedback network from scratch (`hf-feedback train --fnn temporal --help` lists its options)
  evaluate  measure a trained model on labelled texts
  predict   answer for texts, as JSON lines

`hf-feedback COMMAND --help` lists the options. Every option of transformers' TrainingArguments works with `train`,
which also takes a YAML or JSON file of options as its first argument."""


@dataclass
class InferenceArguments:
    """Options of `evaluate` and `predict`."""

    model: str = field(metadata={"help": "Folder or hub id of a trained model."})
    file: str = field(metadata={"help": "CSV, TSV, JSON-lines or parquet file of texts."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the hub repository."})
    batch_size: int = field(default=32, metadata={"help": "Texts a batch."})
    num_iterations: int | None = field(default=None, metadata={"help": "K; the model's own if left out."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})


@dataclass
class OutputArguments:
    """Where `predict` writes."""

    output: str = field(default="predictions.jsonl", metadata={"help": "JSON-lines file to write."})
    force: bool = field(default=False, metadata={"help": "Write over a file that is there."})


def _parser(command: str, *parts: Any) -> OptionParser:
    return OptionParser(list(parts), prog=f"hf-feedback {command}")


def run_train(arguments: Sequence[str]) -> int:
    """`hf-feedback train`, also behind `examples/run_classification.py`. Returns the exit status."""
    given = options_from_file(arguments)
    if any(argument.split("=")[0] == "--fnn" for argument in given):
        return run_training(given, DataArguments, train, prog="hf-feedback train", model_arguments=FNNArguments)
    return run_training(given, DataArguments, train, prog="hf-feedback train")


def _answering(args: InferenceArguments, halting: HaltingArguments, text_args: TextArguments) -> Answering:
    return Answering(args=text_args, halting=halting.halting_options(), **vars(args))


def run_evaluate(arguments: Sequence[str]) -> int:
    """`hf-feedback evaluate`. Returns the exit status."""
    parser = _parser("evaluate", InferenceArguments, HaltingArguments, LabelArguments)
    print(format_metrics(_answering(*parser.parse(arguments)).evaluate()))
    return 0


def run_predict(arguments: Sequence[str]) -> int:
    """`hf-feedback predict`. Returns the exit status."""
    parser = _parser("predict", InferenceArguments, HaltingArguments, TextArguments, OutputArguments)
    *given, output_args = parser.parse(arguments)
    count = _answering(*given).predict(output_args.output, output_args.force)
    print(f"{count} predictions are in {output_args.output}")
    return 0


COMMANDS = {"train": run_train, "evaluate": run_evaluate, "predict": run_predict}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `hf-feedback`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] not in COMMANDS:
        close = get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(COMMANDS)}."
        print(f"error: there is no command {arguments[0]}; {hint}", file=sys.stderr)
        return 2
    return guarded(COMMANDS[arguments[0]], arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
