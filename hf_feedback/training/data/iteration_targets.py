"""Targets of single iterations: what each of the first ones is trained to answer, before the labels."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from ...halting import reads_answers
from ..arguments import FeedbackTrainingArguments
from ..train_iterations import iteration_range
from .columns import check_column
from .files import format_rows
from .labels import IGNORED, SINGLE_LABEL, LabelSet, label_numbers
from .splits import Split

NO_TARGET = "none"  # in place of a column, for an iteration that has no target


def check_target_columns(split: Split, columns: Sequence[str], labels: LabelSet) -> None:
    """Refuses columns of targets before anything is loaded.

    Args:
        split: the training rows.
        columns: column of the targets of each iteration, or `NO_TARGET`.
        labels: labels of the data.

    Raises:
        ValueError: there is no such column, or the labels are not one class for every text.
    """
    if columns and labels.problem_type != SINGLE_LABEL:
        raise ValueError(
            f"`iteration_target_columns` hold one class for every text, and the labels are {labels.problem_type}; "
            "leave them out."
        )
    names = split.data.column_names
    if NO_TARGET in columns and NO_TARGET in names:
        raise ValueError(
            f"`iteration_target_columns`: {NO_TARGET!r} says that an iteration has no target, and {split.source} has a "
            "column of that name; rename it."
        )
    for column in columns:
        if column != NO_TARGET:
            check_column(column, names, split.source, "iteration_target_columns")


def iteration_target_numbers(split: Split, columns: Sequence[str], labels: LabelSet) -> list[list[int]]:
    """Returns the targets of the first iterations, one list for every row.

    Args:
        split: the rows.
        columns: column of the targets of each iteration, or `NO_TARGET`.
        labels: numbers of the classes.

    Raises:
        ValueError: a target is missing, or not one of the classes.
    """

    def numbers_of(column: str) -> list[int]:
        if column == NO_TARGET:
            return [IGNORED] * len(split.data)
        try:
            return cast(list[int], label_numbers(split, column, labels))
        except ValueError as error:
            raise ValueError(
                f"`iteration_target_columns`, {column!r}: {error} Targets are classes of the label column; give the "
                "label where there is nothing to find before it."
            ) from error

    return [list(row) for row in zip(*map(numbers_of, columns), strict=True)]


def check_iteration_targets(rows: Any, model: PreTrainedModel, args: FeedbackTrainingArguments) -> None:
    """Refuses targets of iterations that training would not read, or would contradict.

    Args:
        rows: training rows; streams, and rows without `iteration_targets`, are not looked at.
        model: the feedback model, or a network from scratch.
        args: the training arguments.

    Raises:
        ValueError: the targets do not suit the model, the arguments or each other; says what to do.
    """
    targets = _targets_of(rows)
    if not targets:
        return
    name = "`iteration_targets` (`--iteration-target-columns`)"
    _check_lists(targets, name)
    number, config = len(targets[0]), model.config
    if not hasattr(config, "iteration_loss"):
        raise ValueError(f"{name} are for backbones with feedback, and this network has none; leave them out.")
    if "iteration_targets" not in inspect.signature(type(model).forward).parameters:
        raise ValueError(
            f"{name} are not for {type(model).__name__}, which has one target for all iterations; leave them out."
        )
    if config.iteration_loss == "last":
        raise ValueError(
            f"{name} are read where every iteration has a loss; give the model `iteration_loss` 'uniform' or 'linear' "
            "(`--iteration-loss`), or leave them out."
        )
    if args.agreement_weight:
        raise ValueError(
            f"`agreement_weight`={args.agreement_weight} makes earlier iterations answer like the last one, and {name} "
            "something else; leave one out."
        )
    if reads_answers(config.halting) and config.min_iterations <= number:
        raise ValueError(
            f"`halting`={config.halting!r} could stop at the answer to one of {name}; give `min_iterations` of at "
            f"least {number + 1}, or `halting` 'none' or 'convergence'."
        )
    fewest = most = config.num_iterations
    if args.train_iterations != "fixed":
        limits = iteration_range(
            args.train_iterations, args.min_train_iterations, config.num_iterations, args.max_train_iterations
        )
        fewest, most = limits.minimum, limits.maximum
    if most <= number:
        raise ValueError(
            f"{name} are of the first {number} iterations, and with {most} iterations in training the labels would be "
            "no target; give more iterations (`num_iterations`) or fewer columns."
        )
    _check_present([torch.as_tensor(one) for one in targets], _labels_of(rows), fewest, name)


def _targets_of(rows: Any) -> list[Any] | None:
    """The targets of all rows; `None` if they have none."""
    if isinstance(rows, Dataset):
        return list(rows["iteration_targets"]) if "iteration_targets" in rows.column_names else None
    if isinstance(rows, list) and rows and isinstance(rows[0], Mapping) and "iteration_targets" in rows[0]:
        return [row.get("iteration_targets") for row in rows]
    return None


def _labels_of(rows: Any) -> list[Any]:
    """The labels of all rows; none where they have no column of that name."""
    if isinstance(rows, Dataset):
        return list(rows["labels"]) if "labels" in rows.column_names else []
    return [row["labels"] for row in rows if "labels" in row]


def _has_label(label: Any) -> bool:
    return bool((torch.as_tensor(label) != IGNORED).any())


def _check_lists(targets: list[Any], name: str) -> None:
    """Refuses rows without targets, or with another number of them than the first row has."""
    for row, target in enumerate(targets):
        is_list = isinstance(target, list | tuple | torch.Tensor)
        if not is_list or len(target) != len(targets[0]) or any(one is None for one in target):
            raise ValueError(
                f"{name}: every row needs a list of as many class numbers, one for each of the first iterations, "
                f"{IGNORED} where one has none; {format_rows([row])}: {target!r:.80}."
            )


def _check_present(targets: list[torch.Tensor], labels: list[Any], fewest: int, name: str) -> None:
    """Refuses targets beside no label, rows of which some have a target in an iteration and others have none (of tokens
    any number has one), and steps without a target.

    Args:
        targets: `(J, …)` of each row.
        labels: of each row.
        fewest: smallest K of a step.
        name: of the targets, for messages.
    """
    of_tokens = targets[0].dim() > 1
    present = [
        (target != IGNORED).flatten(1).any(1).tolist() if of_tokens else (target != IGNORED).tolist()
        for target in targets
    ]
    bare = next((row for row, label in enumerate(labels) if any(present[row]) and not _has_label(label)), None)
    if bare is not None:
        raise ValueError(
            f"{name}: {format_rows([bare])} has targets and no label, and batches count by their labels; label it, or "
            f"give {IGNORED} for its targets."
        )
    other = next((row for row, one in enumerate(present) if one != present[0]), None)
    if other is not None and not of_tokens:
        raise ValueError(
            f"{name}: the first row has targets {targets[0].tolist()} and {format_rows([other])} "
            f"{targets[other].tolist()}; {IGNORED}, no target, must stand for the same iterations in all rows. Give "
            "the label where there is nothing to find before it."
        )
    if fewest <= len(present[0]) and not any(any(one[:fewest]) for one in present):
        raise ValueError(
            f"`train_iterations` draws {fewest} iterations for some steps, none of which has a target in {name}; raise "
            "`min_train_iterations`."
        )
