"""Runs that are killed, resumed, finished, or resumed with something changed."""

import errno
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from families import tiny_backbone
from fresh_processes import LOADED, forks, run_python
from training_runs import rows, train_command, write

from hf_feedback.cli import main
from hf_feedback.training.resuming.checkpoints import (
    best_checkpoint,
    checkpoint_fault,
    checkpoints_in,
    finished_record,
    newest_checkpoint,
    read_manifest,
)
from hf_feedback.training.resuming.fingerprints import fingerprint_file
from hf_feedback.training.resuming.run_record import describe_differences

TESTS = Path(__file__).parent
RESUME = ["--resume", "auto"]


@pytest.fixture(scope="module")
def run(backbone, tmp_path_factory):
    """A finished run of two epochs with a checkpoint after each, and its command."""
    folder = tmp_path_factory.mktemp("run")
    train = write(folder, "train.csv", rows())
    command = train_command(backbone, folder / "out", train=train, validation=None)
    assert main(command) == 0
    return command, folder / "out"


@pytest.fixture
def copied(run, tmp_path):
    """A copy of that run, and the command that goes on with it."""
    command, out = run
    shutil.copytree(out, tmp_path / "out")
    return [str(tmp_path / "out") if part == str(out) else part for part in [*command, *RESUME]], tmp_path / "out"


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


# Complete checkpoints

FILES = {
    "model.safetensors": "the model is missing",
    "optimizer.pt": "the optimizer is missing",
    "scheduler.pt": "the scheduler is missing",
    "rng_state.pth": "the random state is missing",
    "trainer_state.json": "the training state is missing",
    "config.json": "the config is missing",
}
DAMAGES = {
    "missing": Path.unlink,
    "empty": lambda file: os.truncate(file, 0),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
}


