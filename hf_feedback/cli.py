"""`hf-feedback train | evaluate | predict`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import HfArgumentParser

from .training.arguments import DataArguments, FeedbackTrainingArguments, ModelArguments
from .training.classification import Interrupted, bf16_is_fast, evaluate, predict, train

USAGE = """usage: hf-feedback {train,evaluate,predict} ...

  train     fine-tune a backbone with feedback on labelled texts
  evaluate  measure a trained model on labelled texts
  predict   answer for texts, as JSON lines

`hf-feedback COMMAND --help` lists the options. Every option of transformers' TrainingArguments works with `train`."""


@dataclass
class InferenceArguments:
    """Options of `evaluate` and `predict`."""

    model: str = field(metadata={"help": "Folder or hub id of a trained model."})
    file: str = field(metadata={"help": "CSV, TSV, JSON-lines or parquet file of texts."})
    output: str = field(default="predictions.jsonl", metadata={"help": "Where `predict` writes its JSON lines."})
    batch_size: int = field(default=32, metadata={"help": "Texts a batch."})
    num_iterations: int | None = field(default=None, metadata={"help": "K; the model's own if left out."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})


def _parser(command: str, *parts: Any) -> HfArgumentParser:
    return HfArgumentParser(list(parts), prog=f"hf-feedback {command}")


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Metrics as a table, one a line."""
    rows = [(k, f"{v:.4f}" if isinstance(v, float) else str(v)) for k, v in metrics.items()]
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"  {key.ljust(width)}  {value}" for key, value in rows)


def run_train(arguments: Sequence[str] | None = None) -> int:
    """`hf-feedback train`, also behind `examples/run_classification.py`. Returns the exit status."""
    parser = _parser("train", ModelArguments, DataArguments, FeedbackTrainingArguments)
    parser.set_defaults(
        bf16=bf16_is_fast(),
        use_cpu=not torch.accelerator.is_available(),
        report_to=["none"],
        logging_steps=50,
        learning_rate=5e-5,
    )
    parser.set_defaults(
        save_strategy="epoch", per_device_train_batch_size=16, per_device_eval_batch_size=32, warmup_steps=0.1
    )
    if arguments is None and len(sys.argv) == 2 and sys.argv[1].endswith((".json", ".yaml", ".yml")):
        read = parser.parse_json_file if sys.argv[1].endswith(".json") else parser.parse_yaml_file
        model_args, data_args, args = read(sys.argv[1])
    else:
        model_args, data_args, args = parser.parse_args_into_dataclasses(arguments)
    found = train(model_args, data_args, args)
    if args.process_index == 0:
        print(f"\nTrained from {model_args.model}:")
        print(
            format_metrics({key: value for key, value in found.items() if not key.endswith(("_flos", "_per_second"))})
        )
        print(f"\nModel, tokenizer and model card are in {args.output_dir}")
    return 0


def run_evaluate(arguments: Sequence[str] | None = None) -> int:
    """`hf-feedback evaluate`. Returns the exit status."""
    parser = _parser("evaluate", InferenceArguments, DataArguments)
    args, data_args = parser.parse_args_into_dataclasses(arguments)
    found = evaluate(args.model, args.file, data_args, args.batch_size, args.num_iterations, args.bf16)
    print(format_metrics(found))
    return 0


def run_predict(arguments: Sequence[str] | None = None) -> int:
    """`hf-feedback predict`. Returns the exit status."""
    parser = _parser("predict", InferenceArguments, DataArguments)
    args, data_args = parser.parse_args_into_dataclasses(arguments)
    count = predict(args.model, args.file, args.output, data_args, args.batch_size, args.num_iterations, args.bf16)
    print(f"{count} predictions are in {args.output}")
    return 0


COMMANDS = {"train": run_train, "evaluate": run_evaluate, "predict": run_predict}


def guarded(command: Any, arguments: Sequence[str] | None = None) -> int:
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
