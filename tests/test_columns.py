"""The columns of texts and labels: what training found holds for every file, and what their cells may hold."""

import datetime
import json
import shutil
from decimal import Decimal

import pytest
from builders import tiny_tokenizer
from families import tiny_backbone
from training_runs import rows, train_command, write
from transformers import AutoTokenizer, PreTrainedConfig, pipeline

from hf_feedback.cli import main
from hf_feedback.training.data.columns import Columns, columns_of_plain_texts, find_columns
from hf_feedback.training.data.texts import texts_of

TRAINED = Columns("text", None, "target")


def test_training_wins_over_usual_names():
    names = ["label", "text_a", "text_b", "text", "target"]
    assert find_columns(names, "here") == Columns("text_a", "text_b", "label")
    assert find_columns(names, "here", trained=TRAINED) == TRAINED
    assert find_columns(names[:-1], "here", trained=TRAINED, needs_label=False) == Columns("text", None, None)


def test_texts_from_no_table_are_those_of_whatever_column_training_read():
    single, pair = Columns("review", None, "label"), Columns("premise", "hypothesis", "label")
    assert columns_of_plain_texts(["text"], "here", single) == Columns("text", None, "label")
    assert columns_of_plain_texts(["text", "text_pair"], "here", pair) == Columns("text", "text_pair", "label")
    half = Columns("text", "text_b", "label")
    assert columns_of_plain_texts(["text", "text_pair"], "here", half) == Columns("text", "text_pair", "label")
    assert columns_of_plain_texts(["id", "text"], "here", single) == single  # a table
    assert columns_of_plain_texts(["text", "text_pair"], "here", TRAINED) == TRAINED
    with pytest.raises(ValueError, match=r"trained on pairs .*'hypothesis'.*; give `--text-pair`"):
        columns_of_plain_texts(["text"], "`--text`", pair)
    with pytest.raises(ValueError, match=r"trained on texts .*'review'.*; leave `--text-pair` out"):
        columns_of_plain_texts(["text", "text_pair"], "`--text`", single)


def test_options_win_over_training():
    found = find_columns(["text", "label", "body"], "here", "body", label="label", trained=TRAINED)
    assert found == Columns("body", None, "label")


@pytest.mark.parametrize(
    ("names", "option", "name"),
    [(["text", "label"], "--label-column", "target"), (["review", "target"], "--text-column", "text")],
)
def test_a_column_of_training_that_is_missing(names, option, name):
    with pytest.raises(
        ValueError, match=f"`{option}`: there is no column '{name}', which training read; here has"
    ) as e:
        find_columns(names, "here", trained=TRAINED)
    assert ", ".join(names) in str(e.value)


def test_a_pair_of_training_that_is_missing():
    with pytest.raises(ValueError, match="`--text-pair-column`: there is no column 'reply', which training read"):
        find_columns(["text", "label"], "here", trained=Columns("text", "reply", "label"), needs_label=False)


HEADERS = {
    ("Text", " label"): Columns("Text", None, " label"),
    ("LABEL", "Sentence1 ", "SENTENCE2"): Columns("Sentence1 ", "SENTENCE2", "LABEL"),
    ("Text", "text", "Label"): Columns("text", None, "Label"),
    ("Text", "sentence", "target", "Label"): Columns("sentence", None, "target"),  # as they are comes first
}


@pytest.mark.parametrize("names", HEADERS)
def test_capitals_and_spaces_in_headers(names):
    assert find_columns(names, "here") == HEADERS[names]
    assert find_columns(names, "here", trained=HEADERS[names]) == HEADERS[names]


def test_capitals_and_spaces_differ_between_files():
    assert find_columns(["Text", " target "], "here", trained=TRAINED) == Columns("Text", None, " target ")


def test_labels_in_several_columns_are_refused_with_advice():
    with pytest.raises(ValueError, match=r'several labels of a text as a list such as \["late", "lost"\]'):
        find_columns(["text", "late", "lost"], "here")


