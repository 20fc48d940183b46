"""Sampling of rows, and a validation split held out of the training rows."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ...validation import check_integer, option


@dataclass(kw_only=True)
class SamplingArguments:
    """Sampling and validation split."""

    validation_split: float | None = option(
        None, "Share of the training rows to hold out for validation, in (0, 1), drawn from every class alike."
    )
    max_train_samples: int | None = option(None, "Maximum number of training rows, drawn at random (default: all).")
    max_eval_samples: int | None = option(
        None, "Maximum number of validation rows and of test rows, drawn at random (default: all)."
    )
    split_seed: int = option(0, "Seed of these draws, which do not depend on --seed.")

    def check_sampling(self) -> None:
        """Raises `ValueError` where one of these options has a value that is not allowed."""
        share = self.validation_split
        if share is not None and not 0 < share < 1:
            raise ValueError(f"`validation_split` must be between 0 and 1, a share of the rows, got {share}.")
        for name in ("max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1, "rows")
        check_integer("split_seed", self.split_seed, 0, "seed of the draws of rows")


def held_out_rows(classes: Sequence[Hashable], share: float, seed: int) -> list[int]:
    """Draws the validation rows, stratified by class.

    A class always keeps at least one training row. Rounding the shares of small classes down would make the split too
    small, so the remaining rows are drawn from the classes that lose most by rounding.

    Args:
        classes: the class of every row.
        share: share of the rows, above 0 and below 1.
        seed: seed of the draw.

    Returns:
        The rows, counted from 0, in their order.

    Example:

    ```python
    >>> rows = held_out_rows(["late"] * 8 + ["lost"] * 4, 0.25, seed=0)
    >>> sum(row < 8 for row in rows), len(rows)
    (2, 3)

    ```
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, name in enumerate(classes):
        rows_of.setdefault(name, []).append(row)
    exact = {name: share * len(rows) for name, rows in rows_of.items()}
    counts = {name: min(int(exact[name]), len(rows) - 1) for name, rows in rows_of.items()}
    missing = round(share * len(classes)) - sum(counts.values())
    for name in sorted(rows_of, key=lambda name: counts[name] - exact[name]):  # those that lose most by rounding first
        if missing > 0 and counts[name] < len(rows_of[name]) - 1:
            counts[name], missing = counts[name] + 1, missing - 1
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(rows)[: counts[name]] for name, rows in rows_of.items()]
    return sorted(int(row) for rows in drawn for row in rows)
