"""Files, columns and labels."""

import gzip
import json
from io import BytesIO, TextIOWrapper

import pytest
from datasets import Value

from hf_feedback.training.data.columns import find_columns
from hf_feedback.training.data.files import read_file
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.data.splits import load_hub_splits
from hf_feedback.training.data.streams import stream_rows, stream_standard_input
from hf_feedback.training.starting_model.model_arguments import ModelArguments
from hf_feedback.training.tasks import text_classification
from hf_feedback.training.tasks.masked_lm import MaskedLM, MaskingArguments


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
    "unknown kind": ("t.xlsx", b"x", "unknown type of file"),
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
    with pytest.raises(ValueError, match=r"must hold lists of labels such as .* in every row"):
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


JSON = {
    "dates stay texts": ('{"text": "2024-01-01T10:00:00", "label": "2024-01-01"}', ["2024-01-01T10:00:00"]),
    "gaps": ('{"text": "a"}\n\n{"label": 1}\n', ["a", None]),
    "a list": ('\n[{"text": "a"},\n {"text": "b"}]', ["a", "b"]),
    "a list of texts": ('["a", "b"]', ["a", "b"]),
    "objects over several lines": ('{\n "text": "a"\n}\n{\n "text": "b"\n}', ["a", "b"]),
    "a byte order mark": ('\ufeff{"text": "a"}', ["a"]),
    "numbers of more than 64 bits": ('{"text": 18446744073709551616}', ["18446744073709551616"]),
    "cells of several kinds": ('{"text": "a"}\n{"text": 1}', ["a", 1]),
}


@pytest.mark.parametrize("case", JSON)
def test_json(tmp_path, case):
    content, texts = JSON[case]
    for name in ("t.json", "t.jsonl"):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert list(read_file(tmp_path / name)["text"]) == texts


KINDS = {
    "numbers among texts": [404, '"Great phone!"', "null", "007", "1e3", None],
    "truth values among texts": [True, "true", "007"],
    "truth values among numbers": [2.5, True, 1],
    "lists among texts": [["a", "007"], "b", "007"],
    "lists of texts and numbers": [["a", 1], ["007", "null"]],
    "objects of texts and numbers": [{"a": "007"}, {"a": 1}],
    "after many rows": ["007"] * 3000 + [1],
}


@pytest.mark.parametrize("case", KINDS)
def test_cells_of_several_kinds_are_as_written(tmp_path, case):
    """Also where a text is JSON itself, and as in a stream."""
    rows = [{"text": cell, "label": "x"} for cell in KINDS[case]]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = [row["text"] for row in read_and_stream(tmp_path / "t.jsonl")]
    assert list(map(repr, found)) == list(map(repr, KINDS[case]))
    assert read_file(tmp_path / "t.jsonl")["text"][:] == KINDS[case]


def test_labels_of_several_kinds_keep_their_names(tmp_path):
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"label": cell}) for cell in (1, "01", "null", 1.0)))
    assert set(LabelSet.of(read_file(tmp_path / "t.jsonl"), "label", "here").names) == {"1", "01", "null"}


def test_whole_numbers_among_others_are_numbers(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"label": 1}\n{"label": 2.5}')
    assert read_file(tmp_path / "t.jsonl").features["label"] == Value("float64")


def test_a_line_ends_where_files_of_texts_have_their_ends(tmp_path, monkeypatch):
    """And nowhere else: a form feed, a separator of Unicode or a control character is part of a text."""
    texts = ["a\x0cb", "c\x85d", "e\u2028f\u2029g", "h\x1ci\x1dj\x1ek\x0bl", "  m ", "n"]
    file, content = tmp_path / "t.txt", "\n".join(texts[:3]) + "\r\n\r\n" + "\r".join(texts[3:]) + "\n"
    file.write_bytes(content.encode())
    task = MaskedLM(ModelArguments(model="none"), MaskingArguments(train_file=str(file)))
    assert task.read(str(file))["text"][:] == texts
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(content.encode())))
    rows = [{"text": text} for text in texts]
    assert list(stream_rows(str(file))) == list(stream_standard_input()) == rows


