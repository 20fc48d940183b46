"""The support messages that ship with the project."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "data" / "support_messages"
SPLITS = {
    split: list(csv.DictReader((FOLDER / f"{split}.csv").open(encoding="utf-8")))
    for split in ("train", "validation", "test")
}


def words(text):
    return re.findall(r"\w+", text.lower())


def trigrams(text):
    found = words(text)
    return set(zip(found, found[1:], found[2:], strict=False))


def test_size_and_balance():
    assert sum(map(len, SPLITS.values())) >= 900
    for rows in SPLITS.values():
        counts = Counter(row["label"] for row in rows)
        assert len(counts) >= 12
        assert max(counts.values()) == min(counts.values())
    lengths = [len(words(row["text"])) for rows in SPLITS.values() for row in rows]
    assert min(lengths) <= 4
    assert max(lengths) >= 40


def test_no_text_twice():
    texts = [" ".join(words(row["text"])) for rows in SPLITS.values() for row in rows]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_shared_templates(split):
    """No held-out message shares its opening, or more than a fifth of its word trigrams, with a training message."""
    train = [trigrams(row["text"]) for row in SPLITS["train"]]
    openings = {tuple(words(row["text"])[:4]) for row in SPLITS["train"] if len(words(row["text"])) > 4}
    for row in SPLITS[split]:
        mine = trigrams(row["text"])
        overlap = max(len(mine & other) / max(1, len(mine | other)) for other in train)
        assert overlap < 0.2, row["text"]
        assert tuple(words(row["text"])[:4]) not in openings, row["text"]
