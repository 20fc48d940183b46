"""Options from files and from the command line, and the one line that tells what is wrong with them."""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from training_runs import rows, train_command, write

from hf_feedback.cli import main
from hf_feedback.training.commands import train
from hf_feedback.training.commands.errors import run_command
from hf_feedback.training.commands.options import options_from_file
from hf_feedback.training.tasks import TextClassification, text_classification


def line_of(capsys):
    """What stands on stderr, without progress bars: one line."""
    found = capsys.readouterr().err.splitlines()
    lines = [line for line in found if line and "it/s]" not in line and "examples/s]" not in line]
    assert len(lines) == 1, lines
    return lines[0]


# Files of options


def test_a_file_of_options_is_read_once(backbone, tmp_path, monkeypatch):
    """Neither an option with a JSON file nor the first option of a file is taken for a file of options."""
    monkeypatch.chdir(tmp_path)
    Path("t.json").write_text("\n".join(json.dumps(row) for row in rows()))
    rest = train_command(backbone, "out", train="t.json", validation=None)[1:]
    assert rest[2:4] == ["--train-file", "t.json"]
    del rest[2:4]
    assert main(["train", "--train-file=t.json", *rest]) == 0
    Path("run.yaml").write_text("train_file: t.json\noutput_dir: again\n")
    assert main(["train", "run.yaml", *[part for part in rest if part not in ("--output-dir", "out")]]) == 0
    assert Path("again/config.json").is_file()


def test_numbers_in_a_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        """
learning_rate: 1e-3
revision: 12e4567
lr_scheduler_kwargs: {min_lr: 1e-6, other: 1.5E+3, word: e-6, version: "1e-6"}
learning_rate_mapping: {LayerNorm: 1e-5}
feedback-edges: [[3, 0], [2, 1]]
freeze: [embeddings, "layers:0"]
day: {of: 2020-01-02}
"""
    )
    found = options_from_file([str(file), "--seed", "1"])
    assert found[:2] == ["--learning_rate=1e-3", "--revision=12e4567"]
    nested = dict(option[2:].split("=", 1) for option in found if "={" in option or "=[" in option)
    assert json.loads(nested["lr_scheduler_kwargs"]) == {
        "min_lr": 1e-6, "other": 1500.0, "word": "e-6", "version": "1e-6"
    }  # fmt: skip
    assert json.loads(nested["learning_rate_mapping"]) == {"LayerNorm": 1e-5}
    assert json.loads(nested["feedback_edges"]) == [[3, 0], [2, 1]]
    assert found[-2:] == ["--seed", "1"]
    assert found[found.index("--freeze") :][:3] == ["--freeze", "embeddings", "layers:0"]


