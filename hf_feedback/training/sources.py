"""The folder or repository of a model: whether it is there, whole, and what it was trained for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig

from ..model_card import TASKS
from .checkpoints import MODEL_FILES, folder_fault


def hub_options(revision: str | None) -> dict[str, Any]:
    """How the commands load from a folder or the Hub: nobody can tell them to run the code that is there."""
    return {"trust_remote_code": False, **({} if revision is None else {"revision": revision})}


def read_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """The config in a folder or hub repository.

    Raises:
        ValueError: there is none.
    """
    try:
        return PreTrainedConfig.get_config_dict(name, **hub_options(revision))[0]
    except (OSError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        if Path(name).is_dir():
            raise ValueError(f"`model`: the folder {name} holds no config that can be read ({reason}).") from error
        raise ValueError(
            f"`model`: there is no folder {name}, and no model of that name could be loaded from the Hub ({reason})."
        ) from error


def model_type_of(name: str, revision: str | None = None) -> Any:
    """The `model_type` that the config in a folder or hub repository names."""
    return read_config(name, revision).get("model_type")


def check_source(name: str, revision: str | None = None) -> dict[str, Any]:
    """Raises `ValueError` where there is no model, or a file of its folder is damaged; returns its config."""
    if Path(name).is_dir() and (fault := folder_fault(Path(name), MODEL_FILES)) is not None:
        raise ValueError(f"`model`: {fault} in {name}; copy or download it again.")
    return read_config(name, revision)


def check_trained_for(name: str, config: dict[str, Any], heads: Sequence[str]) -> None:
    """Raises `ValueError` where a feedback model was trained for another task than those of `heads`."""
    named = config.get("architectures")
    without_head = ("FeedbackModel", "FNNModel")  # a class of another name is a user's own
    trained = [name for name in named if name in (*TASKS, *without_head)] if isinstance(named, list) else []
    if not trained or set(trained) & set(heads):
        return
    what = "model without a head" if trained[0] in without_head else TASKS[trained[0]].model
    article = "an" if what[0] in "aeiou" else "a"
    raise ValueError(
        f"`model`: {name} was trained as {article} {what} ({trained[0]}), and this needs a {TASKS[heads[0]].model}."
    )
