"""`hf-feedback train | evaluate | predict`."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from .training.answering import Answering
from .training.arguments import (
    DataArguments,
    FeedbackTrainingArguments,
    LabelArguments,
    ModelArguments,
    TextArguments,
)
from .training.classification import Interrupted, bf16_is_fast, train

USAGE = """usage: hf-feedback {train,evaluate,predict} ...

  train     fine-tune a backbone with feedback on labelled texts
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


def _parser(command: str, *parts: Any) -> HfArgumentParser:
    return HfArgumentParser(list(parts), prog=f"hf-feedback {command}")


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Metrics as a table, one a line; what the Trainer counts besides is left out."""
    besides = ("_flos", "_per_second", "_preparation_time", "epoch")
    rows = [(k, f"{v:.4f}" if isinstance(v, float) else str(v)) for k, v in metrics.items() if not k.endswith(besides)]
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"  {key.ljust(width)}  {value}" for key, value in rows)


def _from_file(arguments: Sequence[str]) -> list[str]:
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


def run_train(arguments: Sequence[str]) -> int:
    """`hf-feedback train`, also behind `examples/run_classification.py`. Returns the exit status."""
    arguments = _from_file(arguments)
    parser = _parser("train", ModelArguments, DataArguments, FeedbackTrainingArguments)
    use_bf16 = bf16_is_fast() and not any(argument.startswith("--fp16") for argument in arguments)
    parser.set_defaults(bf16=use_bf16, use_cpu=not torch.accelerator.is_available(), report_to=["none"])
    if any(argument.replace("_", "-").startswith(("--validation-file", "--dataset-name")) for argument in arguments):
        parser.set_defaults(eval_strategy="epoch")
    parser.set_defaults(hub_strategy="end")  # the code files come with the finished model
    parser.set_defaults(learning_rate=5e-5, warmup_steps=0.1, logging_steps=50, save_strategy="epoch")
    parser.set_defaults(per_device_train_batch_size=16, per_device_eval_batch_size=32)
    model_args, data_args, args = parser.parse_args_into_dataclasses(arguments)
    found = train(model_args, data_args, args)
    if args.process_index == 0:
        print(f"\nTrained from {model_args.model}:")
        print(format_metrics(found))
        print(f"\nModel, tokenizer and model card are in {args.output_dir}")
    return 0


def _answering(args: InferenceArguments, text_args: TextArguments) -> Answering:
    return Answering(args=text_args, **vars(args))


def run_evaluate(arguments: Sequence[str]) -> int:
    """`hf-feedback evaluate`. Returns the exit status."""
    args, label_args = _parser("evaluate", InferenceArguments, LabelArguments).parse_args_into_dataclasses(arguments)
    print(format_metrics(_answering(args, label_args).evaluate()))
    return 0


def run_predict(arguments: Sequence[str]) -> int:
    """`hf-feedback predict`. Returns the exit status."""
    parser = _parser("predict", InferenceArguments, TextArguments, OutputArguments)
    args, text_args, output_args = parser.parse_args_into_dataclasses(arguments)
    count = _answering(args, text_args).predict(output_args.output)
    print(f"{count} predictions are in {output_args.output}")
    return 0


COMMANDS = {"train": run_train, "evaluate": run_evaluate, "predict": run_predict}


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `hf-feedback`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] not in COMMANDS:
        asked = not arguments or arguments[0] in ("-h", "--help")
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return guarded(COMMANDS[arguments[0]], arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
