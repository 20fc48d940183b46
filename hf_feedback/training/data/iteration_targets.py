"""Targets of single iterations: what each of the first ones is trained to answer, before the labels."""

from collections.abc import Sequence, Sized
from typing import Any, cast

import torch
from transformers import PreTrainedConfig

from .labels import IGNORED, SINGLE_LABEL, LabelSet, label_numbers
from .splits import Split

NO_TARGET = "none"  # in place of a column, for an iteration that has no target


def iteration_target_numbers(split: Split, columns: Sequence[str], labels: LabelSet) -> list[list[int]]:
    """Returns the targets of the first iterations, one list for every row.

    Args:
        split: the rows.
        columns: column of the targets of each iteration, or `NO_TARGET`.
        labels: numbers of the classes.

    Raises:
        ValueError: there is no such column, no column at all, or a target is missing or not one of the classes.
    """
    if labels.problem_type != SINGLE_LABEL:
        raise ValueError(
            f"`iteration_target_columns` hold one class for every text, and the labels are {labels.problem_type}; "
            "leave them out."
        )
    if not set(columns) - {NO_TARGET}:
        raise ValueError(
            f"`iteration_target_columns`={' '.join(columns)!r} gives no iteration a target; name a column, or leave it "
            "out."
        )
    targets = [
        [IGNORED] * len(split.data)
        if column == NO_TARGET
        else cast(list[int], label_numbers(split, column, labels, option="iteration_target_columns"))
        for column in columns
    ]
    return [list(row) for row in zip(*targets, strict=True)]


def check_iteration_targets(rows: Any, config: PreTrainedConfig, least: int) -> None:
    """Refuses targets of iterations that leave none for the labels, or that no loss reads.

    Args:
        rows: training rows; those without a column `iteration_targets` are not looked at.
        config: config of the model.
        least: fewest iterations that a training step takes.

    Raises:
        ValueError: the targets do not suit the model; says what to do.
    """
    if "iteration_targets" not in (getattr(rows, "column_names", None) or ()) or not isinstance(rows, Sized):
        return
    if getattr(config, "iteration_loss", "last") == "last":
        raise ValueError(
            "`iteration_targets` (`--iteration-target-columns`) are read where every iteration has a loss; give the "
            "model `iteration_loss` 'uniform' or 'linear' (`--iteration-loss`), or leave them out."
        )
    targets = torch.as_tensor(cast(Any, rows)[0]["iteration_targets"])
    if len(targets) >= config.num_iterations:
        raise ValueError(
            f"`iteration_targets` (`--iteration-target-columns`) are of the {len(targets)} first iterations, and with "
            f"`num_iterations`={config.num_iterations} the labels would be no target; give more iterations or fewer "
            "columns."
        )
    if least <= len(targets) and bool((targets[:least] == IGNORED).all()):
        raise ValueError(
            f"`train_iterations` draws {least} iterations for some steps, none of which has a target in "
            "`iteration_targets` (`--iteration-target-columns`); raise `min_train_iterations`."
        )