def test_columns_are_kept_with_the_config(tmp_path):
    config = PreTrainedConfig()
    assert Columns.of_model(config) is None
    TRAINED.store_in(config)
    config.save_pretrained(tmp_path)
    assert Columns.of_model(PreTrainedConfig.from_pretrained(tmp_path)) == TRAINED


NO_COLUMNS = ["text", ["text"], {}, 0, {"text": None}, {"text": ["a"]}, {"text": "a", "label": 1}]


@pytest.mark.parametrize("kept", NO_COLUMNS, ids=str)
def test_columns_in_a_config_must_be_names(kept):
    with pytest.raises(ValueError, match="`data_columns` in the model's config must name the columns text, text_pair"):
        Columns.of_model(PreTrainedConfig(data_columns=kept))


CELLS = {
    "text": ("a", "a"),
    "number": (5, "5"),
    "value": (1.5, "1.5"),
    "exact value": (Decimal("1.50"), "1.50"),
    "truth": (True, "true"),
    "date": (datetime.date(2024, 1, 2), "2024-01-02"),
    "gap": (None, None),
    "no number": (float("nan"), None),
}


@pytest.mark.parametrize("case", CELLS)
def test_texts_of_cells(case):
    cell, text = CELLS[case]
    assert texts_of([cell], "text", "here") == [text]


@pytest.mark.parametrize("cell", [["a", "b"], {"a": "b"}, b"a", ("a",)], ids=str)
def test_cells_that_are_no_texts(cell):
    with pytest.raises(ValueError, match=f"here: row 12: column 'body' must hold a text, got {type(cell).__name__} "):
        texts_of(["a", cell], "body", "here", rows=[10, 11])


# From training to predictions


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model trained on `text` and `target`, cut at 8 tokens, and its files; `label` misleads."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_backbone("bert").save_pretrained(folder / "backbone")
    tiny_tokenizer().save_pretrained(folder / "backbone")
    clean = [{"text": row["text"], "target": row["label"]} for row in rows(12)]
    write(folder, "train.csv", clean)
    write(folder, "clean.csv", clean)
    write(folder, "both.csv", [{**row, "label": "fine", "text_a": "a", "text_b": "a"} for row in clean])
    files = {"train": str(folder / "train.csv"), "validation": str(folder / "both.csv")}
    more = ["--max-steps", "1", "--max-length", "8", "--test-file", str(folder / "both.csv")]
    assert main(train_command(str(folder / "backbone"), folder / "out", *more, **files)) == 0
    return folder


def evaluate(folder, file, *more):
    return main(["evaluate", "--model", str(folder / "out"), "--file", str(folder / file), *more])


def test_all_files_are_read_by_the_columns_of_training(trained, capsys):
    results = json.loads((trained / "out" / "all_results.json").read_text())
    for file in ("clean.csv", "both.csv"):
        assert evaluate(trained, file) == 0
        printed = capsys.readouterr().out
        assert f"{results['eval_loss']:.4f}" in printed
        assert f"{results['test_loss']:.4f}" in printed
    assert evaluate(trained, "both.csv", "--label-column", "label") == 0
    assert f"{results['eval_loss']:.4f}" not in capsys.readouterr().out


def test_what_training_reads_is_said_before_it_starts(trained, tmp_path, capsys):
    more = ["--max-steps", "1"]
    assert (
        main(train_command(str(trained / "out"), tmp_path, *more, train=f"{trained}/train.csv", validation=None)) == 0
    )
    printed = capsys.readouterr().out
    understood = f"{trained}/train.csv: texts in 'text', labels in 'target'; 3 classes: fine, late, lost"
    assert printed.index(understood) < printed.index("loss")


def test_another_file_without_the_columns_of_training(trained, capsys):
    write(trained, "other.csv", rows(6))
    assert evaluate(trained, "other.csv") == 2
    words = "`--label-column`: there is no column 'target', which training read; "
    assert f"{words}{trained}/other.csv has the columns: text, label." in capsys.readouterr().err
    assert evaluate(trained, "other.csv", "--label-column", "label") == 0


