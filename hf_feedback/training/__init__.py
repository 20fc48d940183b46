"""Fine-tuning feedback models with the Trainer of transformers.

`run` trains a model on any task and saves it, with `FeedbackTrainer` (`trainer`) and its options (`arguments`). Each
sub-package has one subject and its options: `tasks/`, `data/`, `starting_model/`, `parameters/` (freezing and rates),
`frozen_layers/` (their states computed once), `techniques/` (losses, adversarial training), `iteration_logs/`,
`resuming/`, and `commands/`.
"""

from .arguments import FeedbackTrainingArguments
from .finite_steps import NonFiniteStepError
from .frozen_layers.frozen_prefix import FrozenPrefix
from .parameters.freezing import freeze_parameters
from .parameters.parameter_groups import parameter_groups
from .parameters.unfreezing import GradualUnfreezing, UnfreezingCallback
from .peft import from_peft, peft_options
from .search import default_search_space, searched_feedback_options
from .techniques.adversarial import FGM, PGD, SMART, FreeLB
from .techniques.class_loss import ClassLoss, balanced_class_weights
from .techniques.objectives import DropoutAgreement, IterationAgreement, MaskedWords, Objectives
from .trainer import FeedbackTrainer

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
