"""The ways to train decoders whose early tokens are to read later ones, as those of feedback do."""

from collections.abc import Collection
from typing import Any, cast

import torch
from datasets import Dataset
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from ...backbone_probe import reads_causally
from ...forward_context import tokens_of
from ...max_length import max_positions
from ...modeling_base import FeedbackPreTrainedModel
from ...training.data.labels import IGNORED
from ...training.data.splits import Row
from .arms import Arm, Budget

PER_TOKEN = ("input_ids", "attention_mask", "labels")


class Repeated(Arm):
    """The input is repeated, and the prediction is made from the second copy, which can read the first.

    Source: Springer et al. 2024, Repetition Improves Language Model Embeddings, arXiv 2402.15449.
    """

    description = "the input repeated"

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        if not _reads_causally(model) or model.traits.predicts_next_token:
            return "the backbone reads both directions, or predicts the next token"
        if more := row.keys() - {*PER_TOKEN, "label"}:
            return f"the task's {min(more)} cannot be repeated"
        labels_words = model.traits.labels_words
        if not labels_words and (isinstance(row.get("labels"), list) or model._pooling() != "last"):
            return "the prediction is not made at the last token"
        longest = model.cutting.longest if model.cutting else max_positions(model.backbone, model.config.text_config)
        if 2 * len(row["input_ids"]) > longest:
            return "the backbone does not read texts twice as long; lower `max_length`"
        return None

    def adapt_data(self, data: Dataset) -> Dataset:
        return repeat_texts(data)


class Unmasked(Arm):
    """A causal backbone without its mask, so that tokens attend to later ones too.

    Source: BehnamGhader et al. 2024, LLM2Vec, arXiv 2404.05961.
    """

    description = "the causal mask lifted"

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        if not _reads_causally(model) or model.traits.predicts_next_token or "input_ids" not in row:
            return "the backbone reads both directions, or predicts the next token"
        hook = lift_causal_mask(model)
        try:
            return "the mask of this family cannot be lifted" if _reads_causally(model) else None
        finally:
            hook.remove()

    def adapt_model(self, model: FeedbackPreTrainedModel, budget: Budget) -> nn.Module:
        lift_causal_mask(model)
        return model


def repeat_texts(data: Dataset, columns: Collection[str] = PER_TOKEN) -> Dataset:
    """Repeats the tokens of every text; only those of the second copy have labels.

    Args:
        data: encoded texts.
        columns: those that have a value for each token.
    """

    def repeat(row: Row) -> Row:
        length = len(row["input_ids"])
        repeated = {
            name: value * 2 for name, value in row.items() if name in columns and _is_list_of_length(value, length)
        }
        if "labels" in repeated:
            repeated["labels"] = [IGNORED] * length + row["labels"]
        return {**row, **repeated}

    return data.map(repeat)


def lift_causal_mask(model: FeedbackPreTrainedModel) -> RemovableHandle:
    """Lets every token of a causal backbone attend to all tokens except padding; returns the hook that does so."""
    part = model.layout.looped_model(model.backbone)
    return part.register_forward_pre_hook(_lift_mask, with_kwargs=True)


def _reads_causally(model: FeedbackPreTrainedModel) -> bool:
    config = cast(PreTrainedConfig, model.config.backbone_config)
    return reads_causally(model.layout.looped_model(model.backbone), config, model.config.backbone_part)


def _lift_mask(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of a backbone: every token attends to all tokens except padding."""
    mask = kwargs.get("attention_mask")
    if mask is None:
        inputs = tokens_of(kwargs)
        mask = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    dtype = next(module.parameters()).dtype
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask.bool(), torch.finfo(dtype).min)
    return args, {**kwargs, "attention_mask": added[:, None, None].expand(-1, 1, mask.shape[1], -1)}


def _is_list_of_length(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length
