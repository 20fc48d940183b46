"""Masked language modelling: new masks in every epoch of training, fixed masks in evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from ...modeling_feedback import FeedbackForMaskedLM
from ...validation import option
from ..data.columns import Columns, find_columns
from ..data.labels import IGNORED
from ..data.row_encoder import IN_MEMORY, RowEncoder
from ..data.splits import Batch, Row, Split
from ..data.text_files import TextFormat
from ..data.texts import texts_of
from ..task_card import TaskCard, pipeline_usage
from .plain_texts import PlainTextArguments, PlainTextTask, perplexity_of_losses, stream_texts, token_losses
from .task import Collator, EncodedSplit, PreprocessLogits

Masker: TypeAlias = DataCollatorForLanguageModeling

TEXTS_AT_ONCE = 1000  # are tokenized together, where they are read while training
MOST_DRAWS = 10_000  # of the masks of a text
EVALUATION_SEED = 0  # the same masks in every run, so that runs can be compared


@dataclass
class MaskingArguments(PlainTextArguments):
    """Text length and masking."""

    max_length: int | None = option(
        None, "Tokens of a piece; longer texts are cut into several pieces (default: as many as the model reads)."
    )
    mlm_probability: float = option(0.15, "Share of the tokens to predict, above 0 and at most 1.")
    whole_word_masking: bool = option(False, "Mask either all tokens of a word or none.")


def make_masker(tokenizer: PreTrainedTokenizerBase, probability: float, whole_words: bool) -> Masker:
    """Returns the collator that masks texts; whole words always become masks, single tokens sometimes other tokens.

    Args:
        tokenizer: tokenizer of the texts.
        probability: share of the tokens, or of the words, to predict.
        whole_words: whether the tokens of a word are masked together.
    """
    if not whole_words:
        return DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)
    return DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=probability, whole_word_mask=True, mask_replace_prob=1.0, random_replace_prob=0.0
    )


def mask_row(masker: Masker, row: Row, generator: torch.Generator) -> Row:
    """Masks a text with random numbers of a generator, and adds labels."""
    masker.generator = generator
    return {name: tensor[0].tolist() for name, tensor in masker([row]).items()}


def has_target(row: Row) -> bool:
    """Whether a masked text has a target token."""
    return any(label != IGNORED for label in row["labels"])


def with_fixed_masks(
    data: Dataset, tokenizer: PreTrainedTokenizerBase, probability: float, whole_words: bool = False
) -> Dataset:
    """Masks every text once, with at least one masked token.

    Args:
        data: rows of `PieceEncoder`.
        tokenizer: tokenizer of the texts.
        probability: share of the tokens to predict.
        whole_words: whether the tokens of a word are masked together.
    """
    masker = make_masker(tokenizer, probability, whole_words)
    generator = torch.Generator().manual_seed(EVALUATION_SEED)

    def mask(row: Row) -> Row:
        for _ in range(MOST_DRAWS):
            if has_target(masked := mask_row(masker, row, generator)):
                return masked
        raise ValueError(
            f"`mlm_probability`={probability:g} masks nothing in {MOST_DRAWS} draws of a text; give a larger one."
        )

    return data.map(mask, remove_columns=data.column_names, load_from_cache_file=False)


class MaskingCollator:
    """Collator that draws new masks in every epoch, and pads texts that are masked already.

    The masks depend only on the text, the seed and the epoch, so that they are the same in any process and in a resumed
    run.

    Args:
        tokenizer: tokenizer of the texts.
        probability: share of the tokens to predict.
        whole_words: whether the tokens of a word are masked together.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float, whole_words: bool = False) -> None:
        self.probability, self.whole_words = probability, whole_words
        self.mask = make_masker(tokenizer, probability, whole_words)
        self.pad = DataCollatorForTokenClassification(tokenizer)
        self._seed_and_epoch = torch.zeros(2, dtype=torch.long).share_memory_()  # also in workers that outlive an epoch

    def start_epoch(self, seed: int, epoch: int) -> None:
        """Sets the seed and the epoch that the masks depend on."""
        self._seed_and_epoch.copy_(torch.tensor((seed, epoch)))

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        if "labels" in rows[0]:
            return self.pad(rows)
        masked, attempt = self._mask(rows, 0), 0
        while not any(map(has_target, masked)):  # without one, the batch would have no loss
            attempt += 1
            masked = self._mask(rows, attempt)
        return self.pad(masked)

    def _mask(self, rows: list[Row], attempt: int) -> list[Row]:
        key = np.array([*self._seed_and_epoch.tolist(), attempt], dtype=np.int64).tobytes()
        digests = [
            blake2b(np.asarray(row["input_ids"], dtype=np.int64).tobytes(), digest_size=7, key=key) for row in rows
        ]
        generators = [torch.Generator().manual_seed(int.from_bytes(digest.digest())) for digest in digests]
        return [mask_row(self.mask, row, generator) for row, generator in zip(rows, generators, strict=True)]


