"""Subjects that group the options in `--help`."""

from dataclasses import fields
from inspect import get_annotations

from transformers import TrainingArguments

from ..training.starting_model.model_arguments import ConfigArguments

# First option of each subject of a model or of training; the options declared after it belong to it too. Any other
# dataclass is one subject, named by the first sentence of its docstring.
FIRST_OPTIONS = {
    "num_iterations": "Feedback loop",
    "feedback_type": "Feedback messages",
    "feedback_span": "Long texts",
    "halting": "Halting in evaluation",
    "iteration_loss": "Loss and gradient of the iterations",
    "head": "Task head",
    "freeze": "Freezing and learning rates",
    "train_iterations": "Number of iterations in training",
}
TRAINING = "Training"
# The options of transformers that most runs set.
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
OTHERS = "Other options of transformers' TrainingArguments"


def subjects_of(options: type) -> dict[str, str]:
    """Returns the subject of each option of a dataclass, in the order in which help shows them.

    Args:
        options: the dataclass.

    Example:

    ```python
    >>> from hf_feedback.training.starting_model.model_arguments import HaltingArguments
    >>> subjects_of(HaltingArguments)["halting_patience"]
    'Halting in evaluation'

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
