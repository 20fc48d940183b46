"""The example scripts of all tasks: from a small file to a model that loads."""

import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import transformers
import yaml
from builders import character_tokenizer, letter_tokenizer
from datasets import Audio, Dataset
from families import tiny_backbone, tiny_config
from fresh_processes import run_ranks
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from scipy.io import wavfile
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from hf_feedback import FeedbackForQuestionAnswering, FNNForSequenceClassification, cli
from hf_feedback.modeling_feedback import HEADS
from hf_feedback.passage_predictors import SpanPredictor
from hf_feedback.training.commands.errors import run_command
from hf_feedback.training.data.media import check_media, read_media, read_wave
from hf_feedback.training.data.splits import Split
from hf_feedback.training.tasks import TASKS

EXAMPLES = Path(__file__).parent.parent / "examples"
DATA = EXAMPLES / "data"
FAST = "--num-train-epochs 2 --per-device-train-batch-size 4 --disable-tqdm True --feedback-rank 4 --bf16 False"


def script(name):
    """An example script as a module."""
    sys.path[:0] = [path for path in map(str, (EXAMPLES, DATA)) if path not in sys.path]
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Folders of tiny backbones with what prepares their inputs, by kind of input."""
    folder = tmp_path_factory.mktemp("backbones")
    tiny_backbone("bert", pad_token_id=0).save_pretrained(folder / "text")
    letter_tokenizer().save_pretrained(folder / "text")
    LlamaForCausalLM(tiny_config("llama", pad_token_id=None, eos_token_id=0)).save_pretrained(folder / "decoder")
    character_tokenizer().save_pretrained(folder / "decoder")
    tiny_backbone("vit").save_pretrained(folder / "image")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "image")
    tiny_backbone("wav2vec2", layerdrop=0.1).save_pretrained(folder / "audio")
    Wav2Vec2FeatureExtractor(sampling_rate=4000).save_pretrained(folder / "audio")
    return folder


@dataclass(frozen=True)
class Case:
    """A script with some of its data."""

    head: str
    reads: str
    data: str
    metrics: tuple[str, ...]
    count: int = 8

    @property
    def file(self) -> Path:
        return next((DATA / self.data).glob("train.*"))


CASES = {
    "run_token_classification": Case(
        "TokenClassification", "text", "entities", ("entity_f1", "entity_recall", "token_accuracy"), 24
    ),
    "run_question_answering": Case("QuestionAnswering", "text", "questions", ("exact_match", "f1")),
    "run_multiple_choice": Case("MultipleChoice", "text", "replies", ("accuracy",)),
    "run_mlm": Case("MaskedLM", "text", "support_messages", ("perplexity",)),
    "run_causal_lm": Case("CausalLM", "decoder", "support_messages", ("perplexity",)),
    "run_image_classification": Case("ImageClassification", "image", "shapes", ("accuracy", "macro_f1")),
    "run_audio_classification": Case("AudioClassification", "audio", "tones", ("accuracy", "macro_f1")),
}


def head_of(file: Path, count: int, folder: Path) -> str:
    """The first rows of a file, as a file."""
    out = folder / file.name
    if file.suffix == ".parquet":
        Dataset.from_parquet(str(file), cache_dir=str(folder / "cache")).select(range(count)).to_parquet(out)
    else:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        out.write_text("".join(lines[: count + (file.suffix == ".csv")]), encoding="utf-8")
    return str(out)


def run(name, backbones, folder, *more, train=None):
    case = CASES[name]
    train = train or head_of(case.file, case.count, folder)
    model = str(backbones / case.reads)
    command = ["--model", model, "--train-file", train, "--output-dir", str(folder / "out"), *FAST.split(), *more]
    return script(name).main(command)


@pytest.fixture(scope="module")
def trained(backbones, tmp_path_factory):
    """Name of a script → the folder of what it makes of some of its data, and what it prints then."""

    @cache
    def train(name):
        folder, printed = tmp_path_factory.mktemp(name), StringIO()
        rows = head_of(CASES[name].file, CASES[name].count, folder)
        files = ["--validation-file", rows, "--test-file", rows]
        with redirect_stdout(printed):
            assert run(name, backbones, folder, *files, "--learning-rate", "3e-3", train=rows) == 0
        return folder, printed.getvalue()

    return train


@pytest.mark.parametrize("name", CASES)
def test_from_a_file_to_a_model(name, trained):
    case = CASES[name]
    folder, printed = trained(name)
    out = folder / "out"
    assert "Model, " in printed
    assert f"test_{case.metrics[0]}" in printed
    results = json.loads((out / "all_results.json").read_text())
    for metric in (*case.metrics, "loss"):
        assert results[f"eval_{metric}"] == results[f"test_{metric}"]
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"]
    loaded, info = getattr(transformers, f"AutoModelFor{case.head}").from_pretrained(out, output_loading_info=True)
    assert type(loaded).__name__ == f"FeedbackFor{case.head}"
    assert not info["missing_keys"]
    assert any(edge.up.weight.abs().max() > 0 for edge in loaded.feedback.modules() if hasattr(edge, "up"))


@pytest.mark.parametrize("name", CASES)
def test_the_card_names_the_task_and_its_example_runs(name, trained, monkeypatch):
    case = CASES[name]
    monkeypatch.chdir(trained(name)[0])
    card = ModelCard.load("out/README.md")
    task = TASKS[f"FeedbackFor{case.head}"].card
    assert card.data.pipeline_tag == task.pipeline_tag
    assert {result.metric_name for result in card.data.eval_results} >= set(case.metrics)
    assert {result.task_type for result in card.data.eval_results} == {task.pipeline_tag}
    assert f"{case.count} {task.inputs} from {case.file.name}" in card.text
    assert task.model in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("path/or/id", "out"), names)
    if "answer" in names:
        assert type(names["answer"].model).__name__ == f"FeedbackFor{case.head}"


def test_every_head_has_a_task_and_every_task_a_script():
    assert set(TASKS) == {head.__name__ for head in (*HEADS, FNNForSequenceClassification)}
    without_script = {"FeedbackForSequenceClassification", "FNNForSequenceClassification"}  # `hf-feedback train`
    assert {f"FeedbackFor{case.head}" for case in CASES.values()} == set(TASKS) - without_script
    assert set(CASES) == {file.stem for file in EXAMPLES.glob("run_*.py")} - {"run_classification"}


@pytest.mark.parametrize("name", CASES)
def test_every_task_is_searched(name, backbones, tmp_path, capsys):
    """By its own metric: minimized where that is a perplexity, else maximized."""
    rows = head_of(CASES[name].file, CASES[name].count, tmp_path)
    command = ["--validation-file", rows, "--search-trials", "1", "--max-steps", "1", "--save-strategy", "no"]
    assert run(name, backbones, tmp_path, *command, train=rows) == 0
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/out/study.db")
    assert study.best_params == yaml.safe_load((tmp_path / "out" / "best_options.yaml").read_text())
    metric = "f1" if name == "run_question_answering" else CASES[name].metrics[0]
    assert f"(number 0): {metric} {study.best_value:.4f}" in capsys.readouterr().out
    assert study.direction.name == ("MINIMIZE" if metric == "perplexity" else "MAXIMIZE")


EVALUATED = {
    "run_question_answering": "--max-length 40 --stride 9 --max-answer-length 2",
    "run_mlm": "--mlm-probability 0.5 --whole-word-masking True",
    "run_causal_lm": "--max-length 24 --packing False",
    "run_audio_classification": "--max-seconds 0.1",
}


@pytest.mark.parametrize("name", EVALUATED)
def test_a_model_is_evaluated_as_in_training(name, backbones, tmp_path, capsys):
    """With the options of the data that metrics depend on, unless others are given."""
    file = head_of(CASES[name].file, CASES[name].count, tmp_path)
    assert run(name, backbones, tmp_path, *EVALUATED[name].split(), "--validation-file", file, train=file) == 0
    measured = json.loads((tmp_path / "out" / "all_results.json").read_text())
    evaluate = ["evaluate", "--model", str(tmp_path / "out"), "--file", file, "--output", str(tmp_path / "found.json")]
    assert cli.main(evaluate) == 0
    found = json.loads((tmp_path / "found.json").read_text())["metrics"]
    for metric in ("eval_loss", *(f"eval_{one}" for one in CASES[name].metrics)):
        assert found[metric] == pytest.approx(measured[metric], rel=1e-5)
    option = EVALUATED[name].split()[-2]
    other = {"--packing": "True", "--whole-word-masking": "False"}.get(option, "1")
    assert cli.main([*evaluate, option, other, "--force"]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["metrics"] != found
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["data_options"][option.strip("-").replace("-", "_")] = ["../other"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert cli.main([*evaluate, "--force"]) == 2
    assert "`data_options` in the model's config must be values of" in capsys.readouterr().err


def test_pretrained_with_masks_then_fine_tuned(backbones, tmp_path):
    assert run("run_mlm", backbones, tmp_path, "--max-steps", "2", "--num-iterations", "3") == 0
    (tmp_path / "next").mkdir()
    rows = head_of(CASES["run_token_classification"].file, 8, tmp_path / "next")
    command = ["--model", str(tmp_path / "out"), "--train-file", rows, "--output-dir", str(tmp_path / "next" / "out")]
    assert script("run_token_classification").main([*command, "--max-steps", "1", "--bf16", "False"]) == 0
    config = json.loads((tmp_path / "next" / "out" / "config.json").read_text())
    assert (config["num_iterations"], config["feedback_rank"]) == (3, 4)
    assert "B-DATE" in config["id2label"].values()


# Bad input


def with_row(**changes: Any) -> Callable[[list[dict]], list[dict]]:
    """Changes the third row."""
    return lambda rows: [{**row, **changes} if i == 2 else row for i, row in enumerate(rows)]


def without(column: str) -> Callable[[list[dict]], list[dict]]:
    return lambda rows: [{key: value for key, value in row.items() if key != column} for row in rows]


BAD = {
    # script, what becomes of the rows, further options → words on stderr
    "tags too few": ("token_classification", with_row(tags=["O"]), "", "row 3: `tags` must be a list of"),
    "tags that are no list": ("token_classification", with_row(tags="O"), "", "row 3: `tags` must be a list of"),
    "no tokens": ("token_classification", with_row(tokens=[], tags=[]), "", "row 3: `tokens` must be a list of words"),
    "half BIO": ("token_classification", with_row(tokens=["a"], tags=["DATE"]), "", "'DATE' is not one of O, B-TYPE"),
    "no tags at all": ("token_classification", without("tags"), "", "`--tags-column`: there is no column 'tags'; "),
    "answer elsewhere": (
        "question_answering",
        with_row(answers={"text": ["no such words"], "answer_start": [0]}),
        "",
        "row 3: the answer 'no such words' is not at character 0",
    ),
    "no answers": ("question_answering", with_row(answers="Monday"), "", "row 3: `answers` must be"),
    "no question": ("question_answering", with_row(question=" "), "", "row 3: `question` must be a text"),
    "long question": ("question_answering", with_row(question="why " * 40), "", "row 3: the question leaves 0 of 64"),
    "negative stride": ("question_answering", None, "--stride -1", "`stride` must be an integer of at least 0, got -1"),
    "label out of range": ("multiple_choice", with_row(label=4), "", "row 3: `label` must be the number of the right"),
    "label that is a word": ("multiple_choice", with_row(label="b"), "", "row 3: `label` must be the number"),
    "fewer choices": ("multiple_choice", with_row(choices=["a", "b"]), "", "row 3: `choices` has 2 texts, row 1 has 4"),
    "masks nothing": ("mlm", None, "--mlm-probability 0", "`mlm_probability` must be above 0"),
    "no words": ("mlm", lambda rows: [{"text": " "}] * 3, "", "column 'text' holds no words"),
    "no image": ("image_classification", with_row(image={"bytes": b"x", "path": None}), "", "row 3: `image` cannot be"),
    "no image column": ("image_classification", None, "--image-column photo", "`--image-column`: there is no"),
    "no label column": ("image_classification", None, "--label-column kind", "there is no column 'kind'"),
    "no recording": ("audio_classification", with_row(audio={"bytes": b"x", "path": None}), "", "row 3: `audio`"),
    "nothing at all": ("audio_classification", with_row(audio=None), "", "`audio` cannot be read (there is nothing)"),
    "no file": ("audio_classification", None, "--train-file /no/such.parquet", "there is no such file"),
    "no metric": ("multiple_choice", None, "--metric-for-best-model f2", "must be one of accuracy, loss"),
}  # fmt: skip


def changed(name: str, change: Callable | None, folder: Path) -> str:
    """The first rows of a script's data, changed, as a file."""
    case = CASES[name]
    file = head_of(case.file, case.count, folder)
    if change is None:
        return file
    if not file.endswith(".parquet"):
        rows = [json.loads(line) for line in Path(file).read_text().splitlines()] if file.endswith("l") else []
        out = folder / "changed.jsonl"
        out.write_text("\n".join(json.dumps(row) for row in change(rows)))
        return str(out)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(change(pq.read_table(file).to_pylist())), folder / "changed.parquet")
    return str(folder / "changed.parquet")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, backbones, tmp_path, capsys):
    name, change, more, words = BAD[case]
    file = changed(f"run_{name}", change, tmp_path)
    more = [*more.split(), "--validation-file", file] if case != "no file" else more.split()
    assert run(f"run_{name}", backbones, tmp_path, *more, train=file) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert words in error
    assert not list((tmp_path / "out").rglob("*.safetensors"))


