"""From raw text to predictions, and what happens when the input is bad."""

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from builders import tiny_tokenizer
from families import tiny_backbone
from fresh_processes import LOADED, forks
from huggingface_hub import ModelCard
from training_runs import WORDS, rows, train_command, write
from transformers import pipeline

from hf_feedback import cli
from hf_feedback.cli import COMMANDS, main
from hf_feedback.training.commands.train import training_parser
from hf_feedback.training.metrics import MetricInfo
from hf_feedback.training.run import set_best_epoch_arguments
from hf_feedback.training.tasks import TextClassification

ROOT = Path(__file__).parent.parent


def test_long_texts_in_segments(backbone, tmp_path, capsys, caplog):
    """Texts of several segments and of one, from training to predictions; those beyond the cap are cut and counted."""
    long = [{**row, "text": " ".join([row["text"]] * (1 + 3 * (i % 3)))} for i, row in enumerate(rows(48))]
    train = write(tmp_path, "train.csv", long)
    validation = write(tmp_path, "validation.csv", [*long[:12], {**long[0], "text": "where is " * 40}])
    out = tmp_path / "out"
    segments = "--feedback-span segment --segment-length 12 --max-segments 4 --pooling mean --num-train-epochs 6"
    more = [*segments.split(), "--learning-rate", "1e-2"]
    assert main(train_command(backbone, out, *more, train=train, validation=validation)) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["feedback_span"], config["segment_length"]) == ("segment", 12)
    around = sum(config["segment_special_tokens"])
    longest = 12 + 3 * (12 - around - 1)  # an eighth of 12 overlaps
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == longest
    results = json.loads((out / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.8
    assert main(["evaluate", "--model", str(out), "--file", validation]) == 0
    assert f"{results['eval_accuracy']:.4f}" in capsys.readouterr().out
    assert main(["predict", "--model", str(out), "--file", validation, "--output", str(tmp_path / "p.jsonl")]) == 0
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 13
    assert f"1 of 13 texts are longer than {longest} tokens and were cut" in caplog.text
    answering = pipeline("text-classification", str(out))
    assert answering(long[1]["text"])[0]["label"] in WORDS
    with pytest.raises(ValueError, match="more than `max_segments`=4; raise that, or cut texts at"):
        answering("where is " * 40)
    assert answering("where is " * 40, truncation=True)[0]["label"] in WORDS


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_from_text_to_predictions(backbone, tmp_path, capsys, ending):
    train = write(tmp_path, f"train.{ending}", rows(48))
    validation = write(tmp_path, f"validation.{ending}", rows(12, seed=1))
    out = tmp_path / "out"
    more = ["--test-file", validation, "--learning-rate", "1e-2", "--backbone-lr", "1e-2", "--num-train-epochs", "6"]
    assert main(train_command(backbone, out, *more, train=train, validation=validation)) == 0
    printed = capsys.readouterr().out
    assert "layer 3" in printed  # the groups
    assert "test_accuracy" in printed
    results = json.loads((out / "all_results.json").read_text())
    assert results["test_accuracy"] > 0.9
    assert results["test_accuracy"] == results["eval_accuracy"]

    assert main(["evaluate", "--model", str(out), "--file", validation]) == 0
    assert f"{results['test_accuracy']:.4f}" in capsys.readouterr().out

    new = write(tmp_path, f"new.{ending}", [{"text": row["text"]} for row in rows(6)])
    assert main(["predict", "--model", str(out), "--file", new, "--output", str(tmp_path / "p.jsonl")]) == 0
    answers = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(answers) == 6
    assert set(answers[0]) == {"text", "label", "score", "probabilities"}
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert sum(a["label"] == r["label"] for a, r in zip(answers, rows(6), strict=True)) >= 5
    assert not list(tmp_path.glob("*.partial"))


def test_model_card(backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "train.csv", rows())
    write(tmp_path, "validation.csv", rows(6))
    assert main(train_command(backbone, "out", "--layer-lr-decay", "0.9", "--freeze", "embeddings")) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    data = yaml.safe_load(card.data.to_yaml())
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-classification"
    assert "hf_feedback" in data["tags"]
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert found[("validation", "accuracy")] == pytest.approx(results["eval_accuracy"], abs=1e-4)
    for words in (
        "3 → 0",
        "| frozen | embeddings |",
        "24 texts from train.csv",
        "nothing about whether feedback helped",
    ):
        assert words in card.text, words


def test_regression_pairs_and_several_labels(backbone, tmp_path, capsys):
    pairs = [{"text_a": r["text"], "text_b": "help it", "label": i / 7} for i, r in enumerate(rows())]
    train = write(tmp_path, "pairs.csv", pairs)
    assert main(train_command(backbone, tmp_path / "r", train=train, validation=train)) == 0
    assert "eval_pearson" in capsys.readouterr().out
    assert (
        main(["predict", "--model", str(tmp_path / "r"), "--file", train, "--output", str(tmp_path / "r.jsonl")]) == 0
    )
    line = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    assert set(line) == {"text_a", "text_b", "label", "value"}

    several = [{"text": r["text"], "label": [r["label"], "any"] if i % 2 else []} for i, r in enumerate(rows())]
    train = write(tmp_path, "several.jsonl", several)
    assert main(train_command(backbone, tmp_path / "s", train=train, validation=train)) == 0
    assert (
        main(["predict", "--model", str(tmp_path / "s"), "--file", train, "--output", str(tmp_path / "s.jsonl")]) == 0
    )
    line = json.loads((tmp_path / "s.jsonl").read_text().splitlines()[1])
    assert set(line["probabilities"]) == {"late", "lost", "fine", "any"}


def test_decoder_without_padding_token(tmp_path):
    folder = tmp_path / "llama"
    backbone = tiny_backbone("llama")
    backbone.config.pad_token_id = None
    backbone.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(folder)
    train = write(tmp_path, "train.csv", [*rows(), {"text": "", "label": "late"}])
    assert main(train_command(str(folder), tmp_path / "out", train=train, validation=train)) == 0
    assert main(["evaluate", "--model", str(tmp_path / "out"), "--file", train]) == 0


def test_training_goes_on_from_a_feedback_model(backbone, tmp_path, capsys):
    train = write(tmp_path, "train.csv", rows())
    assert main(train_command(backbone, tmp_path / "one", train=train, validation=None)) == 0
    assert main(train_command(str(tmp_path / "one"), tmp_path / "two", train=train, validation=None)) == 0
    assert main(["evaluate", "--model", backbone, "--file", train]) == 2
    assert "is not a feedback model" in capsys.readouterr().err
    rank = train_command(str(tmp_path / "one"), tmp_path / "x", "--feedback-rank", "5", train=train, validation=None)
    assert main(rank) == 2
    assert "with 4, and cannot be changed to 5" in capsys.readouterr().err
    later = ["--halting", "patience", "--iteration-loss", "uniform", "--num-iterations", "3"]
    assert main(train_command(str(tmp_path / "one"), tmp_path / "y", *later, train=train, validation=None)) == 0
    config = json.loads((tmp_path / "y" / "config.json").read_text())
    assert (config["halting"], config["iteration_loss"], config["num_iterations"]) == ("patience", "uniform", 3)
    assert "| loss at every iteration | uniform |" in (tmp_path / "y" / "README.md").read_text()
    other = write(tmp_path, "other.csv", [{**row, "label": row["label"].upper()} for row in rows()])
    capsys.readouterr()
    assert main(train_command(str(tmp_path / "one"), tmp_path / "three", train=other, validation=None)) == 2
    assert "was trained for the labels fine, late, lost" in capsys.readouterr().err


def test_halting_is_chosen_after_training(backbone, tmp_path, capsys):
    train = write(tmp_path, "train.csv", rows())
    assert main(train_command(backbone, tmp_path / "out", "--num-iterations", "4", train=train, validation=None)) == 0
    evaluate = ["evaluate", "--model", str(tmp_path / "out"), "--file", train]
    capsys.readouterr()
    assert main(evaluate) == 0
    assert "mean_iterations" not in capsys.readouterr().out
    for k in (1, 2):
        halting = ["--halting", "confidence", "--halting-confidence", "0.01", "--min-iterations", str(k)]
        assert main([*evaluate, *halting]) == 0
        assert re.search(rf"mean_iterations\W+{k}\.0", capsys.readouterr().out)
    predict = ["predict", *evaluate[1:], "--output", str(tmp_path / "p.jsonl"), "--halting", "patience"]
    assert main(predict) == 0
    assert main([*evaluate, "--halting", "boredom"]) == 2
    assert "`halting` must be one of" in capsys.readouterr().err


def with_label(index, value):
    found = rows()
    found[index]["label"] = value
    return found


BAD = {
    # what is in train.csv, in validation.csv, further options → words on stderr
    "empty file": ("", rows(), [], "train.csv: the file is empty"),
    "only a header": ("text,label\n", rows(), [], "train.csv: the file has no rows"),
    "missing file": (None, rows(), [], "train.csv: there is no such file"),
    "a folder": (
        rows(),
        rows(),
        ["--validation-file", "."],
        "`validation_file`: . is a folder; name a file in it, or read it as a data set with its splits, "
        "`--dataset-name .` and no files",
    ),
    "missing column": (rows(), rows(), ["--text-column", "body"], "there is no column 'body'; "),
    "no text column": ("a,label\nx,y\n", rows(), [], "No column of texts was found"),
    "no label column": ("text,b\nx,y\n", rows(), [], "No column of labels was found"),
    "unknown label in validation": (rows(), with_label(4, "odd"), [], "label 'odd' in row 5 is not among the training"),
    "NaN label": (with_label(2, "nan"), rows(), [], "the label is missing in column 'label', row 3"),
    "missing label": (with_label(2, ""), rows(), [], "the label is missing in column 'label', row 3"),
    "one label": ([{"text": "a", "label": "x"}] * 4, rows(), [], "fewer than two different labels"),
    "K of zero": (rows(), rows(), ["--num-iterations", "0"], "`num_iterations` must be an integer of at least 1"),
    "edge upwards": (rows(), rows(), ["--feedback-edges", "[[0, 2]]"], "does not point downwards"),
    "edge out of range": (rows(), rows(), ["--feedback-edges", "[[7, 2]]"], "[7, 2] is out of range"),
    "edges that are no JSON": (rows(), rows(), ["--feedback-edges", "3>0"], "must be JSON"),
    "edges and topology": (
        rows(),
        rows(),
        ["--feedback-edges", "[[2, 0]]", "--feedback-topology", "top"],
        "exclude each other",
    ),
    "unknown activation": (rows(), rows(), ["--feedback-activation", "swishy"], "did you mean 'swish'"),
    "rank above the hidden size": (rows(), rows(), ["--feedback-rank", "64"], "at most the backbone's hidden size 32"),
    "rank that is no number": (rows(), rows(), ["--feedback-rank", "many"], "must be a number or 'none'"),
    "too long": (rows(), rows(), ["--max-length", "9999"], "`max_length` must be between 4 and the 64 tokens"),
    "freezing layers beyond the last": (
        rows(),
        rows(),
        ["--freeze", "layers:0-9"],
        "`freeze`: 'layers:0-9' names layers up to 9; this model has 0 to 3, such as 'layers:0-1'",
    ),
    "a largest K of nothing drawn": (
        rows(),
        rows(),
        ["--max-train-iterations", "5"],
        "`max_train_iterations`=5 has no effect with `train_iterations`='fixed'; choose one of uniform, poisson, ",
    ),
    "a limit without a cache": (
        rows(),
        rows(),
        ["--cache-prefix-gigabytes", "5"],
        "`cache_prefix_gigabytes`=5 has no effect without `cache_prefix`",
    ),
    "a separator that no cell holds": (
        rows(),
        rows(),
        ["--label-separator", ";"],
        "`label_separator`: no cell of column 'label' in ",
    ),
    "freezing nothing": (rows(), rows(), ["--freeze", "bakbone"], "'bakbone' matches no parameter"),
    "unknown metric to choose by": (rows(), rows(), ["--metric-for-best-model", "acuracy"], "`metric_for_best_model`"),
    "unknown metric": (rows(), rows(), ["--metrics", "acuracy"], "'acuracy' is not one of accuracy"),
    "not a model": (rows(), rows(), ["--model", "/nowhere/to/be/found"], "/nowhere/to/be/found"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(backbone, tmp_path, capsys, case):
    train, validation, more, words = BAD[case]
    for name, content in (("train.csv", train), ("validation.csv", validation)):
        if isinstance(content, str):
            (tmp_path / name).write_text(content)
        elif content is not None:
            write(tmp_path, name, content)
    files = {"train": str(tmp_path / "train.csv"), "validation": str(tmp_path / "validation.csv")}
    assert main(train_command(backbone, tmp_path / "out", *more, **files)) == 2
    error = capsys.readouterr().err
    assert f"error: {error.split('error: ')[-1]}" in error
    assert words in error
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_rate_of_what_is_frozen(backbone, tmp_path, caplog):
    train = write(tmp_path, "train.csv", rows(6))
    command = train_command(
        backbone, tmp_path / "out", "--dry-run", "--freeze", "backbone", train=train, validation=None
    )
    assert main(command) == 0
    assert "has no effect" not in caplog.text  # the rate is the default
    assert main([*command, "--backbone-lr", "1e-4"]) == 0
    assert "`backbone_lr` has no effect with `freeze` 'backbone'" in caplog.text


def test_folder_that_is_not_writable(backbone, tmp_path, capsys):
    train = write(tmp_path, "train.csv", rows())
    (tmp_path / "file").write_text("in the way")
    assert main(train_command(backbone, tmp_path / "file" / "out", train=train, validation=None)) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_long_and_empty_texts_are_counted(backbone, tmp_path, caplog):
    texts = [*rows(), {"text": "parcel " * 50, "label": "late"}, {"text": "", "label": "fine"}]
    train = write(tmp_path, "train.csv", texts)
    with caplog.at_level("WARNING", logger="hf_feedback.training.data.texts"):
        assert main(train_command(backbone, tmp_path / "out", train=train, validation=None)) == 0
    assert "1 of 26 texts are longer than 32 tokens and were cut" in caplog.text
    assert "1 of 26 texts are empty" in caplog.text


def test_a_folder_of_data_with_hidden_test_labels(backbone, tmp_path, caplog, capsys):
    """As the Hub's data sets often are: named classes, and -1 for all labels of the test split."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["late", "lost", "fine"])})
    (tmp_path / "data").mkdir()
    for split, hidden in (("train", False), ("validation", False), ("test", True)):
        numbers = [-1 if hidden else ["late", "lost", "fine"].index(row["label"]) for row in rows()]
        texts = [row["text"] for row in rows()]
        data = Dataset.from_dict({"sentence": texts, "label": numbers}, features=features)
        data.to_parquet(tmp_path / "data" / f"{split}.parquet")
    command = train_command(backbone, tmp_path / "out", "--dataset-name", str(tmp_path / "data"))
    both, alone = command, [part for i, part in enumerate(command) if i not in (3, 4, 5, 6)]
    assert main(both) == 2
    with caplog.at_level("WARNING", logger="hf_feedback.training.tasks.text_classification"):
        assert main(alone) == 0
    assert "has no labels and is left out" in caplog.text
    assert f"  test: 24 rows from {tmp_path / 'data'}/test; without labels\n" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert "eval_accuracy" in results
    assert "test_accuracy" not in results
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["late", "lost", "fine"]


def test_rows_of_the_hub_without_a_label_are_left_out(backbone, tmp_path, caplog, capsys):
    """As some of SNLI; in a file they are refused."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["late", "lost", "fine"])})
    (tmp_path / "data").mkdir()
    for split, hidden in (("train", (1, 5)), ("validation", (0,)), ("test", (2,))):
        numbers = [-1 if i in hidden else i % 3 for i in range(9)]
        data = Dataset.from_dict({"text": [row["text"] for row in rows(9)], "label": numbers}, features=features)
        data.to_parquet(tmp_path / "data" / f"{split}.parquet")
    data = str(tmp_path / "data")
    command = ["train", "--model", backbone, "--dataset-name", data, "--output-dir", str(tmp_path / "out")]
    assert main([*command, "--feedback-rank", "4", "--max-steps", "1", "--disable-tqdm", "true"]) == 0
    for split, count in (("train", 2), ("validation", 1), ("test", 1)):
        assert f"{data}/{split}: {count} of 9 rows have no label and are left out" in caplog.text
    assert "test_accuracy" in json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert "7 texts from train (7 of 9 rows, those with a label)" in (tmp_path / "out" / "README.md").read_text()
    file = str(tmp_path / "data" / "train.parquet")
    assert main(train_command(backbone, tmp_path / "file", train=file, validation=None)) == 2
    assert "the label is missing in column 'label', rows 2, 6; fill or drop them (filter the file)" in (
        capsys.readouterr().err
    )


def test_options_from_a_file_and_k_at_evaluation(backbone, tmp_path, capsys):
    train = write(tmp_path, "train.csv", rows())
    options = dict(
        model=backbone, train_file=train, output_dir=str(tmp_path / "out"), num_train_epochs=3, learning_rate=1e-2,
        backbone_lr=1e-2, feedback_rank=4, feedback_edges=[[3, 0], [2, 1]], freeze=["embeddings", "layers:0"],
        bf16=False, disable_tqdm=True, num_iterations=3,
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    assert main(["train", str(tmp_path / "run.yaml"), "--num-train-epochs", "2"]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["feedback_edges"] == [[3, 0], [2, 1]]
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 2 * 2  # the defaults of the command hold: 16 texts a batch
    capsys.readouterr()
    losses, results = set(), tmp_path / "results.json"
    for k in ("1", "3", "6"):
        evaluate = ["evaluate", "--model", str(tmp_path / "out"), "--file", train, "--num-iterations", k]
        assert main([*evaluate, "--output", str(results), "--force"]) == 0
        losses.add(json.loads(results.read_text())["metrics"]["eval_loss"])
    assert len(losses) == 3


def test_the_best_epoch_is_kept(backbone, tmp_path):
    train, validation = write(tmp_path, "train.csv", rows()), write(tmp_path, "validation.csv", rows(12, seed=3))
    more = ["--learning-rate", "3e-2", "--num-train-epochs", "5", "--lr-scheduler-type", "constant"]
    assert main(train_command(backbone, tmp_path / "out", *more, train=train, validation=validation)) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    seen = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_accuracy"] == max(seen)
    assert state["best_model_checkpoint"]
    by_loss = ["--metric-for-best-model", "eval_loss"]
    assert main(train_command(backbone, tmp_path / "loss", *more, *by_loss, train=train, validation=validation)) == 0
    state = json.loads((tmp_path / "loss" / "trainer_state.json").read_text())
    assert state["best_metric"] == min(e["eval_loss"] for e in state["log_history"] if "eval_loss" in e)


BY_STEPS = "--eval-strategy steps --eval-steps 1 --save-strategy steps --save-steps 1"
BEST = {  # options: the metric that chooses, whether larger is better, whether the best is kept
    "": ("accuracy", True, True),
    "--load-best-model-at-end True": ("accuracy", True, True),
    "--load-best-model-at-end False": ("accuracy", True, False),
    "--lr-scheduler-type reduce_lr_on_plateau": ("accuracy", True, True),
    f"{BY_STEPS} --load-best-model-at-end True": ("accuracy", True, True),
    f"{BY_STEPS} --lr-scheduler-type reduce_lr_on_plateau": ("accuracy", True, False),
    BY_STEPS: (None, None, False),
    "--metrics mean_error accuracy": ("mean_error", False, True),
    "--metrics mean_error accuracy --load-best-model-at-end True": ("mean_error", False, True),
    "--metrics accuracy mean_error --metric-for-best-model mean_error": ("mean_error", False, True),
    "--metric-for-best-model eval_loss --load-best-model-at-end True": ("eval_loss", False, True),
    "--greater-is-better False --load-best-model-at-end True": ("accuracy", False, True),
}


@pytest.mark.parametrize("options", BEST)
def test_the_metric_that_chooses(options, tmp_path):
    """What transformers sets where none is given, the loss, is not taken for a choice of the user's."""
    directions = {"accuracy": True, "mean_error": False}
    files = ["--train-file", "train.csv", "--validation-file", "validation.csv"]
    command = ["--model", "any", *files, "--output-dir", str(tmp_path), *options.split()]
    _, data_args, args = training_parser(command, TextClassification).parse(command)
    metrics = {name: MetricInfo(greater_is_better=directions[name]) for name in data_args.metrics or ["accuracy"]}
    for _ in range(2):  # a run of the same arguments again
        set_best_epoch_arguments(args, metrics, validated=True)
        assert (args.metric_for_best_model, args.greater_is_better, args.load_best_model_at_end) == BEST[options]


def test_validation_can_be_switched_off(backbone, tmp_path):
    train = write(tmp_path, "train.csv", rows())
    more = ["--eval-strategy", "no"]
    assert main(train_command(backbone, tmp_path / "out", *more, train=train, validation=train)) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert sum("eval_loss" in entry for entry in state["log_history"]) == 1  # the final one


def test_what_a_yaml_file_may_hold(backbone, tmp_path):
    train = write(tmp_path, "train.csv", rows())
    (tmp_path / "run.yaml").write_text(
        f"""
model: {backbone}
train-file: {train}
validation_file: null
output_dir: {tmp_path / "out"}
save_strategy: no
freeze: []
max_length: null
metric_for_best_model: null
feedback-edges: [[3, 0], [2, 1]]
feedback_rank: null
learning_rate_mapping: {{LayerNorm: 1e-5}}
max_steps: 2
"""
    )
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["feedback_edges"] == [[3, 0], [2, 1]]
    assert config["feedback_rank"] is None
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    (tmp_path / "list.yaml").write_text("- 1")
    assert main(["train", str(tmp_path / "list.yaml")]) == 2


def test_resuming(backbone, tmp_path, capsys):
    train = write(tmp_path, "train.csv", rows())
    assert main(train_command(backbone, tmp_path / "out", train=train, validation=None)) == 0
    more = ["--resume-from-checkpoint", "True", "--num-train-epochs", "3"]
    assert main(train_command(backbone, tmp_path / "out", *more, train=train, validation=None)) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 9
    capsys.readouterr()
    other = [*more, "--feedback-edges", "[[2, 0]]"]
    assert main(train_command(backbone, tmp_path / "out", *other, train=train, validation=None)) == 2
    assert "was made with other options: `feedback_edges` was null, is [[2, 0]]" in capsys.readouterr().err
    (tmp_path / "out" / "checkpoint-99").mkdir()
    none = ["--resume-from-checkpoint", str(tmp_path / "out" / "checkpoint-99")]
    assert main(train_command(backbone, tmp_path / "out", *none, train=train, validation=None)) == 2
    assert "is incomplete: the model is missing" in capsys.readouterr().err


def test_interrupt_after_the_last_step_loses_nothing():
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from hf_feedback.training.callbacks import InterruptCallback

    args, control = TrainingArguments(output_dir="x", use_cpu=True), TrainerControl()
    before = signal.getsignal(signal.SIGINT)
    with InterruptCallback() as callback:
        os.kill(os.getpid(), signal.SIGINT)
        callback.on_step_end(args, TrainerState(global_step=5, max_steps=5), control)
        assert callback.interrupted
        assert not callback.stopped
        assert not control.should_training_stop
        callback.on_step_end(args, TrainerState(global_step=4, max_steps=5), control)
        assert callback.stopped
        assert control.should_save
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_output_that_is_a_folder(backbone, tmp_path, capsys):
    train = write(tmp_path, "train.csv", rows())
    assert main(["predict", "--model", backbone, "--file", train, "--output", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err
    target = str(tmp_path / "train.csv" / "p.jsonl")
    assert main(["predict", "--model", backbone, "--file", train, "--output", target]) == 2
    assert "`output`:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["accuracy", "matthews"])
def test_metrics_that_do_not_suit(backbone, tmp_path, capsys, name):
    train = write(tmp_path, "train.csv", [{**row, "label": i / 7} for i, row in enumerate(rows())])
    assert main(train_command(backbone, tmp_path / "out", "--metrics", name, train=train, validation=None)) == 2
    assert "does not suit regression; use pearson, spearman" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer(tmp_path, capsys):
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    train = write(tmp_path, "train.csv", rows())
    assert main(train_command(str(tmp_path / "backbone"), tmp_path / "out", train=train, validation=None)) == 2
    assert "there is no tokenizer in" in capsys.readouterr().err


def test_positions_counted_from_the_padding_token(tmp_path):
    folder = tmp_path / "roberta"
    tiny_backbone("roberta").save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(folder)
    train = write(tmp_path, "train.csv", [*rows(), {"text": "parcel " * 99, "label": "late"}])
    assert main(train_command(str(folder), tmp_path / "out", train=train, validation=None)) == 0


def test_a_tuned_head_goes_on_with_its_own_label_order(tmp_path):
    from transformers import AutoModelForSequenceClassification

    config = tiny_backbone("bert").config
    config.id2label, config.label2id = {0: "lost", 1: "late", 2: "fine"}, {"lost": 0, "late": 1, "fine": 2}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "tuned")
    tiny_tokenizer().save_pretrained(tmp_path / "tuned")
    train = write(tmp_path, "train.csv", rows())
    more = ["--head", "backbone"]
    assert main(train_command(str(tmp_path / "tuned"), tmp_path / "out", *more, train=train, validation=train)) == 0
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(saved["id2label"].values()) == ["lost", "late", "fine"]


def test_what_a_command_needs_is_imported_when_it_runs():
    """So that the names of the commands are listed at once."""
    imports = [
        node for node in ast.parse(Path(cli.__file__).read_text()).body if isinstance(node, ast.ImportFrom | ast.Import)
    ]
    modules = {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
    modules |= {f"{'.' * node.level}{node.module}" for node in imports if isinstance(node, ast.ImportFrom)}
    assert "argparse" in modules
    assert {module.split(".")[0] for module in modules} <= set(sys.stdlib_module_names)


def test_help_and_unknown_command(capsys):
    assert main([]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert main(["tain"]) == 2
    assert main(["train", "--help"]) == 0
    assert "--num-iterations" in capsys.readouterr().out


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_several_processes_are_for_training_alone(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, "--model", "x", "--file", "y"]) == 2
    assert capsys.readouterr().err.startswith(f"error: `hf-feedback {command}` runs in one process, got WORLD_SIZE=2;")


@pytest.mark.slow
def test_interrupt_leaves_a_complete_checkpoint_to_go_on_from(backbone, tmp_path):
    train = write(tmp_path, "train.csv", rows(48))
    command = train_command(backbone, tmp_path / "out", train=train, validation=None)
    command = [*command, "--max-steps", "20000", "--logging-steps", "1", "--save-strategy", "no"]
    (process,) = forks(LOADED).start(["-m", "hf_feedback.cli", *command], [dict(os.environ)], tmp_path)
    forks(LOADED).wait_for_line("loss")
    os.kill(process, signal.SIGINT)
    (ended,) = forks(LOADED).wait()
    error = ended.stderr
    assert ended.returncode == 130, error
    assert "the same command with --resume " in error
    checkpoint = shlex.split(error)[-1]
    step = int(checkpoint.rsplit("-", 1)[1])
    assert Path(checkpoint, "optimizer.pt").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    resumed = [*command, "--resume", checkpoint, "--max-steps", str(step + 2)]
    assert main(resumed) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == step + 2


TORCHRUN = "torch.distributed.run --nproc_per_node 2 --standalone"
ACCELERATE = "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"


@pytest.mark.slow
def test_two_processes(backbone, tmp_path):
    """The example under torchrun and under accelerate: two processes, one model, no warning of idle parameters, and
    messages that come once."""
    train = write(tmp_path, "train.csv", rows(48))
    for k, launcher in (("2", TORCHRUN), ("1", ACCELERATE)):
        command = train_command(backbone, tmp_path / f"out{k}", train=train, validation=train)[1:]
        script = [str(ROOT / "examples" / "run_classification.py"), *command, "--num-iterations", k]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        run = [sys.executable, "-m", *launcher.split(), *script]
        found = subprocess.run(run, capture_output=True, text=True, env=env, cwd=tmp_path)
        assert found.returncode == 0, found.stderr[-3000:]
        assert "Warning" not in found.stderr
        state = json.loads((tmp_path / f"out{k}" / "trainer_state.json").read_text())
        assert state["global_step"] == 2 * 48 // (8 * 2)  # the world has two processes
        assert found.stdout.count("Model, tokenizer and model card are in") == 1
