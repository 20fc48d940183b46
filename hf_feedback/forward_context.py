"""The inputs of one call of `forward`: the modules, the inputs of the backbone, and the mask of its tokens."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs

from .backbone_layout import BackboneLayout
from .configuration_feedback import FeedbackConfig
from .iteration_cache import IterationCache
from .model_connections import FeedbackConnections
from .modeling_outputs import BackboneOutput
from .segments import Segments
from .validation import Keywords, shortened

# Arguments that every backbone's `forward` accepts besides those that it names.
COMMON_ARGUMENTS = frozenset(TransformersKwargs.__annotations__)
# Arguments of the task models' `forward` that say what is to be answered.
TARGET_ARGUMENTS = ("labels", "iteration_targets", "start_positions", "end_positions")


@dataclass(frozen=True)
class ForwardContext:
    """The inputs and settings of one call of `forward`.

    Args:
        backbone, feedback: the modules, as they are in this call.
        forward_arguments: arguments of `forward`; the segments of the texts, if they were cut.
        backbone_inputs: inputs of the backbone.
        num_iterations: K.
        compute_logits: the backbone's output → logits `(B, C)`, or `(B, T, V)` where each token is answered; `None` if
            the model does neither.
        segments: the text of each row, if texts were cut.
        num_choices: number of rows that belong to one question, in multiple choice.
        is_training: whether the model is in training mode.
        is_disabled: whether the bare backbone is to run.
        is_sharded: whether the model's weights are sharded over several processes.
        model_name: the model's class, for messages.
        cache: the key–value cache of all iterations, in generation.
        predicts_next_token: whether each token is answered from those before it alone.
    """

    backbone: PreTrainedModel
    feedback: FeedbackConnections
    forward_arguments: Keywords
    backbone_inputs: Keywords
    num_iterations: int
    compute_logits: "Callable[[BackboneOutput, ForwardContext], torch.Tensor] | None"
    segments: Segments | None
    num_choices: int | None
    is_training: bool
    is_disabled: bool
    is_sharded: bool
    model_name: str
    cache: IterationCache | None = None
    predicts_next_token: bool = False

    @property
    def attention_mask(self) -> Any:
        """The mask that `forward` was given, in whatever shape; the padding mask if there is one besides."""
        padding_mask = self.forward_arguments.get("padding_mask")
        return self.forward_arguments.get("attention_mask") if padding_mask is None else padding_mask


def without_targets(inputs: Mapping[str, Any]) -> Keywords:
    """Arguments of `forward` without the targets.

    Raises:
        TypeError: the inputs are not arguments by name.
    """
    if not isinstance(inputs, Mapping):
        raise TypeError(
            "`batch` must be a dict of tensors by the names of `forward`'s arguments, such as "
            f"`tokenizer(texts, padding=True, return_tensors='pt')`, got {shortened(inputs)}."
        )
    return {name: value for name, value in inputs.items() if name not in TARGET_ARGUMENTS}


def tokens_of(inputs: Mapping[str, Any]) -> Any:
    """`input_ids`, or `inputs_embeds` where these are given instead; `None` without either."""
    return inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]


def token_mask(backbone: PreTrainedModel, mask: object, length: int) -> torch.Tensor | None:
    """`(B, T)`, true at real tokens, if the mask shows them.

    Args:
        backbone: shortens recordings inside; transformers' audio families say how much.
        mask: `(B, T)`; that of the choices of a multiple choice, `(B, C, T)`, is flattened.
        length: T, of the hidden states.
    """
    if isinstance(mask, torch.Tensor) and mask.dim() == 3:
        mask = mask.flatten(0, 1)
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    if mask.shape[1] == length:
        return mask != 0
    shorten = getattr(backbone, "_get_feat_extract_output_lengths", None)
    if shorten is None or int(shorten(torch.tensor(mask.shape[1]))) != length:
        return None  # padded inside, or shortened further
    lengths = [int(shorten(size)) for size in mask.sum(-1)]  # one by one, since Moonshine takes no more
    return torch.arange(length, device=mask.device) < torch.tensor(lengths, device=mask.device)[:, None]


def backbone_inputs(
    layout: BackboneLayout,
    config: FeedbackConfig,
    model_class: type[PreTrainedModel],
    arguments: Keywords,
) -> Keywords:
    """Inputs of the backbone: all arguments that it accepts, without a key–value cache, which iterations cannot share.
    `token_type_ids` and `position_ids` that it does not know are dropped, as transformers does.

    Raises:
        TypeError: it does not know another argument.
        ValueError: a cache was passed.
    """
    model_name = model_class.__name__
    inputs = {key: value for key, value in arguments.items() if value is not None and key != "padding_mask"}
    if "past_key_values" in inputs:
        raise ValueError(
            f"`past_key_values`: {model_name} reads whole texts, in which iterations cannot share a key–value cache, "
            "so that prefix-tuning does not work with it; tune with LoRA or the feedback alone instead. Text is "
            "generated by FeedbackForCausalLM."
        )
    unknown = [key for key in inputs if key not in layout.arguments and key not in COMMON_ARGUMENTS]
    for key in unknown:
        if key == "iteration_targets":
            raise TypeError(f"`iteration_targets`: {model_name}.forward takes none; leave them out.")
        if key not in ("token_type_ids", "position_ids"):
            not_taken = {"kwargs", "labels", "past_key_values", "use_cache", "cache_position"}
            parameters = inspect.signature(model_class.forward).parameters
            own = {"num_iterations", "output_iterations", *(name for name in TARGET_ARGUMENTS if name in parameters)}
            valid = sorted((set(layout.arguments) - not_taken) | own)
            near, advice = get_close_matches(key, valid, n=1), "; rename a column of labels to `labels`"
            listed = f"it takes: {', '.join(valid)}{advice if 'labels' in own else ''}."
            hint = f"did you mean `{near[0]}`?" if near else listed
            raise TypeError(f"{model_name}.forward got an unexpected argument `{key}`; {hint}")
        del inputs[key]
    for name in ("output_hidden_states", "output_attentions"):
        wanted = inputs.pop(name, None)
        if wanted or (wanted is None and getattr(config, name)):
            inputs[name] = True
    return {**inputs, "use_cache": False} if layout.has_cache else inputs
