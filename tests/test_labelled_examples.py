"""A file of labelled examples becomes what a model reads, and what people see."""

import pytest
from builders import LABELS, NAMES, task_model, tiny_tokenizer
from families import randomize_messages, tiny_backbone

from hf_feedback import FeedbackForSequenceClassification, FeedbackForTokenClassification
from hf_feedback.evaluation.report.labelled_examples import ShownItem, load_examples
from hf_feedback.evaluation.report.observation import observe


def saved(cls, folder, **options):
    """A trained model with its tokenizer in a folder."""
    options = {"num_iterations": 2, "feedback_rank": 8, **options}
    randomize_messages(cls.from_backbone(tiny_backbone("bert"), **options)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return saved(FeedbackForSequenceClassification, tmp_path_factory.mktemp("classifier"), **LABELS)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    tags = {"id2label": {0: "O", 1: "B-THING"}, "label2id": {"O": 0, "B-THING": 1}}
    return saved(FeedbackForTokenClassification, tmp_path_factory.mktemp("tagger"), **tags)


def test_texts_of_one_label_alone_are_read_as_the_model_was_trained(classifier, tmp_path):
    file = tmp_path / "test.csv"
    file.write_text("text,label\nwhere is my parcel,lost\nthe refund has not come,lost\n")
    examples = load_examples(classifier, str(file))
    assert examples.label_names == ("late", "lost", "fine")
    assert examples.show(1, 0) == ShownItem("the refund has not come")
    assert examples.unit == "texts"
    (batch,) = examples.batches(8)
    assert batch["labels"].tolist() == [1, 1]
    assert examples.inputs(0)["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3]]
    assert len(list(examples.batches(1, most=1))) == 1


def test_an_item_of_tagging_is_a_word_in_its_sentence(tagger, tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text(
        '{"tokens": ["where", "is", "parcel"], "tags": ["O", "O", "B-THING"]}\n'
        '{"tokens": ["refund", "please"], "tags": ["B-THING", "O"]}\n'
    )
    examples = load_examples(tagger, str(file))
    observation = observe(examples.model, examples.batches(2), 2)
    items = [examples.show(*pair) for pair in zip(observation.examples, observation.numbers, strict=True)]
    assert items[2] == ShownItem("where is", "parcel", "")
    assert items[3] == ShownItem("", "refund", "please")
    assert [examples.label_names[number] for number in observation.answers.labels] == [
        "O",
        "O",
        "B-THING",
        "B-THING",
        "O",
    ]


def test_the_columns_of_tagging_can_be_named(tagger, tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text('{"words": ["refund", "please"], "marks": ["B-THING", "O"]}\n')
    columns = {"tokens_column": "words", "tags_column": "marks", "label_column": None}
    assert load_examples(tagger, str(file), columns=columns).show(0, 1).word == "please"


def test_questions_are_items_with_their_choices(tmp_path):
    folder = saved(NAMES["MultipleChoice"], tmp_path / "model")
    file = tmp_path / "test.jsonl"
    file.write_text('{"context": "where is it", "choices": ["the parcel", "a refund"], "label": 1}\n')
    examples = load_examples(folder, str(file))
    assert examples.label_names == ("choice 0", "choice 1")
    assert examples.show(0, 0).before.splitlines() == ["where is it", "choice 0: the parcel", "choice 1: a refund"]
    assert observe(examples.model, examples.batches(2), 3).answers.probabilities.shape == (3, 1, 2)
    assert not examples.reads_tokens


def test_an_option_of_another_task_is_refused(classifier, tmp_path):
    file = tmp_path / "test.csv"
    file.write_text("text,label\nit,late\n")
    with pytest.raises(ValueError, match=r"`tags_column`: .* is a text classifier; leave the option out\."):
        load_examples(classifier, str(file), columns={"tags_column": "tags"})


@pytest.mark.parametrize("name", ["MaskedLM", "QuestionAnswering"])
def test_a_model_of_another_task_is_refused(name, tmp_path):
    task_model(name).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="a report is about models that answer with one class for each item: a text"):
        load_examples(str(tmp_path / "model"), "test.csv")


def test_a_model_of_values_is_refused(tmp_path):
    folder = saved(FeedbackForSequenceClassification, tmp_path / "model", num_labels=1)
    file = tmp_path / "test.csv"
    file.write_text("text,label\nit,0.5\n")
    with pytest.raises(ValueError, match="was trained for regression; a report is about models that give each text"):
        load_examples(folder, str(file))
