"""Backbones from GGUF files, which hold quantized weights: they are unpacked, so that the model trains and saves."""

from transformers import GgufConfig, PreTrainedModel
from transformers.utils import logging

from .validation import Keywords

logger = logging.get_logger(__name__)


def with_unpacking(backbone_kwargs: Keywords) -> Keywords:
    """What to load a backbone with: the weights of a GGUF file are unpacked, also where a kernel could leave them as
    they are.

    Args:
        backbone_kwargs: for `from_pretrained` of the backbone.
    """
    file = backbone_kwargs.get("gguf_file")
    if file is None:
        return backbone_kwargs
    logger.warning_once(
        f"The quantized weights in {file} are unpacked to full precision (`dtype`): the model is trained and saved so, "
        "and its folder is several times the size of the file."
    )
    return {"quantization_config": GgufConfig(dequantize=True), **backbone_kwargs}


def find_gguf_file(backbone: PreTrainedModel) -> str | None:
    """The name of the GGUF file that a backbone was loaded from; `None` if it was not, or is not known."""
    return getattr(getattr(backbone.config, "quantization_config", None), "gguf_file", None)


def drop_quantization_marks(backbone: PreTrainedModel) -> None:
    """Makes a backbone whose weights were unpacked from a GGUF file one like any other: transformers marks it as
    quantized, and would neither train nor save it.

    Args:
        backbone: changed in place, with its config.

    Raises:
        ValueError: its weights are still those of the file.
    """
    if not isinstance(getattr(backbone.config, "quantization_config", None), GgufConfig):
        return
    if any(not parameter.is_floating_point() for parameter in backbone.parameters()):
        raise ValueError(
            f"`backbone`: the weights of this {type(backbone).__name__} are quantized as in its GGUF file, and cannot "
            "be trained or saved; load it with `quantization_config=GgufConfig(dequantize=True)`."
        )
    for holder, names in (
        (backbone, ("hf_quantizer", "is_quantized", "quantization_method")),
        (backbone.config, ("quantization_config", "_is_quantized")),
    ):
        for name in names:
            vars(holder).pop(name, None)
