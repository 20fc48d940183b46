"""Spans of tokens in a text, as answers to questions."""

from collections.abc import Sequence

import numpy as np
from transformers import BatchEncoding

OUTSIDE = [-1, -1]  # offsets of a token that is not part of the text


def context_offsets(encoding: BatchEncoding, window: int, shift: int) -> list[list[int]]:
    """Returns the first and the last character (exclusive) of every token in the second text, `OUTSIDE` for others.

    Args:
        encoding: windows of a pair of texts, with offsets.
        window: number of the window.
        shift: characters that were put before the second text.
    """
    parts, offsets = encoding.sequence_ids(window), encoding["offset_mapping"][window]
    return [
        [max(0, first - shift), max(0, end - shift)] if part == 1 else OUTSIDE
        for part, (first, end) in zip(parts, offsets, strict=True)
    ]


def span_scores(
    start: np.ndarray, end: np.ndarray, offsets: Sequence[Sequence[int]], max_answer_length: int
) -> np.ndarray:
    """Returns the score of every span of a window by its first and its last token, `(T, T)`; −∞ where there is none.

    Args:
        start: logits of the first token, `(T,)`.
        end: logits of the last token, `(T,)`.
        offsets: as `context_offsets` returns them.
        max_answer_length: tokens of a span at most.
    """
    inside = np.asarray(offsets)[:, 0] >= 0
    first, last = np.arange(len(inside))[:, None], np.arange(len(inside))[None]
    allowed = inside[:, None] & inside[None] & (first <= last) & (last - first < max_answer_length)
    return np.where(allowed, start[:, None] + end[None], -np.inf)


def best_span(scores: np.ndarray) -> tuple[float, int, int]:
    """Returns the best score, and the first and the last token of its span."""
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return scores[first, last], int(first), int(last)
