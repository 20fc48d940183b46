"""Checks that the folder or repository of a model exists and is complete."""

from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig

from ..resuming.checkpoints import MODEL_FILES, find_damaged_file


class HubOptions(TypedDict, total=False):
    """Keywords with which a model is loaded."""

    trust_remote_code: bool
    revision: str


def hub_options(revision: str | None) -> HubOptions:
    """Returns the keywords with which commands load from a folder or the Hub; code stored there is never run.

    Args:
        revision: branch, tag or commit of the hub repository.

    Example:

    ```python
    >>> hub_options("main")
    {'trust_remote_code': False, 'revision': 'main'}

    ```
    """
    options = HubOptions(trust_remote_code=False)
    if revision is not None:
        options["revision"] = revision
    return options


def read_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """Returns the config in a folder or hub repository.

    Args:
        name: folder or hub id.
        revision: branch, tag or commit of the hub repository.

    Raises:
        ValueError: there is none.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file() and (file := next(folder.glob("*.gguf"), None)):
        raise ValueError(
            f"`model`: the folder {name} holds {file.name} without a config. Load model and tokenizer with "
            f"`from_pretrained({name!r}, gguf_file={file.name!r})`, the model with "
            "`quantization_config=GgufConfig(dequantize=True)`, save both with `save_pretrained`, and train that."
        )
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"`model`: the folder {name} holds an adapter of PEFT, and not the model that it belongs to. Load it with "
            "PEFT, save the whole model by `model.merge_and_unload().save_pretrained(…)` with its tokenizer, and give "
            "that folder."
        )
    try:
        return PreTrainedConfig.get_config_dict(name, **hub_options(revision))[0]
    except (OSError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        if Path(name).is_dir():
            raise ValueError(f"`model`: the folder {name} holds no config that can be read ({reason}).") from error
        raise ValueError(
            f"`model`: there is no folder {name}, and no model of that name could be loaded from the Hub ({reason})."
        ) from error


def check_source(name: str, revision: str | None = None) -> dict[str, Any]:
    """Refuses a model that is missing, or whose folder has a damaged file.

    Args:
        name: folder or hub id.
        revision: branch, tag or commit of the hub repository.

    Returns:
        Its config.

    Raises:
        ValueError: there is no model, or a file is damaged.
    """
    if Path(name).is_dir() and (fault := find_damaged_file(Path(name), MODEL_FILES)) is not None:
        raise ValueError(f"`model`: {fault} in {name}; copy or download it again.")
    return read_config(name, revision)