@dataclass(frozen=True)
class PieceEncoder:
    """Tokenizes texts in pieces; pieces without a word are left out.

    Args:
        tokenizer: tokenizer of the model.
        max_length: maximum number of tokens of a piece.
        whole_words: whether to add the words of tokens, as `offset_mapping`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    whole_words: bool = False

    def __call__(self, texts: Sequence[str]) -> Batch:
        """Returns the columns of the pieces."""
        encoding = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        names = [*(name for name in self.tokenizer.model_input_names if name in encoding), "special_tokens_mask"]
        full = [i for i, special in enumerate(encoding["special_tokens_mask"]) if not all(special)]
        columns = {name: [encoding[name][i] for i in full] for name in names}
        if self.whole_words:
            columns["offset_mapping"] = [adjacent_tokens(encoding.word_ids(i)) for i in full]
        return columns

    def stream(self, file: str, column: str, text_format: TextFormat) -> Iterator[Row]:
        """Streams the pieces of a file.

        Args:
            file: its path.
            column: column of the texts.
            text_format: format of the file.
        """
        texts = stream_texts(file, column, text_format)
        while together := list(islice(texts, TEXTS_AT_ONCE)):
            columns = self(together)
            yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def adjacent_tokens(words: Sequence[int | None]) -> list[tuple[int, int]]:
    """Returns spans that are adjacent for tokens of the same word, as the collator of transformers expects.

    Args:
        words: the word that each token is part of, `None` for special tokens.

    Example:

    ```python
    >>> adjacent_tokens([None, 0, 0, 1])
    [(1, 2), (3, 4), (4, 5), (6, 7)]

    ```
    """
    spans: list[tuple[int, int]] = []
    end, before = 0, None
    for word in words:
        start = end if word is not None and word == before else end + 1
        end, before = start + 1, word
        spans.append((start, end))
    return spans


def encode_pieces(
    split: Split, trained: Columns, encoder: PieceEncoder, row_encoder: RowEncoder = IN_MEMORY
) -> Dataset:
    """Encodes the texts of a split.

    Args:
        split: the rows.
        trained: the columns of training.
        encoder: tokenizes texts in pieces.
        row_encoder: encodes the rows, with or without a cache on disk.

    Raises:
        ValueError: the texts hold no words.
    """
    column = find_columns(split.data.column_names, split.source, needs_label=False, trained=trained).text

    def encode(batch: Batch, rows: list[int]) -> Batch:
        return encoder([text or "" for text in texts_of(batch[column], column, split.source, split.rows_of(rows))])

    options = {"column": column, "max_length": encoder.max_length, "whole_words": encoder.whole_words}
    encoded = row_encoder.encode(split.data, [column], encode, encoder.tokenizer, options)
    if len(encoded) == 0:
        raise ValueError(f"{split.source}: column {column!r} holds no words.")
    return encoded


class MaskedLM(PlainTextTask[MaskingArguments]):
    """Fills in words that are masked.

    Example:

    ```python
    >>> from hf_feedback.training.starting_model.model_arguments import ModelArguments
    >>> task = MaskedLM(ModelArguments(model="bert-base-uncased"), MaskingArguments(train_file="train.txt"))
    >>> task.metrics["perplexity"].greater_is_better
    False

    ```
    """

    data_arguments = MaskingArguments
    model_class = FeedbackForMaskedLM
    card = TaskCard(
        pipeline_tag="fill-mask",
        model="masked language model",
        usage=pipeline_usage("fill-mask", 'print(answer(f"Where is my {{answer.tokenizer.mask_token}}?"))'),
    )
    keep_all_columns = True  # the masks of special tokens are for the collator
    evaluation_options = ("mlm_probability", "whole_word_masking")

    def check_options(self) -> None:
        if not 0 < self.data_args.mlm_probability <= 1:
            raise ValueError(f"`mlm_probability` must be above 0 and at most 1, got {self.data_args.mlm_probability}.")

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.mask_token is None:
            raise ValueError(f"`model`: the tokenizer of {self.model_args.model} has no mask token; use one that has.")

        if self.data_args.whole_word_masking and not tokenizer.is_fast:
            raise ValueError(
                f"`whole_word_masking`: the tokenizer of {self.model_args.model} does not return the words of "
                "tokens; use a fast one, or leave it out."
            )

    def encode(self, name: str, split: Split) -> EncodedSplit:
        args = self.data_args
        encoder = PieceEncoder(self.processor, self.max_length, args.whole_word_masking)
        if name == "train" and args.streaming:
            return self.stream(split, encoder.stream, whole_word_masking=args.whole_word_masking)
        data = encode_pieces(split, self.columns, encoder, self.encoder)
        if name != "train":
            data = with_fixed_masks(data, self.processor, args.mlm_probability, args.whole_word_masking)
        return EncodedSplit(data, split.source, len(split.data), perplexity_of_losses)

    def make_collator(self) -> Collator:
        return MaskingCollator(self.processor, self.data_args.mlm_probability, self.data_args.whole_word_masking)

    def preprocess_logits(self) -> PreprocessLogits:
        return token_losses
