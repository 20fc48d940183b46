"""What commands overwrite, and what they leave behind when the disk is full."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
from training_runs import rows, train_command, write

from hf_feedback.cli import main
from hf_feedback.whole_files import whole_file


@pytest.fixture(scope="module")
def trained(backbone, tmp_path_factory):
    """A trained text classifier with checkpoints, and the command that made it."""
    folder = tmp_path_factory.mktemp("trained")
    file = write(folder, "train.csv", rows(9))
    command = train_command(backbone, folder / "out", "--max-steps", "1", train=file, validation=None)
    assert main(command) == 0
    return command, folder / "out"


def contents(folder):
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# Training

THERE = ("README.md", "config.json", "model.safetensors", "tokenizer.json", "all_results.json", "checkpoint-3/x")
RESUMES = [(name, resume) for name in THERE for resume in (False, True) if not (resume and "checkpoint" in name)]


@pytest.mark.parametrize(("name", "resume"), RESUMES)
def test_what_is_in_the_output_folder_is_not_lost(backbone, tmp_path, capsys, name, resume):
    file, mine = write(tmp_path, "train.csv", rows(9)), tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    more = ["--max-steps", "1", *(["--resume-from-checkpoint", "true"] if resume else [])]
    command = train_command(backbone, tmp_path / "out", *more, train=file, validation=None)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"`output_dir`: {tmp_path / 'out'} holds {name.split('/')[0]} already; " in error
    assert "`--overwrite-output-dir`" in error
    assert ("`--resume auto`" in error) == ("checkpoint" in name)
    assert contents(tmp_path / "out") == {mine: b"mine"}
    if name in ("README.md", "checkpoint-3/x"):
        assert main([*command, "--overwrite-output-dir"]) == 0
        assert not mine.exists() or mine.read_bytes() != b"mine"


def test_other_files_are_no_hindrance(backbone, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.yaml").write_text("seed: 1")
    (tmp_path / "out" / "checkpoint-notes.txt").write_text("mine")
    file = write(tmp_path / "out", "train.csv", rows(9))
    assert main(train_command(backbone, tmp_path / "out", "--max-steps", "1", train=file, validation=None)) == 0
    assert (tmp_path / "out" / "run.yaml").read_text() == "seed: 1"


def test_results_are_not_lost_where_there_is_no_checkpoint_to_go_on_from(backbone, tmp_path, capsys):
    file, out = write(tmp_path, "train.csv", rows(9)), tmp_path / "out"
    more = ["--max-steps", "1", "--save-strategy", "no", "--resume-from-checkpoint", "true"]
    command = train_command(backbone, out, *more, train=file, validation=None)
    assert main(command) == 0
    before = contents(out)
    assert main(command) == 0  # it is finished
    assert main([*command, "--learning-rate", "2e-3"]) == 2
    assert f"`output_dir`: {out} holds config.json already; overwrite it" in capsys.readouterr().err
    assert contents(out) == before
    (out / ".unfinished").touch()  # as if it had been killed while it wrote them
    assert main(command) == 0
    assert main([*command, "--learning-rate", "2e-3", "--overwrite-output-dir"]) == 0


def test_checkpoints_that_are_not_complete_protect_nothing_else(backbone, tmp_path, capsys):
    file, out = write(tmp_path, "train.csv", rows(9)), tmp_path / "out"
    (out / "checkpoint-1").mkdir(parents=True)
    (out / "README.md").write_text("mine")
    more = ["--max-steps", "1", "--resume-from-checkpoint", "true"]
    command = train_command(backbone, out, *more, train=file, validation=None)
    assert main(command) == 2
    assert f"`output_dir`: {out} holds README.md already; overwrite it" in capsys.readouterr().err
    assert contents(out) == {out / "README.md": b"mine"}
    (out / "README.md").unlink()
    assert main(command) == 0


def test_a_checkpoint_of_another_folder_opens_this_one_to_nothing(trained, tmp_path, capsys):
    command, out = trained
    (tmp_path / "README.md").write_text("mine")
    command = [str(tmp_path) if part == str(out) else part for part in command]
    command += ["--resume-from-checkpoint", str(out / "checkpoint-1"), "--max-steps", "2"]
    assert main(command) == 2
    assert f"`output_dir`: {tmp_path} holds README.md already; overwrite it" in capsys.readouterr().err
    assert contents(tmp_path) == {tmp_path / "README.md": b"mine"}
    (tmp_path / "README.md").unlink()
    assert main(command) == 0


def test_what_only_looks_like_a_checkpoint_stays(backbone, tmp_path):
    file, out = write(tmp_path, "train.csv", rows(9)), tmp_path / "out"
    for mine in (out / "checkpoint-backup-mine", out / "checkpoint-7", tmp_path / "linked"):
        mine.mkdir(parents=True)
        (mine / "x").write_text("mine")
    (out / "checkpoint-notes.txt").write_text("mine")
    (out / "checkpoint-5").symlink_to(tmp_path / "linked")
    command = train_command(backbone, out, "--max-steps", "1", "--overwrite-output-dir", train=file, validation=None)
    assert main(command) == 0
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        "checkpoint-1", "checkpoint-5", "checkpoint-backup-mine", "checkpoint-notes.txt"
    ]  # fmt: skip
    assert (out / "checkpoint-backup-mine" / "x").read_text() == (tmp_path / "linked" / "x").read_text() == "mine"


def test_a_wrong_option_removes_nothing(trained):
    command, out = trained
    before = contents(out)
    assert main([*command, "--overwrite-output-dir", "--freeze", "nothing-by-that-name"]) == 2
    assert contents(out) == before


READ = {  # option → what it names, in the output folder
    "model": "checkpoint-1",
    "train_file": "checkpoint-1/more/train.csv",
    "model of the folder": ".",
}


@pytest.mark.parametrize("case", READ)
def test_a_new_run_does_not_remove_what_it_reads(trained, tmp_path, capsys, case):
    command, out = trained
    option, named = case.split()[0], out / READ[case]
    if option == "train_file":
        named.parent.mkdir(exist_ok=True)
        write(named.parent, named.name, rows(9))
    before, more = contents(out), [f"--{option.replace('_', '-')}", str(named)]
    for overwrite in (["--overwrite-output-dir"], []):
        assert main([*command, *more, *overwrite]) == 2
        error = capsys.readouterr().err
        assert f"`output_dir`: {out} holds {named}, which `{option}` names" in error
        assert "name another `--output-dir`" in error
    assert contents(out) == before
    elsewhere = [str(tmp_path) if part == str(out) else part for part in command]
    assert main([*elsewhere, *more]) == 0
    assert contents(out) == before


def test_a_run_that_is_overwritten_leaves_no_checkpoint(trained, capsys):
    command, out = trained
    before = contents(out)
    assert main(command) == 2
    assert "holds checkpoint-1 already" in capsys.readouterr().err
    assert contents(out) == before
    assert main([*command, "--overwrite-output-dir", "--max-steps", "2"]) == 0
    assert [file.name for file in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert main([*command, "--overwrite-output-dir", "--resume-from-checkpoint", "false"]) == 0
    assert [file.name for file in out.glob("checkpoint-*")] == ["checkpoint-1"]


# Predictions


def test_predictions_are_not_written_over_a_file(trained, tmp_path, capsys):
    out = str(trained[1])
    texts = tmp_path / "new.jsonl"
    texts.write_text(json.dumps({"text": "where is my parcel"}))
    (tmp_path / "p.jsonl").write_text("mine")
    command, output = ["predict", "--model", out, "--file", str(texts), "--output"], tmp_path / "p.jsonl"
    for force in ([], ["--force"]):
        before = texts.read_bytes()
        assert main([*command, str(texts), *force]) == 2
        assert f"`output`: {texts} is the input file itself; name another" in capsys.readouterr().err
        assert texts.read_bytes() == before
    assert main([*command, str(output)]) == 2
    words = f"`output`: {output} already exists; name another, or overwrite it (`--force`)"
    assert words in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert main([*command, str(output), "--force"]) == 0
    assert "probabilities" in output.read_text()


# Full disks


def on_a_disk_of(size, command):
    """Status of a command in a process that may write no file longer than `size` bytes."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            status = main(command)
        except BaseException:
            status = 99
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_predictions_on_a_full_disk(trained, tmp_path, capfd):
    file = write(tmp_path, "train.csv", rows(300))
    command = ["predict", "--model", str(trained[1]), "--file", file, "--output", str(tmp_path / "p.jsonl")]
    assert on_a_disk_of(10_000, command) == 2
    assert "error: [Errno 27] File too large" in capfd.readouterr().err
    assert not (tmp_path / "p.jsonl").exists()
    assert main(command) == 0  # it goes on with what is written
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 300


@pytest.mark.parametrize("size", [10_000, 200_000], ids=["weights", "optimizer"])
def test_training_on_a_full_disk(backbone, tmp_path, capfd, size):
    """The weights have 130 kB, the state of the optimizer twice as many."""
    file = write(tmp_path, "train.csv", rows(9))
    command = train_command(backbone, tmp_path / "out", "--max-steps", "1", train=file, validation=None)
    assert on_a_disk_of(size, command) == 2
    line = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")][-1]
    assert str(tmp_path / "out") in line
    assert main([*command, "--resume-from-checkpoint", "true"]) == 0


def test_a_file_is_written_whole_or_not(tmp_path):
    file = tmp_path / "a.json"
    with whole_file(file) as partial:
        partial.write_text("first")
        assert not file.exists()

    def half_written():
        with whole_file(file) as partial:
            partial.write_text("seco")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        half_written()
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [Path(file)]
