"""Files, columns and labels."""

import pytest

from hf_feedback.training.data import LabelSet, find_columns, read_file


def test_words_that_look_like_gaps_are_texts(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("text,label\nNA,None\nnull,n/a\n")
    data = read_file(file)
    assert data["text"][:] == ["NA", "null"]
    assert LabelSet.of(data, "label", "here").names == ("None", "n/a")


def test_cells_stay_what_they_are(tmp_path):
    (tmp_path / "t[1].csv").write_bytes('\ufefftext,label\n007,01\n"a, b",true\n1.50,inf\n'.encode())
    data = read_file(tmp_path / "t[1].csv")
    assert data.column_names == ["text", "label"]
    assert data["text"][:] == ["007", "a, b", "1.50"]
    assert LabelSet.of(data, "label", "here").names == ("01", "inf", "true")
    (tmp_path / "q.TSV").write_text('text\tlabel\n"so he said\tx\nfine\ty\n')
    assert read_file(tmp_path / "q.TSV")["text"][:] == ['"so he said', "fine"]


BROKEN = {
    "a comma too many": ("t.csv", b"text,label\na,b,x\n", "row 1 has 3 cells, the header has 2"),
    "a stray quote": ("t.csv", b'text,label\n"So he said,x\nand "fine",y\n', "cannot be read as csv"),
    "a quote that never ends": ("t.csv", b'text\n"so he said\nfine\n', "cannot be read as csv"),
    "a column twice": ("t.csv", b"text,text,label\na,b,x\n", "names a column twice"),
    "not UTF-8": ("t.csv", b"text,label\n\xff\xfe,x\n", "is not UTF-8"),
    "no JSON": ("t.jsonl", b"{text: 1\n", "cannot be read as json"),
    "no parquet": ("t.parquet", b"PAR", "cannot be read as parquet"),
    "unknown kind": ("t.xlsx", b"x", "unknown kind of file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path, case):
    name, content, words = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_file(tmp_path / name)
    assert words in str(caught.value)


def test_several_labels_need_lists():
    from datasets import ClassLabel, Dataset, Features, List, Value

    words = Dataset.from_dict({"label": ["ab c", "bd"]})
    with pytest.raises(ValueError, match="must hold lists of labels such as .* in every row"):
        LabelSet.of(words, "label", "here", "multi_label_classification")
    gaps = Dataset.from_dict({"label": [["x", None], ["y"]]})
    with pytest.raises(ValueError, match="label is missing"):
        LabelSet.of(gaps, "label", "here")
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["no", "yes"]))})
    named = Dataset.from_dict({"text": ["a", "b"], "label": [[0], [0, 1]]}, features=features)
    assert LabelSet.of(named, "label", "here").names == ("no", "yes")


LABELS = {
    "words": (["b", "a", "b"], ("single_label_classification", ("a", "b")), [1, 0, 1]),
    "numbers": ([10, 9, 10], ("single_label_classification", ("9", "10")), [1, 0, 1]),
    "whole numbers written with a point": ([1.0, 0.0], ("single_label_classification", ("0", "1")), [1, 0]),
    "values": ([0.5, 2, 1], ("regression", ()), [0.5, 2.0, 1.0]),
    "lists": ([["x"], [], ["x", "y"]], ("multi_label_classification", ("x", "y")), [[1, 0], [0, 0], [1, 1]]),
}


@pytest.mark.parametrize("case", LABELS)
def test_kinds_of_labels(case):
    from datasets import Dataset

    values, expected, encoded = LABELS[case]
    data = Dataset.from_dict({"label": values})
    labels = LabelSet.of(data, "label", "here")
    assert (labels.problem_type, labels.names) == expected
    assert labels.encode(data["label"], "label", "here") == encoded


COLUMNS = {
    ("text", "label"): ("text", None, "label"),
    ("label", "sentence"): ("sentence", None, "label"),
    ("text_a", "text_b", "label"): ("text_a", "text_b", "label"),
    ("premise", "hypothesis", "target"): ("premise", "hypothesis", "target"),
}


@pytest.mark.parametrize("values", [[[1, 0, 0], [0, 1, 1]], [[0.5], [1.5, 2.0]]], ids=str)
def test_rows_of_numbers_are_no_labels(values):
    from datasets import Dataset

    with pytest.raises(ValueError, match="give the labels that each text has by name"):
        LabelSet.of(Dataset.from_dict({"label": values}), "label", "here")


def test_the_second_text_alone():
    assert find_columns(("text", "b", "label"), "here", text_pair="b").text == "text"


@pytest.mark.parametrize("names", COLUMNS)
def test_columns_are_found(names):
    found = find_columns(names, "here")
    assert (found.text, found.text_pair, found.label) == COLUMNS[names]
