"""The tasks that models are trained for, one module each."""

from ..data.splits import FileArguments
from .audio_classification import AudioClassification
from .causal_lm import CausalLM
from .image_classification import ImageClassification
from .masked_lm import MaskedLM
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .task import PreparedTask, Task
from .text_classification import NetworkTextClassification, TextClassification
from .token_classification import TokenClassification

__all__ = [
    "TASKS",
    "TASK_NAMES",
    "AudioClassification",
    "CausalLM",
    "ImageClassification",
    "MaskedLM",
    "MultipleChoice",
    "NetworkTextClassification",
    "PreparedTask",
    "QuestionAnswering",
    "Task",
    "TextClassification",
    "TokenClassification",
]

TASKS: dict[str, type[Task[FileArguments]]] = {
    task.model_class.__name__: task
    for task in (
        TextClassification,
        NetworkTextClassification,
        TokenClassification,
        QuestionAnswering,
        MultipleChoice,
        MaskedLM,
        CausalLM,
        ImageClassification,
        AudioClassification,
    )
}
"""The task of each class of models, by name."""

TASK_NAMES: dict[str, type[Task[FileArguments]]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "multiple-choice": MultipleChoice,
    "masked-lm": MaskedLM,
    "causal-lm": CausalLM,
    "image-classification": ImageClassification,
    "audio-classification": AudioClassification,
}
"""The tasks by the names of options."""
