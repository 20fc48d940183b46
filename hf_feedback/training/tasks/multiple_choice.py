"""Multiple choice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForMultipleChoice, PreTrainedTokenizerBase

from ...modeling_feedback import FeedbackForMultipleChoice
from ...validation import option
from ...words import space_between_texts
from ..data.columns import check_rows
from ..data.label_names import label_name
from ..data.labels import SINGLE_LABEL
from ..data.row_encoder import IN_MEMORY, RowEncoder
from ..data.splits import Batch, FileArguments, Split
from ..data.texts import NUM_TOKENS, EncodedTexts, TextLengths, warn_of_cut_texts, whole_lengths
from ..metrics import METRICS, make_compute_metrics
from ..task_card import TaskCard
from .task import Collator, EncodedSplit, TextTask

T = TypeVar("T")


def usage_of(space: str = "") -> str:
    """Returns the Python lines of the model card; transformers has no pipeline for this task.

    Args:
        space: prefix of a choice, see `space_between_texts`.
    """
    return f"""from transformers import AutoModelForMultipleChoice, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{{model}}")
model = AutoModelForMultipleChoice.from_pretrained("{{model}}", trust_remote_code=True)
context, choices = "Where is my parcel?", ["{space}It comes on Monday.", "{space}The lamp is blue."]
batch = tokenizer([context] * len(choices), choices, padding=True, return_tensors="pt")
batch = {{{{name: tensor.unsqueeze(0) for name, tensor in batch.items()}}}}  # (1, choices, tokens)
print(choices[model(**batch).logits.argmax()])"""


@dataclass
class ChoiceArguments(FileArguments):
    """Text length."""

    max_length: int | None = option(
        None, "Tokens to which context and choice are truncated (default: as many as the model reads)."
    )


def tokenize_choices(
    data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, encoder: RowEncoder = IN_MEMORY
) -> EncodedTexts:
    """Pairs every choice with its context: token ids `(choices, tokens)` per row, and the number of the right choice.

    Args:
        data: rows of `context`, `choices` and `label`.
        tokenizer: tokenizer of the model.
        max_length: tokens to which pairs are truncated.
        encoder: encodes the rows, with or without a cache on disk.

    Returns:
        The rows; a row is as long as its longest pair.
    """
    space = space_between_texts(tokenizer)

    def tokenize(batch: Batch, rows: list[int]) -> Batch:
        groups = batch["choices"]
        contexts = [context for context, choices in zip(batch["context"], groups, strict=True) for _ in choices]
        pairs = [contexts, [space + choice for choices in groups for choice in choices]]
        encoding = tokenizer(*pairs, truncation=True, max_length=max_length)
        lengths = whole_lengths(encoding["input_ids"], max_length, lambda *some: tokenizer(*some, verbose=False), pairs)
        return {
            **{name: _group_by_row(encoding[name], groups) for name in encoding},
            "labels": [int(label_name(label)) for label in batch["label"]],
            NUM_TOKENS: list(map(max, _group_by_row(lengths, groups))),
        }

    options = {"max_length": max_length, "space": space}
    encoded = encoder.encode(data, ("context", "choices", "label"), tokenize, tokenizer, options)
    lengths = TextLengths(np.asarray(encoded[NUM_TOKENS][:]), max_length)
    return EncodedTexts(encoded.remove_columns(NUM_TOKENS), lengths)


def _group_by_row(values: Iterable[T], groups: Sequence[Sequence[str]]) -> list[list[T]]:
    """Groups values of all choices by row."""
    remaining = iter(values)
    return [[next(remaining) for _ in choices] for choices in groups]


class MultipleChoice(TextTask[ChoiceArguments]):
    """Chooses one of several texts.

    Example:

    ```python
    >>> from hf_feedback.training.starting_model.model_arguments import ModelArguments
    >>> task = MultipleChoice(ModelArguments(model="bert-base-uncased"), ChoiceArguments(train_file="train.jsonl"))
    >>> list(task.metrics)
    ['accuracy']

    ```
    """

    data_arguments = ChoiceArguments
    model_class = FeedbackForMultipleChoice
    card = TaskCard(
        pipeline_tag="multiple-choice", model="model that chooses one of several texts", usage=usage_of(), pooled=True
    )
    metrics = {"accuracy": METRICS["accuracy"]}  # noqa: RUF012

    def check_split(self, split: Split) -> Split:
        first = split.data[0].get("choices")
        count = len(first) if isinstance(first, list) else 0

        def find_fault(context: object, choices: object, label: object) -> str | None:
            if not isinstance(context, str):
                return f"`context` must be a text, got {context!r}"
            if not (isinstance(choices, list) and len(choices) >= 2 and all(isinstance(text, str) for text in choices)):
                return f"`choices` must be a list of at least two texts, got {choices!r}"
            if len(choices) != count:
                return f"`choices` has {len(choices)} texts, row 1 has {count}; all rows must have the same number"
            if label_name(label) not in map(str, range(count)):
                return f"`label` must be the number of the right choice, 0 to {count - 1}, got {label!r}"
            return None

        check_rows(split, ("context", "choices", "label"), find_fault)
        return split

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.card = replace(self.card, usage=usage_of(space_between_texts(tokenizer)))

    def encode(self, name: str, split: Split) -> EncodedSplit:
        encoded = tokenize_choices(split.data, self.processor, self.max_length, self.encoder)
        warn_of_cut_texts(split, encoded.lengths.cut, self.max_length)
        metrics = make_compute_metrics(SINGLE_LABEL, list(self.metrics))
        return EncodedSplit(encoded.data, split.source, len(split.data), metrics, lengths=encoded.lengths)

    def make_collator(self) -> Collator:
        return DataCollatorForMultipleChoice(self.processor)
