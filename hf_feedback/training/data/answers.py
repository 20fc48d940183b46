"""Extractive question answering: answer tokens in windows of a text, the best answer of all windows, metrics of SQuAD.

Source: Rajpurkar et al. 2016, SQuAD: 100,000+ Questions for Machine Comprehension of Text.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ...windows import best_span, encode_windows, span_scores
from .files import format_rows
from .label_names import label_name
from .row_encoder import IN_MEMORY, RowEncoder
from .splits import Batch, Row, Split


def answer_tokens(offsets: Sequence[Sequence[int]], start: int, end: int) -> tuple[int, int] | None:
    """Returns the first and the last token of an answer.

    Args:
        offsets: first and last character (exclusive) of every token in the text, as of `context_offsets`.
        start: first character of the answer.
        end: last character of the answer, exclusive.

    Returns:
        `None` if the window does not hold the whole answer.

    Example:

    ```python
    >>> answer_tokens([[-1, -1], [5, 8], [8, 12], [13, 15]], 8, 15)
    (2, 3)

    ```
    """
    inside = [i for i, (first, _) in enumerate(offsets) if first >= 0]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return None
    touched = [i for i in inside if offsets[i][0] < end and offsets[i][1] > start]
    return (touched[0], touched[-1]) if touched else None


class WindowEncoder:
    """Tokenizes questions with their contexts; a long context becomes several windows.

    Args:
        tokenizer: a fast tokenizer that pads on the right.
        max_length: tokens of a window, question included.
        stride: tokens of the context by which windows overlap.
        encoder: encodes the rows, with or without a cache on disk.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int, encoder: RowEncoder = IN_MEMORY
    ) -> None:
        self.tokenizer, self.max_length, self.stride, self.encoder = tokenizer, max_length, stride, encoder

    def encode(self, split: Split) -> Dataset:
        """Encodes rows of `question`, `context` and `answers` (`text`, `answer_start`).

        Args:
            split: the rows.

        Returns:
            Windows with `start_positions` and `end_positions` of the first answer, both at the first token (CLS) if the
            window does not hold it; `example`, the row; `offsets`, as in `answer_tokens`; `null`, the position of CLS.

        Raises:
            ValueError: a question leaves no room for its context.
        """

        def encode_batch(batch: Batch, indices: list[int]) -> Batch:
            rows = [{name: batch[name][i] for name in batch} for i in range(len(indices))]
            pairs = zip(rows, indices, strict=True)
            windows = [window for row, index in pairs for window in self._windows(row, index, split.source)]
            return {name: [window[name] for window in windows] for name in windows[0]}

        options = {"max_length": self.max_length, "stride": self.stride}
        columns = ("question", "context", "answers")
        return self.encoder.encode(split.data, columns, encode_batch, self.tokenizer, options)

    def _windows(self, row: Row, index: int, source: str) -> list[Row]:
        """The windows of one row."""
        place = f"{source}: {format_rows([index])}"
        windows = encode_windows(self.tokenizer, row["question"], row["context"], self.max_length, self.stride, place)
        for window in windows:
            targets = self._targets(row["answers"], window["offsets"], window["input_ids"])
            window |= {"example": index, **targets}
        return windows

    def _targets(self, answers: Batch, offsets: Sequence[Sequence[int]], ids: list[int]) -> dict[str, int]:
        """The tokens of the first answer, or CLS."""
        cls = self.tokenizer.cls_token_id
        null = ids.index(cls) if cls in ids else 0
        first, last = null, null
        if answers["text"]:
            answer = answers["text"][0]
            start = int(label_name(answers["answer_start"][0])) + len(answer) - len(answer.lstrip())
            first, last = answer_tokens(offsets, start, start + len(answer.strip())) or (null, null)
        return {"start_positions": first, "end_positions": last, "null": null}


def best_answers(
    start: np.ndarray,
    end: np.ndarray,
    windows: Dataset,
    contexts: Sequence[str],
    max_answer_length: int = 30,
    may_be_empty: bool = False,
) -> list[str]:
    """Returns the best answer to every question over all its windows.

    Args:
        start: logits of the first token, `(windows, T)`.
        end: logits of the last token, `(windows, T)`.
        windows: windows of a `WindowEncoder`.
        contexts: the contexts, one per question.
        max_answer_length: maximum number of tokens of an answer.
        may_be_empty: whether a question may have no answer; it has none if every window prefers CLS.
    """
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(contexts)
    null_scores = [np.inf] * len(contexts)
    for i, window in enumerate(windows.select_columns(["example", "offsets", "null"])):
        example, offsets = window["example"], window["offsets"]
        length = len(offsets)
        scores = span_scores(start[i, :length], end[i, :length], offsets, max_answer_length)
        score, first, last = best_span(scores)
        if score > best[example][0]:
            best[example] = (score, contexts[example][offsets[first][0] : offsets[last][1]].strip())
        null_scores[example] = min(null_scores[example], start[i, window["null"]] + end[i, window["null"]])
    return [
        "" if may_be_empty and null > score else text for (score, text), null in zip(best, null_scores, strict=True)
    ]


def normalize_answer(text: str) -> str:
    """Normalizes an answer as the evaluation of SQuAD: lower case, no punctuation, articles or extra spaces.

    Example:

    ```python
    >>> normalize_answer("The  Monday.")
    'monday'

    ```
    """
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_f1(reference: str, prediction: str) -> float:
    """Returns the F1 of the words that two answers share.

    Example:

    ```python
    >>> answer_f1("The red fan", "a red lamp")
    0.5

    ```
    """
    reference_words, words = normalize_answer(reference).split(), normalize_answer(prediction).split()
    if not reference_words or not words:
        return float(reference_words == words)
    return 2 * (Counter(reference_words) & Counter(words)).total() / (len(reference_words) + len(words))


def answer_scores(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Returns the means (0 to 1) of exact match and F1.

    Args:
        references: the right answers to each question, of which the best match counts; empty if there is no answer.
        predictions: one answer per question.

    Example:

    ```python
    >>> answer_scores([["The Monday."], []], ["monday", "on 5 May"])
    {'exact_match': 0.5, 'f1': 0.5}

    ```
    """
    exact, f1 = [], []
    for right, prediction in zip(references, predictions, strict=True):
        exact.append(max(float(normalize_answer(one) == normalize_answer(prediction)) for one in right or [""]))
        f1.append(max(answer_f1(one, prediction) for one in right or [""]))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}
