"""Settings that the result of a training run depends on, and differences between two runs."""

import json
from collections.abc import Mapping

from datasets import Dataset, IterableDataset

from ...configuration_base import OptionsConfig
from ..arguments import FeedbackTrainingArguments
from ..data.label_names import label_name
from .checkpoints import Record
from .fingerprints import fingerprint_rows

# Prefixes of training options that do not affect the weights.
HARMLESS_OPTIONS = (
    *("output_dir", "overwrite_output_dir", "resume", "do_", "local_rank", "use_cpu", "use_cache"),
    *("logging_", "log_", "disable_tqdm", "report_", "run_name", "project", "trackio_", "hub_", "push_to_hub"),
    *("per_device_eval_batch_size", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
    *("batch_eval_metrics", "include_", "prediction_loss_only", "bf16_full_eval", "fp16_full_eval", "eval_on_start"),
    *("save_only_model", "save_on_each_node", "enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor", "ddp_", "debug"),
    *("skip_memory_metrics", "torch_empty_cache_steps", "save_total_limit", "cache_prefix_gigabytes"),
)
# Options that may change when a run resumes, with a warning: its result may differ from that of one run.
RESUMABLE_CHANGES = {
    *("num_train_epochs", "max_steps", "num_iterations", "ignore_data_skip"),
    *("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"),
}


def run_record(
    args: FeedbackTrainingArguments,
    config: OptionsConfig,
    splits: Mapping[str, Dataset | IterableDataset],
    collator: object,
) -> Record:
    """Returns the settings that a run depends on by name, as JSON values.

    Args:
        args: the training arguments.
        config: config of the model.
        splits: encoded rows to train on and, where they choose the best epoch, to validate on; those that are read
            while training are left out.
        collator: collator of the batches, whose numbers and texts are recorded, such as the share of masked tokens.
    """
    options = {name: value for name, value in args.to_dict().items() if not name.startswith(HARMLESS_OPTIONS)}
    plain = {name: value for name, value in vars(collator).items() if isinstance(value, int | float | str)}
    record = {
        **options,
        "number of processes": args.world_size,
        **model_options(config),
        "precision of the weights": str(config.dtype).removeprefix("torch."),
        **{f"{type(collator).__name__}.{name}": value for name, value in sorted(plain.items())},
        **{f"rows of {split}": fingerprint_rows(data) for split, data in splits.items() if isinstance(data, Dataset)},
    }
    return json.loads(json.dumps(record, default=str))


def model_options(config: OptionsConfig) -> Record:
    """Returns the options of a model as JSON values.

    The problem type, which a model infers in training, and `label2id`, which follows from `id2label`, are left out.
    """
    options = {name: value for name, value in config.options().items() if name not in ("problem_type", "label2id")}
    return json.loads(json.dumps(options, default=str))


def describe_differences(before: Record, now: Record) -> dict[str, str]:
    """Compares the values that two records share.

    Args:
        before: record of the run that resumes.
        now: record of the run as it is requested now.

    Returns:
        Name → both values in words, for each name whose values differ.

    Example:

    ```python
    >>> describe_differences({"seed": 1, "max_steps": 9}, {"seed": 2, "max_steps": 9})
    {'seed': '`seed` was 1, is 2'}

    ```
    """

    def words(value: object) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else f"{text[:60]}…"

    def comparable(name: str, value: object) -> object:
        if name == "id2label" and isinstance(value, dict):
            return {number: label_name(label) for number, label in value.items()}
        return value

    return {
        name: f"`{name}` was {words(before[name])}, is {words(now[name])}"
        for name in now
        if name in before and comparable(name, before[name]) != comparable(name, now[name])
    }