# Texts


def test_questions_without_answers(backbones, tmp_path):
    file = changed("run_question_answering", with_row(answers={"text": [], "answer_start": []}), tmp_path)
    assert run("run_question_answering", backbones, tmp_path, "--validation-file", file, train=file) == 0
    answering = FeedbackForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert SpanPredictor(answering).may_be_empty  # as in training
    assert not SpanPredictor(answering, may_be_empty=False).may_be_empty


@pytest.mark.parametrize("more", [["--whole-word-masking", "true"], ["--streaming", "true"]], ids=str)
def test_pretraining_resumed_in_the_middle_is_that_without_a_break(more, backbones, tmp_path):
    """Of an epoch: the texts, their order and their masks are the same, whatever was drawn before."""
    weights, broken = {}, ["--resume-from-checkpoint", str(tmp_path / "whole" / "out" / "checkpoint-2")]
    for name, resume in (("whole", []), ("resumed", broken)):
        (tmp_path / name).mkdir(exist_ok=True)
        options = ["--max-steps", "4", "--save-strategy", "steps", "--save-steps", "2", *more, *resume]
        assert run("run_mlm", backbones, tmp_path / name, *options) == 0
        weights[name] = load_file(tmp_path / name / "out" / "model.safetensors")
    assert all(torch.equal(tensor, weights["resumed"][key]) for key, tensor in weights["whole"].items())


