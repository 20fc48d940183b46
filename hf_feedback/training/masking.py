"""Masked language modelling: masks that change in training and stay in evaluation, and the loss over all of them."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from .entities import IGNORED

EVALUATION_SEED = 0  # the same masks in every run, so that runs can be compared


def masked(masker: DataCollatorForLanguageModeling, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch in which at least one token is to be predicted; without one it would have no loss."""
    while True:
        batch = masker(rows)
        if (batch["labels"] != IGNORED).any():
            return batch


def with_fixed_masks(data: Dataset, tokenizer: PreTrainedTokenizerBase, probability: float) -> Dataset:
    """Masks every text once and for all, whatever batch it comes in; at least one token of each.

    Args:
        data: `input_ids` and `special_tokens_mask`; no text of special tokens alone.
        tokenizer: of the texts.
        probability: share of the tokens to predict.
    """
    masker = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability, seed=EVALUATION_SEED)

    def mask(row: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor[0].tolist() for name, tensor in masked(masker, [row]).items()}

    return data.map(mask, remove_columns=data.column_names, load_from_cache_file=False)


class MaskingCollator:
    """Masks texts anew, and pads those that are masked already.

    Args:
        tokenizer: of the texts.
        probability: share of the tokens to predict.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float) -> None:
        self.probability = probability
        self.mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)
        self.pad = DataCollatorForTokenClassification(tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.pad(rows) if "labels" in rows[0] else masked(self.mask, rows)


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`(B, T, V)` → `(B, T)`: the loss of every token that is to be predicted, 0 elsewhere."""
    return F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


def perplexity_of_losses(prediction: EvalPrediction) -> dict[str, float]:
    """Mean loss over all masked tokens, each of the same weight, and its exponential. Takes `token_losses`, not
    logits; the Trainer's own loss would weigh batches by their number of texts."""
    loss = float(np.asarray(prediction.predictions)[np.asarray(prediction.label_ids) != IGNORED].mean())
    return {"loss": loss, "perplexity": float(np.exp(loss))}
