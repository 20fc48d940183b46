"""Tiny batches of two for the probe of a backbone."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from .backbone_layout import forward_arguments, unsupported
from .layer_recorder import first_argument

Batch = dict[str, torch.Tensor]


def _token_ids(config: Any, generator: torch.Generator) -> Batch:
    """Two rows of eight tokens, the second one with two padding tokens."""
    ids = torch.randint(min(5, config.vocab_size - 1), config.vocab_size, (2, 8), generator=generator, device="cpu")
    if isinstance(pad := getattr(config, "pad_token_id", None), int):
        ids = torch.where(ids == pad, (ids + 1) % config.vocab_size, ids)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _pixels(config: Any, generator: torch.Generator) -> Batch:
    size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size, config.image_size)
    return {"pixel_values": torch.randn((2, config.num_channels, *size), generator=generator, device="cpu")}


def _waves(config: Any, generator: torch.Generator) -> Batch:
    shape: tuple[int, ...] = (2, 4000)
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):  # spectra by the name of waves
        shape = (2, config.max_length, config.num_mel_bins)
    return {"input_values": torch.randn(shape, generator=generator, device="cpu")}


def _spectra(config: Any, generator: torch.Generator) -> Batch:
    shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
    return {"input_features": torch.randn(shape, generator=generator, device="cpu")}


# By the name of a backbone's main input: a tiny batch of two.
PROBE_INPUTS: dict[str, Callable[[Any, torch.Generator], Batch]] = {
    "input_ids": _token_ids,
    "pixel_values": _pixels,
    "input_values": _waves,
    "input_features": _spectra,
}


def probe_inputs(backbone: PreTrainedModel) -> Batch:
    """A tiny batch of two for the backbone, on its device and in its dtype.

    Raises:
        UnsupportedBackboneError: its main input is of another kind.
    """
    name = backbone.main_input_name
    if not isinstance(name, str) or not forward_arguments(backbone) & {name, "args"}:
        name = first_argument(backbone)  # the declared name is transformers' default, or there are several
    if name not in PROBE_INPUTS:
        known = ", ".join(PROBE_INPUTS)
        raise unsupported(backbone, f"its main input is `{name}`.", f"Use a backbone that reads one of {known}.")
    weight = next(backbone.parameters())
    try:
        inputs = PROBE_INPUTS[name](backbone.config.get_text_config(), torch.Generator("cpu").manual_seed(0))
    except (AttributeError, TypeError) as error:
        raise unsupported(
            backbone, f"its config does not give the size of its {name} ({error}).", "Use another backbone."
        ) from error
    return {k: v.to(weight.device, weight.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}
