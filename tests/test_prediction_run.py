"""`hf-feedback predict` for every task: what is read and written, in chunks, and after an interruption."""

import csv
import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import labelled_model, tiny_tokenizer
from families import tiny_backbone
from PIL import Image
from scipy.io import wavfile

from hf_feedback import FeedbackForSequenceClassification, FeedbackModel
from hf_feedback.cli import main
from hf_feedback.prediction import prediction_rows, prediction_run, predictions_file
from hf_feedback.prediction.trained_model import TrainedModel
from hf_feedback.predictor import TokenPredictor
from hf_feedback.training.data.columns import Columns

TEXTS = ["where is my parcel", "help", "the refund has not come", "please help it"]


def predict(*options):
    return main(["predict", *map(str, options)])


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


QUESTION = {"question": "where is it", "context": "the parcel has not come"}
EXAMPLES = {
    # rows of a file, what `model.predict` gets
    "SequenceClassification": ([{"id": 7, "text": text} for text in TEXTS], TEXTS),
    "Network": ([{"sentence": text} for text in TEXTS], TEXTS),
    "TokenClassification": ([{"tokens": text.split(), "id": "a"} for text in TEXTS], [text.split() for text in TEXTS]),
    "QuestionAnswering": ([QUESTION], [QUESTION]),
    "MultipleChoice": (
        [{"context": "where", "choices": ["is it", "help"], "label": 1}],
        [{"context": "where", "choices": ["is it", "help"]}],
    ),
    "MaskedLM": ([{"text": "where is [UNK]"}], ["where is [UNK]"]),
    "CausalLM": ([{"text": "where is"}, {"text": "a"}], ["where is", "a"]),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_rows_are_written_with_the_answers_of_the_model(folders, tmp_path, name, capsys):
    rows, examples = EXAMPLES[name]
    file, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert predict("--model", folders(name), "--file", file, "--output", output) == 0
    assert f"{len(rows)} predictions are in {output}" in capsys.readouterr().out
    _, model, processor = TrainedModel(folders(name)).load()
    for line, row, answer in zip(lines(output), rows, model.predict(examples, processor), strict=True):
        assert answer.items() <= line.items()
        assert {name: value for name, value in row.items() if name not in answer}.items() <= line.items()
    assert {*tmp_path.iterdir()} == {file, output}


def test_images_and_recordings(folders, tmp_path, capsys):
    (tmp_path / "images" / "red").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (9, 9), (90 * i, 0, 0)).save(tmp_path / "images" / "red" / f"{i}.png")
    model = folders("ImageClassification")
    assert predict("--model", model, "--file", tmp_path / "images", "--output", tmp_path / "i.jsonl") == 0
    found = lines(tmp_path / "i.jsonl")
    assert [line["image"] for line in found] == [f"images/red/{i}.png" for i in range(3)]
    assert len({line["score"] for line in found}) == 3
    (tmp_path / "paths.csv").write_text("id,image\n7,images/red/2.png\n")
    assert predict("--model", model, "--file", tmp_path / "paths.csv", "--output", tmp_path / "p.jsonl") == 0
    assert lines(tmp_path / "p.jsonl")[0] == {"id": "7", **found[2]}
    (tmp_path / "paths.csv").write_text("id,image\n7,images/red/9.png\n")
    assert predict("--model", model, "--file", tmp_path / "paths.csv", "--output", tmp_path / "q.jsonl") == 2

    (tmp_path / "images" / "metadata.csv").write_text("file_name\n")
    assert predict("--model", model, "--file", tmp_path / "images", "--output", tmp_path / "m.jsonl") == 0
    assert lines(tmp_path / "m.jsonl") == found
    Image.effect_noise((64, 64), 90).convert("RGB").save(picture := tmp_path / "images" / "red" / "9.jpg")
    picture.write_bytes(picture.read_bytes()[:900])
    capsys.readouterr()
    assert predict("--model", model, "--file", tmp_path / "images", "--output", tmp_path / "t.jsonl") == 2
    assert "row 4: `image` 'images/red/9.jpg' cannot be read (image file is truncated" in capsys.readouterr().err

    wavfile.write(tmp_path / "a.wav", 16000, np.sin(np.arange(3000) / 9).astype(np.float32))
    (tmp_path / "waves.csv").write_text("sound\na.wav\n")
    command = ["--model", folders("AudioClassification"), "--file", tmp_path / "waves.csv", "--audio-column", "sound"]
    assert predict(*command, "--output", tmp_path / "a.jsonl", "--max-seconds", "0.1") == 0
    assert set(lines(tmp_path / "a.jsonl")[0]) == {"sound", "label", "score", "probabilities"}