def test_how_a_stream_is_read_is_compared(backbones, tmp_path, capsys):
    """When a run resumes; of rows, the fingerprint tells it."""
    file = tmp_path / "train.csv"
    file.write_text("text,other\n" + "where is it,it is late\n" * 8)
    options = "--streaming true --max-steps 1 --save-strategy steps --save-steps 1 --text-column text".split()
    assert run("run_mlm", backbones, tmp_path, *options, train=str(file)) == 0
    for changed, words in {
        "--text-column other": '`text_column of train` was "text", is "other"',
        "--max-length 4": "`max_length of train` was",
        "--whole-word-masking true": "`whole_word_masking of train` was false, is true",
        "--encoding latin-1": '`encoding of train` was "utf-8", is',
    }.items():
        more = [*options, "--resume", "auto", "--max-steps", "2", *changed.split()]
        assert run("run_mlm", backbones, tmp_path, *more, train=str(file)) == 2
        assert words in capsys.readouterr().err


def test_the_loss_of_a_script_is_that_of_the_model(backbones, tmp_path):
    (tmp_path / "t.txt").write_text("where is my red fan\n\nit is late\n")
    more = ["--validation-file", str(tmp_path / "t.txt"), "--max-steps", "1"]
    assert run("run_mlm", backbones, tmp_path, *more, train=str(tmp_path / "t.txt")) == 0
    found = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert found["eval_perplexity"] == pytest.approx(np.exp(found["eval_loss"]))