@pytest.mark.parametrize("manifest", [True, False], ids=["manifest", "none"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_is_not_complete_is_passed_over(copied, caplog, name, damage, manifest):
    out = copied[1]
    newest = out / "checkpoint-6"
    assert newest_checkpoint(out) == newest
    if not manifest:  # as before there were any
        (newest / "training_manifest.json").unlink()
    DAMAGES[damage](newest / name)
    with caplog.at_level("WARNING"):
        assert newest_checkpoint(out) == out / "checkpoint-3"
    assert f"{newest} is incomplete and is skipped: " in caplog.text
    assert (FILES[name] if damage == "missing" else name) in caplog.text
    assert newest.is_dir()


MANIFESTS = (
    "",
    "{}",
    "[]",
    '{"files": [], "training": {}}',
    '{"files": {}}',
    '{"files": {}, "training": []}',
    '{"files": {"config.json": "1"}, "training": {}}',
    '{"files": {"../x": 1}, "training": {}}',
    '{"files": {"/x": 1}, "training": {}}',
)
STATES = ("[]", '{"x": 1}', '{"global_step": "6"}', '{"best_global_step": "x/../../y"}')
WRONG_FILES = [("training_manifest.json", text) for text in MANIFESTS] + [("trainer_state.json", one) for one in STATES]


@pytest.mark.parametrize(("name", "text"), WRONG_FILES)
def test_a_file_of_another_form_is_passed_over(copied, caplog, name, text):
    out = copied[1]
    newest = out / "checkpoint-6"
    if name == "trainer_state.json":
        (newest / "training_manifest.json").unlink()
    (newest / name).write_text(text)
    (out / name).write_text(text)
    with caplog.at_level("WARNING"):
        assert newest_checkpoint(out) == out / "checkpoint-3"
    assert f"{newest} is incomplete and is skipped: " in caplog.text
    assert name in caplog.text
    if name == "training_manifest.json":
        assert finished_record(out) is None


def test_a_manifest_of_another_form_is_named(copied):
    file = copied[1] / "training_manifest.json"
    file.write_text("")
    with pytest.raises(ValueError, match=f"{file} is damaged or not a manifest"):
        read_manifest(copied[1])


def test_every_process_has_a_random_state(copied):
    checkpoint = copied[1] / "checkpoint-6"
    assert checkpoint_fault(checkpoint, 2, False) is None  # made by one process, which is refused as an option
    (checkpoint / "training_manifest.json").unlink()
    assert checkpoint_fault(checkpoint, 1, False) is None
    assert "rng_state_0.pth" in checkpoint_fault(checkpoint, 2, False)


def test_checkpoints_that_are_passed_over_are_not_removed(copied):
    command, out = copied
    for checkpoint in out.glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    for file in out.glob("*.*"):
        file.unlink()
    (out / "checkpoint-6").rename(out / "checkpoint-7")
    assert main(command) == 0
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6", "checkpoint-7"]


def test_one_command_from_the_first_start_on(run, copied, caplog):
    """No checkpoint: from the beginning. A damaged one: from the one before. The results are those of one run."""
    (command, out), whole = copied, weights(run[1])
    shutil.rmtree(out)
    with caplog.at_level("WARNING"):
        assert main(command) == 0
        assert "has no complete checkpoint; training starts from the beginning" in caplog.text
        assert weights(out) == whole
        for file in out.glob("*.*"):
            file.unlink()
        os.truncate(out / "checkpoint-6" / "optimizer.pt", 100)
        assert main(command) == 0
    assert "checkpoint-6 is incomplete and is skipped" in caplog.text
    assert weights(out) == whole


@pytest.mark.parametrize("option", ["--resume", "--resume-from-checkpoint"])
def test_a_named_checkpoint_has_to_be_complete(run, copied, capsys, option):
    command, out = [part for part in copied[0] if part not in RESUME], copied[1]
    (out / "checkpoint-3" / "scheduler.pt").unlink()
    assert main([*command, option, str(out / "checkpoint-3")]) == 2
    assert "checkpoint-3 is incomplete: the scheduler is missing (scheduler.pt)" in capsys.readouterr().err
    assert main([*command, option, str(out / "nowhere")]) == 2
    assert f"`{option[2:].replace('-', '_')}`: '{out / 'nowhere'}' is neither " in capsys.readouterr().err


def test_a_word_that_is_no_checkpoint(copied, capsys):
    command = [part for part in copied[0] if part not in RESUME]
    assert main([*command, "--resume", "latest"]) == 2
    assert "`resume`: 'latest' is neither 'auto' nor a checkpoint; give 'auto' to " in capsys.readouterr().err


def test_another_model_is_named_before_what_follows_from_it(copied, backbone, tmp_path, capsys):
    moved, other = ([str(tmp_path / name) if part == backbone else part for part in copied[0]] for name in "mo")
    shutil.copytree(backbone, tmp_path / "o")
    tiny_backbone("roberta").save_pretrained(tmp_path / "o")
    assert main([*other, "--num-train-epochs", "3"]) == 2
    error = capsys.readouterr().err
    assert f"was made with other options: `model` was {json.dumps(backbone):.60}" in error
    assert '`backbone_config.model_type` was "bert", is "roberta"' in error
    shutil.copytree(backbone, tmp_path / "m")
    assert main([*moved, "--num-train-epochs", "3"]) == 0  # the same weights in another folder


def test_two_ways_to_resume_contradict(copied, capsys):
    assert main([*copied[0], "--resume-from-checkpoint", "nowhere"]) == 2
    assert "`resume`='auto' and `resume_from_checkpoint`='nowhere' contradict" in capsys.readouterr().err
    assert main([*copied[0], "--resume-from-checkpoint", "true"]) == 0


def test_a_half_written_checkpoint_has_no_manifest_of_before(copied, monkeypatch):
    """What is written again is not taken for complete by the manifest of the first time."""
    from hf_feedback.training.resuming import resumable_trainer as module

    command, out = copied
    seen = []
    monkeypatch.setattr(module, "write_manifest", lambda folder, record: seen.append(sorted(os.listdir(folder))))
    again = [*command, "--resume", str(out / "checkpoint-3")]
    assert main(again) == 0
    assert seen
    assert not any("training_manifest.json" in names for names in seen)


def test_the_best_checkpoint_has_to_be_there(backbone, tmp_path, capsys):
    train = write(tmp_path, "train.csv", rows())
    # a rate that spoils the later epochs, so that the best one is not the newest
    more = ["--save-total-limit", "3", "--learning-rate", "0.5", "--num-train-epochs", "3"]
    command = train_command(backbone, tmp_path / "out", *more, train=train, validation=train)
    assert main(command) == 0
    state = json.loads((tmp_path / "out" / "checkpoint-9" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.name != "checkpoint-9"
    whole = weights(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")  # found beside the checkpoint then
    moved = [str(tmp_path / "moved") if part == str(tmp_path / "out") else part for part in command]
    last = ["--resume-from-checkpoint", str(tmp_path / "moved" / "checkpoint-9")]
    assert main([*moved, *last]) == 0
    assert weights(tmp_path / "moved") == whole
    shutil.rmtree(tmp_path / "moved" / best.name)
    capsys.readouterr()
    assert main([*moved, *last]) == 2
    assert f"{best.name}, the best checkpoint so far, is missing from the same folder" in capsys.readouterr().err


def test_the_best_checkpoint_is_one_of_this_run(run, backbone, tmp_path):
    train, out, elsewhere = write(tmp_path, "train.csv", rows()), tmp_path / "out", run[1]
    command = train_command(backbone, out, "--num-train-epochs", "1", *RESUME, train=train, validation=train)
    assert main(command) == 0
    whole = weights(out)
    assert whole != weights(elsewhere)
    for file in (*out.glob("*.*"), out / "checkpoint-3" / "training_manifest.json"):
        file.unlink()
    state = out / "checkpoint-3" / "trainer_state.json"
    values = json.loads(state.read_text())
    state.write_text(json.dumps({**values, "best_global_step": None, "best_model_checkpoint": str(elsewhere)}))
    assert main(command) == 0
    assert weights(out) == whole


def test_the_best_step_need_not_be_one_that_was_saved(copied):
    state = copied[1] / "checkpoint-6" / "trainer_state.json"
    values = {**json.loads(state.read_text()), "best_global_step": 5, "best_model_checkpoint": "x/checkpoint-3"}
    state.write_text(json.dumps(values))
    assert best_checkpoint(copied[1] / "checkpoint-6") == copied[1] / "checkpoint-3"


# Finished runs


def test_a_finished_run_says_so(copied, capsys, caplog):
    command, out = copied
    before = {file: file.read_bytes() for file in out.iterdir() if file.is_file()}
    metrics = json.loads((out / "all_results.json").read_text())
    capsys.readouterr()
    with caplog.at_level("WARNING"):
        assert main(command) == 0
    assert "this run is finished; nothing is left to train" in caplog.text
    printed = capsys.readouterr().out
    assert f"{metrics['train_loss']:.4f}" in printed
    assert {file: file.read_bytes() for file in out.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("steps", [None, 5], ids=["epochs", "steps within an epoch"])
def test_all_steps_are_trained_and_nothing_is_saved_yet(run, copied, tmp_path, caplog, capsys, steps):
    """Killed after the last checkpoint: measured and saved, without a step more and without a loss of no steps."""
    command, out = copied
    if steps is not None:
        shutil.rmtree(out)
        command = [*command, "--max-steps", str(steps), "--save-strategy", "steps", "--save-steps", str(steps)]
        assert main(command) == 0
    whole = weights(out)
    for file in out.glob("*.*"):
        file.unlink()
    capsys.readouterr()
    with caplog.at_level("WARNING"):
        assert main(command) == 0
    assert "training is complete; the model is evaluated and saved" in caplog.text
    assert weights(out) == whole
    assert "train_loss" not in json.loads((out / "all_results.json").read_text())
    assert "train_loss" not in capsys.readouterr().out
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == (steps or 6)


def test_no_steps_have_no_loss(backbone, tmp_path):
    train = write(tmp_path, "train.csv", rows())
    more = ["--num-train-epochs", "0"]
    assert main(train_command(backbone, tmp_path / "out", *more, train=train, validation=train)) == 0
    found = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert "train_loss" not in found
    assert "eval_loss" in found


# Full disks, and files that are gone


def test_the_disk_is_full_in_the_middle_of_a_run(run, copied, capsys, monkeypatch):
    """The second checkpoint cannot be written: the first remains, and the same command ends as if nothing was."""
    command, out = copied
    shutil.rmtree(out)
    save, calls = torch.save, []

    def fill_the_disk(state, file, *args, **kwargs):
        calls.append(file)
        save(state, file, *args, **kwargs)
        if "checkpoint-6" in str(file):
            os.truncate(file, 100)
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill_the_disk)
        assert main(command) == 2
    assert calls
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{out / 'checkpoint-6'} could not be written ([Errno 28] No space left on device); is the disk" in error
    assert "free some space and resume with `--resume auto`" in error
    assert newest_checkpoint(out) == out / "checkpoint-3"
    assert main(command) == 0
    assert weights(out) == weights(run[1])


def test_the_data_are_gone(copied, capsys, tmp_path):
    command, out = copied
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    file = tmp_path / "gone.csv"
    assert main([str(file) if part.endswith("train.csv") else part for part in command]) == 2
    assert f"{file}: there is no such file" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


# Changed options

CHANGED = {
    "learning rate": ("--learning-rate 2e-3", "`learning_rate` was 0.001, is 0.002"),
    "rate of a part": ("--head-lr 1e-3", "`head_lr` was null, is 0.001"),
    "frozen parts": ("--freeze embeddings", '`freeze` was null, is ["embeddings"]'),
    "optimizer": ("--optim adamw_torch", "`optim` was"),
    "schedule": ("--lr-scheduler-type constant", '`lr_scheduler_type` was "linear", is "constant"'),
    "seed": ("--seed 7", "`seed` was 42, is 7"),
    "batch size": ("--per-device-train-batch-size 4", "`per_device_train_batch_size` was 8, is 4"),
    "accumulation": ("--gradient-accumulation-steps 2", "`gradient_accumulation_steps` was 1, is 2"),
    "precision": ("--bf16 True", "`bf16` was false, is true"),
    "precision of the weights": ("--dtype bfloat16", '`precision of the weights` was "float32", is "bfloat16"'),
    "model": ("--feedback-dropout 0.5", "`feedback_dropout` was 0.0, is 0.5"),
    "loss": ("--label-smoothing-factor 0.1", "`label_smoothing_factor` was 0.0, is 0.1"),
    "iterations of a step": ("--train-iterations uniform", '`train_iterations` was "fixed", is "uniform"'),
    "cut": ("--max-length 4", "`rows of train` was"),
    "rows": ("--train-file other.csv", '`rows of train` was "24 rows ('),
    "names of labels": ("--train-file renamed.csv", "`id2label` was"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_going_on_with_something_changed_is_refused(run, tmp_path, capsys, monkeypatch, case):
    command, _ = run
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "other.csv", [*rows()[:-1], {"text": "where is", "label": "fine"}])
    write(tmp_path, "renamed.csv", [{**row, "label": row["label"].replace("lost", "mislaid")} for row in rows()])
    option, words = CHANGED[case]
    assert main([*command, *RESUME, *option.split()]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "was made with other options: " in error
    assert words in error
    assert "Use these options again" in error


def test_the_file_of_a_stream_is_compared(tmp_path):
    file = tmp_path / "train.txt"
    file.write_bytes(bytes(range(256)) * 1000)
    before = fingerprint_file(file, blocks=4, size=100)
    assert before == fingerprint_file(file, blocks=4, size=100)
    for place in (0, -1):
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        (tmp_path / "other").write_bytes(content)
        assert fingerprint_file(tmp_path / "other", blocks=4, size=100) != before
    (tmp_path / "longer").write_bytes(file.read_bytes() + b"x")
    assert fingerprint_file(tmp_path / "longer", blocks=4, size=100) != before
    assert fingerprint_file(file) != before  # all of it


def test_labels_are_compared_by_their_one_spelling():
    there, here = {"id2label": {"0": "False", "1": "1.0"}}, {"id2label": {"0": "false", "1": "1"}}
    assert describe_differences(there, here) == {}
    assert "id2label" in describe_differences(there, {"id2label": {"0": "false", "1": "2"}})


HARMLESS = "--logging-steps 1 --save-total-limit 2 --per-device-eval-batch-size 3 --run-name other --disable-tqdm False"


def test_what_may_change_changes_nothing(run, copied):
    command, out = copied
    whole = weights(run[1])
    for file in out.glob("*.*"):
        file.unlink()
    shutil.rmtree(out / "checkpoint-6")
    assert main([*command, *HARMLESS.split()]) == 0
    assert weights(out) == whole


def test_more_epochs_are_trained_and_said(copied, caplog):
    command, out = copied
    with caplog.at_level("WARNING"):
        assert main([*command, "--num-train-epochs", "3", "--num-iterations", "3"]) == 0
    assert "`num_iterations` was 2, is 3; `num_train_epochs` was 2.0, is 3.0" in caplog.text
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 9


def test_a_checkpoint_from_before_there_were_manifests(copied, caplog, capsys):
    command, out = copied
    (out / "training_manifest.json").unlink()
    for file in out.glob("checkpoint-*/training_manifest.json"):
        file.unlink()
    shutil.rmtree(out / "checkpoint-6")
    assert main([*command, "--feedback-edges", "[[2, 0]]"]) == 2
    assert "`feedback_edges` was null, is [[2, 0]]" in capsys.readouterr().err
    with caplog.at_level("WARNING"):
        assert main(command) == 0
    assert "checkpoint-3 has no record of how it was made" in caplog.text


# Kills

MOMENTS = (
    "transformers.trainer:Trainer.training_step:3",  # during a step
    "hf_feedback.training.trainer:FeedbackTrainer.prediction_step:1",  # during an evaluation
    "transformers.modeling_utils:safe_save_file:1:half",  # the weights of the first checkpoint
    "torch:save:6:half",  # the optimizer of the second
    "hf_feedback.training.resuming.resumable_trainer:rotate_checkpoints:1",  # before the first is removed
    "transformers.modeling_utils:safe_save_file:1:half",  # the weights in the output folder
    "hf_feedback.training.run:write_manifest:1",  # all is saved but the word that it is
)


def kill_command(backbone, folder):
    train, validation = write(folder, "train.csv", rows(48)), write(folder, "validation.csv", rows(12, seed=1))
    often = "--save-strategy steps --eval-strategy steps --load-best-model-at-end True --save-total-limit 1"
    return [*train_command(backbone, "OUT", train=train, validation=validation), *often.split(), *RESUME]


def in_folder(command, folder):
    return [str(folder) if part == "OUT" else part for part in command]


def test_killed_at_chosen_moments(backbone, tmp_path):
    """Weights, checkpoints, the final save: whatever is half done, the same command ends as one run does."""
    command = [*kill_command(backbone, tmp_path), "--save-steps", "6", "--eval-steps", "6"]
    statuses = {}
    for name, moments in (("whole", ()), ("killed", MOMENTS)):
        program = [str(TESTS / "killed_runs.py"), json.dumps(in_folder(command, tmp_path / name)), *moments]
        done = run_python(*program, modules=LOADED)
        assert done.returncode == 0, done.stderr[-2000:]
        statuses[name] = json.loads(done.stdout.splitlines()[-1])
    assert statuses == {"whole": [0], "killed": [-signal.SIGKILL] * len(MOMENTS) + [0]}
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.partial"))
    assert not (tmp_path / "killed" / ".unfinished").exists()


@pytest.mark.slow
def test_killed_at_random_moments(backbone, tmp_path):
    """Fresh processes, killed at any time; `KILLS=20 pytest tests/test_resuming.py -k random_moments -s` for more."""
    often = "--num-train-epochs 8 --save-steps 4 --eval-steps 4"
    command = [*kill_command(backbone, tmp_path), *often.split()]
    whole, prepares, lasts = until_killed(in_folder(command, tmp_path / "whole"))
    assert whole == 0
    most, draw, found = int(os.environ.get("KILLS", 1)), random.Random(0), Counter()
    while found["kills"] < most:
        folder, status = tmp_path / f"killed{found['runs']}", -signal.SIGKILL
        while status == -signal.SIGKILL:
            early = found["kills"] % 4 == 1
            moment = draw.uniform(0, prepares if early else lasts / 3) if found["kills"] < most else None
            faults = [checkpoint_fault(path, 1, True) for path in checkpoints_in(folder)]
            found["half-written checkpoints"] += any(faults)
            found["resumptions from a checkpoint"] += None in faults
            status, _, _ = until_killed(in_folder(command, folder), moment, early)
            found["kills"] += status == -signal.SIGKILL
        assert status == 0
        assert weights(folder) == weights(tmp_path / "whole")
        found["runs"] += 1
    print(f"{dict(found)}; all runs ended with the weights of the one of {lasts:.0f} s that nothing killed")


def until_killed(command, moment=None, early=False):
    """Status of a run, and its seconds until its data and model are there and from then on. It is killed after so many
    seconds from then on, or from its start where `early`."""
    began = time.monotonic()
    (process,) = forks(LOADED).start(["-m", "hf_feedback.cli", *command], [dict(os.environ)])
    if not early:
        forks(LOADED).wait_for_line("source")
    ready = time.monotonic()
    if moment is not None:
        time.sleep(moment)
        with suppress(ProcessLookupError):  # it may have ended
            os.kill(process, signal.SIGKILL)
    (ended,) = forks(LOADED).wait()
    return ended.returncode, ready - began, time.monotonic() - ready