WRONG_FILES = {
    "a list": ("- 1", "must map option names"),
    "numbers for names": ("1: 2", "must map option names"),
    "no YAML": ("a: [", "cannot be read"),
    "no UTF-8": (b"a: \xff", "cannot be read"),
    "deep": ("a: " + "[" * 500, "cannot be read"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_of_options_is_named(tmp_path, capsys, case):
    content, words = WRONG_FILES[case]
    file = tmp_path / "run.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["train", str(file)]) == 2
    line = line_of(capsys)
    assert line.startswith(f"error: {file}: ")
    assert words in line


# Wrong options

WRONG = {
    "train --num-iteratons 3": "there is no option --num-iteratons (did you mean --num-iterations?)",
    "train --num_iteratons=3": "there is no option --num_iteratons (did you mean --num-iterations?)",
    "train --xyzzy": "there is no option --xyzzy;",
    "train stray": "'stray' does not belong to an option",
    "train --num-iterations many": "argument --num_iterations/--num-iterations: invalid int value: 'many'",
    "train --train-iterations never": "invalid choice: 'never'",
    "train --per-device-train-batch-size 0": "`per_device_train_batch_size` must be an integer of at least 1, got 0",
    "train --gradient-accumulation-steps 0": "`gradient_accumulation_steps` must be an integer of at least 1, got 0",
    "train --feedback-edges DEEP": "`feedback_edges` must be JSON such as [[3, 0], [3, 1]], got '[[[",
    """train --accelerator-config {"a":1}""": "`accelerator_config` must hold split_batches, ",
    "train --torch-compile-mode x": "`torch_compile_mode`: Unrecognized mode=x, should be one of: default, ",
    "train --learning-rate-mapping []": """`learning_rate_mapping` must be JSON such as {"name": 1e-5}, got '[]'""",
    "train --gradient-checkpointing-kwargs 3": "`gradient_checkpointing_kwargs` must be JSON such as",
    "train --model /no/such/folder": "`model`: there is no folder /no/such/folder, and no model of that name",
    "train --model runs/out": "`model`: there is no folder runs/out, and no model of that name",
    "evaluate --batchsize 3": "there is no option --batchsize (did you mean --batch-size?)",
    "evaluate --batch-size 0": "`batch_size` must be an integer of at least 1, got 0",
    "predict --ouput p.jsonl": "there is no option --ouput (did you mean --output?)",
    "predict --model runs/out": "`model`: there is no folder runs/out, and no model of that name",
    "predict --num-iterations 0": "`num_iterations`",
    "tain": "there is no command tain; did you mean train?",
    "fly": "there is no command fly; use one of train, evaluate, predict",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_one_line(backbone, trained, tmp_path, capsys, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, "train.csv", rows())
    command, *more = case.replace("DEEP", "[" * 100_000).split()
    given = train_command(backbone, "out", train=file, validation=None)
    needed = {"train": given[1:], "evaluate": ["--model", trained, "--file", file]}
    assert main([command, *needed.get(command, needed["evaluate"]), *more] if more else [command]) == 2
    line = line_of(capsys)
    assert line.startswith("error: ")
    assert WRONG[case] in line
    assert len(line) < 1000


def test_needed_options_are_named(capsys):
    assert main(["predict"]) == 2
    assert line_of(capsys) == (
        "error: the following arguments are required: --model; `hf-feedback predict --help` lists the options."
    )


def test_evaluating_in_fp16_does_not_train_in_another_precision(monkeypatch):
    monkeypatch.setattr(train, "bf16_is_fast", lambda: True)
    start = ["--model", "x", "--output_dir", "y"]
    for more, expected in ((["--fp16-full-eval"], True), (["--fp16", "True"], False), (["--bf16=False"], False)):
        assert train.training_parser(more, TextClassification).parse([*start, *more])[2].bf16 is expected, more


# What else a user can cause

PACKAGES = {
    "tensorboard": "--report-to tensorboard",
    "trackio": "--report-to trackio",
    "bitsandbytes": "--optim adamw_bnb_8bit",
    "deepspeed": "--deepspeed ds.json",
    "liger": "--use-liger-kernel True",
    "lomo": "--optim lomo",
}


@pytest.fixture
def without_packages(monkeypatch):
    """None of these packages is there, whatever is installed."""
    import importlib.util

    missing = {"tensorboard", "tensorboardX", "trackio", "bitsandbytes", "deepspeed", "liger_kernel", "lomo_optim"}
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name in missing else real(name, *args))
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named(backbone, tmp_path, capsys, monkeypatch, without_packages, package):
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    file = write(tmp_path, "train.csv", rows(9))
    assert main(train_command(backbone, "out", *PACKAGES[package].split(), train=file, validation=None)) == 2
    line = line_of(capsys)
    assert line.startswith("error: a package is missing: ")
    assert package in line.lower()


def test_a_fault_of_the_program_keeps_its_traceback():
    def broken(error):
        def command(arguments):
            raise error

        return command

    for error in (
        KeyError("x"),
        TypeError("x"),
        RuntimeError("size mismatch"),
        RecursionError("deep"),
        ZeroDivisionError(),
    ):
        with pytest.raises(type(error)):
            run_command(broken(error), [])
    with pytest.raises(ImportError):
        run_command(broken(ImportError("no such thing in here", name="hf_feedback.training")), [])
    for error in (MemoryError("x"), torch.OutOfMemoryError("x"), ImportError("x", name="wandb"), OSError("x\ny")):
        assert run_command(broken(error), []) == 2


@pytest.fixture(scope="module")
def trained(backbone, tmp_path_factory):
    """Folder of a trained text classifier."""
    folder = tmp_path_factory.mktemp("trained")
    file = write(folder, "train.csv", rows(9))
    assert main(train_command(backbone, folder / "out", "--max-steps", "1", train=file, validation=None)) == 0
    return str(folder / "out")


DAMAGED = {
    "empty weights": ("model.safetensors", 0, "model.safetensors is empty"),
    "half of the weights": ("model.safetensors", 2, "model.safetensors is damaged or truncated"),
    "half of the config": ("config.json", 2, "config.json is damaged or truncated"),
    "empty config": ("config.json", 0, "config.json is empty"),
    "half of the tokenizer": ("tokenizer.json", 2, "tokenizer.json is damaged or truncated"),
}


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_model_is_named(trained, tmp_path, capsys, case, command):
    name, part, words = DAMAGED[case]
    shutil.copytree(trained, tmp_path / "model")
    file = tmp_path / "model" / name
    os.truncate(file, file.stat().st_size // part if part else 0)
    data = write(tmp_path, "train.csv", rows(9))
    options = {"train": ["--train-file", data, "--output-dir", str(tmp_path / "out")]}.get(command, ["--file", data])
    assert main([command, "--model", str(tmp_path / "model"), *options]) == 2
    line = line_of(capsys)
    assert f"`model`: {words} in {tmp_path / 'model'}" in line


@pytest.mark.parametrize("label", ["other", ""])
def test_labels_of_all_files_are_checked_before_a_model_is_loaded(backbone, tmp_path, capsys, monkeypatch, label):
    monkeypatch.setattr(text_classification, "make_model", lambda *_: pytest.fail("the model was loaded"))
    file, wrong = write(tmp_path, "t.csv", rows(6)), write(tmp_path, "v.csv", [*rows(3), {"text": "a", "label": label}])
    assert main(train_command(backbone, tmp_path / "out", train=file, validation=wrong)) == 2
    assert f"{wrong}: " in (line := line_of(capsys))
    assert "row 4" in line


def test_the_best_epoch_is_kept_unless_an_option_says_otherwise(backbone, tmp_path, capsys):
    file = write(tmp_path, "t.csv", rows(6))
    for i, (options, best) in enumerate([([], True), (["--load-best-model-at-end", "false"], False)]):
        assert main(train_command(backbone, tmp_path / str(i), *options, train=file, validation=file)) == 0
        assert torch.load(tmp_path / str(i) / "training_args.bin", weights_only=False).load_best_model_at_end is best
    without = ["--load-best-model-at-end", "--eval-strategy", "epoch"]
    assert main(train_command(backbone, tmp_path / "2", *without, train=file, validation=None)) == 2
    assert "`load_best_model_at_end` needs validation data" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--eval-do-concat-batches False", "--batch-eval-metrics", "--prediction-loss-only"])
def test_metrics_of_parts_of_the_predictions_are_refused_before_training(backbone, tmp_path, capsys, option):
    file = write(tmp_path, "t.csv", rows(6))
    assert main(train_command(backbone, tmp_path / "out", *option.split(), train=file, validation=file)) == 2
    name = option.split()[0].strip("-").replace("-", "_")
    assert f"`{name}` must be {'concat' in name}, got" in line_of(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000], ids=["empty", "list", "half", "deep"])
def test_a_damaged_pooling_is_named(backbone, tmp_path, capsys, text):
    shutil.copytree(backbone, tmp_path / "model")
    file = tmp_path / "model" / "1_Pooling" / "config.json"
    file.parent.mkdir()
    file.write_text(text)
    train = write(tmp_path, "train.csv", rows(9))
    command = train_command(str(tmp_path / "model"), tmp_path / "out", "--max-steps", "1", train=train, validation=None)
    assert main(command) == 2
    assert f"`pooling`: {file} is damaged" in line_of(capsys)
    assert main([*command, "--pooling", "mean"]) == 0


def test_a_deep_config_is_named(trained, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"a":' * 100_000)
    data = write(tmp_path, "train.csv", rows(9))
    assert main(["predict", "--model", str(tmp_path / "model"), "--file", data]) == 2
    assert "`model`: config.json is nested too deeply" in line_of(capsys)


# Plain output


def test_metrics_are_words(backbone, tmp_path, capsys):
    file = write(tmp_path, "train.csv", rows())
    for bar in ("True", "False"):
        more = ["--logging-steps", "2", "--disable-tqdm", bar]
        assert main(train_command(backbone, tmp_path / bar, *more, train=file, validation=file)) == 0
        printed = capsys.readouterr()
        lines = [line for line in (printed.out + printed.err).replace("\r", "\n").splitlines() if "grad_norm" in line]
        assert len(lines) == 3
        assert all(line.startswith("loss 1.") and ", epoch " in line for line in lines)
        assert "{'" not in printed.out + printed.err


def test_metrics_of_an_evaluation_are_words(trained, tmp_path, capsys):
    file = write(tmp_path, "train.csv", rows(9))
    assert main(["evaluate", "--model", trained, "--file", file]) == 0
    printed = capsys.readouterr()
    assert "eval_loss" in printed.out
    assert "{'" not in printed.out + printed.err


def test_no_warning_of_our_own_calls(backbone, tmp_path):
    file = write(tmp_path, "train.csv", rows(9))
    commands = [
        train_command(backbone, tmp_path / "out", "--max-steps", "1", train=file, validation=file),
        ["evaluate", "--model", str(tmp_path / "out"), "--file", file],
        ["predict", "--model", str(tmp_path / "out"), "--file", file, "--output", str(tmp_path / "p.jsonl")],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [main(command) for command in commands] == [0, 0, 0]
