"""`FeedbackTrainingArguments`: transformers' own, with freezing and discriminative learning rates."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class FeedbackTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the options of `freeze_parameters` and `parameter_groups`; see there.

    Args:
        freeze: what does not train.
        backbone_lr, feedback_lr, head_lr: rates of the parts; `learning_rate` where left out.
        layer_lr_decay: factor on the rate from one layer to the one below.
        learning_rate_mapping: regular expression over parameter names → rate (JSON on the command line).
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
        default=None, metadata={"help": 'Regular expression over parameter names to rate, as JSON: {"LayerNorm": 1e-5}.'}
    )

    # Options that transformers reads as JSON when they come as text.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "learning_rate_mapping"]  # noqa: RUF012
