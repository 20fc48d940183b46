"""Data that are not as they should be: each fault has one message, with the row or the line, or one stated reading."""

import tracemalloc

import pytest
from datasets import Dataset
from training_runs import train_command
from transformers import PreTrainedConfig

from hf_feedback.cli import main
from hf_feedback.training.data.columns import Columns, find_columns
from hf_feedback.training.data.duplicates import warn_of_repeated_ids
from hf_feedback.training.data.files import read_file
from hf_feedback.training.data.labels import LabelSet, label_numbers
from hf_feedback.training.data.splits import Split, load_hub_splits
from hf_feedback.training.data.streams import stream_rows
from hf_feedback.training.data.text_files import TextFormat

MALFORMED = {
    # the file's name, its bytes, and what the message must hold
    "a cell too many": (
        "t.csv",
        b'text,label\n"two\nlines",x\n\na,b,x\n',
        "row 2 has 3 cells, the header has 2 (line 5 of the file); quote texts that hold the separator ','",
    ),
    "a cell too few": ("t.csv", b"text;label\na;x\nb\n", "(line 3 of the file); it has none for label"),
    "an open quote": ("t.csv", b'text,label\na,x\n"b,y\nc,z\n', "line 3 cannot be read as csv (a quote in it is not"),
    "a quote that ends late": (
        "t.csv",
        b'text,label\n"a,x\nb,y\n"c" d,z\n',
        "line 4 cannot be read as csv (',' expected after '\"', in the row that begins in line 2)",
    ),
    "Latin-1": (
        "t.csv",
        b"text\na\ncaf\xe9\n",
        "line 3 is not UTF-8 (byte 11 of the file, 0xe9: invalid continuation byte); name the encoding of the file, "
        "such as `--encoding cp1252`, or save it as UTF-8",
    ),
    "UTF-16": ("t.csv", "text\na\n".encode("utf-16"), "`--encoding utf-16`"),
    "UTF-16 without its mark": ("t.jsonl", '{"text": "a"}'.encode("utf-16-le"), "line 1 holds a NUL character"),
    "half of a pair": ("t.jsonl", b'{"text": "a"}\n{"text": "\\ud83d"}', "row 2 holds half of a surrogate pair"),
    "columns of pandas": (
        "t.json",
        b'{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}',
        "the file holds one object of columns; write one object a row, as pandas does by "
        "`df.to_json(file, orient='records', lines=True)`",
    ),
    "no rows": ("t.csv", b"text,label\r\n", "the file has no rows"),
    "no bytes": ("t.csv", b"", "the file is empty"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file(case, tmp_path):
    name, content, words = MALFORMED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        read_file(tmp_path / name)
    assert words in str(caught.value)


ONE_ROW = {
    "words and tags": '{"tokens": ["where", "is"], "tags": ["O", "O"]}',
    "one choice of two texts": '{"choices": ["where is it", "it is late"]}',
    "a text and labels": '{"text": "where is it", "label": ["late", "lost"]}',
    "an image": '{"image": {"bytes": null, "path": "a.png"}}',
    "a question": '{"question": "a", "context": "a b", "answers": {"text": ["a b"], "answer_start": [0]}}',
}


@pytest.mark.parametrize("case", ONE_ROW)
def test_one_row_is_not_taken_for_columns(case, tmp_path):
    (tmp_path / "t.json").write_text(ONE_ROW[case])
    assert len(read_file(tmp_path / "t.json")) == 1


def test_a_folder_instead_of_a_file(tmp_path):
    with pytest.raises(ValueError, match="this is a folder; name a file in it"):
        read_file(tmp_path)


def test_the_byte_of_a_large_file(tmp_path):
    """Beyond the first chunk, with a character that two chunks share."""
    lines = "é\n" * 50_000
    for codec, wrong in (("utf-8", b"\xff"), ("utf-16", b"\x00\xdc")):
        (tmp_path / "t.csv").write_bytes(lines.encode(codec) + wrong + "\nend\n".encode(codec))
        byte = len(lines.encode(codec)) + 1
        for read in (read_file, lambda *arguments: list(stream_rows(*arguments))):
            with pytest.raises(ValueError, match=rf"line 50001 is not .* \(byte {byte} of the file"):
                read(str(tmp_path / "t.csv"), TextFormat(encoding=codec))


MARKS_AND_ENDS = {
    "a byte order mark": "\ufefftext,label\na,x\nb,y\n",
    "CRLF": "text,label\r\na,x\r\nb,y\r\n",
    "CR": "text,label\ra,x\rb,y\r",
    "no last end of line": "text,label\na,x\nb,y",
    "empty lines": "\n\ntext,label\n\na,x\r\n\r\nb,y\n\n",
}


@pytest.mark.parametrize("case", MARKS_AND_ENDS)
def test_marks_and_ends_of_lines(case, tmp_path):
    (tmp_path / "t.csv").write_bytes(MARKS_AND_ENDS[case].encode())
    assert read_file(tmp_path / "t.csv").to_dict() == {"text": ["a", "b"], "label": ["x", "y"]}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "latin-1", "UTF8"])
def test_another_encoding(encoding, tmp_path):
    for name, text in (("t.csv", "text\ncafé\n"), ("t.jsonl", '{"text": "café"}\n')):
        (tmp_path / name).write_text(text, encoding=encoding)
        text_format = TextFormat(encoding=encoding)
        assert read_file(tmp_path / name, text_format)["text"][:] == ["café"]
        assert list(stream_rows(str(tmp_path / name), text_format)) == [{"text": "café"}]


