"""Tags of words: which there are, and how well entities are found."""

from collections.abc import Sequence

from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from .label_names import label_name
from .labels import SINGLE_LABEL, LabelSet

# What tags of richer schemes begin with, and what to do about them.
BIOES = "it is of the scheme BIOES: convert the tags to BIO, S-TYPE to B-TYPE and E-TYPE to I-TYPE."
BILOU = "it is of the scheme BILOU: convert the tags to BIO, U-TYPE to B-TYPE and L-TYPE to I-TYPE."
OTHER_SCHEMES = {"S-": BIOES, "E-": BIOES, "U-": BILOU, "L-": BILOU}


def is_bio(tag: str) -> bool:
    """Whether a tag is `O`, or `B-` or `I-` with a type.

    Example:

    ```python
    >>> is_bio("B-DATE"), is_bio("NOUN")
    (True, False)

    ```
    """
    return tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def entity_scores(references: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns F1, precision and recall over all entities of all texts.

    An entity counts only with its exact words and type. As in the evaluation of CoNLL, an `I-` without an entity before
    it starts one.

    Args:
        references: BIO tags of the words, one list per text.
        predictions: predicted tags.

    Source: Nakayama 2018, seqeval; Tjong Kim Sang and De Meulder 2003, CoNLL-2003.

    Example:

    ```python
    >>> entity_scores([["B-DATE", "I-DATE", "O", "B-NAME"]], [["B-DATE", "I-DATE", "O", "O"]])
    {'entity_f1': 0.6666666666666666, 'entity_precision': 1.0, 'entity_recall': 0.5}

    ```
    """
    precision, recall, f1, _ = precision_recall_fscore_support(
        [list(tags) for tags in references], [list(tags) for tags in predictions], average="micro", zero_division=0
    )
    return {"entity_f1": float(f1), "entity_precision": float(precision), "entity_recall": float(recall)}


def tag_set(rows: Sequence[Sequence[str]], source: str) -> LabelSet:
    """Returns the tags of the training texts, O first.

    Args:
        rows: tags, one list per text.
        source: file of the texts, for messages.

    Raises:
        ValueError: there are fewer than two tags, or BIO tags and others are mixed; `O` may be a tag of another kind.

    Example:

    ```python
    >>> tag_set([["B-NAME", "I-NAME", "O"]], "train.jsonl").names
    ('O', 'B-NAME', 'I-NAME')

    ```
    """
    names = sorted({label_name(tag) for tags in rows for tag in tags}, key=lambda tag: (tag != "O", tag[2:], tag))
    wrong = [name for name in names if not is_bio(name)]
    if wrong and any(name.startswith(("B-", "I-")) for name in names):
        advice = OTHER_SCHEMES.get(wrong[0][:2], "correct it.")
        raise ValueError(f"{source}: the tag {wrong[0]!r} is not one of O, B-TYPE and I-TYPE, as others are; {advice}")
    if len(names) < 2:
        raise ValueError(f"{source}: there must be at least two different tags, got {', '.join(names)}.")
    return LabelSet(SINGLE_LABEL, tuple(names))
