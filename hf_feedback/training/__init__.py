"""Fine-tuning feedback models with the Trainer of transformers."""

from .arguments import FeedbackTrainingArguments
from .parameter_groups import freeze_parameters, parameter_groups
from .peft import from_peft, peft_options
from .trainer import FeedbackTrainer

__all__ = [
    "FeedbackTrainer",
    "FeedbackTrainingArguments",
    "freeze_parameters",
    "from_peft",
    "parameter_groups",
    "peft_options",
]
