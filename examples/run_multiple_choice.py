"""Fine-tune a backbone with feedback to choose the text that goes on best.

    python examples/run_multiple_choice.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/replies/train.jsonl --validation-file examples/data/replies/validation.jsonl

Files: JSON lines (or parquet) of {"context": "...", "choices": ["...", "...", "..."], "label": 2}; the label is the
number of the right choice, counted from 0, and all rows have the same number of choices. Works under
`accelerate launch` and `torchrun` too, with all options of `hf-feedback train`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import DataCollatorForMultipleChoice, PreTrainedTokenizerBase

from hf_feedback import FeedbackForMultipleChoice
from hf_feedback.training import FeedbackTrainingArguments
from hf_feedback.training.arguments import FileArguments, ModelArguments
from hf_feedback.training.command import script
from hf_feedback.training.data import check_rows, read_splits
from hf_feedback.training.label_names import label_name
from hf_feedback.training.metrics import make_compute_metrics
from hf_feedback.training.run import Split, Task, prepare_run, run_task
from hf_feedback.training.starting import load_tokenizer, make_model, max_length_of, set_padding


@dataclass
class ChoiceArguments(FileArguments):
    """How texts are cut."""

    max_length: int | None = field(default=None, metadata={"help": "Cut context and choice at so many tokens."})


def check(data: Dataset, source: str) -> None:
    """Refuses rows that are not as they must be."""
    first = data[0].get("choices")
    count = len(first) if isinstance(first, list) else 0

    def fault(context: Any, choices: Any, label: Any) -> str | None:
        if not isinstance(context, str):
            return f"`context` must be a text, got {context!r}"
        if not (isinstance(choices, list) and len(choices) >= 2 and all(isinstance(text, str) for text in choices)):
            return f"`choices` must be a list of at least two texts, got {choices!r}"
        if len(choices) != count:
            return f"`choices` has {len(choices)} texts, row 1 has {count}; all rows must have the same number"
        if label_name(label) not in map(str, range(count)):
            return f"`label` must be the number of the right choice, 0 to {count - 1}, got {label!r}"
        return None

    check_rows(data, source, ("context", "choices", "label"), fault)


def encode(data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Every choice as a pair with its context: `(choices, tokens)` ids a row."""

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        contexts = [row["context"]] * len(row["choices"])
        found = tokenizer(contexts, row["choices"], truncation=True, max_length=max_length)
        return {**found, "labels": int(label_name(row["label"]))}

    return data.map(tokenize, remove_columns=data.column_names, load_from_cache_file=False)


def train(model_args: ModelArguments, data_args: ChoiceArguments, args: FeedbackTrainingArguments) -> dict[str, Any]:
    """Fine-tunes, evaluates and saves; see `run_task`."""
    prepare_run(args)
    splits = read_splits(data_args)
    for data, source in splits.values():
        check(data, source)
    tokenizer = load_tokenizer(model_args.model, model_args.revision)
    model = make_model(FeedbackForMultipleChoice, model_args)
    set_padding(model, tokenizer)
    length = tokenizer.model_max_length = max_length_of(data_args.max_length, tokenizer, model)
    compute_metrics = make_compute_metrics("single_label_classification", ["accuracy"])
    task = Task(
        model=model,
        processor=tokenizer,
        splits={
            split: Split(encode(data, tokenizer, length), source, None, compute_metrics)
            for split, (data, source) in splits.items()
        },
        collator=DataCollatorForMultipleChoice(tokenizer),
        metrics={"accuracy": True},
    )
    return run_task(task, model_args, args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return script(train, ChoiceArguments, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
