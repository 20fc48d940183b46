"""What of a feedback model is its backbone, recognized by its weights, and shared between models."""

import copy
import hashlib

import torch
from transformers import PreTrainedModel

from .backbones import place_of_core
from .modeling_base import FeedbackPreTrainedModel

# A backbone is recognized also where it is loaded in fewer bits than it was saved with.
FINGERPRINT_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def core_of(model: FeedbackPreTrainedModel) -> dict[str, str]:
    """The tensors that belong to the backbone: name in the model's state dict → name in the backbone."""
    place = place_of_core(model.backbone, model.config.backbone_part)
    prefix = f"backbone.{place}." if place else "backbone."
    names = {name: name.removeprefix(prefix) for name in model.state_dict() if name.startswith(prefix)}
    return {name: own for name, own in names.items() if not own.startswith("pooler.")}


def fingerprint(model: FeedbackPreTrainedModel, like: dict[str, str] | None = None) -> dict[str, str]:
    """SHA-256 of the backbone's weights, by the format to which they are rounded: 32-bit weights have one for each
    16-bit format, 16-bit weights one for their own.

    Args:
        model: the feedback model.
        like: a fingerprint to compare with: one format that it has is enough, where there is one.
    """
    state, core = model.state_dict(), core_of(model)
    dtype_of = next(tensor.dtype for name, tensor in state.items() if name in core and tensor.is_floating_point())
    formats = {
        name: dtype for name, dtype in FINGERPRINT_DTYPES.items() if dtype_of in (dtype, torch.float32, torch.float64)
    }
    if common := [name for name in formats if name in (like or {})]:
        formats = {common[0]: formats[common[0]]}
    found = {}
    for format_name, dtype in formats.items():
        digest = hashlib.sha256()
        for name, own in sorted(core.items(), key=lambda item: item[1]):
            tensor = state[name].detach()
            if tensor.is_floating_point():
                tensor = tensor.to(dtype).view(torch.int16)
            digest.update(f"{own} {tuple(tensor.shape)};".encode())
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
        found[format_name] = digest.hexdigest()
    return found


def same_backbone(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two fingerprints are of the same weights, as far as their formats tell."""
    return any(one[name] == other[name] for name in one.keys() & other.keys())


def share_weights(backbone: PreTrainedModel) -> PreTrainedModel:
    """A second model over the same parameters and buffers: nothing is copied but the modules around them."""
    tensors = (*backbone.parameters(), *backbone.buffers())
    return copy.deepcopy(backbone, {id(tensor): tensor for tensor in tensors})