def test_all_files_are_read_by_the_columns_of_training(backbones, tmp_path, capsys):
    train, validation = tmp_path / "t.csv", tmp_path / "v.csv"
    train.write_text("review\nwhere is my red fan\n")
    validation.write_text("text,review\n,where is my red fan\n")
    more = ["--validation-file", str(validation), "--max-steps", "1", "--overwrite-output-dir"]
    assert run("run_mlm", backbones, tmp_path, *more, train=str(train)) == 0
    assert f"{train}: texts in 'review'" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["data_columns"]["text"] == "review"
    validation.write_text("text\nwhere is my red fan\n")
    assert run("run_mlm", backbones, tmp_path, *more, train=str(train)) == 2
    assert "there is no column 'review', which training read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run_token_classification", "run_multiple_choice", "run_question_answering"])
def test_pipelines_cut_where_training_cut(name, backbones, tmp_path):
    assert run(name, backbones, tmp_path, "--max-steps", "1", "--max-length", "48") == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 48


@pytest.mark.parametrize("name", ["run_token_classification", "run_question_answering"])
def test_answers_for_tokens_of_texts_in_segments(name, backbones, tmp_path):
    """Texts are not cut into windows of their own before, and trained on whole."""
    more = "--max-steps 1 --feedback-span segment --feedback-type memory --segment-length 24 --segment-overlap 4"
    test = head_of(CASES[name].file, 3, tmp_path)
    assert run(name, backbones, tmp_path, *more.split(), "--segment-pair", "first", "--test-file", test) == 0
    longest = 24 + 63 * (24 - 2 - 4)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == longest
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results.keys() >= {f"test_{name}" for name in CASES[name].metrics}


