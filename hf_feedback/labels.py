"""The labels of a classifier: given by the user, or kept by a head that was trained for them."""

import copy
from typing import Any

from transformers import PreTrainedConfig

from .configuration_feedback import FeedbackConfig

LABEL_OPTIONS = ("num_labels", "id2label", "label2id", "problem_type")


def whole_labels(options: dict[str, Any]) -> dict[str, Any]:
    """`label2id` alone says `id2label` too; `num_labels` must not contradict it."""
    if options.get("label2id") and not options.get("id2label"):
        options = {**options, "id2label": {number: name for name, number in options["label2id"].items()}}
    names, count = options.get("id2label"), options.get("num_labels")
    if names and count is not None and len(names) != count:
        raise ValueError(
            f"`num_labels`={count!r} contradicts `id2label`, which names {len(names)} labels; leave one out."
        )
    return options


def adopt_labels(config: FeedbackConfig, task_config: PreTrainedConfig, given: set[str]) -> None:
    """A head that is trained already keeps its labels, in their order; all of them may be given new names.

    Args:
        config: gets the head's labels.
        task_config: the head's own.
        given: which of `LABEL_OPTIONS` the user gave.
    """
    own: dict[Any, Any] = dict(task_config.id2label or {})
    asked = config.id2label or {}
    named = "id2label" in given
    moved = named and any(own.get(i) != name and name in own.values() for i, name in asked.items())
    if (given & {"num_labels", "id2label"} and len(asked) != len(own)) or moved:
        raise ValueError(
            f"`head='backbone'`: the head was trained for the labels {list(own.values())} in this order, got "
            f"{list(asked.values())}; leave `num_labels` and `id2label` out, or use `head='new'`."
        )
    problem = task_config.problem_type
    if "problem_type" in given and problem not in (None, config.problem_type):
        raise ValueError(f"`problem_type`: the head was trained for {problem!r}, got {config.problem_type!r}.")
    for name in ("problem_type",) if named else LABEL_OPTIONS[1:]:
        if getattr(task_config, name) is not None:
            setattr(config, name, copy.deepcopy(getattr(task_config, name)))
