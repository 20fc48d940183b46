"""Fine-tuning feedback models with the HF Trainer."""

from .arguments import FeedbackTrainingArguments
from .parameter_groups import freeze_parameters, parameter_groups
from .trainer import FeedbackTrainer

__all__ = ["FeedbackTrainer", "FeedbackTrainingArguments", "freeze_parameters", "parameter_groups"]
