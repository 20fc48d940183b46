"""Maximum numbers of tokens of models and texts."""

import math
from typing import cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def max_positions(model: nn.Module, config: PreTrainedConfig | None) -> float:
    """The maximum number of tokens of a model, by its text config and its position embeddings; infinite if neither
    limits it."""
    for name, module in model.named_modules():
        # families that count positions from the padding token on (RoBERTa) have fewer of them
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return cast(int, module.num_embeddings) - cast(int, module.padding_idx) - 1
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    return positions if positions > 0 else math.inf  # XLNet has -1


def num_learned_positions(backbone: PreTrainedModel) -> int | None:
    """The number of positions beyond which the backbone has no embedding; `None` if it has learned none, as with rotary
    positions, and may generate on."""
    most = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    if most is None:
        return None
    words = backbone.get_input_embeddings()
    tables = [one for one in backbone.modules() if isinstance(one, nn.Embedding) and one is not words]
    # some families have two more rows, for padding
    return most if any(most <= table.num_embeddings <= most + 2 for table in tables) else None


def resolve_max_length(requested: int | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Returns the maximum number of tokens of a text.

    Args:
        requested: the option, if it is given; else the length of training, which the tokenizer keeps, or what
            tokenizer and model read.
        tokenizer: tokenizer of the model.
        model: the model.

    Raises:
        ValueError: the model does not read so many tokens, or nothing but special tokens would be left.
    """
    cutting = getattr(model, "cutting", None)
    longest = cutting.longest if cutting else max_positions(model, getattr(model.config, "text_config", None))
    shortest = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if requested is not None and not shortest <= requested <= longest:
        raise ValueError(
            f"`max_length` must be between {shortest} and the {longest} tokens that the model reads, got {requested}."
        )
    return int(min(requested or tokenizer.model_max_length, longest, 1_000_000))
