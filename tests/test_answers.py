"""Answers of questions: in the windows of a long text, back from logits, and how they are scored."""

import numpy as np
import pytest
from builders import letter_tokenizer
from datasets import Dataset

from hf_feedback.training.data.answers import WindowEncoder, answer_f1, answer_scores, answer_tokens, best_answers
from hf_feedback.training.data.splits import Split
from hf_feedback.training.tasks.question_answering import find_fault


def one_question(answer="red", context="we have a red fan and a new lamp"):
    start = context.index(answer)
    row = {"question": "hue?", "context": context, "answers": {"text": [answer], "answer_start": [start]}}
    return Dataset.from_list([row])


def test_an_answer_stands_in_its_windows_and_comes_back():
    data, tokenizer = one_question(), letter_tokenizer()
    windows = WindowEncoder(tokenizer, 20, 6).encode(Split(data, "here"))
    assert len(windows) > 2
    inside = 0
    for window in windows:
        start, end = window["start_positions"], window["end_positions"]
        if start == 0:
            assert end == 0
            continue
        inside += 1
        assert tokenizer.convert_ids_to_tokens(window["input_ids"])[start : end + 1] == ["r", "##e", "##d"]
        first, last = window["offsets"][start][0], window["offsets"][end][1]
        assert data[0]["context"][first:last] == "red"
    assert 1 <= inside < len(windows)
    # logits that point to the answer where it is, and weakly elsewhere
    start, end = np.zeros((len(windows), 20)), np.zeros((len(windows), 20))
    for i, window in enumerate(windows):
        if window["start_positions"]:
            start[i, window["start_positions"]] = end[i, window["end_positions"]] = 5
    assert best_answers(start, end, windows, data["context"]) == ["red"]
    start[:, 0] = end[:, 0] = 9
    assert best_answers(start, end, windows, data["context"]) == ["red"]
    assert best_answers(start, end, windows, data["context"], may_be_empty=True) == [""]


@pytest.mark.parametrize("start", [10.0, "10", 10])
def test_an_answer_may_stand_at_a_number_of_any_kind(start):
    answers = {"text": ["red"], "answer_start": [start]}
    row = {"question": "hue?", "context": "we have a red fan", "answers": answers}
    assert find_fault(**row) is None
    (window,) = WindowEncoder(letter_tokenizer(), 64, 6).encode(Split(Dataset.from_list([row]), "here"))
    tokens = letter_tokenizer().convert_ids_to_tokens(window["input_ids"])
    assert tokens[window["start_positions"] : window["end_positions"] + 1] == ["r", "##e", "##d"]
    assert "is not at character 11" in find_fault(**{**row, "answers": {**answers, "answer_start": [11]}})


def test_answers_that_are_cut_do_not_count():
    offsets = [[-1, -1], [-1, -1], [5, 8], [8, 12], [13, 15]]
    assert answer_tokens(offsets, 8, 15) == (3, 4)
    assert answer_tokens(offsets, 9, 10) == (3, 3)
    assert answer_tokens(offsets, 4, 8) is None
    assert answer_tokens(offsets, 13, 16) is None
    assert answer_tokens([[-1, -1]], 0, 1) is None


def test_the_best_answer_is_a_span_of_the_text():
    data = one_question(context="a red fan")
    windows = WindowEncoder(letter_tokenizer(), 64, 6).encode(Split(data, "here"))
    tokens = letter_tokenizer().convert_ids_to_tokens(windows[0]["input_ids"])
    start, end = np.zeros((1, 64)), np.zeros((1, 64))
    r, n = tokens.index("r"), tokens.index("##n")
    start[0, r], end[0, n] = 4, 4
    start[0, 1] = end[0, n + 1] = 9  # in the question, and at [SEP]
    end[0, r - 1] = 5  # before the start
    assert best_answers(start, end, windows, data["context"]) == ["red fan"]
    assert best_answers(start, end, windows, data["context"], max_answer_length=1) == ["a"]


def test_answer_scores():
    assert answer_f1("The red fan", "a red lamp") == pytest.approx(0.5)
    assert answer_f1("", "x") == 0.0
    found = answer_scores([["The Monday.", "on Monday"], ["5 May"], []], ["monday", "on 5 May", ""])
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((1 + 2 * (2 / 3) * 1 / (2 / 3 + 1) + 1) / 3)
