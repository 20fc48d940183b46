"""Fine-tuning feedback models with the Trainer of transformers."""

from .arguments import FeedbackTrainingArguments
from .finite_steps import NonFiniteStepError
from .freezing import freeze_parameters
from .frozen_layers.frozen_prefix import FrozenPrefix
from .parameter_groups import parameter_groups
from .peft import from_peft, peft_options
from .search import default_search_space, searched_feedback_options
from .techniques.adversarial import FGM, PGD, SMART, FreeLB
from .techniques.class_loss import ClassLoss, balanced_class_weights
from .techniques.objectives import DropoutAgreement, IterationAgreement, MaskedWords, Objectives
from .trainer import FeedbackTrainer
from .unfreezing import GradualUnfreezing, UnfreezingCallback

__all__ = [
    "FGM",
    "PGD",
    "SMART",
    "ClassLoss",
    "DropoutAgreement",
    "FeedbackTrainer",
    "FeedbackTrainingArguments",
    "FreeLB",
    "FrozenPrefix",
    "GradualUnfreezing",
    "IterationAgreement",
    "MaskedWords",
    "NonFiniteStepError",
    "Objectives",
    "UnfreezingCallback",
    "balanced_class_weights",
    "default_search_space",
    "freeze_parameters",
    "from_peft",
    "parameter_groups",
    "peft_options",
    "searched_feedback_options",
]
