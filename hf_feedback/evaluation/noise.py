"""Noisy, misspelt, shuffled and truncated texts, at graded strengths."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from ..validation import check_choice


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """nlpaug draws from the generators that all share; they are as before afterwards."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@cache
def _misspell(kind: str, strength: float) -> Callable[[str], str]:
    """One character of so many words is another: any one, or one that lies beside it on a keyboard."""
    from nlpaug.augmenter.char import KeyboardAug, RandomCharAug

    one_a_word = dict(aug_char_min=1, aug_char_max=1, aug_word_min=0, aug_word_p=strength, aug_word_max=None)
    in_words = dict(tokenizer=str.split, reverse_tokenizer=" ".join)
    if kind == "characters":
        augmenter = RandomCharAug(action="substitute", **one_a_word, **in_words)
    else:
        augmenter = KeyboardAug(include_special_char=False, **one_a_word, **in_words)
    return lambda text: (augmenter.augment(text) or [text])[0]


def _drop(strength: float) -> Callable[[str], str]:
    """So many words are left out, each as likely as the others; one is kept."""

    def drop(text: str) -> str:
        words = text.split()
        kept = [word for word in words if random.random() >= strength]
        return " ".join(kept or words[:1])

    return drop


def _shuffle(strength: float) -> Callable[[str], str]:
    """So many words change places among each other."""

    def shuffle(text: str) -> str:
        words = text.split()
        places = random.sample(range(len(words)), round(strength * len(words)))
        for place, word in zip(sorted(places), [words[i] for i in places], strict=True):
            words[place] = word
        return " ".join(words)

    return shuffle


def _truncate(strength: float) -> Callable[[str], str]:
    """So many words at the end are left out; one is kept."""

    def truncate(text: str) -> str:
        words = text.split()
        return " ".join(words[: max(1, round((1 - strength) * len(words)))])

    return truncate


# By their names: strength, the share of the words that are changed → text → noisy text.
NOISES: dict[str, Callable[[float], Callable[[str], str]]] = {
    "characters": lambda strength: _misspell("characters", strength),
    "keyboard": lambda strength: _misspell("keyboard", strength),
    "dropped": _drop,
    "shuffled": _shuffle,
    "truncated": _truncate,
}


def add_noise(texts: Sequence[str], kind: str, strength: float, seed: int = 0) -> list[str]:
    """Makes texts noisy, the same way for the same seed.

    Args:
        texts: the texts; words are what stands between spaces.
        kind: `"characters"` or `"keyboard"` (one character of a word is wrong; these need nlpaug), `"dropped"`,
            `"shuffled"` or `"truncated"` words.
        strength: share of the words that are changed, 0 to 1.
        seed: of what is drawn.

    Raises:
        ValueError: there is no such kind, or the strength is not between 0 and 1.
        ImportError: nlpaug is missing.

    Example:

    ```python
    >>> add_noise(["where is my parcel"], "truncated", 0.5), add_noise(["where is my parcel"], "shuffled", 0.0)
    (['where is'], ['where is my parcel'])

    ```
    """
    check_choice("kind", kind, NOISES)
    if not 0 <= strength <= 1:
        raise ValueError(f"`strength` must be between 0 and 1, got {strength}.")
    with _drawing(seed):
        noisy = NOISES[kind](strength)
        return [noisy(text) if strength else text for text in texts]
