"""Fine-tune a backbone with feedback to tag words: names, dates, places.

    python examples/run_token_classification.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/entities/train.jsonl --validation-file examples/data/entities/validation.jsonl

Files: JSON lines (or parquet) of {"tokens": ["my", "lamp"], "tags": ["O", "B-PRODUCT"]}. Tags are BIO (O, B-TYPE,
I-TYPE), or, where none of them is O or begins with B-, anything else, such as parts of speech. Works under
`accelerate launch` and `torchrun` too, with all options of `hf-feedback train`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_feedback import FeedbackForTokenClassification
from hf_feedback.training import FeedbackTrainingArguments
from hf_feedback.training.arguments import FileArguments, ModelArguments
from hf_feedback.training.command import script
from hf_feedback.training.data import check_rows, read_splits
from hf_feedback.training.entities import align, is_bio, make_tag_metrics, tag_set
from hf_feedback.training.label_names import names_of, normal_labels, refuse_missing
from hf_feedback.training.labels import LabelSet
from hf_feedback.training.run import Split, Task, prepare_run, run_task
from hf_feedback.training.starting import load_tokenizer, make_model, max_length_of, set_padding

logger = logging.get_logger(__name__)


@dataclass
class TagArguments(FileArguments):
    """What of a file is what."""

    tokens_column: str = field(default="tokens", metadata={"help": "Column of the words."})
    tags_column: str = field(default="tags", metadata={"help": "Column of the tags, one a word."})
    max_length: int | None = field(default=None, metadata={"help": "Cut texts at so many tokens."})


def tags_of(data: Dataset, source: str, args: TagArguments) -> list[list[str]]:
    """The tags of all rows by name; refuses rows that are not as they must be."""

    def fault(tokens: Any, tags: Any) -> str | None:
        if not (isinstance(tokens, list) and tokens and all(isinstance(token, str) for token in tokens)):
            return f"`{args.tokens_column}` must be a list of words, got {tokens!r}"
        if not (isinstance(tags, list) and len(tags) == len(tokens) and None not in tags):
            return f"`{args.tags_column}` must be a list of {len(tokens)} tags, one a word, got {tags!r}"
        return None

    check_rows(data, source, (args.tokens_column, args.tags_column), fault)
    tags = normal_labels(names_of(data, args.tags_column), args.tags_column, source)
    refuse_missing(tags, args.tags_column, source)
    return tags


def encode(
    data: Dataset,
    source: str,
    args: TagArguments,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str],
) -> Dataset:
    """Words and tags → token ids and `labels`; only the first piece of a word has one."""
    number, rows = LabelSet("single_label_classification", tuple(names)).numbers, tags_of(data, source, args)
    for i, tags in enumerate(rows):
        unknown = next((tag for tag in tags if tag not in number), None)
        if unknown is not None:
            known = ", ".join(names)
            raise ValueError(f"{source}: row {i + 1}: tag {unknown!r} is not among the training tags: {known}.")
    cut = 0

    def tokenize(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, Any]:
        nonlocal cut
        found = tokenizer(batch[args.tokens_column], is_split_into_words=True, truncation=True, max_length=length)
        cut += sum(bool(encoding.overflowing) for encoding in found.encodings)
        places = [align(found.word_ids(i), [number[tag] for tag in rows[row]]) for i, row in enumerate(indices)]
        return {**found, "labels": places}

    encoded = data.map(
        tokenize, batched=True, with_indices=True, remove_columns=data.column_names, load_from_cache_file=False
    )
    if cut:
        logger.warning(f"{source}: {cut} of {len(data)} texts are longer than {length} tokens and were cut.")
    return encoded


def train(model_args: ModelArguments, data_args: TagArguments, args: FeedbackTrainingArguments) -> dict[str, Any]:
    """Fine-tunes, evaluates and saves; see `run_task`."""
    prepare_run(args)
    splits = read_splits(data_args)
    labels = tag_set(tags_of(*splits["train"], data_args), splits["train"][1])
    if args.process_index == 0:
        columns = f"words in {data_args.tokens_column!r}, tags in {data_args.tags_column!r}"
        print(f"{splits['train'][1]}: {columns}; {labels}", flush=True)
    tokenizer = load_tokenizer(model_args.model, model_args.revision, of_words=True)
    model = make_model(FeedbackForTokenClassification, model_args, labels)
    set_padding(model, tokenizer)
    names = LabelSet.of_model(model).names
    length = tokenizer.model_max_length = max_length_of(data_args.max_length, tokenizer, model)
    compute_metrics = make_tag_metrics(names)
    measured = ["entity_f1", "entity_precision", "entity_recall"] if all(map(is_bio, names)) else []
    task = Task(
        model=model,
        processor=tokenizer,
        splits={
            split: Split(encode(data, source, data_args, tokenizer, length, names), source, None, compute_metrics)
            for split, (data, source) in splits.items()
        },
        collator=DataCollatorForTokenClassification(tokenizer),
        metrics=dict.fromkeys([*measured, "token_accuracy"], True),
        preprocess_logits=lambda logits, _: logits.argmax(-1),  # keeps one number a token, not one a tag
    )
    return run_task(task, model_args, args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return script(train, TagArguments, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
