"""The example scripts of all tasks: from a small file to a model that loads, with figures checked by hand."""

import importlib
import json
import os
import random
import re
import string
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
from builders import character_tokenizer
from datasets import Audio, ClassLabel, Dataset, Features, Value
from families import tiny_backbone, tiny_config
from fresh_processes import run_ranks
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from scipy.io import wavfile
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    EvalPrediction,
    LlamaForCausalLM,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from hf_feedback import FeedbackForQuestionAnswering, FNNForSequenceClassification, cli
from hf_feedback.modeling_feedback import HEADS
from hf_feedback.passage_predictors import SpanPredictor
from hf_feedback.training.commands.errors import run_command
from hf_feedback.training.data.answers import WindowEncoder, answer_f1, answer_scores, answer_tokens, best_answers
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.data.media import check_media, read_media, read_wave
from hf_feedback.training.data.splits import Split
from hf_feedback.training.data.tags import entity_scores, is_bio, tag_set
from hf_feedback.training.starting_model.model_arguments import ModelArguments
from hf_feedback.training.tasks import TASKS, MultipleChoice, Task, TokenClassification, masked_lm
from hf_feedback.training.tasks.masked_lm import MaskingCollator, PieceEncoder, with_fixed_masks
from hf_feedback.training.tasks.multiple_choice import tokenize_choices
from hf_feedback.training.tasks.plain_texts import perplexity_of_losses, token_losses
from hf_feedback.training.tasks.question_answering import find_fault
from hf_feedback.training.tasks.token_classification import align_labels, make_tag_metrics, tokenize_words

EXAMPLES = Path(__file__).parent.parent / "examples"
DATA = EXAMPLES / "data"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FAST = "--num-train-epochs 2 --per-device-train-batch-size 4 --disable-tqdm True --feedback-rank 4 --bf16 False"


def script(name):
    """An example script as a module."""
    sys.path[:0] = [path for path in map(str, (EXAMPLES, DATA)) if path not in sys.path]
    return importlib.import_module(name)


