"""Noise is as strong as asked for, comes again with its seed, and leaves the generators alone."""

import random

import numpy as np
import pytest

from hf_feedback.evaluation.noise import NOISES, add_noise

TEXTS = ["where is my parcel, it isn't here yet", "please refund order number twelve thousand and five"] * 20


def changed(noisy):
    """The share of words that are other ones."""
    pairs = [(a, b) for one, other in zip(TEXTS, noisy, strict=True) for a, b in zip(one.split(), other.split())]  # noqa: B905
    return sum(a != b for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("kind", NOISES)
def test_the_same_seed_is_the_same_noise_and_no_strength_is_none(kind):
    before = random.getstate(), np.random.get_state()[1].tolist()
    noisy = add_noise(TEXTS, kind, 0.4, seed=3)
    assert add_noise(TEXTS, kind, 0.4, seed=3) == noisy
    assert add_noise(TEXTS, kind, 0.0) == TEXTS
    assert noisy != TEXTS
    assert all(text.strip() for text in noisy)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    if kind != "truncated":
        assert add_noise(TEXTS, kind, 0.4, seed=4) != noisy


@pytest.mark.parametrize("kind", ["characters", "keyboard"])
def test_typos_change_one_character_of_so_many_words(kind):
    noisy = add_noise(TEXTS, kind, 0.5)
    for text, other in zip(TEXTS, noisy, strict=True):
        for a, b in zip(text.split(), other.split(), strict=True):
            assert len(a) == len(b)
            assert sum(x != y for x, y in zip(a, b, strict=True)) <= 1
    assert changed(noisy) == pytest.approx(0.5, abs=0.12)
    assert changed(add_noise(TEXTS, kind, 0.2)) < changed(noisy)


def test_words_are_dropped_shuffled_and_cut_in_proportion():
    words = sum(len(text.split()) for text in TEXTS)
    assert sum(len(t.split()) for t in add_noise(TEXTS, "dropped", 0.3)) / words == pytest.approx(0.7, abs=0.08)
    assert sum(len(t.split()) for t in add_noise(TEXTS, "truncated", 0.25)) / words == pytest.approx(0.75, abs=0.03)
    shuffled = add_noise(TEXTS, "shuffled", 1.0)
    assert [sorted(text.split()) for text in shuffled] == [sorted(text.split()) for text in TEXTS]
    assert 0 < changed(add_noise(TEXTS, "shuffled", 0.4)) < changed(shuffled)


def test_wrong_options():
    with pytest.raises(ValueError, match="`kind` must be one of 'characters'"):
        add_noise(TEXTS, "magic", 0.1)
    with pytest.raises(ValueError, match="`strength` must be between 0 and 1, got 2"):
        add_noise(TEXTS, "dropped", 2)
