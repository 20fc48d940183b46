"""Token classification: entities such as names and dates, or parts of speech."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from transformers import DataCollatorForTokenClassification, EvalPrediction, PreTrainedTokenizerBase
from transformers.utils import logging

from ...modeling_feedback import FeedbackForTokenClassification
from ...validation import option
from ...words import LabelPiece, labelled_pieces, space_before_words
from ..data.columns import check_rows
from ..data.files import format_rows
from ..data.label_names import check_no_label_missing, label_cells, normalize_labels
from ..data.labels import IGNORED, LabelSet
from ..data.overview import describe_rows
from ..data.row_encoder import IN_MEMORY, RowEncoder
from ..data.splits import Batch, FileArguments, Split
from ..data.tags import entity_scores, is_bio, tag_set
from ..data.texts import NUM_TOKENS, EncodedTexts, TextLengths, warn_of_cut_texts, whole_lengths
from ..metrics import ComputeMetrics, MetricInfo
from ..task_card import TaskCard, pipeline_usage
from .task import Collator, EncodedSplit, Model, PreprocessLogits, TextTask

logger = logging.get_logger(__name__)

NUM_WITHOUT_TOKENS = "num_without_tokens"  # a column of words, until they are counted
ACCURACY = {"token_accuracy": MetricInfo(hub_name="accuracy")}
ENTITY_METRICS = {
    "entity_f1": MetricInfo(hub_name="f1"),
    "entity_precision": MetricInfo(hub_name="precision"),
    "entity_recall": MetricInfo(hub_name="recall"),
}


@dataclass
class TagArguments(FileArguments):
    """Columns of words and tags."""

    tokens_column: str = option("tokens", "Column of the words.")
    tags_column: str = option("tags", "Column of the tags, one per word.")
    max_length: int | None = option(None, "Tokens to which texts are truncated (default: as many as the model reads).")


def align_labels(word_ids: Sequence[int | None], labels: Sequence[int], label_piece: LabelPiece = "first") -> list[int]:
    """Returns the labels of word pieces: one piece of a word has its label, the others are ignored.

    Args:
        word_ids: the word that each piece belongs to, `None` for special tokens.
        labels: labels of the words.
        label_piece: the piece, see `labelled_pieces`.

    Example:

    ```python
    >>> align_labels([None, 0, 1, 1, None], [4, 7])
    [-100, 4, 7, -100, -100]

    ```
    """
    labelled = labelled_pieces(word_ids, label_piece)
    return [
        labels[word] if has_label and word is not None else IGNORED
        for word, has_label in zip(word_ids, labelled, strict=True)
    ]


def make_tag_metrics(names: Sequence[str]) -> ComputeMetrics:
    """Returns the `compute_metrics` of a Trainer for tag numbers instead of logits.

    Args:
        names: the tags in the order of their numbers. If all are BIO, entities are scored as well as words.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        answers, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        labelled = labels != IGNORED
        accuracy = {"token_accuracy": float((answers == labels)[labelled].mean())}
        if not all(map(is_bio, names)):
            return accuracy
        references, predictions = (
            [[names[number] for number in row[mask]] for row, mask in zip(numbers, labelled, strict=True)]
            for numbers in (labels, answers)
        )
        return {**entity_scores(references, predictions), **accuracy}

    return compute_metrics


def _check_tags(split: Split, tags: Sequence[Sequence[str]], labels: LabelSet) -> None:
    numbers = labels.numbers
    for row, names in enumerate(tags):
        unknown = next((name for name in names if name not in numbers), None)
        if unknown is not None:
            raise ValueError(
                f"{split.source}: {format_rows([row])}: tag {unknown!r} is not among the training tags: "
                f"{', '.join(labels.names)}."
            )


