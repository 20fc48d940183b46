"""What a run writes, and what it does not write over."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .checkpoints import checkpoints_in

# What a training run writes into its output folder, besides checkpoints.
WRITTEN = (
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


def check_writable(folder: str, option: str = "output_dir") -> None:
    """Raises `ValueError` before any work is done where the results could not be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"`{option}`: {folder} cannot be written to ({error.strerror}); choose another.") from error


def check_nothing_is_lost(folder: Path, checkpoints: bool = True) -> None:
    """Raises `ValueError` where a run that starts in `folder` would write over what is there.

    What a run left that died while it wrote its results does not count.

    Args:
        folder: of the output.
        checkpoints: whether they count.
    """
    results = [file for pattern in WRITTEN for file in sorted(folder.glob(pattern))]
    found = [*(checkpoints_in(folder) if checkpoints else []), *results]
    if not found or (folder / UNFINISHED).exists():
        return
    there = found[0].name
    go_on = "go on with that run (`--resume-from-checkpoint true`), " if there.startswith("checkpoint-") else ""
    raise ValueError(
        f"`output_dir`: {folder} holds {there} already; {go_on}write over it (`--overwrite-output-dir`), or choose "
        "another folder."
    )


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of an earlier run, so that nothing goes on from them. Links and files are a user's."""
    for checkpoint in checkpoints_in(folder):
        if checkpoint.is_dir() and not checkpoint.is_symlink():
            shutil.rmtree(checkpoint)


def is_full_disk(error: Exception) -> bool:
    """Whether the error is how torch or safetensors say that a file could not be written."""
    return (
        type(error).__name__ == "SafetensorError"
        or "PytorchStreamWriter" in str(error)
        or "inline_container" in str(error)
    )


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Errors of torch and safetensors about files that cannot be written become `OSError`s that name the folder."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        reason = " ".join(str(error).split())
        raise OSError(f"`output_dir`: {folder} could not be written ({reason}); is the disk full?") from error


@contextmanager
def finishing(folder: Path) -> Iterator[None]:
    """Marks a folder whose results are being written."""
    (folder / UNFINISHED).touch()
    with naming(folder):
        yield
    (folder / UNFINISHED).unlink(missing_ok=True)
