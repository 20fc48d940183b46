"""Labels have one spelling, whatever kind of file they come from."""

from types import SimpleNamespace

import numpy as np
import pytest
from builders import task_model
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import PreTrainedConfig

from hf_feedback.training.data.files import read_file
from hf_feedback.training.data.label_names import label_name
from hf_feedback.training.data.labels import LabelSet, has_labels, label_numbers, single_label_set
from hf_feedback.training.data.splits import Split
from hf_feedback.training.data.tags import tag_set
from hf_feedback.training.starting_model.model_setup import check_head_has_labels


def labels_of(values, **options):
    return LabelSet.of(Dataset.from_dict({"label": values}, on_mixed_types="use_json"), "label", "here", **options)


SPELLINGS = {
    "1": (1, 1.0, "1", "1.0", " 1 ", np.int64(1), np.float32(1), np.float64(1)),
    "-2": (-2, -2.0, "-2.0", "-2.00"),
    "true": (True, "true", "True", "TRUE", np.True_),
    "false": (False, "False"),
    "0.5": (0.5, "0.5"),
    "01": ("01",),
    "1.0.0": ("1.0.0",),
    "Late": ("Late", " Late"),
    "caf\u00e9": ("caf\u00e9", "cafe\u0301"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_label_has_one_spelling(name):
    assert {label_name(label) for label in SPELLINGS[name]} == {name}


CONTENTS = {
    "t.csv": "text,label\na,1.0\nb,0\nc,1\n",
    "t.tsv": "text\tlabel\na\t1\nb\t0.0\nc\t1\n",
    "t.jsonl": '{"text":"a","label":1}\n{"text":"b","label":0.0}\n{"text":"c","label":"1.0"}',
    "b.csv": "text,label\na,True\nb,false\nc,TRUE\n",
    "b.jsonl": '{"text":"a","label":true}\n{"text":"b","label":false}\n{"text":"c","label":"True"}',
}


@pytest.fixture(params=[*CONTENTS, "t.parquet", "b.parquet"])
def file(request, tmp_path):
    """Files of the same labels: 1, 0, 1 or true, false, true."""
    path = tmp_path / request.param
    if path.suffix == ".parquet":
        labels = [1.0, 0.0, 1.0] if path.stem == "t" else [True, False, True]
        Dataset.from_dict({"text": ["a", "b", "c"], "label": labels}).to_parquet(path)
    else:
        path.write_text(CONTENTS[request.param])
    return path


@pytest.mark.parametrize("known", [("0", "1"), ("0.0", "1.0"), ("false", "true"), ("False", "True")], ids=str)
def test_labels_are_the_same_in_all_kinds_of_files(file, known):
    """Also for a model that keeps another spelling."""
    split = Split(read_file(file), str(file))
    found = LabelSet.of(split.data, "label", str(file))
    of_numbers = file.stem == "t"
    assert found.names == (("0", "1") if of_numbers else ("false", "true"))
    assert label_numbers(split, "label", found) == [1, 0, 1]
    model = SimpleNamespace(config=PreTrainedConfig(id2label=dict(enumerate(known))))
    if of_numbers == (known[0][0] == "0"):
        check_head_has_labels(model, "there", found)
        assert label_numbers(split, "label", LabelSet.of_model(model)) == [1, 0, 1]
    else:
        with pytest.raises(ValueError, match="was trained for the labels"):
            check_head_has_labels(model, "there", found)


def test_the_labels_of_a_model_stand_by_number():
    model = SimpleNamespace(config=PreTrainedConfig(id2label={"10": "k", "2": "c", "0": "a", "1": "b"}))
    assert LabelSet.of_model(model).names == ("a", "b", "c", "k")


LISTS = {
    "as Python writes them": ["['late', 'lost']", "[]", "['lost']"],
    "as JSON writes them": ['["late","lost"]', " [] ", '[ "lost" ]'],
    "of both kinds": ["['late', \"lost\"]", "", '["lost"]'],
    "bare": ["[late, lost]", "[]", "[lost]"],
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_may_be_written_escape_name(case):
    values = [value or "[]" for value in LISTS[case]]
    labels = labels_of(values)
    assert (labels.problem_type, labels.names) == ("multi_label_classification", ("late", "lost"))
    assert labels.encode(values, "label", "here") == [[1, 1], [0, 0], [0, 1]]


def test_lists_in_a_csv_file(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,\"['late', 'lost']\"\nb,\"['no, not', 'lost']\"\n")
    assert LabelSet.of(read_file(tmp_path / "t.csv"), "label", "here").names == ("late", "lost", "no, not")


@pytest.mark.parametrize("wrong", ["late", "['late' 'lost']", "[late: 1, lost]", "[['late'], 'lost']", "['late'"])
def test_lists_that_cannot_be_read(wrong):
    """Two texts side by side, as numpy prints them, would be one for Python."""
    with pytest.raises(ValueError, match=r'row 2: .* is not one; write lists of labels such as \["late", "lost"\]'):
        labels_of(["['late']", wrong])


def test_names_in_brackets_are_no_lists():
    assert labels_of(["[A]", "[B]", "c"]).names == ("[A]", "[B]", "c")


def test_ranges_are_names_where_one_label_was_asked_for():
    values = ["[0, 10]", "[10, 20]", "[0, 10]"]
    labels = labels_of(values, problem_type="single_label_classification")
    assert labels.names == ("[0, 10]", "[10, 20]")
    assert labels.encode(values, "label", "here") == [0, 1, 0]  # so a model with these classes can be evaluated
    assert labels_of(values).problem_type == "multi_label_classification"
    assert has_labels(Split(Dataset.from_dict({"label": ["[0, 10]", "over"]}), "here"), "label")


@pytest.mark.parametrize("values", [[True, False], ["True", "false"], ["true", "0"]], ids=str)
def test_truth_values_may_be_values(values):
    labels = labels_of(values, problem_type="regression")
    assert labels.encode(values, "label", "here") == [1.0, 0.0]


def test_words_are_no_values():
    with pytest.raises(ValueError, match="'late' in column 'label', row 2, is not a number"):
        labels_of(["0.5", "late"], problem_type="regression")


@pytest.mark.parametrize(
    "values", [[[1, 0], [0, 1]], [[True, False], [False, True]], ["[1.0, 0.0]", "[0, 1]"], [[0.5], [1.5, 2.0]]], ids=str
)
def test_rows_of_marks_are_no_labels(values):
    with pytest.raises(ValueError, match=r'give the labels that each text has by name, such as \["late", "lost"\]'):
        labels_of(values)


def test_names_that_look_like_a_row_of_marks_to_their_numbers():
    features = Features({"label": List(ClassLabel(names=["late", "lost"]))})
    data = Dataset.from_dict({"label": [[0, 1], [1, 0]]}, features=features)
    assert LabelSet.of(data, "label", "here").names == ("late", "lost")


def test_rows_of_values_written_as_text_are_no_labels(tmp_path):
    """As the same rows of real lists; in quotes, and between separators, numbers are names."""
    soft = ["[0.1, 0.9]", "[0.8, 0.2]", "[1, 0]", "[]"]
    with pytest.raises(ValueError, match=r"holds rows of numbers; give the labels that each text has by name, such as"):
        labels_of(soft)
    (tmp_path / "t.csv").write_text('text,label\na,"[0.1, 0.9]"\nb,"[0.5, 0.5]"\n')
    with pytest.raises(ValueError, match="holds rows of numbers"):
        LabelSet.of(read_file(tmp_path / "t.csv"), "label", "here")
    assert labels_of(["['3.11', '3.12']", "['3.9']"]).names == labels_of([["3.11", "3.12"], ["3.9"]]).names
    assert labels_of(["3.11; 3.12", "3.9"], separator=";").names == ("3.11", "3.12", "3.9")
    assert labels_of(["[1, 2]", "[3]"]).names == ("1", "2", "3")
    assert labels_of(["[0.5, late]", "[lost]"]).names == ("0.5", "late", "lost")
    assert labels_of(soft[:3], problem_type="single_label_classification").names == (
        "[0.1, 0.9]",
        "[0.8, 0.2]",
        "[1, 0]",
    )


UNSUITABLE = {
    "a dictionary": [{"name": "late"}, {"name": "lost"}],
    "bytes": [b"late", b"lost"],
    "lists of lists": [[["late"]], [["lost"]]],
}


@pytest.mark.parametrize("case", UNSUITABLE)
def test_cells_that_are_no_labels(case):
    data = Dataset.from_dict({"kind": UNSUITABLE[case]})
    with pytest.raises(ValueError, match="here: row 1: column 'kind' must hold a label or lists of labels"):
        LabelSet.of(data, "kind", "here")


def test_one_label_where_training_had_several():
    several = LabelSet("multi_label_classification", ("late", "lost"))
    with pytest.raises(ValueError, match=r"must hold lists of labels .* as in training; row 2: 'late'"):
        several.encode([["late"], "late"], "label", "here")
    with pytest.raises(ValueError, match=r"must hold one label in every row, as in training; row 1: \['late'\]"):
        LabelSet("single_label_classification", ("late", "lost")).encode([["late"]], "label", "here")


@pytest.mark.parametrize("kind", ["single_label_classification", "regression"])
def test_lists_where_one_label_was_asked_for(kind):
    with pytest.raises(ValueError, match=f"must hold one label in every row for {kind}"):
        labels_of([["late"], ["lost"]], problem_type=kind)


def test_several_values_have_no_labels():
    with pytest.raises(ValueError, match="must hold one label in every row for regression"):
        labels_of([[0.1, -0.2], [0.5, 0.7]], problem_type="regression")
    with pytest.raises(ValueError, match="`model` answers with 2 values for each example, and its labels are of one"):
        LabelSet.of_model(task_model("SequenceClassification", num_labels=2, problem_type="regression"))


def test_what_was_understood_is_said():
    assert str(labels_of(["late", "lost"])) == "2 classes: late, lost"
    assert str(labels_of([["late"], ["lost"]])) == "2 labels, several a text: late, lost"
    assert str(labels_of([0.5, 1.5])) == "values (regression)"
    thirty = str(labels_of(list(range(30))))
    assert thirty.startswith("30 classes: 0, 1, 2,")
    assert "19, …; for values to predict, `--problem-type regression`" in thirty
    assert str(labels_of([[1], [2], [3]])) == "3 labels, several a text: 1, 2, 3"
    assert len(str(labels_of(["a" * 1000, "b"]))) < 100


def test_decimal_commas_are_pointed_out():
    """Numbers with a decimal comma are names, as they are; that they are no values is said."""
    hint = "; for values to predict, `--problem-type regression`, and write decimals with a point"
    assert str(labels_of(["1,5", "-2,25", "3"])).endswith(f"-2,25, 1,5{hint}")
    assert str(labels_of(["1,5", "late", "3"])) == "3 classes: 3, 1,5, late"
    assert "point" not in str(labels_of(["1", "2", "3"]))
    with pytest.raises(ValueError, match=r"'1,5' .*row 2, is not a number; write decimals with a point"):
        labels_of(["1", "1,5"], problem_type="regression")


def test_one_class_is_too_few():
    features = Features({"label": ClassLabel(names=["late"])})
    with pytest.raises(ValueError, match=r"fewer than two different labels \(late\)"):
        single_label_set(Split(Dataset.from_dict({"label": [0, 0]}, features=features), "here"), "label")


def test_a_hidden_label_is_missing():
    features = Features({"label": ClassLabel(names=["late", "lost"])})
    data = Dataset.from_dict({"label": [0, -1, 1]}, features=features)
    with pytest.raises(ValueError, match="the label is missing in column 'label', row 2"):
        LabelSet.of(data, "label", "here")


@pytest.mark.parametrize("values", [["", " "], [None, None], ["nan", ""]], ids=str)
def test_a_column_without_any_label(values):
    data = Dataset.from_dict({"label": values}, features=Features({"label": Value("string")}))
    assert not has_labels(Split(data, "here"), "label")


def test_tags_that_are_numbers():
    assert tag_set([[2, 10], [1.0, "2"]], "here").names == ("1", "10", "2")