FAULTS = {
    "Latin-1": ("t.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "line 2 is not UTF-8"),
    "Latin-1 in CSV": ("t.csv", b"text\na\n\ncaf\xe9\n", "line 4 is not UTF-8"),
    "JSON that ends early": (
        "t.jsonl",
        b'{"text": "a"}\n{"text": }\n',
        "cannot be read as json (Expecting value: line 2",
    ),
    "a list that ends early": ("t.json", b'[{"text": "a"},\n', "Expecting value: line 2"),
    "a number": ("t.jsonl", b'{"text": "a"}\n1\n', 'row 2 must be an object such as {"text": "…"}, got 1'),
    "nested deeply": (
        "t.jsonl",
        b'{"text": "a"}\n{"text": ' + b"[" * 99_999 + b"]" * 99_999 + b"}",
        "line 2 is nested too deeply",
    ),
    "a stray quote": ("t.csv", b'text,label\na,x\n"b" c,x\n', "line 3 cannot be read as csv"),
    "too few cells": (
        "t.csv",
        b"text;label\na;x\nb\n",
        "row 2 has 1 cells, the header has 2 (line 3 of the file); it has none for label; quote texts",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_name_their_file_and_line_once(tmp_path, capfd, case):
    name, content, words = FAULTS[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_file(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_broken_parquet_file_is_reported_once(tmp_path, capfd, caplog):
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + b"0" * 100)
    with pytest.raises(ValueError, match=r"t\.parquet: cannot be read as parquet"):
        read_file(tmp_path / "t.parquet")
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


QUOTES = {
    # cells of a TSV file → what they mean
    "a lone quote": ('"so he said', '"so he said'),
    "quotes around some words": ('he said "yes"', 'he said "yes"'),
    "quotes around the first words": ('"yes" he said', '"yes" he said'),
    "a cell in quotes": ('"a ""b"" c"', 'a "b" c'),
    "a tab in quotes": ('"a\tb"', "a\tb"),
    "lines in quotes": ('"a\nb"', "a\nb"),
    "no quotes": ("a", "a"),
}


def read_and_stream(file):
    """The rows of a file, which a stream of it has too."""
    rows = list(read_file(file))
    assert list(stream_rows(str(file))) == rows
    return rows


@pytest.mark.parametrize("case", QUOTES)
def test_quotes_in_tsv(tmp_path, case):
    cell, meaning = QUOTES[case]
    (tmp_path / "t.tsv").write_text(f"text\tlabel\n{cell}\tx\nb, c\ty\n")
    assert [row["text"] for row in read_and_stream(tmp_path / "t.tsv")] == [meaning, "b, c"]


def test_one_cell_whose_quotes_are_text_keeps_them_all(tmp_path):
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + '"yes"\tx\n' * 1500 + '"yes" he said\ty\n')
    rows = read_and_stream(tmp_path / "t.tsv")
    assert [rows[0]["text"], rows[-1]["text"]] == ['"yes"', '"yes" he said']


def test_the_first_rows_decide_what_quotes_are_in_a_stream(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_feedback.training.data.streams.ROWS_FOR_QUOTES", 3)
    (tmp_path / "t.tsv").write_text('text\tlabel\nfine\tx\nlate\ty\n"lost"\tx\n')
    assert read_file(tmp_path / "t.tsv")["text"][-1] == "lost"
    assert [row["text"] for row in stream_rows(str(tmp_path / "t.tsv"))] == ["fine", "late", '"lost"']


def test_damage_in_a_streamed_tsv_is_named_by_its_row(tmp_path):
    whole = gzip.compress("".join(["text\n", *(f"parcel {i}\n" for i in range(9000))]).encode())
    (tmp_path / "t.tsv.gz").write_bytes(whole[: len(whole) // 2])
    rows = []
    with pytest.raises(ValueError, match="cannot be read") as error:
        rows += stream_rows(str(tmp_path / "t.tsv.gz"))  # keeps what came before the error
    count = len(rows)
    assert count > 1000
    assert f"row {count + 1} cannot be read" in str(error.value)


def test_quotes_in_tsv_of_another_separator(tmp_path):
    (tmp_path / "t.tsv").write_text('text;label\n"a;b";x\nc;y\n')
    assert read_and_stream(tmp_path / "t.tsv") == [{"text": "a;b", "label": "x"}, {"text": "c", "label": "y"}]


def test_what_pandas_writes_comes_back(tmp_path):
    import pandas as pd

    table = pd.DataFrame({"text": ['a "b"', "c\td", "e\nf", '"g', "h", ""], "label": ["x, y"] * 6})
    for name, delimiter in (("t.tsv", "\t"), ("t.csv", ","), ("s.csv", ";")):
        table.to_csv(tmp_path / name, sep=delimiter, index=False)
        assert read_and_stream(tmp_path / name) == table.to_dict("records")


def test_the_header_tells_the_separator(tmp_path):
    (tmp_path / "s.csv").write_text("text;label\na, b;x\n")
    (tmp_path / "t.csv").write_text("text\tlabel\na, b\tx\n")
    (tmp_path / "c.tsv").write_text("text,label\na\t b,x\n")
    (tmp_path / "one.csv").write_text("text\na; b\n")
    assert [read_file(tmp_path / name)[0] for name in ("s.csv", "t.csv")] == [{"text": "a, b", "label": "x"}] * 2
    assert read_file(tmp_path / "c.tsv")[0] == {"text": "a\t b", "label": "x"}
    assert read_file(tmp_path / "one.csv")[0] == {"text": "a; b"}


def test_what_is_wrong_with_a_data_set_is_said(tmp_path):
    """`datasets` itself says no more than that an error occurred."""
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y,z\n")
    with pytest.raises(ValueError, match=r"`dataset_name`: .* cannot be read \(.*Expected 2 fields in line 3, saw 3"):
        load_hub_splits(str(tmp_path), None)


def test_splits_of_other_names_are_named(monkeypatch, caplog):
    """Such as those of MNLI, without which nothing is evaluated."""
    names = ["train", "validation_matched", "validation_mismatched"]
    monkeypatch.setattr(text_classification, "load_hub_splits", lambda *_: dict.fromkeys(names))
    arguments = text_classification.TextDataArguments(dataset_name="me/rows")
    task = text_classification.TextClassification(ModelArguments(model="no/model"), arguments)
    with caplog.at_level("WARNING", logger=text_classification.__name__):
        assert task.read_splits().keys() == {"train"}
    assert "no split named validation, and validation_matched, validation_mismatched are left out" in caplog.text
