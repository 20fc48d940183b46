"""Choice and checks of the columns of texts and labels in a data set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest

from transformers import PreTrainedConfig

from .files import format_rows
from .splits import Split

TEXT_NAMES = ("text", "sentence", "content", "review", "question", "message", "tweet", "utterance")
PAIR_NAMES = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("text", "text_pair"),
    ("question1", "question2"),
    ("question", "sentence"),
)
LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent", "score")


@dataclass(frozen=True)
class Columns:
    """The columns of texts and labels.

    Args:
        text: column of the texts.
        text_pair: column of the second texts, for pairs.
        label: column of the labels.
        label_separator: separator of several labels in one cell; `None` if a cell is one label or a list.

    Example:

    ```python
    >>> str(Columns("premise", "hypothesis", "label"))
    "texts in 'premise' and 'hypothesis', labels in 'label'"

    ```
    """

    text: str
    text_pair: str | None
    label: str | None
    label_separator: str | None = None

    def __str__(self) -> str:
        pair = "" if self.text_pair is None else f" and {self.text_pair!r}"
        separator = "" if self.label_separator is None else f", separated by {self.label_separator!r}"
        return f"texts in {self.text!r}{pair}" + (
            "" if self.label is None else f", labels in {self.label!r}{separator}"
        )

    def store_in(self, config: PreTrainedConfig) -> None:
        """Stores the columns in the config of the model that is trained on them."""
        config.data_columns = asdict(self)
        if self.label_separator is None:
            del config.data_columns["label_separator"]

    @classmethod
    def of_model(cls, config: PreTrainedConfig) -> "Columns | None":
        """Returns the columns that a model was trained on, `None` if unknown.

        Raises:
            ValueError: the config holds something else.
        """
        stored = getattr(config, "data_columns", None)
        if stored is None:
            return None
        names = [stored.get(name) for name in cls.__dataclass_fields__] if isinstance(stored, dict) else [None]
        if not isinstance(names[0], str) or not all(isinstance(name, str | None) for name in names):
            raise ValueError(
                f"`data_columns` in the model's config must name the columns {', '.join(cls.__dataclass_fields__)}, "
                f"got {stored!r:.80}; correct or remove it."
            )
        return cls(*names)


def check_column(column: str, names: Sequence[str], source: str, option: str | None = None, reason: str = "") -> None:
    """Refuses a column that a data set does not have.

    Args:
        column: name of the column.
        names: names of all columns of the data set.
        source: the data set, for the message.
        option: option that gives the name, with its dashes or underscores; by default the task reads this name alone.
        reason: why the column is read; follows its name in the message.

    Raises:
        ValueError: the column is missing; the message lists all columns.
    """
    if column not in names:
        prefix = source if option is None else f"`{option}`"
        reason = ", which the task reads by this name" if option is None else reason
        raise ValueError(f"{prefix}: there is no column {column!r}{reason}; {_list_columns(names, source)}")


def check_rows(
    split: Split, columns: Sequence[str], find_fault: Callable[..., str | None], options: Sequence[str] = ()
) -> None:
    """Checks all rows before any work is done.

    Args:
        split: the rows.
        columns: columns that the task needs.
        find_fault: takes the values of these columns in a row, and returns what is wrong with them, or `None`.
        options: options that name these columns, if there are any.

    Raises:
        ValueError: a column is missing, or a row has a fault; the message names it.
    """
    for column, option in zip_longest(columns, options):
        check_column(column, split.data.column_names, split.source, option)
    for i, row in enumerate(split.data.select_columns(list(columns))):
        fault = find_fault(*(row[column] for column in columns))
        if fault is not None:
            raise ValueError(f"{split.source}: {format_rows([i])}: {fault}.")


def find_columns(
    names: Sequence[str],
    source: str,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    needs_label: bool = True,
    trained: Columns | None = None,
    label_separator: str | None = None,
) -> Columns:
    """Chooses the columns of texts and labels: by option, else as in training, else by their usual names.

    Args:
        names: names of all columns.
        source: the data set, for messages.
        text: column of the texts, if an option names it.
        text_pair: column of the second texts, if an option names it.
        label: column of the labels, if an option names it.
        needs_label: whether a column of labels is required.
        trained: the columns of training.
        label_separator: separator of several labels in one cell, if an option gives it.

    Raises:
        ValueError: a column is missing or cannot be chosen, and the message lists all columns; or an option names
            second texts, and training read single ones.

    Example:

    ```python
    >>> find_columns(["id", "review", "label"], "train.csv")
    Columns(text='review', text_pair=None, label='label', label_separator=None)

    ```
    """
    if text_pair is not None:
        check_reads_pairs(trained, "--text-pair-column")
    requested = {"text": text, "text_pair": text_pair, "label": label}
    chosen = {role: _choose(role, name, names, source, needs_label, trained) for role, name in requested.items()}
    text, text_pair, label = chosen.values()
    if text is None:
        text, text_pair = _guess_texts(names, text_pair)
    if text is None:
        raise ValueError(f"No column of texts was found; name it with `--text-column`. {_list_columns(names, source)}")
    if label is None:
        label = _guess(LABEL_NAMES, [name for name in names if name not in (text, text_pair)])
    if label is None and needs_label:
        raise ValueError(
            "No column of labels was found; name it with `--label-column`. One column must hold them, several labels "
            f'of a text as a list such as ["late", "lost"]. {_list_columns(names, source)}'
        )
    separator = label_separator or getattr(trained, "label_separator", None)
    return Columns(text, text_pair, label if label in names else None, separator)


def check_reads_pairs(trained: Columns | None, option: str) -> None:
    """Refuses second texts for a model of single texts.

    Args:
        trained: the columns of training; `None` if unknown, which may be pairs.
        option: option that gives the second texts, with its dashes.

    Raises:
        ValueError: training read single texts.
    """
    if trained is not None and trained.text_pair is None:
        raise ValueError(f"`{option}`: the model was trained on single texts ({trained}); leave it out.")


def columns_of_plain_texts(names: Sequence[str], source: str, trained: Columns | None) -> Columns | None:
    """Returns the columns of training as they are called where texts may come from no table, but from the command line,
    lines or a list: `text`, and `text_pair` for pairs.

    Args:
        names: names of all columns.
        source: where they come from, for messages.
        trained: the columns of training.

    Raises:
        ValueError: the model was trained on pairs and these are texts, or the other way round.

    Example:

    ```python
    >>> columns_of_plain_texts(["text"], "`--text`", Columns("review", None, "label")).text
    'text'

    ```
    """
    plain = {*names} in ({"text"}, {"text", "text_pair"})
    if trained is None or not plain or {trained.text, trained.text_pair} <= {*names, None}:
        return trained
    if (trained.text_pair is None) != ("text_pair" not in names):
        wanted, advice = (
            ("texts", "leave `--text-pair` out") if trained.text_pair is None else ("pairs", "give `--text-pair`")
        )
        raise ValueError(f"{source}: the model was trained on {wanted} ({trained}); {advice}, or name the columns.")
    return replace(trained, text="text", text_pair=None if trained.text_pair is None else "text_pair")


def _choose(
    role: str, requested: str | None, names: Sequence[str], source: str, needs_label: bool, trained: Columns | None
) -> str | None:
    """The column of an option or of training in the spelling of the data set; `None` if neither names one."""
    column = getattr(trained, role, None) if requested is None else requested
    if column is None or (role == "label" and not needs_label):
        return column
    exact, similar = _spellings(names)
    spelling = exact.get(column, similar.get(_simplify(column)))
    if spelling is None:
        reason = "" if requested else ", which training read"
        check_column(column, names, source, f"--{role.replace('_', '-')}-column", reason)
    return spelling


def _list_columns(names: Sequence[str], source: str) -> str:
    shown = ", ".join(name if name == name.strip() else repr(name) for name in names)
    return f"{source} has the columns: {shown}."


def _simplify(name: str) -> str:
    return name.strip().lower()


def _spellings(names: Sequence[str]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Maps exact names, and names in lower case without outer spaces, to names; the first of several wins."""
    return {name: name for name in names}, {_simplify(name): name for name in reversed(names)}


def _guess(usual: Sequence[str], names: Sequence[str]) -> str | None:
    return next((known[name] for known in _spellings(names) for name in usual if name in known), None)


def _guess_texts(names: Sequence[str], text_pair: str | None) -> tuple[str | None, str | None]:
    """Guesses the columns of a text and its pair, which may be known."""
    if text_pair is not None:
        return _guess(TEXT_NAMES, [name for name in names if name != text_pair]), text_pair
    for known in _spellings(names):
        for first, second in PAIR_NAMES:
            if first in known and second in known:
                return known[first], known[second]
        for name in TEXT_NAMES:
            if name in known:
                return known[name], None
    return None, None
