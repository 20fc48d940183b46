"""What the result of a training run depends on, and what differs between two runs."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow
from datasets import Dataset
from transformers import PreTrainedConfig

from .arguments import FeedbackTrainingArguments
from .label_names import label_name

# Options of training that change nothing in the weights, by the start of their names.
HARMLESS = (
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "do_", "local_rank", "use_cpu", "use_cache"),
    *("logging_", "log_", "disable_tqdm", "report_to", "run_name", "project", "trackio_", "hub_", "push_to_hub"),
    *("per_device_eval_batch_size", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
    *("batch_eval_metrics", "include_", "prediction_loss_only", "bf16_full_eval", "fp16_full_eval", "eval_on_start"),
    *("save_only_model", "save_on_each_node", "enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),
    *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor", "ddp_", "debug"),
    *("skip_memory_metrics", "torch_empty_cache_steps", "save_total_limit"),
)
# What a run may go on with changed; the result is then not that of one run, which is said.
MAY_CHANGE = {
    *("num_train_epochs", "max_steps", "num_iterations", "ignore_data_skip"),
    *("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"),
}


def run_record(
    args: FeedbackTrainingArguments,
    config: PreTrainedConfig,
    splits: Mapping[str, Dataset],
    collator: Callable[..., Any],
) -> dict[str, Any]:
    """What a run depends on by name, as JSON knows it.

    Args:
        args: of the training.
        config: of the model; its options.
        splits: the encoded rows to train on and, where the best epoch is chosen by them, to validate on.
        collator: its numbers and words, such as how many tokens it masks.
    """
    options = {name: value for name, value in args.to_dict().items() if not name.startswith(HARMLESS)}
    plain = {name: value for name, value in vars(collator).items() if isinstance(value, int | float | str)}
    record = {
        **options,
        "number of processes": args.world_size,
        **model_options(config),
        **{f"{type(collator).__name__}.{name}": value for name, value in sorted(plain.items())},
        **{f"rows of {split}": rows_fingerprint(data) for split, data in splits.items()},
    }
    return json.loads(json.dumps(record, default=str))


def model_options(config: Any) -> dict[str, Any]:
    """The options of a feedback model, without the problem type, which it finds out while it trains, and without
    `label2id`, which follows from `id2label`."""
    options = {name: value for name, value in config.options().items() if name not in ("problem_type", "label2id")}
    return json.loads(json.dumps(options, default=str))


def rows_fingerprint(data: Dataset) -> str:
    """The number of rows, and a fingerprint of what is in them."""
    digest = hashlib.blake2b(digest_size=6)
    for table in data.with_format("arrow").iter(batch_size=1000):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata(None).combine_chunks())
        digest.update(sink.getvalue())
    return f"{len(data)} rows ({digest.hexdigest()})"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """What is another in two records: name → both values in words. What only one of them knows does not count."""

    def words(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else f"{text[:60]}…"

    def comparable(name: str, value: Any) -> Any:
        labels = name == "id2label" and isinstance(value, dict)
        return {number: label_name(label) for number, label in value.items()} if labels else value

    return {
        name: f"`{name}` was {words(there[name])}, is {words(here[name])}"
        for name in here
        if name in there and comparable(name, there[name]) != comparable(name, here[name])
    }
