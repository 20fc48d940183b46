"""Backbones from GGUF files, whose quantized weights are unpacked so that the model can be trained and saved."""

from transformers import GgufConfig, PreTrainedModel
from transformers.utils import logging

from .validation import Keywords

logger = logging.get_logger(__name__)


def with_unpacking(backbone_kwargs: Keywords) -> Keywords:
    """Returns keywords for loading a backbone that unpack the weights of a GGUF file, even if a kernel supports them.

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
    """Removes the marks of quantization from a backbone with unpacked weights, which transformers would neither train
    nor save.

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
