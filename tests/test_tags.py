"""Tags of words, how they are scored, and the numbers of right choices: from the data to labels."""

import random

import numpy as np
import pytest
from builders import letter_tokenizer
from datasets import ClassLabel, Dataset, Features, Value
from transformers import EvalPrediction

from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.data.splits import Split
from hf_feedback.training.data.tags import entity_scores, is_bio, tag_set
from hf_feedback.training.starting_model.model_arguments import ModelArguments
from hf_feedback.training.tasks import MultipleChoice, Task, TokenClassification
from hf_feedback.training.tasks.multiple_choice import tokenize_choices
from hf_feedback.training.tasks.token_classification import align_labels, make_tag_metrics, tokenize_words


def test_tags_stand_at_the_first_piece_of_a_word():
    found = letter_tokenizer()([["my", "red", "fan"]], is_split_into_words=True)
    assert align_labels(found.word_ids(0), [0, 1, 2]) == [-100, 0, -100, 1, -100, -100, 2, -100, -100, -100]
    data = Dataset.from_list([{"tokens": ["my", "red", "fan"], "tags": ["O", "B-X", "I-X"]}])
    encoded = encode_tags(data, ("O", "B-X", "I-X"), 6)
    assert encoded[0]["labels"] == [-100, 0, -100, 1, -100, -100]  # cut after "re"
    assert len(encoded[0]["input_ids"]) == 6
    with pytest.raises(ValueError, match="row 1: tag 'I-X' is not among the training tags: O, B-X"):
        encode_tags(data, ("O", "B-X"), 6)


def task_of(task_class: type[Task]) -> Task:
    """A task with the defaults of its options."""
    return task_class(ModelArguments(model="any"), task_class.data_arguments())


def tags_of(data):
    return task_of(TokenClassification).tags_of(Split(data, "here"))


def encode_tags(data, names, length):
    labels = LabelSet("single_label_classification", names)
    return tokenize_words(Split(data, "here"), tags_of(data), labels, "tokens", letter_tokenizer(), length).data


def entities(tags):
    """Entities as (type, first word, last word), as the CoNLL evaluation defines them."""
    found, previous = [], "O"
    for i, tag in enumerate(tags):
        if tag[:2] == "I-" and previous[2:] == tag[2:]:
            found[-1] = (tag[2:], found[-1][1], i)
        elif tag != "O":
            found.append((tag[2:], i, i))
        previous = tag
    return set(found)


def test_entities_are_those_of_the_conll_evaluation():
    tags, draw = ["O", "B-X", "I-X", "B-Y", "I-Y", "B-A-B", "I-A-B"], random.Random(0)
    for _ in range(200):
        references = [draw.choices(tags, k=draw.randint(1, 9)) for _ in range(3)]
        predictions = [[draw.choice([tag, *tags]) for tag in row] for row in references]
        pairs = [(entities(a), entities(b)) for a, b in zip(references, predictions, strict=True)]
        right, found, wanted = (sum(map(len, sets)) for sets in zip(*((a & b, b, a) for a, b in pairs), strict=True))
        scores = entity_scores(references, predictions)
        assert scores["entity_precision"] == pytest.approx(right / max(1, found))
        assert scores["entity_recall"] == pytest.approx(right / max(1, wanted))
        assert scores["entity_f1"] == pytest.approx(2 * right / max(1, found + wanted))


def test_entity_scores():
    wanted = ["B-X I-X O B-Y".split(), "O B-X".split()]
    given = ["B-X I-X O B-X".split(), "B-X B-X".split()]  # right: X 0–1 and X 1; wrong: X 3 and X 0; missed: Y 3
    found = entity_scores(wanted, given)
    assert found["entity_precision"] == pytest.approx(2 / 4)
    assert found["entity_recall"] == pytest.approx(2 / 3)
    assert found["entity_f1"] == pytest.approx(4 / 7)
    assert entity_scores([["O"]], [["O"]]) == {"entity_f1": 0.0, "entity_precision": 0.0, "entity_recall": 0.0}


