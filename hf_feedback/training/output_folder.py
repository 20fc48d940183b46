"""The output folder of a run: what it writes there, and what it does not write over."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .checkpoints import checkpoints_in

# What a training run writes into its output folder, besides checkpoints.
WRITTEN_FILES = (
    "config.json",
    "*.safetensors",
    "tokenizer*.json",
    "*processor_config.json",
    "training_args.bin",
    "trainer_state.json",
    "all_results.json",
    "README.md",
)
UNFINISHED = ".unfinished"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_writable(folder: str, option: str = "output_dir") -> None:
    """Refuses, before any work is done, a folder that cannot be written to; it is made where it is missing.

    Args:
        folder: path of the folder.
        option: option that it comes from, for the message.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"`{option}`: {folder} cannot be written to ({error.strerror}); choose another.") from error


def check_nothing_is_lost(folder: Path, checkpoints: bool = True) -> None:
    """Refuses an output folder in which a run that starts would write over files.

    Files that an earlier run left while it wrote its results do not count.

    Args:
        folder: output folder.
        checkpoints: whether checkpoints count.

    Raises:
        ValueError: there are such files.
    """
    results = [file for pattern in WRITTEN_FILES for file in sorted(folder.glob(pattern))]
    files = [*(checkpoints_in(folder) if checkpoints else []), *results]
    if not files or (folder / UNFINISHED).exists():
        return
    name = files[0].name
    resume = "go on with that run (`--resume-from-checkpoint true`), " if name.startswith("checkpoint-") else ""
    raise ValueError(
        f"`output_dir`: {folder} holds {name} already; {resume}write over it (`--overwrite-output-dir`), or choose "
        "another folder."
    )


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of an earlier run, so that no run resumes from them. Links and files are a user's."""
    for checkpoint in checkpoints_in(folder):
        if checkpoint.is_dir() and not checkpoint.is_symlink():
            shutil.rmtree(checkpoint)


def _is_full_disk(error: Exception) -> bool:
    """Whether Python, torch or safetensors raise such an error where a file cannot be written."""
    return (
        (isinstance(error, OSError) and error.errno in FULL_DISK)
        or type(error).__name__ == "SafetensorError"
        or "PytorchStreamWriter" in str(error)
        or "inline_container" in str(error)
    )


@contextmanager
def name_folder_in_errors(folder: Path) -> Iterator[None]:
    """Turns errors about files that cannot be written into `OSError`s that name the folder."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        reason = " ".join(str(error).split())
        raise OSError(
            f"`output_dir`: {folder} could not be written ({reason}); is the disk full? Complete checkpoints "
            "are as they were: make room, and go on with `--resume auto`."
        ) from error


@contextmanager
def mark_unfinished(folder: Path) -> Iterator[None]:
    """Marks a folder while results are written to it; the mark remains where the run ends before they are complete."""
    (folder / UNFINISHED).touch()
    with name_folder_in_errors(folder):
        yield
    (folder / UNFINISHED).unlink(missing_ok=True)
