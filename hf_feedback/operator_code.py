"""The code of operators that are not part of hf_feedback: saved with a model, and loaded with the user's consent."""

import sys
from pathlib import Path

from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.utils import cached_file, logging

from .configuration_feedback import FeedbackConfig
from .connections import CONNECTIONS, AdditiveConnection
from .feedback_connection import FeedbackConnection
from .model_connections import operators_of
from .validation import Keywords

logger = logging.get_logger(__name__)


def save_operator_code(config: FeedbackConfig, folder: str | Path) -> dict[str, str] | None:
    """Copies the files in which a model's own operators are defined, and what these import relatively.

    Args:
        config: names the operators.
        folder: where the model is saved.

    Returns:
        For the config: name of the operator → `"module.Class"` in the folder; `None` if all are ours.

    Raises:
        ValueError: a file has the name of one of ours.
    """
    names = {operator: name for name, operator in CONNECTIONS.items()}
    own = [operator for operator in operators_of(config) if operator.__module__ != AdditiveConnection.__module__]
    own = [operator for operator in own if operator in names]
    if any(operator.__module__ == "__main__" for operator in own):
        logger.warning(
            f"`feedback_type`={config.feedback_type!r}: an operator is defined in `__main__`, whose code cannot be "
            "saved. Put it in a module of its own, which has to be imported before the model is loaded."
        )
        own = [operator for operator in own if operator.__module__ != "__main__"]
    for operator in own:
        file = Path(str(sys.modules[operator.__module__].__file__))
        if (Path(__file__).parent / file.name).exists() and file.parent != Path(__file__).parent:
            raise ValueError(
                f"`feedback_type`={names[operator]!r} is defined in a file called {file.name}, as one of hf_feedback's "
                "is; give it another name to save the model with its code."
            )
        Path(folder).mkdir(parents=True, exist_ok=True)
        custom_object_save(operator, folder)
    return {names[one]: f"{one.__module__.rpartition('.')[2]}.{one.__name__}" for one in own} or None


def load_operator_code(config: FeedbackConfig, name_or_path: str | Path, hub_kwargs: Keywords) -> None:
    """Registers the operators whose code is in a folder or repository, unless they are registered already.

    Args:
        config: from there.
        name_or_path: folder or hub id.
        hub_kwargs: as `from_pretrained` was given them, `trust_remote_code` among them.

    Raises:
        ValueError: their code is not to be trusted, is not an operator, or other code of that name was loaded before.
    """
    for name, class_reference in (config.custom_operators or {}).items():
        known = {key: value for key, value in hub_kwargs.items() if key not in ("trust_remote_code", "subfolder")}
        if name in CONNECTIONS:
            if CONNECTIONS[name].__module__.startswith("transformers_modules."):
                file = cached_file(name_or_path, f"{class_reference.partition('.')[0]}.py", **known)
                _check_same_code(name, Path(str(file)))
            continue
        if not hub_kwargs.get("trust_remote_code"):
            raise ValueError(
                f"`feedback_type`={config.feedback_type!r}: the operator {name!r} is not part of hf_feedback; import "
                f"the module that registers it, or run the code in {name_or_path} with `trust_remote_code=True`."
            )
        operator = get_class_from_dynamic_module(class_reference, str(name_or_path), **known)
        if not issubclass(operator, FeedbackConnection):
            raise ValueError(f"`custom_operators`: {class_reference} in {name_or_path} is no FeedbackConnection.")
        CONNECTIONS[name] = operator


def _check_same_code(name: str, file: Path) -> None:
    """Raises `ValueError` where the file of an operator is not that from which it was loaded."""
    loaded = Path(str(sys.modules[CONNECTIONS[name].__module__].__file__))
    if loaded.read_bytes() != file.read_bytes():
        raise ValueError(
            f"`custom_operators`: {name!r} was loaded from another folder in this process, with other code than that "
            f"in {file.parent}; load them in two processes, or give one of them another name."
        )
