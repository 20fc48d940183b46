"""Masked language modelling: masks that change in training and stay in evaluation, and the loss over all of them."""

from dataclasses import dataclass

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
from ..data.splits import Batch, Row, Split
from ..data.texts import texts_of
from ..model_card import TaskCard, pipeline_usage
from .plain_texts import PlainTextArguments, PlainTextTask, perplexity_of_losses, token_losses
from .task import IGNORED, Collator, EncodedSplit, PreprocessLogits

EVALUATION_SEED = 0  # the same masks in every run, so that runs can be compared


@dataclass
class MaskingArguments(PlainTextArguments):
    """The column of the texts, and how they are masked."""

    max_length: int | None = option(
        None, "Tokens of a piece; longer texts become several pieces (default: as many as the model reads)."
    )
    mlm_probability: float = option(0.15, "Share of the tokens to predict.")


def mask_rows(masker: DataCollatorForLanguageModeling, rows: list[Row]) -> dict[str, torch.Tensor]:
    """Returns a batch in which at least one token is to be predicted; without one it would have no loss."""
    while True:
        batch = masker(rows)
        if (batch["labels"] != IGNORED).any():
            return batch


def with_fixed_masks(data: Dataset, tokenizer: PreTrainedTokenizerBase, probability: float) -> Dataset:
    """Masks every text once, whatever batch it comes in; at least one token of each.

    Args:
        data: rows of `input_ids` and `special_tokens_mask`; no text of special tokens alone.
        tokenizer: tokenizer of the texts.
        probability: share of the tokens to predict.
    """
    masker = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability, seed=EVALUATION_SEED)

    def mask(row: Row) -> Row:
        return {name: tensor[0].tolist() for name, tensor in mask_rows(masker, [row]).items()}

    return data.map(mask, remove_columns=data.column_names, load_from_cache_file=False)


class MaskingCollator:
    """Masks texts anew, and pads those that are masked already.

    Args:
        tokenizer: tokenizer of the texts.
        probability: share of the tokens to predict.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float) -> None:
        self.probability = probability
        self.mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)
        self.pad = DataCollatorForTokenClassification(tokenizer)

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        return self.pad(rows) if "labels" in rows[0] else mask_rows(self.mask, rows)


def encode_pieces(split: Split, trained: Columns, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Turns texts into token ids, in pieces of at most `max_length` tokens; pieces without a word are left out.

    Args:
        split: the rows.
        trained: the columns of training.
        tokenizer: tokenizer of the model.
        max_length: tokens of a piece at most.

    Raises:
        ValueError: the texts hold no words.
    """
    column = find_columns(split.data.column_names, split.source, needs_label=False, trained=trained).text

    def tokenize(batch: Batch, rows: list[int]) -> Batch:
        encoding = tokenizer(
            [text or "" for text in texts_of(batch[column], column, split.source, rows[0])],
            truncation=True,
            max_length=max_length,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        names = [*(name for name in tokenizer.model_input_names if name in encoding), "special_tokens_mask"]
        full = [i for i, special in enumerate(encoding["special_tokens_mask"]) if not all(special)]
        return {name: [encoding[name][i] for i in full] for name in names}

    encoded = split.data.map(
        tokenize, batched=True, with_indices=True, remove_columns=split.data.column_names, load_from_cache_file=False
    )
    if len(encoded) == 0:
        raise ValueError(f"{split.source}: column {column!r} holds no words.")
    return encoded


class MaskedLM(PlainTextTask[MaskingArguments]):
    """Fills in words that are masked.

    Example:

    ```python
    >>> from hf_feedback.training.model_arguments import ModelArguments
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

    def check_options(self) -> None:
        if not 0 < self.data_args.mlm_probability <= 1:
            raise ValueError(f"`mlm_probability` must be above 0 and at most 1, got {self.data_args.mlm_probability}.")

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.mask_token is None:
            raise ValueError(f"`model`: the tokenizer of {self.model_args.model} has no mask token; use one that has.")

    def encode(self, name: str, split: Split) -> EncodedSplit:
        data = encode_pieces(split, self.columns, self.processor, self.max_length)
        if name != "train":
            data = with_fixed_masks(data, self.processor, self.data_args.mlm_probability)
        return EncodedSplit(data, split.source, len(split.data), perplexity_of_losses)

    def make_collator(self) -> Collator:
        return MaskingCollator(self.processor, self.data_args.mlm_probability)

    def preprocess_logits(self) -> PreprocessLogits:
        return token_losses
