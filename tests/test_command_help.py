"""Help that is there at once, by subject and true; versions; shell completion; options of every command from a file."""

import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml

from hf_feedback import FeedbackConfig, cli
from hf_feedback.cli import COMMANDS, main
from hf_feedback.command_help import listed_options
from hf_feedback.command_help.listed_options import LIST_FILE, listed_commands
from hf_feedback.command_help.make_list import make_list
from hf_feedback.command_help.subjects import OTHERS, TRAINING


def test_the_list_of_options_is_that_of_the_commands():
    """After a change: `python -m hf_feedback.command_help.make_list`."""
    assert make_list() == LIST_FILE.read_text(encoding="utf-8")


def test_help_imports_nothing_that_takes_long():
    slow = {"torch", "transformers", "datasets", "numpy", "yaml"}
    code = (
        "import sys; from hf_feedback.cli import COMMANDS, main\n"
        f"print([main([one, '--help']) for one in COMMANDS], {slow} & sys.modules.keys())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith(f"\n{[0] * len(COMMANDS)} set()\n")
    assert all(f"usage: hf-feedback {command} " in shown for command in COMMANDS)


def test_options_stand_under_their_subjects():
    groups = listed_commands()["train"].groups
    names = {title: {option.names[0] for option in options} for title, options in groups.items()}
    assert {"--num-iterations", "--feedback-topology"} <= names["Feedback loop"]
    assert {"--feedback-type", "--feedback-rank"} <= names["Feedback messages"]
    assert {"--freeze", "--backbone-lr"} <= names["Freezing and learning rates"]
    assert {"--learning-rate", "--num-train-epochs"} <= names[TRAINING]
    assert "--adam-beta1" in names[OTHERS]
    assert list(names)[-1] == OTHERS
    assert {f"--{name.replace('_', '-')}" for name in FeedbackConfig.declared_options()} <= set().union(*names.values())


def test_options_that_change_the_others(capsys):
    for arguments, shown, hidden in (
        (["train"], "--feedback-rank", "--sweep "),
        (["train", "--fnn", "temporal"], "--sweep ", "--feedback-rank"),
        (["compare"], "--text-pair-column", "--mlm-probability"),
        (["compare", "--task=masked-lm"], "--mlm-probability", "--text-pair-column"),
        (["compare", "--join", "a", "b"], "--card", "--mlm-probability"),
    ):
        assert main([*arguments, "--help"]) == 0
        text = capsys.readouterr().out
        assert shown in text
        assert hidden not in text


def test_help_of_another_version_of_transformers_is_asked_of_the_command(monkeypatch, capsys):
    monkeypatch.setattr(listed_options, "version", lambda package: "5.99")
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "--help"])
    assert stopped.value.code == 0
    live = capsys.readouterr().out
    monkeypatch.undo()
    assert main(["predict", "--help"]) == 0
    assert capsys.readouterr().out == live


def test_versions(capsys):
    assert main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert f"hf-feedback {version('hf-feedback')}" in shown
    assert f"transformers {version('transformers')}" in shown


def completions(script, *words):
    """What bash completes the last of these words to."""
    asking = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_hf_feedback; echo ${{COMPREPLY[@]}}"
    shell = subprocess.run([shutil.which("bash"), "-c", f"{script}\n{asking}"], capture_output=True, text=True)
    return shell.stdout.split()


def test_completion(capsys, tmp_path):
    assert main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completions(script, "hf-feedback", "pre") == ["predict"]
    assert completions(script, "hf-feedback", "train", "--feedback-t") == ["--feedback-topology", "--feedback-type"]
    assert completions(script, "hf-feedback", "train", "--swee") == ["--sweep"]  # of networks from scratch
    assert completions(script, "hf-feedback", "compare", "--task", "multiple") == ["multiple-choice"]
    (tmp_path / "texts.csv").touch()
    assert completions(script, "hf-feedback", "predict", "--file", f"{tmp_path}/te") == [f"{tmp_path}/texts.csv"]
    assert main(["--print-completion", "fishy"]) == 2
    assert "`print_completion` must be one of bash, " in capsys.readouterr().err


def test_completion_without_shtab(capsys, monkeypatch):
    def no_shtab(name, package):
        raise ImportError("No module named 'shtab'", name="shtab")

    monkeypatch.setattr(cli, "import_module", no_shtab)
    assert main(["--print-completion", "bash"]) == 2
    assert "pip install -e '.[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_every_command_from_a_file(command, tmp_path, capsys):
    data = "train_file" if command in ("train", "compare") else "file"
    output = str(tmp_path / "out")
    options = {"model": str(tmp_path / "missing"), data: "texts.csv", "split_seed": 1, "output_dir": output}
    (tmp_path / "texts.csv").write_text("text,label\na,b\n")
    options = options if data == "train_file" else {"model": options["model"], data: str(tmp_path / "texts.csv")}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    assert main([command, str(tmp_path / "options.yaml")]) == 2
    assert f"there is no folder {tmp_path / 'missing'}" in capsys.readouterr().err
    assert main([command, str(tmp_path / "options.yaml"), "--model", str(tmp_path / "other")]) == 2
    assert f"there is no folder {tmp_path / 'other'}" in capsys.readouterr().err
