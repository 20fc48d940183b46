"""The folder or repository of a model: whether it is there, whole, and what it was trained for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig

from ..model_card import TASKS
from .checkpoints import MODEL_FILES, folder_fault


def read_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """The config in a folder or hub repository.

    Raises:
        ValueError: there is none.
    """
    try:
        return PreTrainedConfig.get_config_dict(name, **({} if revision is None else {"revision": revision}))[0]
    except (OSError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        if Path(name).is_dir():
            raise ValueError(f"`model`: the folder {name} holds no config that can be read ({reason}).") from error
        raise ValueError(
            f"`model`: there is no folder {name}, and no model of that name could be loaded from the Hub ({reason})."
        ) from error


def check_source(name: str, revision: str | None = None) -> dict[str, Any]:
    """Raises `ValueError` where there is no model, or a file of its folder is damaged; returns its config."""
    if Path(name).is_dir() and (fault := folder_fault(Path(name), MODEL_FILES)) is not None:
        raise ValueError(f"`model`: {fault} in {name}; copy or download it again.")
    return read_config(name, revision)


def check_trained_for(name: str, config: dict[str, Any], heads: Sequence[str]) -> None:
    """Raises `ValueError` where a feedback model was trained for another task than those of `heads`."""
    trained: list[str] = config.get("architectures") or []
    if not trained or set(trained) & set(heads):
        return
    what = TASKS[trained[0]].model if trained[0] in TASKS else "model without a head"
    article = "an" if what[0] in "aeiou" else "a"
    raise ValueError(
        f"`model`: {name} was trained as {article} {what} ({trained[0]}), and this needs a {TASKS[heads[0]].model}."
    )
