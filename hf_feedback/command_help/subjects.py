"""The subjects by which help groups options."""

from dataclasses import fields
from inspect import get_annotations

from transformers import TrainingArguments

from ..training.model_arguments import ConfigArguments

# The option of a model or of training with which a subject begins, which goes on as options are declared. Any other
# dataclass is one subject: the first sentence of its docstring.
FIRST_OPTIONS = {
    "num_iterations": "The loop",
    "feedback_type": "Messages",
    "feedback_span": "Long texts",
    "halting": "Stopping early, in evaluation",
    "iteration_loss": "Gradients and losses of iterations",
    "head": "The head",
    "freeze": "What trains, and at which rates",
    "train_iterations": "Iterations of training",
}
TRAINING = "Training"
# Of transformers' options, those that most runs set.
TRAINING_OPTIONS = (
    "output_dir",
    "overwrite_output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "bf16",
    "seed",
    "eval_strategy",
    "save_strategy",
    "metric_for_best_model",
    "resume_from_checkpoint",
    "report_to",
    "use_cpu",
    "disable_tqdm",
)
OTHERS = "Other options, of transformers' TrainingArguments"


def subjects_of(options: type) -> dict[str, str]:
    """Returns the subject of each option of a dataclass, in the order in which help shows them.

    Args:
        options: the dataclass.

    Example:

    ```python
    >>> from hf_feedback.training.model_arguments import HaltingArguments
    >>> subjects_of(HaltingArguments)["halting_patience"]
    'Stopping early, in evaluation'

    ```
    """
    subjects: dict[str, str] = {}
    for declaring in reversed(options.__mro__):
        subject = (declaring.__doc__ or "").partition(".")[0]
        for name in get_annotations(declaring):
            if issubclass(options, ConfigArguments | TrainingArguments):
                subject = FIRST_OPTIONS.get(name, subject)
            subjects[name] = OTHERS if declaring is TrainingArguments else subject
    if issubclass(options, TrainingArguments):
        subjects |= dict.fromkeys(TRAINING_OPTIONS, TRAINING)
    names = [one.name for one in fields(options) if one.init]
    usual = [name for name in TRAINING_OPTIONS if subjects.get(name) == TRAINING]
    others = [name for name in names if subjects[name] == OTHERS]
    own = [name for name in names if name not in (*usual, *others)]
    return {name: subjects[name] for name in (*usual, *own, *others)}
