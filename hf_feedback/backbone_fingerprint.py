"""Identification of a backbone by a fingerprint of its weights, and sharing of backbones between models."""

import copy
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import safe_open
from torch import nn

from .backbone_layout import name_of_core

if TYPE_CHECKING:
    from .modeling_base import FeedbackPreTrainedModel

Module = TypeVar("Module", bound=nn.Module)

# A backbone is also identified if it is loaded with fewer bits than it was saved with.
FINGERPRINT_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def backbone_tensor_names(model: "FeedbackPreTrainedModel") -> dict[str, str]:
    """The tensors that belong to the backbone: name in the model's state dict → name in the backbone."""
    core = name_of_core(model.backbone, model.config.backbone_part)
    prefix = f"backbone.{core}." if core else "backbone."
    names = {name: name.removeprefix(prefix) for name in model.state_dict() if name.startswith(prefix)}
    return {name: own for name, own in names.items() if not own.startswith("pooler.")}


def fingerprint(model: "FeedbackPreTrainedModel", like: dict[str, str] | None = None) -> dict[str, str]:
    """SHA-256 of the backbone's weights, by the format to which they are rounded: 32-bit weights have one for each
    16-bit format, 16-bit weights one for their own.

    Args:
        model: the feedback model.
        like: a fingerprint to compare with: one format that it has is enough, where there is one.
    """
    state, core = model.state_dict(), backbone_tensor_names(model)
    return _fingerprint({own: name for name, own in core.items()}, lambda name: state[name], _dtype_of(model), like)


def fingerprint_of_files(model: "FeedbackPreTrainedModel", files: list[str]) -> dict[str, str]:
    """The fingerprint that the model's backbone would have with the weights in these safetensors files, which are read
    one tensor at a time.

    Returns:
        Empty where the files do not hold every tensor of the backbone under its name, with or without one prefix.
    """
    file_of: dict[str, str] = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            file_of |= dict.fromkeys(tensors.keys(), file)
    own_names = list(backbone_tensor_names(model).values())
    prefixes = {key.removesuffix(own_names[0]) for key in file_of if f".{key}".endswith(f".{own_names[0]}")}
    names_in_files = [{own: prefix + own for own in own_names} for prefix in sorted(prefixes)]
    whole = [names for names in names_in_files if file_of.keys() >= set(names.values())]
    if len(whole) != 1:
        return {}
    dtype = _dtype_of(model)

    def read(key: str) -> torch.Tensor:
        with safe_open(file_of[key], "pt") as tensors:  # opened anew: an open file keeps in memory what was read
            tensor = tensors.get_tensor(key)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return _fingerprint(whole[0], read, dtype)


def _dtype_of(model: "FeedbackPreTrainedModel") -> torch.dtype:
    state = model.state_dict()
    return next(state[name].dtype for name in backbone_tensor_names(model) if state[name].is_floating_point())


def _fingerprint(
    stored_names: dict[str, str],
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
    like: dict[str, str] | None = None,
) -> dict[str, str]:
    """The fingerprint of tensors: name in the backbone → what `read` finds it by."""
    formats = {
        name: rounded
        for name, rounded in FINGERPRINT_DTYPES.items()
        if dtype in (rounded, torch.float32, torch.float64)
    }
    if common := [name for name in formats if name in (like or {})]:
        formats = {common[0]: formats[common[0]]}
    digests = {name: hashlib.sha256() for name in formats}
    for own, stored_name in sorted(stored_names.items()):
        tensor = read(stored_name).detach()
        for name, digest in digests.items():
            bits = tensor.to(formats[name]).view(torch.int16) if tensor.is_floating_point() else tensor
            digest.update(f"{own} {tuple(tensor.shape)};".encode())
            digest.update(bits.contiguous().cpu().numpy().tobytes())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def same_backbone(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two fingerprints are of the same weights, as far as their formats can show."""
    return any(one[name] == other[name] for name in one.keys() & other.keys())


def share_weights(model: Module) -> Module:
    """Returns a second model with the same parameters and buffers; only the modules are copied."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
