"""Splitting of texts into words, and the pieces of words that carry labels."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

LabelPiece = Literal["auto", "first", "last"]

WORD = re.compile(r"\w+|[^\w\s]")
FILLER = "."  # read in place of a text without words


def split_words(text: str) -> list[tuple[int, int]]:
    """Splits a text into words, by first character and end: at spaces, and before and after every punctuation mark. A
    combining mark belongs to the word before it.

    Example:

    ```python
    >>> text = "It is late."
    >>> [text[start:end] for start, end in split_words(text)]
    ['It', 'is', 'late', '.']

    ```
    """
    spans: list[tuple[int, int]] = []
    for word in WORD.finditer(text):
        start, end = word.span()
        follows = bool(spans) and spans[-1][1] == start
        if follows and (_is_mark(text[start]) or (_is_mark(text[start - 1]) and word[0][0].isalnum())):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def labelled_pieces(word_ids: Sequence[int | None], label_piece: LabelPiece) -> list[bool]:
    """Whether each piece carries the label of its word.

    Args:
        word_ids: the word that each piece belongs to, `None` for special tokens.
        label_piece: `"last"`, or else the first piece; in a truncated word, the last remaining piece.

    Example:

    ```python
    >>> labelled_pieces([None, 0, 1, 1, None], "last")
    [False, True, False, True, False]

    ```
    """
    neighbours = [*word_ids, None][1:] if label_piece == "last" else [None, *word_ids][:-1]
    return [word is not None and word != other for word, other in zip(word_ids, neighbours, strict=True)]


def space_before_words(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the prefix of listed words with which a tokenizer reads them as in a text: a space for tokenizers whose
    words include it, such as byte-level ones, or else nothing."""
    apart, together = tokenizer(["a", "a"], is_split_into_words=True), tokenizer("a a")
    return "" if apart["input_ids"] == together["input_ids"] else " "


def space_between_texts(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the prefix of the second text of a pair that separates it from the first: a space if the tokenizer puts
    nothing between the two, or else nothing."""
    single, pair = (tokenizer.num_special_tokens_to_add(pair=is_pair) for is_pair in (False, True))
    return space_before_words(tokenizer) if single == pair else ""
