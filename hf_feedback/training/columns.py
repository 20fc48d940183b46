"""Which columns of a data set hold the texts and the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from transformers import PreTrainedConfig

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
    """Where a data set keeps its texts and labels."""

    text: str
    text_pair: str | None
    label: str | None

    def __str__(self) -> str:
        pair = "" if self.text_pair is None else f" and {self.text_pair!r}"
        return f"texts in {self.text!r}{pair}" + ("" if self.label is None else f", labels in {self.label!r}")

    def keep(self, config: PreTrainedConfig) -> None:
        """Writes them into the config of a model that is trained on them."""
        config.data_columns = asdict(self)

    @classmethod
    def of_model(cls, config: PreTrainedConfig) -> "Columns | None":
        """Those that a model was trained on, `None` if unknown.

        Raises:
            ValueError: the config has something else in their place.
        """
        kept = getattr(config, "data_columns", None)
        if kept is None:
            return None
        names = [kept.get(name) for name in cls.__dataclass_fields__] if isinstance(kept, dict) else [None]
        if not isinstance(names[0], str) or not all(isinstance(name, str | None) for name in names):
            raise ValueError(
                f"`data_columns` in the model's config must name the columns {', '.join(cls.__dataclass_fields__)}, "
                f"got {kept!r:.80}; correct it or take it out."
            )
        return cls(*names)


def find_columns(
    names: Sequence[str],
    source: str,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    needs_label: bool = True,
    trained: Columns | None = None,
) -> Columns:
    """The columns that were given, else those of training, else those found by their usual names.

    Args:
        names: all that are there.
        source: their file, for messages.
        text, text_pair, label: those that were given.
        needs_label: whether there has to be one of labels.
        trained: those of training.

    Raises:
        ValueError: a column is missing or cannot be found; names those that are there.
    """
    there = f"{source} has the columns: {', '.join(map(_shown, names))}."

    def chosen(kind: str, given: str | None) -> str | None:
        wanted = getattr(trained, kind, None) if given is None else given
        if wanted is None or (kind == "label" and not needs_label):
            return wanted
        exact, similar = _spellings(names)
        found = exact.get(wanted, similar.get(_simplified(wanted)))
        if found is None:
            missing = f"there is no column {wanted!r}" + ("" if given else ", which training read")
            raise ValueError(f"`--{kind.replace('_', '-')}-column`: {missing}; {there}")
        return found

    text, text_pair, label = chosen("text", text), chosen("text_pair", text_pair), chosen("label", label)
    if text is None:
        text, text_pair = _guess_texts(names, text_pair)
    if text is None:
        raise ValueError(f"No column of texts was found; name it with `--text-column`. {there}")
    if label is None:
        label = _guess(LABEL_NAMES, [name for name in names if name not in (text, text_pair)])
    if label is None and needs_label:
        raise ValueError(
            "No column of labels was found; name it with `--label-column`. One column must hold them, several labels "
            f'of a text as a list such as ["late", "lost"]. {there}'
        )
    return Columns(text, text_pair, label if label in names else None)


def _simplified(name: str) -> str:
    return name.strip().lower()


def _shown(name: str) -> str:
    return name if name == name.strip() else repr(name)


def _spellings(names: Sequence[str]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Names as they are, and without capitals and spaces around, → names as they are; the first of a kind counts."""
    return {name: name for name in names}, {_simplified(name): name for name in reversed(names)}


def _guess(usual: Sequence[str], names: Sequence[str]) -> str | None:
    return next((known[name] for known in _spellings(names) for name in usual if name in known), None)


def _guess_texts(names: Sequence[str], text_pair: str | None) -> tuple[str | None, str | None]:
    """Columns of a text and its pair, which may be known."""
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