def predict(folder, name, content):
    (folder / name).write_text(content)
    output = folder / f"{name}.predictions"
    output.unlink(missing_ok=True)
    status = main(["predict", "--model", str(folder / "out"), "--file", str(folder / name), "--output", str(output)])
    lines = output.read_text().splitlines() if output.exists() else []
    return status, [json.loads(line) for line in lines]


def test_predictions_need_no_label_and_keep_gaps(trained, caplog):
    status, found = predict(
        trained, "new.jsonl", '{"text": "where is it"}\n{"text": null}\n{"text": true}\n{"text": 7}'
    )
    assert status == 0
    assert [line["text"] for line in found] == ["where is it", None, True, 7]
    assert "1 of 4 texts are empty" in caplog.text


def test_predictions_of_what_is_no_text(trained, capsys):
    status, found = predict(trained, "bad.jsonl", '{"text": "a"}\n{"text": ["a", "b"]}')
    assert (status, found) == (2, [])
    assert "bad.jsonl: row 2: column 'text' must hold a text, got list ['a', 'b']" in capsys.readouterr().err


def test_pairs_keep_their_gaps(trained, tmp_path):
    shutil.copytree(trained / "out", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["data_columns"]  # a model without that record may read pairs
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    file, output = tmp_path / "pairs.jsonl", tmp_path / "pairs.predictions"
    file.write_text('{"text": "where", "reply": null}\n{"text": null, "reply": "here"}')
    command = ["predict", "--model", str(tmp_path / "out"), "--file", str(file), "--output", str(output)]
    assert main([*command, "--text-pair-column", "reply"]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["text"], line["reply"]) for line in lines] == [("where", None), (None, "here")]


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_second_texts_for_a_model_of_single_texts(trained, tmp_path, command, capsys):
    pairs = write(tmp_path, "pairs.csv", [{**row, "target": row["label"], "reply": "here"} for row in rows(3)])
    words = "the model was trained on single texts (texts in 'text', labels in 'target'); leave it out"
    read = [command, "--model", str(trained / "out"), "--file", pairs]
    assert main([*read, "--text-pair-column", "reply"]) == 2
    assert f"`--text-pair-column`: {words}" in capsys.readouterr().err
    if command == "predict":
        assert main([*read[:3], "--text", "where", "--text-pair", "here"]) == 2
        assert f"`--text-pair`: {words}" in capsys.readouterr().err


def test_texts_are_cut_where_training_cut_them(trained, caplog, capsys):
    long = " ".join(["where is my parcel"] * 5)
    assert AutoTokenizer.from_pretrained(trained / "out").model_max_length == 8
    assert predict(trained, "long.jsonl", json.dumps({"text": long}))[0] == 0
    assert "1 of 1 texts are longer than 8 tokens" in caplog.text
    classify = pipeline("text-classification", str(trained / "out"), truncation=True)
    short = " ".join(long.split()[:6])
    assert classify(long) == classify(short)
    write(trained, "long.csv", [{"text": long, "target": "late"}, {"text": short, "target": "lost"}])
    caplog.clear()
    assert evaluate(trained, "long.csv", "--max-length", "40") == 0
    assert "were cut" not in caplog.text
    assert evaluate(trained, "long.csv", "--max-length", "65") == 2
    assert "between 4 and the 64 tokens that the model reads" in capsys.readouterr().err


def test_columns_that_a_folder_lists_must_be_names(trained, tmp_path, capsys):
    shutil.copytree(trained / "out", tmp_path / "out")
    shutil.copy(trained / "clean.csv", tmp_path)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["data_columns"] == {"text": "text", "text_pair": None, "label": "target"}
    config["data_columns"]["text"] = ["../clean.csv"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert evaluate(tmp_path, "clean.csv") == 2
    assert "`data_columns` in the model's config must name the columns" in capsys.readouterr().err
