"""Every option of a config is on the command line, with its help and true default, and reaches the config."""

import re

import pytest

from hf_feedback import FeedbackConfig, FNNConfig
from hf_feedback.cli import main
from hf_feedback.training.commands.options import OptionParser, options_from_file
from hf_feedback.training.starting_model.model_arguments import FNNArguments, HaltingArguments, ModelArguments

DERIVED = {
    # arguments → config, options of the config that come from elsewhere, arguments that are needed
    ModelArguments: (FeedbackConfig, set(), ["--model", "x"]),
    FNNArguments: (FNNConfig, {"fnn_type", "vocab_size", "pad_token_id"}, ["--fnn", "temporal", "--tokenizer", "x"]),
}
OPTIONS = [
    (arguments, name)
    for arguments, (config, excluded, _) in DERIVED.items()
    for name in config.declared_options()
    if name not in excluded
]


def parse(arguments, *given):
    (parsed,) = OptionParser([arguments], prog="train").parse([*DERIVED[arguments][2], *given])
    return parsed


def help_of(arguments, name):
    """The help of one option, in one line."""
    blocks = re.split(r"\n  (?=-)", OptionParser([arguments], prog="train").format_help())
    (block,) = (block for block in blocks if block.startswith(f"--{name.replace('_', '-')} "))
    return " ".join(block.split())


@pytest.mark.parametrize(("arguments", "name"), OPTIONS)
def test_an_option_of_a_config_is_on_the_command_line(arguments, name):
    declared = DERIVED[arguments][0].declared_options()[name]
    shown = help_of(arguments, name)
    assert " ".join(declared.metadata["help"].split()) in shown
    assert ("(default: " in shown) == (declared.default is not None)
    if declared.default is not None:
        assert f"(default: {declared.default})" in shown
        for option in (f"--{name}", f"--{name.replace('_', '-')}"):
            assert parse(arguments, option, str(declared.default)).config_options()[name] == declared.default
    assert name not in parse(arguments).config_options()


SHOWN = {
    "feedback_topology": "{adjacent,top,dense}",
    "gradient": "{full,truncated,one_step,implicit}",
    "recipe": "{carried-state,decoder-tagging,depth-on-demand,segment-memory}",
    "feedback_state": "{reentry,carry}",
    "halting": "TEXT",  # rules are joined
    "feedback_type": "TEXT",
}


@pytest.mark.parametrize("name", SHOWN)
def test_the_values_of_an_option_are_shown(name):
    assert help_of(ModelArguments, name).split()[1] == SHOWN[name]


@pytest.mark.parametrize(("name", "near"), [("feedback_topology", "adjacent"), ("recipe", "segment-memory")])
def test_a_value_that_is_not_shown_is_refused_with_the_nearest(name, near):
    parsed = parse(ModelArguments, f"--{name.replace('_', '-')}", near.replace("e", "", 1))
    with pytest.raises(ValueError, match=f"`{name}` must be one of .*; did you mean '{near}'"):
        FeedbackConfig(**parsed.config_options())


