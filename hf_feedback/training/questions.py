"""Answers that stand in a text: their place in windows of tokens, the best one over all windows, SQuAD's metrics.

Source: Rajpurkar et al. 2016, SQuAD: 100,000+ Questions for Machine Comprehension of Text.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .files import rows_in_words
from .label_names import label_name

OUTSIDE = [-1, -1]  # offsets of a token that is not part of the text


def answer_tokens(offsets: Sequence[Sequence[int]], start: int, end: int) -> tuple[int, int] | None:
    """The first and the last token of an answer, `None` where the window does not hold all of it.

    Args:
        offsets: characters of every token in the text, from and to; `OUTSIDE` for those of the question.
        start, end: characters of the answer, the end not included.
    """
    inside = [i for i, (first, _) in enumerate(offsets) if first >= 0]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return None
    touched = [i for i in inside if offsets[i][0] < end and offsets[i][1] > start]
    return (touched[0], touched[-1]) if touched else None


def windows_of(data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int, source: str) -> Dataset:
    """Questions with their texts as tokens; a long text becomes several windows.

    Args:
        data: rows of `question`, `context`, `answers` (`text`, `answer_start`).
        tokenizer: a fast one that pads to the right.
        max_length: tokens a window, the question included.
        stride: tokens of the text that a window shares with the one before it.
        source: the file, for messages.

    Returns:
        Windows with `start_positions` and `end_positions` of the first answer, both at the first token (CLS) where
        the window does not hold it; `example`, their row; `offsets`, as in `answer_tokens`; `null`, the place of CLS.

    Raises:
        ValueError: a question leaves no room for its text.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)

    def cut(row: dict[str, Any], index: int) -> list[dict[str, Any]]:
        room = max_length - special - len(tokenizer(row["question"], add_special_tokens=False)["input_ids"])
        if room <= stride:
            raise ValueError(
                f"{source}: {rows_in_words([index])}: the question leaves {max(0, room)} of {max_length} tokens for "
                f"the text, which must be more than the {stride} that windows share; change `--max-length`, `--stride` "
                "or the question."
            )
        found = tokenizer(
            row["question"],
            row["context"],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names = [name for name in tokenizer.model_input_names if name in found]
        places = [
            [list(place) if part == 1 else OUTSIDE for part, place in zip(found.sequence_ids(i), window, strict=True)]
            for i, window in enumerate(found["offset_mapping"])
        ]
        inputs = [{name: found[name][i] for name in names} for i in range(len(places))]
        return [
            {**inputs[i], "example": index, "offsets": places[i], **_targets(row["answers"], places[i], inputs[i])}
            for i in range(len(places))
        ]

    def _targets(answers: dict[str, Any], places: list[Any], window: dict[str, Any]) -> dict[str, int]:
        ids, cls = window["input_ids"], tokenizer.cls_token_id
        null = ids.index(cls) if cls in ids else 0
        first, last = null, null
        if answers["text"]:
            answer = answers["text"][0]
            start = int(label_name(answers["answer_start"][0])) + len(answer) - len(answer.lstrip())
            first, last = answer_tokens(places, start, start + len(answer.strip())) or (null, null)
        return {"start_positions": first, "end_positions": last, "null": null}

    def batch(rows: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        whole = [{name: rows[name][i] for name in rows} for i in range(len(indices))]
        cuts = [window for row, index in zip(whole, indices, strict=True) for window in cut(row, index)]
        return {name: [window[name] for window in cuts] for name in cuts[0]}

    return data.map(
        batch, batched=True, with_indices=True, remove_columns=data.column_names, load_from_cache_file=False
    )


def best_answers(
    start: np.ndarray,
    end: np.ndarray,
    windows: Dataset,
    contexts: Sequence[str],
    max_answer_length: int = 30,
    may_be_empty: bool = False,
) -> list[str]:
    """The best answer to every question over all its windows.

    Args:
        start, end: logits `(windows, T)`.
        windows: as `windows_of` makes them.
        contexts: the texts, one a question.
        max_answer_length: tokens of an answer at most.
        may_be_empty: whether a question may have no answer; it has none where every window prefers CLS.
    """
    found: list[tuple[float, str]] = [(-np.inf, "")] * len(contexts)
    nothing = [np.inf] * len(contexts)
    for i, window in enumerate(windows.select_columns(["example", "offsets", "null"])):
        example, offsets = window["example"], np.asarray(window["offsets"])
        length = len(offsets)
        first, last = np.arange(length)[:, None], np.arange(length)[None]
        allowed = (offsets[:, :1] >= 0) & (offsets[None, :, 0] >= 0) & (first <= last)
        scores = np.where(
            allowed & (last - first < max_answer_length), start[i, :length, None] + end[i, None, :length], -np.inf
        )
        a, b = np.unravel_index(scores.argmax(), scores.shape)
        if scores[a, b] > found[example][0]:
            found[example] = (scores[a, b], contexts[example][offsets[a, 0] : offsets[b, 1]])
        nothing[example] = min(nothing[example], start[i, window["null"]] + end[i, window["null"]])
    return ["" if may_be_empty and null > score else text for (score, text), null in zip(found, nothing, strict=True)]


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces, as SQuAD's evaluation compares answers."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_f1(reference: str, prediction: str) -> float:
    """F1 of the words that two answers share."""
    wanted, given = normalize_answer(reference).split(), normalize_answer(prediction).split()
    if not wanted or not given:
        return float(wanted == given)
    return 2 * (Counter(wanted) & Counter(given)).total() / (len(wanted) + len(given))


def answer_scores(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Means (0 to 1) of exact match and F1; of several right answers, the one that fits best counts. No right answer
    at all means that there is none to be found."""
    exact, f1 = [], []
    for wanted, given in zip(references, predictions, strict=True):
        exact.append(max(float(normalize_answer(one) == normalize_answer(given)) for one in wanted or [""]))
        f1.append(max(answer_f1(one, given) for one in wanted or [""]))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}