def standard_output(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_texts_come_from_anywhere(folders, tmp_path, capsys, monkeypatch):
    model = folders("SequenceClassification")
    assert predict("--model", model, "--output", "-", "--text", *TEXTS) == 0
    expected = standard_output(capsys)
    assert [line["text"] for line in expected] == TEXTS
    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("text\n" + "\n".join(TEXTS))
    (tmp_path / "t.tsv").write_text("text;n\n" + "".join(f"{text};1\n" for text in TEXTS))
    for name in ("t.txt", "t.csv.gz", "t.tsv"):
        assert predict("--model", model, "--output", "-", "--file", tmp_path / name) == 0
        assert [{**line, "n": 0} for line in standard_output(capsys)] == [{**line, "n": 0} for line in expected]
    for lines_in in ("\n".join(TEXTS), "\n".join(json.dumps({"text": text}) for text in TEXTS)):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"\n{lines_in}\n"))
        assert predict("--model", model, "--output", "-", "--file", "-") == 0
        assert standard_output(capsys) == expected
    assert predict("--model", model, "--output", "-", "--text", "a", "--text-pair", "b") == 0
    assert standard_output(capsys)[0]["text_pair"] == "b"
    pair = ["--text", QUESTION["question"], "--text-pair", QUESTION["context"]]
    assert predict("--model", folders("QuestionAnswering"), "--output", "-", *pair) == 0
    assert standard_output(capsys)[0]["answer"] in QUESTION["context"]
    assert predict("--model", folders("TokenClassification"), "--output", "-", "--text", "where is it?") == 0
    assert standard_output(capsys)[0]["words"] == ["where", "is", "it", "?"]


def test_csv_by_its_ending(folders, tmp_path):
    (tmp_path / "t.csv").write_text('id,text,label\n1,"where, is\nit",late\n2,help,lost\n')
    model = folders("SequenceClassification")
    assert predict("--model", model, "--file", tmp_path / "t.csv", "--output", tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    probabilities = [f"probability_{name}" for name in ("late", "lost", "fine")]
    names = ["id", "text", "given_label", "label", "score", *probabilities]
    assert list(found[0]) == names
    assert [(row["id"], row["text"], row["given_label"]) for row in found] == [
        ("1", "where, is\nit", "late"),
        ("2", "help", "lost"),
    ]
    assert predict("--model", folders("TokenClassification"), "--text", "it is", "--output", tmp_path / "tags.tsv") == 0
    assert '"[""it"", ""is""]"' in (tmp_path / "tags.tsv").read_text()


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_predictions_are_predicted_again_without_loss(folders, tmp_path, ending):
    """The columns of a first prediction are kept beside those of the second."""
    (tmp_path / "0.csv").write_text("text,label\nwhere is it,late\nhelp it please,lost\n")
    model = folders("SequenceClassification")
    for i, before in enumerate(["0.csv", f"1.{ending}"], 1):
        output = tmp_path / f"{i}.{ending}"
        options = [] if i == 1 else ["--max-length", "4"]
        assert predict("--model", model, "--file", tmp_path / before, "--output", output, *options) == 0
    first, second = (
        list(csv.DictReader((tmp_path / f"{i}.csv").open(newline="")))
        if ending == "csv"
        else lines(tmp_path / f"{i}.jsonl")
        for i in (1, 2)
    )
    for one, two, gold in zip(first, second, ["late", "lost"], strict=True):
        assert one["given_label"] == two["given_label"] == gold
        assert two["given_given_label"] == one["label"]
        name = "probability_late" if ending == "csv" else "probabilities"
        assert two[f"given_{name}"] == one[name] != two[name]


def test_texts_from_no_table_and_a_column_of_another_name(tmp_path, capsys, monkeypatch):
    model = labelled_model()
    Columns("review", None, "label").store_in(model.config)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "t.txt").write_text("help")
    (tmp_path / "t.json").write_text('["help"]')
    monkeypatch.setattr("sys.stdin", io.StringIO("help\n"))
    found = []
    for source in (
        ["--text", "help"],
        ["--file", tmp_path / "t.txt"],
        ["--file", tmp_path / "t.json"],
        ["--file", "-"],
    ):
        assert predict("--model", tmp_path / "model", "--output", "-", *source) == 0
        found += standard_output(capsys)
    assert found[1:] == found[:1] * 3
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("café\n".encode("cp1252")), encoding="ascii"))
    command = ["--model", tmp_path / "model", "--output", "-", "--file", "-", "--encoding", "cp1252"]
    assert predict(*command) == 0
    assert standard_output(capsys)[0]["text"] == "café"
    (tmp_path / "t.csv").write_text("id,text\n1,help\n")
    assert predict("--model", tmp_path / "model", "--output", "-", "--file", tmp_path / "t.csv") == 2
    assert "there is no column 'review', which training read" in capsys.readouterr().err


