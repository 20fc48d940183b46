"""Train a backbone with feedback further on plain texts: words are masked, the model fills them in.

    python examples/run_masked_lm.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/support_messages/train.csv \\
        --validation-file examples/data/support_messages/validation.csv

Files: CSV, TSV, JSON lines or parquet with a column of texts, or a .txt file with one text a line. Training masks
other words every time, evaluation always the same ones. The result is a start for any other task:
`hf-feedback train --model out` keeps its layers and its feedback. Works under `accelerate launch` and `torchrun` too,
with all options of `hf-feedback train`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_feedback import FeedbackForMaskedLM
from hf_feedback.training import FeedbackTrainingArguments
from hf_feedback.training.arguments import FileArguments, ModelArguments
from hf_feedback.training.columns import Columns, find_columns
from hf_feedback.training.command import script
from hf_feedback.training.data import read_splits, texts_of
from hf_feedback.training.files import read_file, read_text
from hf_feedback.training.masking import MaskingCollator, perplexity_of_losses, token_losses, with_fixed_masks
from hf_feedback.training.run import Split, Task, prepare_run, run_task
from hf_feedback.training.starting import load_tokenizer, make_model, max_length_of, set_padding


@dataclass
class MaskingArguments(FileArguments):
    """What of a file is the text, and how it is masked."""

    text_column: str | None = field(default=None, metadata={"help": "Column of the texts (found if left out)."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens a piece; longer texts become several."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens to predict."})


def read_texts(file: str) -> Dataset:
    """A file as `read_file` takes it, or a .txt file of one text a line."""
    if Path(file).suffix.lower() != ".txt" or not Path(file).is_file():
        return read_file(file)
    lines = [line for line in read_text(Path(file)).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{file}: the file has no texts.")
    return Dataset.from_dict({"text": lines})


def encode(data: Dataset, source: str, trained: Columns, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Texts → token ids in pieces of at most `length` tokens; pieces without a word are left out."""
    column = find_columns(data.column_names, source, needs_label=False, trained=trained).text

    def tokenize(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
        found = tokenizer(
            [text or "" for text in texts_of(batch[column], column, source, rows[0])],
            truncation=True,
            max_length=length,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        names = [*(name for name in tokenizer.model_input_names if name in found), "special_tokens_mask"]
        full = [i for i, special in enumerate(found["special_tokens_mask"]) if not all(special)]
        return {name: [found[name][i] for i in full] for name in names}

    encoded = data.map(
        tokenize, batched=True, with_indices=True, remove_columns=data.column_names, load_from_cache_file=False
    )
    if len(encoded) == 0:
        raise ValueError(f"{source}: column {column!r} holds no words.")
    return encoded


def train(model_args: ModelArguments, data_args: MaskingArguments, args: FeedbackTrainingArguments) -> dict[str, Any]:
    """Trains, evaluates and saves; see `run_task`."""
    prepare_run(args)
    if not 0 < data_args.mlm_probability <= 1:
        raise ValueError(f"`mlm_probability` must be above 0 and at most 1, got {data_args.mlm_probability}.")
    splits = read_splits(data_args, read_texts)
    data, source = splits["train"]
    found = find_columns(data.column_names, source, data_args.text_column, needs_label=False)
    columns = Columns(found.text, None, None)
    if args.process_index == 0:
        print(f"{source}: {columns}", flush=True)
    tokenizer = load_tokenizer(model_args.model, model_args.revision)
    if tokenizer.mask_token is None:
        raise ValueError(f"`model`: the tokenizer of {model_args.model} has no mask token; use one that has.")
    model = make_model(FeedbackForMaskedLM, model_args)
    columns.keep(model.config)
    set_padding(model, tokenizer)
    length = max_length_of(data_args.max_length, tokenizer, model)
    encoded = {name: encode(data, source, columns, tokenizer, length) for name, (data, source) in splits.items()}
    for name in encoded.keys() - {"train"}:
        encoded[name] = with_fixed_masks(encoded[name], tokenizer, data_args.mlm_probability)
    args.remove_unused_columns = False  # the masks of special tokens are for the collator
    task = Task(
        model=model,
        processor=tokenizer,
        splits={
            name: Split(encoded[name], source, len(data), perplexity_of_losses)
            for name, (data, source) in splits.items()
        },
        collator=MaskingCollator(tokenizer, data_args.mlm_probability),
        metrics={"perplexity": False},
        preprocess_logits=token_losses,
    )
    return run_task(task, model_args, args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return script(train, MaskingArguments, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
