"""Tags of words: their place on word pieces, and the entities that BIO tags mark."""

from collections.abc import Callable, Sequence

import numpy as np
from transformers import EvalPrediction

from .label_names import label_name
from .labels import LabelSet

IGNORED = -100  # no label: left out of the loss and of every metric

Entity = tuple[str, int, int]


def align(word_ids: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """Labels of words → labels of word pieces: the first piece of a word has its label, all others have none.

    Args:
        word_ids: the word that each piece belongs to, `None` for special tokens.
        labels: one a word.

    Example:

    ```python
    >>> align([None, 0, 1, 1, None], [4, 7])
    [-100, 4, 7, -100, -100]

    ```
    """
    before = [None, *word_ids[:-1]]
    return [
        IGNORED if word is None or word == last else labels[word] for word, last in zip(word_ids, before, strict=True)
    ]


def is_bio(tag: str) -> bool:
    """Whether it is `O`, or `B-` or `I-` with a type."""
    return tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of a text as (type, first word, last word). As in the CoNLL evaluation, an `I-` that continues
    nothing begins an entity.

    Example:

    ```python
    >>> sorted(entities(["B-DATE", "I-DATE", "O", "B-NAME", "B-NAME"]))
    [('DATE', 0, 1), ('NAME', 3, 3), ('NAME', 4, 4)]

    ```
    """
    found: list[Entity] = []
    before = "O"
    for i, tag in enumerate(tags):
        kind = tag[2:]
        if tag[:2] == "I-" and before[2:] == kind:
            found[-1] = (kind, found[-1][1], i)
        elif tag != "O":
            found.append((kind, i, i))
        before = tag
    return set(found)


def entity_scores(references: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1, precision and recall over all entities of all texts; one counts only with its exact words and type."""
    right = given = wanted = 0
    for reference, prediction in zip(references, predictions, strict=True):
        there, found = entities(reference), entities(prediction)
        right, given, wanted = right + len(there & found), given + len(found), wanted + len(there)
    return {
        "entity_f1": 2 * right / max(1, given + wanted),
        "entity_precision": right / max(1, given),
        "entity_recall": right / max(1, wanted),
    }


def tag_set(rows: Sequence[Sequence[str]], source: str) -> LabelSet:
    """The tags of the training texts, O first.

    Args:
        rows: tags, one list a text.
        source: the file, for messages.

    Raises:
        ValueError: there are fewer than two, or BIO tags and others are mixed.
    """
    names = sorted({label_name(tag) for tags in rows for tag in tags}, key=lambda tag: (tag != "O", tag[2:], tag))
    wrong = [name for name in names if not is_bio(name)]
    if wrong and any(name == "O" or name.startswith("B-") for name in names):
        raise ValueError(f"{source}: the tag {wrong[0]!r} is none of O, B-TYPE and I-TYPE, as others are; correct it.")
    if len(names) < 2:
        raise ValueError(f"{source}: there must be at least two different tags, got {', '.join(names)}.")
    return LabelSet("single_label_classification", tuple(names))


def make_tag_metrics(names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Accuracy over words and, where the tags are BIO, scores of entities. Takes tag numbers, not logits."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        answers, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        there = labels != IGNORED
        accuracy = {"token_accuracy": float((answers == labels)[there].mean())}
        if not all(map(is_bio, names)):
            return accuracy
        wanted, given = (
            [[names[n] for n in row[mask]] for row, mask in zip(numbers, there, strict=True)]
            for numbers in (labels, answers)
        )
        return {**entity_scores(wanted, given), **accuracy}

    return compute_metrics