def tokenize_words(
    split: Split,
    tags: Sequence[Sequence[str]],
    labels: LabelSet,
    column: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    label_piece: LabelPiece = "first",
    encoder: RowEncoder = IN_MEMORY,
) -> EncodedTexts:
    """Converts words and tags to token ids and labels; only one piece of a word has a label.

    Args:
        split: the rows.
        tags: tags of the rows.
        labels: numbers of the tags.
        column: column of the words.
        tokenizer: a fast tokenizer that reads lists of words.
        max_length: tokens to which texts are truncated; a warning counts truncated ones.
        label_piece: the piece of a word that has its label, see `labelled_pieces`.
        encoder: encodes the rows, with or without a cache on disk.

    Raises:
        ValueError: a tag is not among `labels`.
    """
    numbers, space = labels.numbers, space_before_words(tokenizer)
    _check_tags(split, tags, labels)

    def tokenize(batch: Batch, rows: list[int]) -> Batch:
        words = [[space + word for word in row] for row in batch[column]]
        encoding = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
        lengths = whole_lengths(
            encoding["input_ids"],
            max_length,
            lambda some: tokenizer(some, is_split_into_words=True, verbose=False),
            [words],
        )
        aligned = [
            align_labels(encoding.word_ids(i), [numbers[name] for name in tags[row]], label_piece)
            for i, row in enumerate(rows)
        ]
        words_read = [len({word for word in encoding.word_ids(i) if word is not None}) for i in range(len(rows))]
        missing = [0 if n > max_length else len(w) - k for n, w, k in zip(lengths, words, words_read, strict=True)]
        return {**encoding, "labels": aligned, NUM_TOKENS: lengths, NUM_WITHOUT_TOKENS: missing}

    options = {"column": column, "max_length": max_length, "label_piece": label_piece, "space": space}
    options |= {"tags": [list(map(numbers.get, row)) for row in tags]}
    encoded = encoder.encode(split.data, [column], tokenize, tokenizer, options)
    lengths = TextLengths(np.asarray(encoded[NUM_TOKENS][:]), max_length)
    warn_of_cut_texts(split, lengths.cut, max_length)
    if missing := sum(encoded[NUM_WITHOUT_TOKENS][:]):
        logger.warning_once(  # a comparison encodes the same file for every run
            f"{split.source}: {missing} words, such as spaces, have no token; their tags are left out."
        )
    return EncodedTexts(encoded.remove_columns([NUM_TOKENS, NUM_WITHOUT_TOKENS]), lengths)


def usage_of(label_piece: LabelPiece) -> str:
    """Returns the Python lines of the model card.

    Args:
        label_piece: the piece of a word that has its label; for the last one, the pipeline is that of the model.
    """
    strategy = "simple" if label_piece == "last" else "first"
    options = f', aggregation_strategy="{strategy}"'
    return pipeline_usage("token-classification", 'print(answer("Where is my parcel?"))', options)


class TokenClassification(TextTask[TagArguments]):
    """Tags words.

    Example:

    ```python
    >>> from hf_feedback.training.starting_model.model_arguments import ModelArguments
    >>> task = TokenClassification(ModelArguments(model="bert-base-uncased"), TagArguments(train_file="train.jsonl"))
    >>> task.card.pipeline_tag
    'token-classification'

    ```
    """

    data_arguments = TagArguments
    model_class = FeedbackForTokenClassification
    card = TaskCard(
        pipeline_tag="token-classification",
        model="token classifier",
        usage=usage_of("first"),
        labelled=True,
    )
    peft_task_type = "TOKEN_CLS"
    reads_words = True

    def tags_of(self, split: Split) -> list[list[str]]:
        """Returns the tags of all rows by name.

        Raises:
            ValueError: a row has no words, or not one tag per word.
        """
        args = self.data_args

        def find_fault(tokens: object, tags: object) -> str | None:
            if not (isinstance(tokens, list) and tokens and all(isinstance(token, str) for token in tokens)):
                return f"`{args.tokens_column}` must be a list of words, got {tokens!r}"
            if not (isinstance(tags, list) and len(tags) == len(tokens) and None not in tags):
                return f"`{args.tags_column}` must be a list of {len(tokens)} tags, one per word, got {tags!r}"
            return None

        columns = (args.tokens_column, args.tags_column)
        check_rows(split, columns, find_fault, ("--tokens-column", "--tags-column"))
        tags = normalize_labels(label_cells(split.data, args.tags_column), args.tags_column, split.source)
        check_no_label_missing(tags, args.tags_column, split.source)
        return cast(list[list[str]], tags)

    def find_labels(self, train: Split) -> LabelSet:
        return tag_set(self.tags_of(train), train.source)

    def describe_splits(self, splits: Mapping[str, Split]) -> list[str]:
        return [describe_rows(name, split, self.data_args.tags_column, self.labels) for name, split in splits.items()]

    def describe_data(self) -> str:
        args = self.data_args
        return f"words in {args.tokens_column!r}, tags in {args.tags_column!r}; {self.labels}"

    def load(self) -> tuple[PreTrainedTokenizerBase, Model]:
        tokenizer, model = super().load()
        self.card = replace(self.card, usage=usage_of(model.config.label_piece))
        return tokenizer, model

    def encode(self, name: str, split: Split) -> EncodedSplit:
        labels = LabelSet.of_model(self.model)
        self.metrics = {**(ENTITY_METRICS if all(map(is_bio, labels.names)) else {}), **ACCURACY}
        tags, column = self.tags_of(split), self.data_args.tokens_column
        label_piece = self.model.config.label_piece
        encoded = tokenize_words(
            split, tags, labels, column, self.processor, self.max_length, label_piece, self.encoder
        )
        metrics = make_tag_metrics(labels.names)
        return EncodedSplit(encoded.data, split.source, len(split.data), metrics, lengths=encoded.lengths)

    def make_collator(self) -> Collator:
        return DataCollatorForTokenClassification(self.processor)

    def preprocess_logits(self) -> PreprocessLogits:
        return lambda logits, _: logits.argmax(-1)  # keeps one number per token instead of one per tag
