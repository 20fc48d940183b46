"""Windows of a question with its text, and the spans of tokens in them that may be the answer."""

from collections.abc import Sequence

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

from .validation import Keywords
from .words import space_between_texts

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


def encode_windows(
    tokenizer: PreTrainedTokenizerBase, question: str, text: str, max_length: int, stride: int, source: str
) -> list[Keywords]:
    """Tokenizes a question with its text, which becomes several windows if it is long.

    Args:
        tokenizer: a fast one.
        question: stands in every window.
        text: the text that holds the answer.
        max_length: tokens of a window, the question included.
        stride: tokens of the text that a window shares with the one before.
        source: where the question comes from, for the message.

    Returns:
        What the model reads of each window, and its `offsets`, as `context_offsets` returns them.

    Raises:
        ValueError: the question leaves no room for its text.
    """
    asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - asked
    if room <= stride:
        raise ValueError(
            f"{source}: the question leaves {max(0, room)} of {max_length} tokens for its text, which must be more "
            f"than the {stride} that windows share; change `max_length`, `stride` or the question."
        )
    space = space_between_texts(tokenizer)
    encoding = tokenizer(
        question,
        space + text,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoding]
    return [
        {**{name: encoding[name][i] for name in names}, "offsets": context_offsets(encoding, i, len(space))}
        for i in range(len(encoding["input_ids"]))
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