def test_csv_of_rows_with_different_columns(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_run, "BATCHES_AT_ONCE", 2)
    warnings = []
    monkeypatch.setattr(predictions_file.logger, "warning_once", warnings.append)
    rows = [
        {"text": "a"},
        {"text": "help", "id": 1},
        {"id": 2, "text": "it"},
        {"text": "is", "day": 3, "label": "late"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["--model", folders("SequenceClassification"), "--file", tmp_path / "rows.jsonl", "--batch-size", "1"]
    assert predict(*command, "--output", tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["text"], row["id"]) for row in found] == [("a", ""), ("help", "1"), ("it", "2"), ("is", "")]
    assert all(row["label"] and row["score"] for row in found)
    assert ["day, given_label of later rows are not columns of the first ones" in words for words in warnings] == [True]


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A file of twelve rows, of which four are answered at once in batches of 2."""
    monkeypatch.setattr(prediction_run, "BATCHES_AT_ONCE", 2)
    file = tmp_path / "many.csv"
    file.write_text("id,text\n" + "".join(f'{i},"{TEXTS[i % 4]}\n{i}"\n' for i in range(12)))
    return file


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_that_was_cut_off_is_gone_on_with(folders, many, tmp_path, monkeypatch, capsys, ending):
    command = ["--model", folders("SequenceClassification"), "--file", many, "--batch-size", "2"]
    assert predict(*command, "--output", tmp_path / f"whole.{ending}") == 0
    answered, call = [], TokenPredictor.__call__

    def interrupted(self, examples):
        if len(answered) == 8:
            raise KeyboardInterrupt
        answered.extend(examples)
        return call(self, examples)

    output = tmp_path / f"part.{ending}"
    monkeypatch.setattr(TokenPredictor, "__call__", interrupted)
    assert predict(*command, "--output", output) == 130
    assert not output.exists()
    partial = tmp_path / f"{output.name}.partial"
    with partial.open("a") as file:
        file.write('{"id": "8", "te')  # as a kill may leave it

    def counted(self, examples):
        answered.extend(examples)
        return call(self, examples)

    monkeypatch.setattr(TokenPredictor, "__call__", counted)
    assert predict(*command, "--output", output) == 0
    assert "resuming after 8 rows" in capsys.readouterr().err
    assert len(answered) == 12
    assert output.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"many.csv", f"whole.{ending}", output.name}


def test_what_was_begun_otherwise_begins_anew_by_force_alone(folders, many, tmp_path, monkeypatch, capsys):
    output, call = tmp_path / "out.jsonl", TokenPredictor.__call__
    command = ["--model", folders("SequenceClassification"), "--file", many, "--batch-size", "2", "--output", output]
    calls = []

    def interrupted(self, examples):
        calls.append(len(examples))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, examples)

    monkeypatch.setattr(TokenPredictor, "__call__", interrupted)
    assert predict(*command) == 130
    assert predict(*command, "--max-length", "9") == 2
    assert "was written with other settings (`max_length` was null, is 9)" in capsys.readouterr().err
    assert predict(*command, "--num-iterations", "1") == 2
    assert "was written with other settings (`num_iterations` was 3, is 1)" in capsys.readouterr().err
    assert len(calls) == 2
    many.write_text(many.read_text().replace("help", "a"))
    assert predict(*command) == 2
    assert "was written with other settings (`file` was " in capsys.readouterr().err
    assert predict(*command[:2], "--text", "hello", "--output", output) == 2
    assert "has the first rows of a run that was stopped" in capsys.readouterr().err
    assert predict(*command, "--force") == 0
    assert len(lines(output)) == 12


def test_rows_are_read_as_they_are_answered(folders, tmp_path, monkeypatch):
    read, most, call = [], [], TokenPredictor.__call__

    def rows(file, text_format):
        for i in range(14):
            read.append(i)
            yield {"text": TEXTS[i % 4]}

    def measured(self, examples):
        most.append(len(read) - 4 * len(most))
        return call(self, examples)

    monkeypatch.setattr(prediction_run, "BATCHES_AT_ONCE", 2)
    monkeypatch.setattr(prediction_rows, "stream_rows", rows)
    monkeypatch.setattr(TokenPredictor, "__call__", measured)
    (tmp_path / "t.csv").write_text("text\na\n")
    command = ["--model", folders("SequenceClassification"), "--file", tmp_path / "t.csv", "--batch-size", "2"]
    assert predict(*command, "--output", tmp_path / "out.jsonl") == 0
    assert most == [4, 4, 4, 2]


def test_windows_of_training_do_not_refuse_another_length(folders, tmp_path, capsys):
    model = Path(shutil.copytree(folders("QuestionAnswering"), tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["data_options"] = {"stride": 10, "max_answer_length": 30, "may_be_empty": False}
    (model / "config.json").write_text(json.dumps(config))
    pair = ["--text", QUESTION["question"], "--text-pair", QUESTION["context"]]
    assert predict("--model", model, "--output", "-", *pair, "--max-length", "12") == 0
    assert standard_output(capsys)[0]["answer"] in QUESTION["context"]


WRONG = {
    # task, options, words of the message
    "nothing": ("SequenceClassification", [], "Give either `--file` (`-` is standard input) or `--text`."),
    "both": ("SequenceClassification", ["--file", "t.csv", "--text", "a"], "Give either `--file`"),
    "uneven pairs": ("SequenceClassification", ["--text", "a", "--text-pair", "b", "c"], "`text_pair` must be as many"),
    "a missing file": ("SequenceClassification", ["--file", "no.csv"], "no.csv: there is no such file"),
    "an unknown type": ("SequenceClassification", ["--file", "t.doc"], "t.doc: unknown type of file"),
    "an option of another task": (
        "SequenceClassification",
        ["--text", "a", "--stride", "3"],
        "`stride`: {model} is a text classifier; leave the option out",
    ),
    "a pair for tags": (
        "TokenClassification",
        ["--text", "a", "--text-pair", "b"],
        "`text_pair`: {model} is a token classifier; leave the option out",
    ),
    "a text without its question": ("QuestionAnswering", ["--text", "a"], "no column 'question', which the task reads"),
    "no choices": ("MultipleChoice", ["--text", "a"], "there is no column 'context'"),
    "no mask": ("MaskedLM", ["--text", "a"], "rows 1 to 1: `examples`: 'a' has no mask"),
    "a folder": ("SequenceClassification", ["--file", "."], "is a folder; name a file"),
    "a spreadsheet": (
        "SequenceClassification",
        ["--text", "a", "--output", "o.xlsx"],
        "o.xlsx would hold JSON lines; name it .jsonl",
    ),
    "compressed output": ("SequenceClassification", ["--text", "a", "--output", "o.csv.gz"], "leave .gz out"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(folders, tmp_path, monkeypatch, capsys, case):
    name, options, words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    assert predict("--model", folders(name), *options) == 2
    assert words.format(model=folders(name)) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["SequenceClassification", "TokenClassification", "MultipleChoice", "CausalLM"])
def test_half_of_a_surrogate_pair_is_refused(folders, tmp_path, capsys, name):
    row = EXAMPLES[name][0][0]
    cut = json.loads(json.dumps(row).replace("where", "where \\ud83d"))
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(cut)}\n")
    assert predict("--model", folders(name), "--file", tmp_path / "rows.jsonl") == 2
    assert "rows.jsonl: row 2 holds half of a surrogate pair, which is not text" in capsys.readouterr().err


def test_feedback_alone_is_read_with_the_tokenizer_of_its_backbone(tmp_path, capsys):
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    model = FeedbackForSequenceClassification.from_backbone(tmp_path / "backbone", num_labels=3, feedback_rank=4)
    model.save_feedback(tmp_path / "feedback")
    assert predict("--model", tmp_path / "feedback", "--output", "-", "--text", *TEXTS) == 0
    found, expected = standard_output(capsys), model.predict(TEXTS)
    assert [line["probabilities"] for line in found] == [answer["probabilities"] for answer in expected]


def test_a_model_without_a_head(tmp_path, capsys):
    FeedbackModel.from_backbone(labelled_model().backbone).save_pretrained(tmp_path)
    assert predict("--model", tmp_path, "--text", "a") == 2
    assert "a model without a head (FeedbackModel), which answers nothing; train it for a task" in (
        capsys.readouterr().err
    )


def test_answers_that_are_no_numbers_are_written_as_null(caplog):
    rows = [{"text": "a", "score": float("nan"), "probabilities": {"late": float("inf"), "lost": 0.5}}]
    with caplog.at_level("WARNING", logger="hf_feedback.prediction.predictions_file"):
        line = predictions_file.RowWriter("out.jsonl").format(rows)
    assert json.loads(line) == {"text": "a", "score": None, "probabilities": {"late": None, "lost": 0.5}}
    assert "JSON has no NaN" in caplog.text