# Images and recordings


def test_folders_of_images(backbones, tmp_path, capsys):
    from PIL import Image

    for kind, colour in (("dark", 10), ("light", 240)):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (12, 12), colour + i).save(tmp_path / "images" / kind / f"{i}.png")
    folder = str(tmp_path / "images")
    assert run("run_image_classification", backbones, tmp_path, "--validation-file", folder, train=folder) == 0
    classify = pipeline("image-classification", str(tmp_path / "out"))
    assert {answer["label"] for answer in classify(Image.new("RGB", (20, 20)))} == {"dark", "light"}
    Image.effect_noise((64, 64), 90).save(picture := tmp_path / "images" / "dark" / "half.jpg")
    picture.write_bytes(picture.read_bytes()[:900])
    more = ["--validation-file", folder, "--overwrite-output-dir", "True"]
    assert run("run_image_classification", backbones, tmp_path, *more, train=folder) == 2
    assert "image file is truncated" in capsys.readouterr().err


def test_folders_of_one_class(backbones, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "images" / "dark").mkdir(parents=True)
    Image.new("L", (12, 12)).save(tmp_path / "images" / "dark" / "a.png")
    folder = str(tmp_path / "images")
    assert run("run_image_classification", backbones, tmp_path, train=folder) == 2
    assert f"{folder}: column 'label' has fewer than two different labels (dark)" in capsys.readouterr().err


def recordings(folder, kinds=("high", "low"), count=3):
    for k, kind in enumerate(kinds):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            wave = np.random.default_rng(i).normal(0, 0.1 + k, 1600).astype(np.float32)
            wavfile.write(folder / kind / f"{i}.wav", 4000, wave)
    return str(folder)


def test_folders_of_recordings(backbones, tmp_path, monkeypatch, capsys):
    """They are read without torchcodec, which `datasets` asks for."""
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    folder = recordings(tmp_path / "recordings")
    one_class = recordings(tmp_path / "validation", kinds=("low",))
    more = ["--max-steps", "1", "--validation-file", one_class]
    assert run("run_audio_classification", backbones, tmp_path, *more, train=folder) == 0
    understood = f"{folder}: recordings in 'audio', labels in 'label'; 2 classes: high, low"
    assert understood in capsys.readouterr().out
    (tmp_path / "recordings" / "low" / "1.wav").write_bytes(b"no wave")
    assert run("run_audio_classification", backbones, tmp_path, "--overwrite-output-dir", train=folder) == 2
    assert f"row 5: `audio` {folder}/low/1.wav cannot be read (" in capsys.readouterr().err


def test_a_list_of_recordings(tmp_path):
    """As `datasets` takes it beside the files."""
    folder = recordings(tmp_path / "recordings")
    (tmp_path / "recordings" / "metadata.csv").write_text("file_name,label\nlow/0.wav,x\nhigh/1.wav,y\n")
    split = Split(read_media(folder, "audiofolder"), "here")
    data = check_media(split, "audio", Audio(decode=False), read_wave, "--audio-column").data
    assert data["label"][:] == ["x", "y"]
    assert data[1]["audio"]["path"] == f"{folder}/high/1.wav"
    (tmp_path / "recordings" / "metadata.csv").write_text("name,label\nlow/0.wav,x\n")
    with pytest.raises(ValueError, match=r"cannot be read as a folder .*`file_name`"):
        read_media(folder, "audiofolder")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_waves_of_every_kind(dtype):
    wave = np.sin(2 * np.pi * 50 * np.arange(800) / 4000).astype(np.float32) * 0.5
    scale = {np.uint8: 128, np.int16: 2**15, np.int32: 2**31}.get(dtype, 1)
    samples = (wave * scale + (128 if dtype == np.uint8 else 0)).astype(dtype)
    stream = BytesIO()
    wavfile.write(stream, 4000, np.stack([samples, samples], 1))
    np.testing.assert_allclose(read_wave(stream.getvalue()), wave, atol=0.02)
    twice = read_wave(stream.getvalue(), 8000)
    assert len(twice) == 1600
    np.testing.assert_allclose(twice[200:1400:2], wave[100:700], atol=0.05)


