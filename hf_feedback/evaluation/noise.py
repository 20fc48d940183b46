"""Noise in texts: misspelt, dropped, shuffled and truncated words, at a given strength."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from ..validation import check_choice


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Context that seeds the global generators, which nlpaug uses, and restores them."""
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
    """Replaces one character in some words, by any other or by a neighbour on the keyboard."""
    from nlpaug.augmenter.char import KeyboardAug, RandomCharAug

    one_a_word = dict(aug_char_min=1, aug_char_max=1, aug_word_min=0, aug_word_p=strength, aug_word_max=None)
    in_words = dict(tokenizer=str.split, reverse_tokenizer=" ".join)
    if kind == "characters":
        augmenter = RandomCharAug(action="substitute", **one_a_word, **in_words)
    else:
        augmenter = KeyboardAug(include_special_char=False, **one_a_word, **in_words)
    return lambda text: (augmenter.augment(text) or [text])[0]


def _drop(strength: float) -> Callable[[str], str]:
    """Drops random words, but at least one is kept."""

    def drop(text: str) -> str:
        words = text.split()
        kept = [word for word in words if random.random() >= strength]
        return " ".join(kept or words[:1])

    return drop


def _shuffle(strength: float) -> Callable[[str], str]:
    """Exchanges the places of random words."""

    def shuffle(text: str) -> str:
        words = text.split()
        places = random.sample(range(len(words)), round(strength * len(words)))
        for place, word in zip(sorted(places), [words[i] for i in places], strict=True):
            words[place] = word
        return " ".join(words)

    return shuffle


def _truncate(strength: float) -> Callable[[str], str]:
    """Drops words at the end, but at least one is kept."""

    def truncate(text: str) -> str:
        words = text.split()
        return " ".join(words[: max(1, round((1 - strength) * len(words)))])

    return truncate


# By name: strength, the share of changed words → text → noisy text.
NOISES: dict[str, Callable[[float], Callable[[str], str]]] = {
    "characters": lambda strength: _misspell("characters", strength),
    "keyboard": lambda strength: _misspell("keyboard", strength),
    "dropped": _drop,
    "shuffled": _shuffle,
    "truncated": _truncate,
}


def add_noise(texts: Sequence[str], kind: str, strength: float, seed: int = 0) -> list[str]:
    """Adds noise to texts, reproducibly for a seed.

    Args:
        texts: the texts, with words separated by spaces.
        kind: `"characters"` or `"keyboard"` (one character of a word is wrong; these need nlpaug), `"dropped"`,
            `"shuffled"` or `"truncated"` words.
        strength: share of the words that are changed, 0 to 1.
        seed: seed of the noise.

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
