"""Arguments of training: transformers' own with freezing and discriminative rates; data and model of the commands."""

import copy
import json
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from ..configuration_feedback import FeedbackConfig
from ..validation import check_choice, check_integer
from .sampling import KINDS


def read_json(option: str, text: str, example: str) -> Any:
    """The value of an option that is written as JSON.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        raise ValueError(f"`{option}` must be JSON such as {example}, got {shown!r} ({error}).") from error


@dataclass
class FeedbackTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the options of `freeze_parameters` and `parameter_groups`; see there.

    Args:
        freeze: what does not train.
        backbone_lr, feedback_lr, head_lr: rates of the parts; `learning_rate` where left out.
        layer_lr_decay: factor on the rate from one layer to the one below.
        learning_rate_mapping: regular expression over parameter names → rate (JSON on the command line).
        train_iterations: how many iterations each training step takes, see `draw_iterations`; the model's own K is the
            mean of `"poisson"` and what is used afterwards.
        min_train_iterations: the least K that is drawn.
        max_train_iterations: the largest; the model's K by default, four times as many for `"poisson"`.
        overwrite_output_dir: write over a model, a card or checkpoints in the output folder.
    """

    freeze: list[str] | None = field(
        default=None,
        metadata={"help": "Do not train these: backbone, embeddings, feedback, head, layers:0-3, regular expressions."},
    )
    backbone_lr: float | None = field(default=None, metadata={"help": "Rate of the backbone (default: learning rate)."})
    feedback_lr: float | None = field(default=None, metadata={"help": "Rate of the feedback (default: learning rate)."})
    head_lr: float | None = field(default=None, metadata={"help": "Rate of the head (default: learning rate)."})
    layer_lr_decay: float = field(default=1.0, metadata={"help": "Factor on the rate from a layer to the one below."})
    learning_rate_mapping: dict | str | None = field(
        default=None,
        metadata={"help": 'Regular expression over parameter names to rate, as JSON: {"LayerNorm": 1e-5}.'},
    )

    train_iterations: str = field(
        default="fixed",
        metadata={"help": "K of a training step: fixed, uniform, poisson or curriculum.", "choices": list(KINDS)},
    )
    min_train_iterations: int = field(default=2, metadata={"help": "Least K that is drawn."})
    max_train_iterations: int | None = field(default=None, metadata={"help": "Largest K that is drawn."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Write over what an earlier run left in the output folder; its checkpoints go."},
    )

    # Options that transformers reads as JSON when they come as text.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "learning_rate_mapping"]  # noqa: RUF012

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            check_integer(name, getattr(self, name), 1, "examples of a batch, or batches of a step")
        if self.num_train_epochs < 0:
            raise ValueError(f"`num_train_epochs` must be at least 0, got {self.num_train_epochs}.")
        if self.optim_args and any("=" not in part for part in self.optim_args.split(",")):
            raise ValueError(f"`optim_args` must be such as a=1,b=2, got {self.optim_args!r}.")
        for name in self._VALID_DICT_FIELDS:
            self._check_dictionary(name)
        if self.torch_compile_mode is not None:
            try:
                torch.compile(torch.nn.Identity(), mode=self.torch_compile_mode)
            except RuntimeError as error:
                raise ValueError(f"`torch_compile_mode`: {error}.") from error
        super().__post_init__()
        check_choice("train_iterations", self.train_iterations, KINDS)
        check_integer("min_train_iterations", self.min_train_iterations, 1, "the least K that is drawn")
        if self.max_train_iterations is not None:
            check_integer("max_train_iterations", self.max_train_iterations, 1, "the largest K that is drawn")

    def _check_dictionary(self, name: str) -> None:
        """Raises `ValueError` where a dictionary is needed and the option is neither one nor the path of one."""
        value = getattr(self, name)
        may_be_path = name in ("accelerator_config", "fsdp_config", "deepspeed")
        if isinstance(value, str) and (value.startswith("{") or (value and not may_be_path)):
            text, value = value, read_json(name, value, '{"name": 1e-5}')
            if not isinstance(value, dict):
                raise ValueError(f'`{name}` must be JSON such as {{"name": 1e-5}}, got {text!r:.60}.')
        if name == "accelerator_config" and isinstance(value, dict):
            known = AcceleratorConfig.__dataclass_fields__
            if unknown := [key for key in value if key not in known]:
                raise ValueError(f"`{name}` must hold {', '.join(known)}, got {unknown[0]!r:.60}.")

    def __getstate__(self) -> dict[str, Any]:
        """What the Trainer pickles into `training_args.bin`, a file that is pushed with the model: not the token."""
        return {**self.__dict__, "hub_token": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "FeedbackTrainingArguments":
        twin = copy.copy(self)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


@dataclass
class TextArguments:
    """What of a file is the text."""

    text_column: str | None = field(default=None, metadata={"help": "Column of the texts (found if left out)."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of second texts, for pairs."})
    max_length: int | None = field(default=None, metadata={"help": "Cut texts at so many tokens."})


@dataclass
class LabelArguments(TextArguments):
    """What of a file is the label, and how answers are measured."""

    label_column: str | None = field(default=None, metadata={"help": "Column of the labels (found if left out)."})
    metrics: list[str] | None = field(
        default=None,
        metadata={"help": "Metrics; the first, if it is one of ours, chooses the best epoch (else the loss)."},
    )


@dataclass
class FileArguments:
    """The files of a training run."""

    train_file: str | None = field(default=None, metadata={"help": "File to train on."})
    validation_file: str | None = field(default=None, metadata={"help": "File to validate on after every epoch."})
    test_file: str | None = field(default=None, metadata={"help": "File to test the finished model on, once."})


@dataclass
class DataArguments(FileArguments, LabelArguments):
    """Where the texts to train on are."""

    train_file: str | None = field(default=None, metadata={"help": "CSV, TSV, JSON-lines or parquet file to train on."})
    dataset_name: str | None = field(default=None, metadata={"help": "A hub data set instead of files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the hub data set."})
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "Kind of labels (found if left out).",
            "choices": ["single_label_classification", "multi_label_classification", "regression"],
        },
    )


@dataclass
class HaltingArguments:
    """When an example stops; see `FeedbackConfig`."""

    halting: str | None = field(
        default=None,
        metadata={"help": "none, convergence, confidence, patience; a+b: both, 'a|b': either (none)."},
    )
    halting_threshold: float | None = field(
        default=None, metadata={"help": "Residual at which an example stops (0.01)."}
    )
    halting_confidence: float | None = field(
        default=None, metadata={"help": "How sure an answer is at which an example stops (0.9)."}
    )
    halting_measure: str | None = field(default=None, metadata={"help": "Sure by probability or margin."})
    halting_patience: int | None = field(
        default=None, metadata={"help": "The same answer so many times at which an example stops (2)."}
    )
    min_iterations: int | None = field(default=None, metadata={"help": "No example stops before (2)."})

    def halting_options(self) -> dict[str, Any]:
        """Those that were given."""
        values = {option.name: getattr(self, option.name) for option in fields(HaltingArguments)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(kw_only=True)
class ModelArguments(HaltingArguments):
    """The model to start from and the options of `FeedbackConfig`."""

    model: str = field(metadata={"help": "Hub id or folder of a backbone, or of a feedback model to train further."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the hub repository."})
    num_iterations: int | None = field(default=None, metadata={"help": "K, passes through the looped layers (2)."})
    feedback_topology: str | None = field(default=None, metadata={"help": "top (the default), adjacent or dense."})
    feedback_edges: str | None = field(default=None, metadata={"help": "Edges as JSON: [[source, target], …]."})
    feedback_layers: list[int] | None = field(default=None, metadata={"help": "Lowest and highest target layer."})
    feedback_type: str | None = field(
        default=None,
        metadata={
            "help": "additive (the default), gated, attention, temporal, context, joint, or a sum: additive+context."
        },
    )
    feedback_heads: int | None = field(default=None, metadata={"help": "Heads of attention messages (4)."})
    feedback_sweeps: int | None = field(default=None, metadata={"help": "Sweeps of temporal messages (3)."})
    feedback_context: str | None = field(
        default=None, metadata={"help": "What context reads: state or classes (state)."}
    )
    feedback_signal: str | None = field(default=None, metadata={"help": "What messages read: state or error (state)."})
    feedback_sharing: str | None = field(
        default=None, metadata={"help": "Weights per edge, or one set for all targets."}
    )
    feedback_future: str | None = field(
        default=None, metadata={"help": "Tell tokens of a decoder about later ones: auto, true or false (auto)."}
    )
    feedback_span: str | None = field(
        default=None, metadata={"help": "token, or segment for long texts cut into segments (token)."}
    )
    segment_length: int | None = field(default=None, metadata={"help": "Tokens of a segment (what the model reads)."})
    segment_overlap: int | None = field(default=None, metadata={"help": "Tokens that segments share (an eighth)."})
    segment_special_tokens: list[int] | None = field(
        default=None, metadata={"help": "Tokens at start and end that stand around every segment (the tokenizer's)."}
    )
    max_segments: int | None = field(default=None, metadata={"help": "Segments of a text at most (64)."})
    feedback_activation: str | None = field(default=None, metadata={"help": "Activation of the messages (swish)."})
    feedback_rank: str | None = field(
        default=None, metadata={"help": "Inner width of a message (32), or 'none' for full rank."}
    )
    feedback_damping: float | None = field(default=None, metadata={"help": "Messages read lerp(previous, new, α) (1)."})
    learn_damping: bool | None = field(default=None, metadata={"help": "Learn that α, one per source (false)."})
    feedback_state: str | None = field(
        default=None, metadata={"help": "reentry, or carry as looped layers do (reentry)."}
    )
    iteration_loss: str | None = field(
        default=None, metadata={"help": "Loss of iterations: last, uniform or linear (last)."}
    )
    jacobian_penalty: float | None = field(
        default=None, metadata={"help": "Weight of a penalty that makes the loop contract (0)."}
    )
    gradient: str | None = field(default=None, metadata={"help": "full, truncated, one_step or implicit (full)."})
    gradient_iterations: int | None = field(default=None, metadata={"help": "Iterations that truncated goes through."})
    fixed_point_solver: str | None = field(default=None, metadata={"help": "iteration or anderson (iteration)."})
    fixed_point_tolerance: float | None = field(default=None, metadata={"help": "Residual of a fixed point (1e-4)."})
    feedback_dropout: float | None = field(default=None, metadata={"help": "Dropout inside the messages (0)."})
    feedback_scale: float | None = field(default=None, metadata={"help": "Factor on the messages (1)."})
    backbone_layers: list[int] | None = field(default=None, metadata={"help": "Layers of the backbone to keep (all)."})
    backbone_part: str | None = field(default=None, metadata={"help": "Half of an encoder-decoder (the encoder)."})
    head: str | None = field(default=None, metadata={"help": "new, or backbone for the family's own task head (new)."})
    pooling: str | None = field(default=None, metadata={"help": "auto, cls, mean or last (auto)."})
    classifier_dropout: float | None = field(default=None, metadata={"help": "Dropout before the classifier."})
    initializer_range: float | None = field(default=None, metadata={"help": "Spread of a new classifier (0.02)."})

    def feedback_options(self) -> dict[str, Any]:
        """The options that were given, as `from_backbone` takes them.

        Raises:
            ValueError: rank or edges cannot be read.
        """
        options = {name: getattr(self, name, None) for name in FeedbackConfig.option_names()}
        options = {name: value for name, value in options.items() if value is not None}
        if self.feedback_rank is not None:
            rank = self.feedback_rank.lower()
            if rank != "none" and not rank.isdecimal():
                raise ValueError(f"`feedback_rank` must be a number or 'none', got {self.feedback_rank!r}.")
            options["feedback_rank"] = None if rank == "none" else int(rank)
        if self.feedback_future is not None:
            known = {"auto": "auto", "true": True, "false": False}
            options["feedback_future"] = known.get(self.feedback_future.lower(), self.feedback_future)
        if self.feedback_edges is not None:
            options["feedback_edges"] = read_json("feedback_edges", self.feedback_edges, "[[3, 0], [3, 1]]")
        return options