@pytest.mark.parametrize(("delimiter", "mark"), [("|", "|"), ("\\t", "\t"), ("tab", "\t"), (" ", " ")])
def test_another_delimiter(delimiter, mark, tmp_path):
    (tmp_path / "t.csv").write_text(f"text{mark}label\na,b{mark}x\n")
    text_format = TextFormat(delimiter=delimiter)
    assert read_file(tmp_path / "t.csv", text_format)[0] == {"text": "a,b", "label": "x"}
    assert next(stream_rows(str(tmp_path / "t.csv"), text_format)) == {"text": "a,b", "label": "x"}


def test_quoted_cells_are_looked_for_row_by_row(tmp_path):
    (tmp_path / "t.tsv").write_text("text\n" + '"a b"\n' * 50_000)
    tracemalloc.start()
    assert next(stream_rows(str(tmp_path / "t.tsv"))) == {"text": "a b"}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n"])
def test_what_is_no_delimiter(delimiter):
    with pytest.raises(ValueError, match=r"`delimiter` must be one character such as ;"):
        TextFormat(delimiter=delimiter)


@pytest.mark.parametrize("encoding", ["klingon", "base64", "a\0b", ""])
def test_what_is_no_encoding(encoding):
    with pytest.raises(ValueError, match="`encoding`: there is no encoding"):
        TextFormat(encoding=encoding)


def labels_of(values, **options):
    return LabelSet.of(Dataset.from_dict({"label": values}, on_mixed_types="use_json"), "label", "here", **options)


MIXED = {
    "1 is '1'": ([1, "1", "2", 2.0], ("1", "2")),
    "true is True": ([True, "true", "False"], ("false", "true")),
    "numbers and words": ([1, "late", 2], ("1", "2", "late")),
}


@pytest.mark.parametrize("case", MIXED)
def test_mixed_labels_that_have_one_meaning(case):
    values, names = MIXED[case]
    assert labels_of(values).names == names


REFUSED = {
    "truth and numbers": ([True, False, 1], "a truth value ('true' in row 1) and 0 or 1 ('1' in row 3)"),
    "values and words": (
        ["0.5", "1", "0,7"],
        "a number that is not whole ('0.5' in row 1) and a word ('0,7' in row 3)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mixed_labels_that_have_two_meanings(case):
    values, words = REFUSED[case]
    with pytest.raises(ValueError, match="give `--problem-type`") as caught:
        labels_of(values)
    assert words in str(caught.value)
    assert len(labels_of(values, problem_type="single_label_classification").names) == 3


@pytest.mark.parametrize("gap", ["", " ", None, float("nan"), "NaN"], ids=repr)
def test_a_gap_names_its_row(gap):
    values = ["late", gap, "lost"] if not isinstance(gap, float) else [1.0, gap, 0.0]
    with pytest.raises(
        ValueError, match=r"here: the label is missing in column 'label', row 2; fill or drop them \(filter"
    ):
        labels_of(values)


def test_repeated_ids(caplog):
    warn_of_repeated_ids(Split(Dataset.from_dict({"ID": ["a", "b", None, "a", None, "b"]}), "here"))
    assert "here: column 'ID' repeats an id in rows 4, 6 (2 of 6), first 'a'; all rows are used" in caplog.text
    caplog.clear()
    warn_of_repeated_ids(Split(Dataset.from_dict({"id": [1, 2, None, None], "text": ["a"] * 4}), "here"))
    assert caplog.text == ""


def test_a_data_set_without_rows(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,x\n")
    (tmp_path / "test.csv").write_text("text,label\n")
    with pytest.raises(
        ValueError, match=r'`dataset_name`: .* cannot be read \(Instruction "test" corresponds to no data'
    ):
        load_hub_splits(str(tmp_path), None)


def test_options_of_the_command(backbone, tmp_path, capsys):
    """One example is enough for values; a wrong encoding ends the run before anything is written."""
    file = tmp_path / "train.csv"
    file.write_bytes("text|label\nwhere is it, caf\xe9|0.5\n".encode("latin-1"))
    command = train_command(backbone, tmp_path / "out", "--delimiter", "|", train=str(file), validation=None)
    assert main(command) == 2
    assert "line 2 is not UTF-8" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    assert main([*command, "--encoding", "latin-1"]) == 0
    assert "train_loss" in capsys.readouterr().out


def test_several_labels_in_a_cell():
    """A list of its own stays one; a gap is refused as everywhere."""
    data = Dataset.from_dict({"label": ["late; lost", "late", ";", "lost;", "[]", " [ ] "]})
    labels = LabelSet.of(data, "label", "here", separator=";")
    assert (labels.problem_type, labels.names) == ("multi_label_classification", ("late", "lost"))
    numbers = [[1, 1], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0]]
    assert label_numbers(Split(data, "here"), "label", labels, ";") == numbers
    gap = Split(Dataset.from_dict({"label": ["late;lost", ""]}), "here")
    with pytest.raises(ValueError, match=r"missing in column 'label', row 2; .*; write \[\] where"):
        label_numbers(gap, "label", labels, ";")
    with pytest.raises(ValueError, match=r"the label is missing in column 'label', row 2; .*; write \[\] where"):
        LabelSet.of(gap.data, "label", "here", separator=";")


def test_the_separator_is_kept_with_the_model():
    config = PreTrainedConfig()
    find_columns(["text", "label"], "here", label_separator=";").store_in(config)
    found = find_columns(["text", "label"], "here", trained=Columns.of_model(config))
    assert found == Columns("text", None, "label", ";")
    assert str(found) == "texts in 'text', labels in 'label', separated by ';'"