def test_tag_metrics_leave_out_what_has_no_label():
    labels = np.array([[-100, 1, -100, 2, 0, -100], [-100, 0, 1, -100, -100, -100]])
    answers = np.array([[2, 1, 1, 2, 1, 0], [1, 0, 1, 2, 2, -100]])
    found = make_tag_metrics(["O", "B-X", "I-X"])(EvalPrediction(answers, labels))
    assert found["token_accuracy"] == pytest.approx(4 / 5)
    assert found["entity_precision"] == pytest.approx(2 / 3)
    assert found["entity_recall"] == 1.0
    assert set(make_tag_metrics(["NOUN", "VERB", "X"])(EvalPrediction(answers, labels))) == {"token_accuracy"}


def test_tag_sets():
    assert tag_set([["B-Y", "O"], ["I-X", "B-X"]], "here").names == ("O", "B-X", "I-X", "B-Y")
    assert set(tag_set([["NOUN", "VERB"]], "here").names) == {"NOUN", "VERB"}
    assert not is_bio("B-")
    features = Features({"tokens": [Value("string")], "tags": [ClassLabel(names=["O", "B-X"])]})
    data = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[1, 0]]}, features=features)
    assert tags_of(data) == [["B-X", "O"]]


def test_parts_of_speech_of_which_one_is_o():
    """`O` alone does not make BIO tags; their metrics are those of words."""
    names = tag_set([["O", "V", "N", "P"]], "here").names
    assert names == ("O", "N", "P", "V")
    prediction = EvalPrediction(np.array([[0, 1, 2, 3]]), np.array([[0, 1, 2, 1]]))
    assert make_tag_metrics(names)(prediction) == {"token_accuracy": 0.75}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (["O", "B-PER", "E-PER", "S-LOC"], "'S-LOC' is not .* BIOES: convert the tags to BIO, S-TYPE to B-TYPE and E-"),
        (["O", "B-PER", "L-PER", "U-LOC"], "'U-LOC' is not .* BILOU: convert the tags to BIO, U-TYPE to B-TYPE and L-"),
        (["I-PER", "PER"], "'PER' is not one of O, B-TYPE and I-TYPE, as others are; correct it"),
    ],
    ids=["BIOES", "BILOU", "a slip"],
)
def test_tags_of_richer_schemes(tags, words):
    with pytest.raises(ValueError, match=words):
        tag_set([tags], "here")


def test_tags_that_are_numbers():
    data = Dataset.from_list([{"tokens": ["a", "b"], "tags": [1.0, 0.0]}])
    names = tag_set(tags_of(data), "here").names
    assert names == ("0", "1")
    whole = Dataset.from_list([{"tokens": ["a", "b"], "tags": [1, 0]}])
    for rows in (data, whole, Dataset.from_list([{"tokens": ["a", "b"], "tags": ["1", "0.0"]}])):
        assert encode_tags(rows, names, 8)[0]["labels"] == [-100, 1, 0, -100]
    assert encode_tags(whole, ("0.0", "1.0"), 8)[0]["labels"] == [-100, 1, 0, -100]


def test_hidden_tags_are_missing():
    features = Features({"tokens": [Value("string")], "tags": [ClassLabel(names=["O", "B-X"])]})
    data = Dataset.from_dict({"tokens": [["a"], ["b"]], "tags": [[0], [-1]]}, features=features)
    with pytest.raises(ValueError, match="here: the label is missing in column 'tags', row 2"):
        tags_of(data)


@pytest.mark.parametrize("labels", [["1", "0"], [1.0, 0.0], [1, 0]], ids=str)
def test_numbers_of_choices(labels):
    data = Dataset.from_list([{"context": "a", "choices": ["b", "c"], "label": label} for label in labels])
    assert task_of(MultipleChoice).check_split(Split(data, "here")).data is data
    assert tokenize_choices(data, letter_tokenizer(), 8).data["labels"][:] == [1, 0]
