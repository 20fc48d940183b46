"""Descriptions of the data of a run: rows, labels and duplicates."""

from collections import Counter
from collections.abc import Mapping, Sequence

from .columns import Columns
from .duplicates import repeated_rows
from .files import format_rows
from .label_names import RowLabels, label_cells, normalize_labels
from .labels import MAX_SHOWN, MULTI_LABEL, REGRESSION, LabelSet, reads_as_number
from .splits import Split
from .texts import texts_of

UNLABELLED = "unlabelled"  # name of the split of further training texts without labels


def describe_rows(
    name: str, split: Split, column: str | None = None, labels: LabelSet | None = None, separator: str | None = None
) -> str:
    """Describes the number of rows of a split, in total and by label.

    Args:
        name: name of the split.
        split: its rows.
        column: column of the labels, if there is one.
        labels: labels of the task.
        separator: separator of several labels in one cell, if any.
    """
    counts = f"{name}: {len(split.data)} rows from {split.source}"
    if column is None or column not in split.data.column_names or labels is None:
        return counts
    cells, several = label_cells(split.data, column, separator), labels.problem_type == MULTI_LABEL
    values = normalize_labels(cells, column, split.source, several)
    if all(value is None for value in values):
        return f"{counts}; without labels"
    if labels.problem_type == REGRESSION:
        numbers = [float(str(value)) for value in values if reads_as_number(value)]
        return f"{counts}; values from {min(numbers):g} to {max(numbers):g}" if numbers else counts
    return f"{counts}; {_describe_counts(label_counts(values), labels)}"


def label_counts(values: Sequence[RowLabels]) -> Counter[str]:
    """Returns the number of rows with each label.

    Example:

    ```python
    >>> label_counts(["late", ["late", "lost"], None])
    Counter({'late': 2, 'lost': 1})

    ```
    """
    several = (value if isinstance(value, list) else [value] for value in values)
    return Counter(str(label) for row in several for label in row if label is not None)


def _describe_counts(counts: Counter[str], labels: LabelSet) -> str:
    """The counts of labels, the most frequent ones first, unused ones last."""
    ordered = sorted(labels.numbers, key=lambda label: -counts[label])
    shown = ", ".join(f"{label:.40} {counts[label]}" for label in ordered[:MAX_SHOWN])
    rest = ordered[MAX_SHOWN:]
    return shown + (f", … {len(rest)} more, {ordered[-1]:.40} {counts[ordered[-1]]} the least" if rest else "")


def describe_duplicates(splits: Mapping[str, Split], columns: Mapping[str, Columns]) -> list[str]:
    """Describes duplicate texts within the training rows and between splits.

    Args:
        splits: the splits by name.
        columns: columns of their texts and labels.
    """
    texts = {name: _row_texts(split, columns[name]) for name, split in splits.items()}
    train, lines = splits["train"], []
    repeated = repeated_rows(texts["train"])
    if repeated:
        contradicting = _contradicting_rows(train, texts["train"], columns["train"].label)
        contradiction = f", {len(contradicting)} of them with another label" if contradicting else ""
        rows = format_rows(train.rows_of(contradicting or repeated))
        repeat = (
            "1 text of train repeats an earlier one"
            if len(repeated) == 1
            else f"{len(repeated)} texts of train repeat earlier ones"
        )
        lines.append(f"{repeat}{contradiction}, such as {rows}")
    for trained in ("train", UNLABELLED):
        known = set(texts.get(trained, ()))
        for name in [name for name in splits if name not in ("train", trained)]:
            shared = [row for row, text in enumerate(texts[name]) if text in known]
            if shared:
                rows = format_rows(splits[name].rows_of(shared))
                are = f"1 text of {name} is" if len(shared) == 1 else f"{len(shared)} texts of {name} are"
                lines.append(f"{are} in {trained} too, such as {rows}")
    return lines


def _row_texts(split: Split, columns: Columns) -> list[tuple[str | None, ...]]:
    names = [name for name in (columns.text, columns.text_pair) if name in split.data.column_names]
    return list(zip(*(texts_of(split.data[name], str(name), split.source, split.rows) for name in names), strict=True))


def _contradicting_rows(split: Split, texts: Sequence[tuple[str | None, ...]], column: str | None) -> list[int]:
    """Rows that repeat the text of an earlier row with another label."""
    if column is None:
        return []
    first: dict[tuple[str | None, ...], object] = {}
    return [
        row for row, label in enumerate(label_cells(split.data, column)) if first.setdefault(texts[row], label) != label
    ]
