"""A trained text classifier and its tokenizer."""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from .model_setup import load_tokenizer
from .model_sources import check_source, hub_options
from .tasks import TASKS, NetworkTextClassification, TextClassification
from .tasks.task import Model
from .trained_model import HEADLESS

TEXT_TASKS = {
    task.model_class.config_class.model_type: task for task in (TextClassification, NetworkTextClassification)
}


def load_classifier(name: str, revision: str | None = None) -> tuple[Model, PreTrainedTokenizerBase]:
    """Returns a trained text classifier and its tokenizer.

    Args:
        name: folder or hub id.
        revision: branch, tag or commit of the hub repository.

    Raises:
        ValueError: it is missing or damaged, is no feedback model, or was trained for another task.
    """
    config = check_source(name, revision)
    task = TEXT_TASKS.get(str(config.get("model_type")))
    if task is None:
        raise ValueError(f"`model`: {name} is no feedback model; make one with `hf-feedback train`.")
    _check_task(name, config, task)
    return task.model_class.from_pretrained(name, **hub_options(revision)), load_tokenizer(name, revision)


def _check_task(name: str, config: Mapping[str, object], needed: type[TextClassification]) -> None:
    """Refuses a model that was trained for another task."""
    architectures = config.get("architectures")
    known = (*TASKS, *HEADLESS)  # a class of another name is a user's own
    trained = [one for one in architectures if one in known] if isinstance(architectures, list) else []
    if trained and needed.model_class.__name__ not in trained:
        task = "a model without a head" if trained[0] in HEADLESS else TASKS[trained[0]].card.model_with_article
        raise ValueError(
            f"`model`: {name} was trained as {task} ({trained[0]}), and this needs {needed.card.model_with_article}."
        )
