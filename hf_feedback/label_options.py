"""The labels of a classifier: given options, or those of a trained head."""

from collections.abc import Iterable
from reprlib import repr as shortened
from typing import Any

from transformers import PreTrainedConfig

from .validation import Keywords, check_num_labels

LABEL_OPTIONS = ("num_labels", "id2label", "label2id", "problem_type")


def predicts_values(problem_type: str | None, num_labels: int) -> bool:
    """Whether labels are values and not classes; one label is a value unless it may hold or not, as one of several."""
    return problem_type == "regression" or (num_labels == 1 and problem_type != "multi_label_classification")


def normalize_label_options(options: Keywords) -> Keywords:
    """`id2label` in the order of its numbers and `label2id` to match, each made of the other where it is left out.

    A class's number is its key in `id2label`, whether that is an integer or, as in JSON, text. Names that transformers
    makes up (`LABEL_0`, …) give way to others.

    Args:
        options: any of `LABEL_OPTIONS`; others are handed on.

    Raises:
        ValueError: something is not a number or not a name, numbers are missing, or the options contradict each other.
    """
    count = options.get("num_labels")
    check_num_labels(count)
    names = _names_by_number("id2label", _dict_of("id2label", options).items())
    other = _names_by_number("label2id", [(number, name) for name, number in _dict_of("label2id", options).items()])
    same = set(names.values()) == set(other.values()) and other.items() <= names.items()
    option = "id2label"
    if not names or (_are_made_up(names) and not _are_made_up(other)):
        names, option = other, "label2id"
    elif not (same or _are_made_up(other)):
        raise ValueError(f"`label2id` contradicts `id2label`: {shortened(other)}, {shortened(names)}; leave one out.")
    if not names:
        return options
    if list(names) != list(range(len(names))):
        raise ValueError(f"`{option}` must number the labels from 0 on without a gap, got {shortened(list(names))}.")
    if count not in (None, len(names)):
        raise ValueError(
            f"`num_labels`={count!r} contradicts `{option}`, which names {len(names)} labels; leave one out."
        )
    return {**options, "id2label": names, "label2id": numbers_by_name(names)}


def numbers_by_name(id2label: Any) -> dict[str, int] | None:
    """The `label2id` of an `id2label`; `None` where there is none."""
    return {str(name): int(number) for number, name in id2label.items()} if isinstance(id2label, dict) else None


def normalize_labels_of(config: PreTrainedConfig, others: Keywords) -> None:
    """Completes the labels that a config has got, before transformers fills in what is left out.

    Args:
        config: whose `id2label` and `label2id` are set.
        others: what the config got besides; loses a `num_labels` of `None`.
    """
    if others.get("num_labels") is None:
        others.pop("num_labels", None)
    options = {"num_labels": others.get("num_labels"), "id2label": config.id2label, "label2id": config.label2id}
    labels = normalize_label_options(options)
    config.id2label, config.label2id = labels["id2label"], labels["label2id"]


def replace_labels(stored: Keywords, options: Keywords) -> Keywords:
    """The stored values of a config with the labels that are among the options, which are taken out of them; names that
    are stored stay if only their number is given, and is the same."""
    for name in LABEL_OPTIONS[:3]:
        if options.get(name, 0) is None:  # as if it were not there
            del options[name]
    labels = {name: options[name] for name in LABEL_OPTIONS[:3] if name in options}
    if not labels or labels == {"num_labels": len(stored.get("id2label") or ())}:
        return stored
    for name in labels:
        del options[name]
    return {**{name: value for name, value in stored.items() if name not in LABEL_OPTIONS[:3]}, **labels}


def _dict_of(option: str, options: Keywords) -> dict[Any, Any]:
    labels = options.get(option)
    if not isinstance(labels, dict | None):
        raise ValueError(f"`{option}` must be a dict of labels and their numbers, got {shortened(labels)}.")
    return labels or {}


def _names_by_number(option: str, pairs: Iterable[tuple[Any, Any]]) -> dict[int, str]:
    """Number → name, by ascending number; numbers may come as text, names as numbers."""
    names: dict[int, str] = {}
    for number, name in pairs:
        digits = isinstance(number, str) and number.strip().isdecimal()
        if not (digits or hasattr(number, "__index__")) or isinstance(number, bool) or isinstance(name, list | dict):
            pair = f"{shortened(number)} and {shortened(name)}"
            raise ValueError(f"`{option}` must pair whole numbers with names of labels, got {pair}.")
        if names.setdefault(int(number), str(name)) != str(name):
            raise ValueError(f"`{option}` gives number {int(number)} to {names[int(number)]!r} and to {name!r}.")
    return dict(sorted(names.items()))


def _are_made_up(names: dict[int, str]) -> bool:
    return all(name == f"LABEL_{number}" for number, name in names.items())


def adopt_labels(config: PreTrainedConfig, task_config: PreTrainedConfig, given_names: set[str]) -> None:
    """A head that is trained already keeps its labels, in their order; all of them may be given new names.

    Args:
        config: gets the head's labels.
        task_config: the head's own.
        given_names: which of `LABEL_OPTIONS` the user gave.
    """
    try:  # its `label2id` may know other spellings of the names, too
        trained = normalize_label_options({"id2label": task_config.id2label, "problem_type": task_config.problem_type})
    except ValueError as error:
        raise ValueError(f"The config of the task model cannot be used: {error}") from error
    own: dict[Any, Any] = trained["id2label"] or {}
    asked = config.id2label or {}
    named = "id2label" in given_names
    moved = named and any(own.get(i) != name and name in own.values() for i, name in asked.items())
    if (given_names & {"num_labels", "id2label"} and len(asked) != len(own)) or moved:
        raise ValueError(
            f"`head='backbone'`: the head was trained for the labels {list(own.values())} in this order, got "
            f"{list(asked.values())}; leave `num_labels` and `id2label` out, or use `head='new'`."
        )
    problem = task_config.problem_type
    if "problem_type" in given_names and problem not in (None, config.problem_type):
        raise ValueError(f"`problem_type`: the head was trained for {problem!r}, got {config.problem_type!r}.")
    for name in ("problem_type",) if named else LABEL_OPTIONS[1:]:
        if trained.get(name) is not None:
            setattr(config, name, trained[name])
