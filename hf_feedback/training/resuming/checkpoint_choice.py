"""Choice and check of the checkpoint that a run resumes from."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, set_seed
from transformers.utils import CONFIG_NAME, logging

from ...configuration_base import OptionsConfig
from ..arguments import FeedbackTrainingArguments
from ..output_folder import UNFINISHED, check_nothing_is_lost, check_sources_are_kept, check_writable
from .checkpoints import (
    MANIFEST_NAME,
    Record,
    checkpoint_fault,
    checkpoints_in,
    finished_record,
    newest_checkpoint,
    read_manifest,
)
from .run_record import RESUMABLE_CHANGES, describe_differences, model_options

logger = logging.get_logger(__name__)

KIND = ("model_type", "hidden_size", "num_hidden_layers")  # of a backbone, in its config


def warn_in_first_process(args: FeedbackTrainingArguments, message: str) -> None:
    """Warns in the first process alone."""
    if args.process_index == 0:
        logger.warning(message)


def resumes_newest(args: FeedbackTrainingArguments) -> bool:
    """Whether `resume_from_checkpoint` asks for the newest complete checkpoint."""
    return str(args.resume_from_checkpoint).lower() == "true"


def named_checkpoint(args: FeedbackTrainingArguments) -> Path | None:
    """Returns the checkpoint that `resume_from_checkpoint` names; `None` if it names none."""
    requested = args.resume_from_checkpoint
    return None if requested is None or str(requested).lower() in ("true", "false") else Path(requested)


def prepare_run(args: FeedbackTrainingArguments, sources: Mapping[str, object]) -> None:
    """Checks the output folder and sets the seed, before data and model are loaded.

    Args:
        args: the training arguments.
        sources: other options of the run by name, of which some are paths of what it reads.

    Raises:
        ValueError: the folder cannot be written to, a new run would overwrite files or what it reads, or there is no
            checkpoint of the given name.
    """
    folder = Path(str(args.output_dir))
    check_writable(str(folder))
    checkpoint = named_checkpoint(args)
    if checkpoint is not None and not checkpoint.is_dir():
        option, newest = ("resume_from_checkpoint", "true") if args.resume is None else ("resume", "auto")
        raise ValueError(
            f"`{option}`: {str(checkpoint)!r} is neither {newest!r} nor a checkpoint; give {newest!r} to resume from "
            "the newest one, or the folder of one."
        )
    if resumes_newest(args):
        begun = bool(checkpoints_in(folder)) or (folder / MANIFEST_NAME).is_file()
    else:
        begun = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
    if not begun:
        check_sources_are_kept(folder, sources)
        if not args.overwrite_output_dir:
            check_nothing_is_lost(folder)
    set_seed(args.seed)


def is_finished(folder: Path, record: Record) -> bool:
    """Whether the results of the run with this record are in a folder."""
    return not (folder / UNFINISHED).exists() and finished_record(folder) == record


def checkpoint_to_resume(args: FeedbackTrainingArguments, config: OptionsConfig, record: Record) -> str | None:
    """Returns the checkpoint to resume from.

    Args:
        args: the training arguments.
        config: config of the model.
        record: settings that the run depends on.

    Returns:
        `None` to start from the beginning.

    Raises:
        ValueError: the named checkpoint is incomplete or was made with other options, or there is none and a new run
            would overwrite other files.
    """
    checkpoint = named_checkpoint(args)
    if checkpoint is not None:
        fault = checkpoint_fault(checkpoint, args.world_size, args.load_best_model_at_end)
        if fault is not None:
            raise ValueError(
                f"`resume` or `resume_from_checkpoint`: {checkpoint} is incomplete: {fault}; name another."
            )
    elif resumes_newest(args):
        folder = Path(str(args.output_dir))
        warn = partial(warn_in_first_process, args)
        checkpoint = newest_checkpoint(folder, args.world_size, args.load_best_model_at_end, warn)
        if checkpoint is None:
            if not args.overwrite_output_dir:
                check_nothing_is_lost(folder, checkpoints=False)  # incomplete ones were skipped
            warn(f"{folder} has no complete checkpoint; training starts from the beginning.")
    if checkpoint is not None:
        _check_same_options(args, checkpoint, config, record)
    return None if checkpoint is None else str(checkpoint)


def _check_same_options(
    args: FeedbackTrainingArguments, checkpoint: Path, config: OptionsConfig, record: Record
) -> None:
    """Refuses to resume with other options, and warns about allowed changes."""
    manifest = read_manifest(checkpoint)
    before = None if manifest is None else manifest["training"]
    if before is None and not (checkpoint / "config.json").is_file():
        raise ValueError(
            f"`resume` or `resume_from_checkpoint`: {checkpoint} holds adapters without the options of their model and "
            "without a record of how they were made; start anew, with another `output_dir`."
        )
    if before is None:
        before = model_options(type(config).from_pretrained(checkpoint))
        warn_in_first_process(
            args, f"{checkpoint} has no record of how it was made; only the options of the model were compared."
        )
    changed = describe_differences(before, record)
    allowed = [changed.pop(name) for name in sorted(RESUMABLE_CHANGES & changed.keys())]
    changed = {**_model_differences(checkpoint, config), **changed}
    if changed.keys() - {"model"}:  # a name alone makes none: the same weights may have been moved
        raise ValueError(
            f"`resume` or `resume_from_checkpoint`: {checkpoint} was made with other options: "
            f"{'; '.join(changed.values())}. Use these options again (a default may differ on this machine), or "
            "train that checkpoint further with `--model`."
        )
    if allowed:
        warn_in_first_process(
            args,
            f"Training resumes with changed settings: {'; '.join(allowed)}. An uninterrupted run may give another "
            "result.",
        )


def _model_differences(checkpoint: Path, config: OptionsConfig) -> dict[str, str]:
    """Compares name and kind of the backbone, from which differences of other options may follow."""
    if not (checkpoint / CONFIG_NAME).is_file():  # such as that of an adapter
        return {}
    before = PreTrainedConfig.get_config_dict(checkpoint)[0]
    return describe_differences(_model_record(before), _model_record(config.to_dict()))


def _model_record(config: Mapping[str, Any]) -> Record:
    """The name and the kind of a backbone, as far as the config of a model holds them."""
    source, backbone = config.get("backbone_source") or {}, config.get("backbone_config") or {}
    found = {"model": source.get("name_or_path"), **{f"backbone_config.{name}": backbone.get(name) for name in KIND}}
    return {name: value for name, value in found.items() if value is not None}