def test_recordings_of_different_lengths(backbones, tmp_path):
    def cell(length):
        stream = BytesIO()
        wavfile.write(stream, 8000, (np.random.default_rng(length).normal(0, 0.1, length)).astype(np.float32))
        return {"bytes": stream.getvalue(), "path": None}

    rows = [{"audio": cell(2000 + 500 * i), "label": "ab"[i % 2]} for i in range(6)]
    Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    file = str(tmp_path / "t.parquet")
    more = ["--validation-file", file, "--max-seconds", "0.4"]
    assert run("run_audio_classification", backbones, tmp_path, *more, train=file) == 0


# The shipped data


def test_the_shipped_texts_are_what_the_script_makes(tmp_path):
    script("make_small_sets").write_texts(tmp_path)
    made = sorted(tmp_path.rglob("*.jsonl"))
    folders = {file.parent.name for file in made}
    assert folders == {"entities", "questions", "replies"}
    shipped = [file.relative_to(DATA) for name in folders for file in (DATA / name).glob("*.jsonl")]
    assert sorted(shipped) == [file.relative_to(tmp_path) for file in made]
    for file in made:
        assert file.read_text(encoding="utf-8") == (DATA / file.relative_to(tmp_path)).read_text(encoding="utf-8")


PREDICTED = [{"text": "where is it", "label": "late", "score": 0.75}, {"text": "oh", "label": "lost", "score": 0.5}]
WRONG_PREDICTIONS = {
    "another file": (PREDICTED[:1], [], "has 1 predictions, and"),
    "no classes": ([{"text": "", "value": 1.0}] * 2, [], "has no 'label'; classes are shown"),
    "nothing to show": (PREDICTED, ["0"], "`count` must be an integer of at least 1, got 0"),
}


@pytest.mark.parametrize("case", [None, *WRONG_PREDICTIONS])
def test_predictions_are_shown(case, tmp_path, capsys):
    predictions, more, words = WRONG_PREDICTIONS.get(case, (PREDICTED, [], ""))
    (tmp_path / "predicted.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in predictions))
    (tmp_path / "labelled.csv").write_text("text,label\nwhere is it,late\noh,fine\n")
    main = script("show_predictions").main
    arguments = [str(tmp_path / name) for name in ("predicted.jsonl", "labelled.csv")] + more
    assert run_command(main, arguments) == (2 if words else 0)
    shown = capsys.readouterr()
    if words:
        assert shown.err.count("\n") == 1
        assert words in shown.err
    else:
        assert shown.out.count("✓") == 1
        assert "✗ (is fine)" in shown.out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Number of predictions" in capsys.readouterr().out


def test_validation_is_not_training():
    files = list(DATA.rglob("train.*"))
    assert len(files) > 5
    for file in files:
        other = file.with_stem("validation")
        assert max(file.stat().st_size, other.stat().st_size) < 400_000
        if file.suffix == ".jsonl":
            assert not set(file.read_text().splitlines()) & set(other.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run_question_answering", "run_mlm", "run_causal_lm", "run_image_classification"])
def test_two_processes(name, backbones, tmp_path):
    """As under torchrun: each process reads half of the rows, and the figures are those of one process."""
    case = CASES[name]
    rows = head_of(case.file, case.count, tmp_path)
    files = ["--train-file", rows, "--validation-file", rows, "--output-dir", str(tmp_path / "out")]
    command = ["--model", str(backbones / case.reads), *files, *FAST.split(), "--num-train-epochs", "1"]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    found = run_ranks(str(EXAMPLES / f"{name}.py"), *command, "--ddp-backend", "gloo", env=env, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("and model card are in") == 1
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    (tmp_path / "again").mkdir()
    again = ["--model", str(tmp_path / "out"), "--train-file", rows, "--validation-file", rows]
    more = [
        "--learning-rate",
        "0",
        "--backbone-lr",
        "0",
        "--output-dir",
        str(tmp_path / "again"),
        "--max-steps",
        "1",
        "--bf16",
        "False",
    ]
    assert script(name).main([*again, *more]) == 0
    alone = json.loads((tmp_path / "again" / "all_results.json").read_text())
    for metric in case.metrics:
        assert results[f"eval_{metric}"] == pytest.approx(alone[f"eval_{metric}"], rel=1e-4)