def letters():
    """A tokenizer that reads words letter by letter, so that most words have several pieces."""
    signs = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *"0123456789", *".,?-;"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *signs])}
    assert len(vocabulary) < tiny_config("bert").vocab_size
    return BertTokenizer(vocab=vocabulary, model_max_length=64)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Folders of tiny backbones with what prepares their inputs, by kind of input."""
    folder = tmp_path_factory.mktemp("backbones")
    tiny_backbone("bert", pad_token_id=0).save_pretrained(folder / "text")
    letters().save_pretrained(folder / "text")
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


# Tags


def test_tags_stand_at_the_first_piece_of_a_word():
    found = letters()([["my", "red", "fan"]], is_split_into_words=True)
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
    return tokenize_words(Split(data, "here"), tags_of(data), labels, "tokens", letters(), length).data


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
    assert tokenize_choices(data, letters(), 8).data["labels"][:] == [1, 0]


# Questions


def one_question(answer="red", context="we have a red fan and a new lamp"):
    start = context.index(answer)
    row = {"question": "hue?", "context": context, "answers": {"text": [answer], "answer_start": [start]}}
    return Dataset.from_list([row])


def test_an_answer_stands_in_its_windows_and_comes_back():
    data, tokenizer = one_question(), letters()
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
    (window,) = WindowEncoder(letters(), 64, 6).encode(Split(Dataset.from_list([row]), "here"))
    tokens = letters().convert_ids_to_tokens(window["input_ids"])
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
    windows = WindowEncoder(letters(), 64, 6).encode(Split(data, "here"))
    tokens = letters().convert_ids_to_tokens(windows[0]["input_ids"])
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


def test_questions_without_answers(backbones, tmp_path):
    file = changed("run_question_answering", with_row(answers={"text": [], "answer_start": []}), tmp_path)
    assert run("run_question_answering", backbones, tmp_path, "--validation-file", file, train=file) == 0
    answering = FeedbackForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert SpanPredictor(answering).may_be_empty  # as in training
    assert not SpanPredictor(answering, may_be_empty=False).may_be_empty


# Masks


def test_evaluation_masks_stay_and_training_masks_change(monkeypatch):
    tokenizer = letters()
    texts = ["where is my red fan", "it is late", "a"]
    data = Dataset.from_dict(dict(tokenizer(texts, return_special_tokens_mask=True)))
    once, again = (with_fixed_masks(data, tokenizer, 0.3) for _ in range(2))
    assert once[:] == again[:]
    monkeypatch.setattr(masked_lm, "MOST_DRAWS", 9)
    with pytest.raises(ValueError, match=r"`mlm_probability`=1e-09 masks nothing in 9 draws"):
        with_fixed_masks(data, tokenizer, 1e-9)
    for row, plain in zip(once, data, strict=True):
        chosen = [label != -100 for label in row["labels"]]
        assert any(chosen)
        assert not any(yes and special for yes, special in zip(chosen, plain["special_tokens_mask"], strict=True))
        assert [i for i, yes in zip(row["labels"], chosen, strict=True) if yes] == [
            i for i, yes in zip(plain["input_ids"], chosen, strict=True) if yes
        ]
    collator = MaskingCollator(tokenizer, 0.3)
    together = collator(list(once))
    assert together["labels"][1].tolist()[: len(once[1]["labels"])] == once[1]["labels"]
    assert (together["labels"][2, 3:] == -100).all()
    assert (MaskingCollator(tokenizer, 0.01)([data[2]])["labels"] != -100).any()


def test_training_masks_depend_on_text_seed_and_epoch_alone():
    tokenizer = letters()
    texts = ["where is my red fan", "it is late", "a fan is red and late"]
    data = Dataset.from_dict(dict(tokenizer(texts, return_special_tokens_mask=True)))
    collator, state = MaskingCollator(tokenizer, 0.5), torch.random.get_rng_state()

    def masked(seed, epoch, rows):
        collator.start_epoch(seed, epoch)
        batch = collator([data[row] for row in rows])
        return {row: (ids[:8].tolist(), labels[:8].tolist()) for row, ids, labels in zip(
            rows, batch["input_ids"], batch["labels"], strict=True
        )}  # fmt: skip

    first = masked(3, 0, [0, 1, 2])
    assert masked(3, 0, [2, 0]) == {row: first[row] for row in (2, 0)}
    assert masked(3, 1, [0, 1, 2]) != first
    assert masked(4, 0, [0, 1, 2]) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_workers_that_outlive_an_epoch_mask_anew():
    tokenizer = letters()
    texts = ["where is my red fan", "it is late", "a fan is red and late"] * 3
    data = Dataset.from_dict(dict(tokenizer(texts, return_special_tokens_mask=True))).to_list()
    collator = MaskingCollator(tokenizer, 0.5)
    loader = DataLoader(data, 3, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        collator.start_epoch(0, epoch)
        found = torch.cat([batch["labels"].flatten() for batch in loader])
        expected = torch.cat([collator(data[i : i + 3])["labels"].flatten() for i in range(0, 9, 3)])
        assert torch.equal(found, expected)


def test_whole_words_are_masked():
    tokenizer = letters()
    encoder = PieceEncoder(tokenizer, 16, whole_words=True)
    texts = ["where is my red fan", "it is late"]
    pieces = Dataset.from_dict(encoder(texts))
    words = [tokenizer(text, truncation=True, max_length=16).word_ids() for text in texts]
    collator, seen = MaskingCollator(tokenizer, 0.5, whole_words=True), set()
    for epoch in range(4):
        collator.start_epoch(0, epoch)
        batch = collator([pieces[0], pieces[-1]])
        for ids, labels, word_ids in zip(batch["input_ids"], batch["labels"], words, strict=True):
            masked = (labels != -100).tolist()[: len(word_ids)]
            assert all(token == tokenizer.mask_token_id for token, yes in zip(ids, masked, strict=False) if yes)
            for word in set(word_ids) - {None}:
                seen.add(tuple({yes for yes, one in zip(masked, word_ids, strict=True) if one == word}))
            assert not any(yes for yes, word in zip(masked, word_ids, strict=True) if word is None)
    assert seen == {(True,), (False,)}


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


def test_perplexity_weighs_every_masked_token_the_same():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, -100, 2], [-100, 4, -100]])
    losses = token_losses(logits, labels)
    by_hand = [-logits[i, j].log_softmax(-1)[labels[i, j]].item() for i, j in ((0, 0), (0, 2), (1, 1))]
    found = perplexity_of_losses(EvalPrediction(losses.numpy(), labels.numpy()))
    assert found["loss"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(by_hand)), rel=1e-5)


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
