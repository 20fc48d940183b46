"""The output folder of a run: files that it writes, and files that it must not overwrite."""

import errno
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .resuming.checkpoints import checkpoints_in

# Files of a training run in its output folder, besides checkpoints.
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
    """Refuses a folder that cannot be written to, before any work is done; a missing folder is created.

    Args:
        folder: path of the folder.
        option: option that names it, for the message.

    Raises:
        ValueError: the folder cannot be created or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"`{option}`: {folder} cannot be written to ({error.strerror}); choose another.") from error


def check_nothing_is_lost(folder: Path, checkpoints: bool = True) -> None:
    """Refuses an output folder in which a new run would overwrite files.

    Incomplete results of an interrupted run do not count.

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
    resume = "resume that run (`--resume auto`), " if name.startswith("checkpoint-") else ""
    raise ValueError(
        f"`output_dir`: {folder} holds {name} already; {resume}overwrite it (`--overwrite-output-dir`), or choose "
        "another folder."
    )


def check_sources_are_kept(folder: Path, sources: Mapping[str, object]) -> None:
    """Refuses a new run that reads what it removes or overwrites: checkpoints in its output folder, or the model there.

    Args:
        folder: output folder.
        sources: options of the run by name, of which some are paths.

    Raises:
        ValueError: there is such a file or folder.
    """
    removed = {checkpoint.resolve() for checkpoint in checkpoints_in(folder)}
    for option, value in sources.items():
        if not isinstance(value, str):
            continue
        path = Path(value).resolve()
        if removed & {path, *path.parents} or (option == "model" and path == folder.resolve()):
            raise ValueError(
                f"`output_dir`: {folder} holds {value}, which `{option}` names and a new run in that folder would "
                "remove or overwrite; name another `--output-dir`."
            )


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of an earlier run, so that no run resumes from them; links and files are kept."""
    for checkpoint in checkpoints_in(folder):
        if checkpoint.is_dir() and not checkpoint.is_symlink():
            shutil.rmtree(checkpoint)


def _is_full_disk(error: Exception) -> bool:
    """Whether it is an error that Python, torch or safetensors raise if a file cannot be written."""
    return (
        isinstance(error, SafetensorError)
        or (isinstance(error, OSError) and error.errno in FULL_DISK)
        or "PytorchStreamWriter" in str(error)
        or "inline_container" in str(error)
    )


@contextmanager
def name_folder_in_errors(folder: Path) -> Iterator[None]:
    """Context that turns errors about files that cannot be written into an `OSError` that names the folder."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        reason = " ".join(str(error).split())
        raise OSError(
            f"`output_dir`: {folder} could not be written ({reason}); is the disk full? Complete checkpoints "
            "are as they were: free some space and resume with `--resume auto`."
        ) from error


@contextmanager
def mark_unfinished(folder: Path) -> Iterator[None]:
    """Context that marks a folder while results are written to it; the mark remains if the run ends before that."""
    (folder / UNFINISHED).touch()
    with name_folder_in_errors(folder):
        yield
    (folder / UNFINISHED).unlink(missing_ok=True)
