"""Checks of PEFT's adapters on a feedback model, which are saved without the feedback options."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

if TYPE_CHECKING:
    from .modeling_base import FeedbackPreTrainedModel

logger = logging.get_logger(__name__)


def warn_of_adapters_without_folder(model: "FeedbackPreTrainedModel") -> None:
    """Warns, where a model's state is saved, of adapters to a model that was not loaded from a folder."""
    adapters = getattr(model, "peft_config", {}).values()
    if _are_merged(model):
        return
    if adapters and not (model.name_or_path or all(adapter.base_model_name_or_path for adapter in adapters)):
        logger.warning_once(
            "These adapters belong to a feedback model that was not loaded from a folder: what PEFT saves of them "
            "names no model and holds no feedback options. Keep the options, to build the model again with "
            "`from_backbone`; or merge the adapters (`merge_and_unload`) and save the whole model."
        )


def check_adapters_fit(model: "FeedbackPreTrainedModel", state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    """Raises `ValueError` where adapters were saved with other feedback: PEFT is not strict, and would load what fits.

    Args:
        model: which the state is loaded into.
        state_dict: all that is loaded.
        prefix: prefix of the model's names in it.
    """
    if not hasattr(model, "peft_config"):
        return
    own = {name: tensor.shape for name, tensor in model.feedback.state_dict(prefix=f"{prefix}feedback.").items()}
    loaded = {name: tensor.shape for name, tensor in state_dict.items() if name.startswith(f"{prefix}feedback.")}
    if other := sorted(name for name, shape in loaded.items() if own.get(name) != shape):
        config = model.config
        raise ValueError(
            f"These adapters were saved with other feedback than that of this model, which has `feedback_type`="
            f"{config.feedback_type!r}, `feedback_rank`={config.feedback_rank!r} and the edges {config.edges()}: "
            f"{other[0].removeprefix(prefix)} {tuple(loaded[other[0]])} does not fit. Build the model with the options "
            "that it had when they were saved."
        )


def check_adapters_are_whole(model: "FeedbackPreTrainedModel", missing: list[str], name: str | Path) -> None:
    """Raises `OSError` where transformers has loaded only some of the tensors of a folder's adapters.

    Args:
        model: the loaded model.
        missing: the names of tensors that it has and that were not loaded.
        name: the folder.
    """
    adapters = getattr(model, "peft_config", {})
    if missing and not adapters.keys().isdisjoint(missing[0].split(".")):
        raise OSError(
            f"transformers has not loaded these adapters of {name} whole: {len(missing)} of their tensors are missing, "
            f"among them {missing[0]}; it does so with DoRA. Load the model first, and then "
            "`PeftModel.from_pretrained(model, folder)`."
        )


def warn_of_frozen_feedback(model: "FeedbackPreTrainedModel") -> None:
    """Warns, in training, of an adapter config that freezes the feedback: new feedback would stay zero."""
    if not hasattr(model, "peft_config") or _are_merged(model):
        return
    if not any(one.requires_grad for one in model.feedback.parameters()):
        logger.warning_once(
            "These adapters freeze the feedback: its messages stay as they are, zero where they are new. To train them "
            "too, give the adapter config `modules_to_save=['feedback', …]`, which "
            "`hf_feedback.training.peft_options(model)` returns with all else that it needs."
        )


def _are_merged(model: "FeedbackPreTrainedModel") -> bool:
    """Whether the adapters are those of a training run, which has the options and merges them at its end."""
    adapters = getattr(model, "peft_config", {}).values()
    return any(getattr(adapter, "merged_after_training", False) for adapter in adapters)
