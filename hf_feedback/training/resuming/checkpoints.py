"""Complete checkpoints of a training run, and the options they were made with.

A manifest, written last, lists the files of a checkpoint and the settings that the training depends on.
"""

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.utils import logging

from ...whole_files import whole_file

logger = logging.get_logger(__name__)

Record: TypeAlias = dict[str, Any]  # what a run depends on, by name, as JSON values

MANIFEST_NAME = "training_manifest.json"
# The files that training resumes from; `global_step*` are the folders of DeepSpeed.
CHECKPOINT_PARTS = {
    "model": ("*.safetensors", "pytorch_model*", "global_step*"),
    "config": ("config.json", "adapter_config.json"),
    "optimizer": ("optimizer*", "global_step*"),
    "scheduler": ("scheduler.pt", "global_step*"),
    "training state": ("trainer_state.json",),
}
# Files of a finished run in its output folder, and files that loading a model reads.
RESULT_FILES = ("*.safetensors", "config.json", "trainer_state.json", "all_results.json")
MODEL_FILES = ("*.safetensors", "config.json", "tokenizer*.json")


def write_manifest(folder: Path, record: Record | None, patterns: Iterable[str] = ("**/*",)) -> None:
    """Marks a folder as complete.

    Args:
        folder: A checkpoint, or the output folder of a run.
        record: settings that the training depends on, see `run_record`; `None` if unknown.
        patterns: patterns of the files that belong to it.
    """
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(files)}
    with whole_file(folder / MANIFEST_NAME) as partial:
        partial.write_text(json.dumps({"files": sizes, "training": record}, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of a folder: sizes of its `files`, and the record of its `training`.

    Args:
        folder: A checkpoint, or the output folder of a run.

    Returns:
        `None` if there is no manifest.

    Raises:
        ValueError: the file is damaged or not a manifest.
    """
    file = folder / MANIFEST_NAME
    if not file.is_file():
        return None
    manifest = None if describe_damage(file) else json.loads(file.read_text(encoding="utf-8"))
    if not _is_manifest(manifest):
        raise ValueError(f"{file} is damaged or not a manifest.")
    return manifest


def _is_manifest(value: object) -> bool:
    """Whether a value holds the sizes of files inside the folder, and a record of training."""
    if not isinstance(value, dict) or not isinstance(value.get("training", ""), dict | None):
        return False
    files = value.get("files")
    return isinstance(files, dict) and all(
        isinstance(size, int) and not PurePath(name).is_absolute() and ".." not in PurePath(name).parts
        for name, size in files.items()
    )


def describe_damage(file: Path) -> str | None:
    """Returns the reason why a file cannot be read, by its type; `None` if it can."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                pass
        elif file.suffix in (".pt", ".pth"):
            zipfile.ZipFile(file).close()
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        return f"{file.name} is nested too deeply"
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError):
        return f"{file.name} is {'damaged or truncated' if file.stat().st_size else 'empty'}"
    return None


def find_damaged_file(folder: Path, patterns: Iterable[str] = ("*",)) -> str | None:
    """Returns the reason why the first unreadable file of a folder cannot be read; `None` if all can."""
    files = sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())
    return next((damage for file in files if (damage := describe_damage(file)) is not None), None)


def _find_lost_bytes(folder: Path, sizes: Mapping[str, int]) -> str | None:
    """Returns the first file that is missing or has another size than in the manifest; `None` if none has."""
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (actual := (folder / name).stat().st_size) != size:
            return f"{name} has {actual:,} of {size:,} bytes"
    return None


def finished_record(folder: Path) -> Record | None:
    """Returns the record of the run whose complete results are in a folder; `None` if there are none."""
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return None
    if manifest is None or not all((folder / name).is_file() for name in manifest["files"]):
        return None
    return manifest["training"] if find_damaged_file(folder, RESULT_FILES) is None else None


def checkpoint_fault(folder: Path, world_size: int, needs_best: bool) -> str | None:
    """Returns the reason why training cannot resume from a checkpoint.

    Args:
        folder: folder of the checkpoint.
        world_size: number of processes; each has a random state of its own, where there is no manifest.
        needs_best: whether the best checkpoint so far is needed too.

    Returns:
        `None` if the checkpoint is complete.
    """
    if not folder.is_dir():
        return "there is no checkpoint"
    for part, patterns in CHECKPOINT_PARTS.items():
        if not any(True for pattern in patterns for _ in folder.glob(pattern)):
            return f"the {part} is missing ({patterns[0]})"
    if (damage := find_damaged_file(folder)) is not None:
        return damage
    try:
        manifest, best = read_manifest(folder), best_checkpoint(folder)
    except ValueError as error:
        return str(error).rstrip(".")
    for name in _random_state_names(world_size, manifest is not None):
        if not any(folder.glob(name)):
            return f"the random state is missing ({name})"
    fault = None if manifest is None else _find_lost_bytes(folder, manifest["files"])
    if fault is None and needs_best and best is not None:
        missing = f"{best.name}, the best checkpoint so far, is missing from the same folder"
        fault = find_damaged_file(best) if best.is_dir() else missing
    return fault


def _random_state_names(world_size: int, has_manifest: bool) -> list[str]:
    """Patterns of the files of random states; with a manifest, those of all processes."""
    if has_manifest:
        return ["rng_state*.pth"]
    return ["rng_state.pth"] if world_size == 1 else [f"rng_state_{i}.pth" for i in range(world_size)]


def best_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint in the same folder that was the best when this one was made; `None` if none was.

    Raises:
        ValueError: the file is not a training state.
    """
    file = folder / "trainer_state.json"
    try:
        state = TrainerState.load_from_json(str(file))
    except TypeError as error:
        raise ValueError(f"{file} is not a training state ({error}).") from error
    if not isinstance(state.global_step, int) or not isinstance(state.best_global_step, int | None):
        raise ValueError(f"{file} is not a training state (its steps are not integers).")
    # The folder may have been moved, and the best step may not have been saved.
    best = folder.parent / Path(str(state.best_model_checkpoint)).name
    return best if _step_of(best) is not None else None


def _step_of(path: Path) -> int | None:
    number = path.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() and number != path.name else None


def checkpoints_in(folder: Path) -> list[Path]:
    """Returns everything named `checkpoint-<step>` in a folder, complete or not, by step."""
    steps = {path: step for path in folder.glob("checkpoint-*") if (step := _step_of(path)) is not None}
    return sorted(steps, key=lambda path: steps[path])


def newest_checkpoint(
    folder: Path, world_size: int = 1, needs_best: bool = False, warn: Callable[[str], None] = logger.warning
) -> Path | None:
    """Returns the newest complete checkpoint of a run.

    Args:
        folder: output folder of the run.
        world_size: as in `checkpoint_fault`.
        needs_best: as in `checkpoint_fault`.
        warn: is called with a message about each incomplete checkpoint that is skipped.

    Returns:
        `None` if no checkpoint is complete.
    """
    for path in reversed(checkpoints_in(folder)):
        fault = checkpoint_fault(path, world_size, needs_best)
        if fault is None:
            return path
        warn(f"{path} is incomplete and is skipped: {fault}.")
    return None