VALUES = {
    "edges": (["--feedback-edges", "[[3, 0], [2, 1]]"], {"feedback_edges": [[3, 0], [2, 1]]}),
    "layers": (["--feedback-layers", "0", "2"], {"feedback_layers": [0, 2]}),
    "full rank": (["--feedback-rank", "None"], {"feedback_rank": None}),
    "rank": (["--feedback-rank", "8"], {"feedback_rank": 8}),
    "auto": (["--feedback-future", "AUTO"], {"feedback_future": "auto"}),
    "yes": (["--feedback-future", "True"], {"feedback_future": True}),
    "no": (["--feedback-future", "false"], {"feedback_future": False}),
    "for the config to refuse": (["--feedback-future", "perhaps"], {"feedback_future": "perhaps"}),
    "truth": (["--learn-damping", "true"], {"learn_damping": True}),
    "number": (["--fixed-point-tolerance", "1e-6"], {"fixed_point_tolerance": 1e-6}),
    "text": (["--halting", "none"], {"halting": "none"}),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_have_the_type_that_the_config_declares(case):
    given, options = VALUES[case]
    assert parse(ModelArguments, *given).config_options() == options


def test_the_type_of_a_network_is_one_of_its_options():
    assert parse(FNNArguments, "--sweep", "parallel").config_options() == {"fnn_type": "temporal", "sweep": "parallel"}


def test_halting_of_a_trained_model_is_its_own_by_default():
    names = {name for name in FeedbackConfig.declared_options() if "halting" in name} | {"min_iterations"}
    assert len(names) == 6
    for name in names:
        assert "(default: the model's own)" in help_of(HaltingArguments, name)


UNKNOWN = {
    "misspelt": ("train --modle m --train-file t.csv", "there is no option --modle (did you mean --model?)"),
    "file of options": ("train --config run.yaml", "no option --config: a file of options is the first argument"),
    "no such file": ("train gone.yaml", "gone.yaml: there is no such file of options"),
    "several numbers": ("train --feedback-layers 1,2", "invalid int value: '1,2' (separate several values by spaces);"),
    "several seeds": ("compare --seeds 0,1", "invalid int value: '0,1' (separate several values by spaces);"),
    "one number": ("train --seed 0,1", "invalid int value: '0,1';"),
    "nothing to resume": ("train --resume", "--resume: expected one argument: auto, or the folder of a checkpoint;"),
    "no option": ("train run --model m", "'run' does not belong to an option"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_unknown_or_wrong_is_named_before_what_is_missing(case, capsys):
    arguments, words = UNKNOWN[case]
    assert main(arguments.split()) == 2
    assert words in capsys.readouterr().err


OTHER_NAMES = {
    # options of other training scripts → the option that is meant, in `train` unless said
    "--lr 1e-3": "--learning-rate",
    "--eval-file v.csv": "--validation-file",
    "--epochs 3": "--num-train-epochs",
    "--batch-size 8": "--per-device-train-batch-size",
    "--train_batch_size=8": "--per-device-train-batch-size",
    "--rank 8": "--feedback-rank",
    "--patience 2": "--early-stopping-patience",
    "--model-name-or-path m": "--model",
    "--model_name m": "--model",
    "--backbone m": "--model",
    "--train-data t.csv": "--train-file",
    "--wandb": "--report-to wandb",
    "predict --model-name m": "--model",
    "evaluate --eval-batch-size 8": "--batch-size",
}


@pytest.mark.parametrize("arguments", OTHER_NAMES)
def test_usual_names_of_other_scripts_lead_to_the_option(arguments, capsys):
    command, *given = arguments.split() if not arguments.startswith("-") else ["train", *arguments.split()]
    assert main([command, *given]) == 2
    assert f"no option {given[0].split('=')[0]} (did you mean {OTHER_NAMES[arguments]}?);" in capsys.readouterr().err


WITHOUT_MATCH = {
    # arguments → what follows the name of the option
    "train --num-labels 3": "--num-labels: the labels are found in the data;",
    "evaluate --dataset-name sst2": (
        "--dataset-name: only `hf-feedback train` and `hf-feedback compare` read data sets of the Hub; give files;"
    ),
    "predict --lr 3": "--lr; `hf-feedback predict --help`",
    "train --gpus 2": "--gpus; `hf-feedback train --help`",
}


@pytest.mark.parametrize("arguments", WITHOUT_MATCH)
def test_no_option_is_proposed_that_only_looks_like_it(arguments, capsys):
    assert main(arguments.split()) == 2
    assert f"there is no option {WITHOUT_MATCH[arguments]}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "evaluate", "report", "choose-iterations"])
def test_a_trained_model_may_be_the_first_argument(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("text,label\na,x\n")
    assert main([command, "./gone", "--file", "t.csv"]) == 2
    assert "`model`: there is no folder ./gone" in capsys.readouterr().err


TWICE = {
    "in YAML": ("seed: 1\nmodel: m\nseed: 2\n", "run.yaml: cannot be read (`seed` is given twice, in lines 1 and 3;"),
    "with dashes": ("save_steps: 1\nsave-steps: 2\n", "run.yaml: `save_steps` is given twice, once with dashes"),
    "within an option": ("learning_rate_mapping: {a-b: 1, a_b: 1, a-b: 2}", "(`a-b` is given twice, in lines 1 and 1;"),
    "in JSON": ('learning_rate_mapping: \'{"norm": 1, "norm": 2}\'', "gives 'norm' several values; keep one"),
}


@pytest.mark.parametrize("case", TWICE)
def test_of_two_values_for_one_name_neither_is_chosen(case, tmp_path, capsys):
    text, words = TWICE[case]
    (tmp_path / "run.yaml").write_text(text)
    assert main(["train", str(tmp_path / "run.yaml"), "--model", "m", "--train-file", "t", "--output-dir", "o"]) == 2
    assert words in capsys.readouterr().err


def test_names_that_differ_in_a_dash_are_two(tmp_path):
    (tmp_path / "run.yaml").write_text("base: &base {x: 1}\nlearning_rate_mapping: {<<: *base, a-b: 1, a_b: 2, x: 3}")
    assert options_from_file([str(tmp_path / "run.yaml")])[-1] == (
        '--learning_rate_mapping={"x": 3, "a-b": 1, "a_b": 2}'
    )
