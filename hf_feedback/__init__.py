"""Top-down feedback for pretrained transformers."""

from transformers import AutoConfig, AutoModel

from .backbones import UnsupportedBackboneError
from .configuration_feedback import HF_FEEDBACK_VERSION as __version__
from .configuration_feedback import FeedbackConfig
from .loading import LoadableFeedbackModel, load_feedback
from .modeling_feedback import (
    HEADS,
    FeedbackForAudioClassification,
    FeedbackForImageClassification,
    FeedbackForMaskedLM,
    FeedbackForMultipleChoice,
    FeedbackForQuestionAnswering,
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
    FeedbackModel,
    add_feedback,
)
from .modeling_outputs import FeedbackModelOutput, FeedbackQuestionAnsweringOutput, FeedbackTaskOutput

AutoConfig.register(FeedbackConfig.model_type, FeedbackConfig, exist_ok=True)
FeedbackConfig.register_for_auto_class()
_MODELS: tuple[type[LoadableFeedbackModel], ...] = (FeedbackModel, *HEADS)
for model_class in _MODELS:
    auto_class = model_class._backbone_task_class or AutoModel
    auto_class.register(FeedbackConfig, model_class, exist_ok=True)
    model_class.register_for_auto_class(auto_class.__name__)

__all__ = [
    "FeedbackConfig",
    "FeedbackForAudioClassification",
    "FeedbackForImageClassification",
    "FeedbackForMaskedLM",
    "FeedbackForMultipleChoice",
    "FeedbackForQuestionAnswering",
    "FeedbackForSequenceClassification",
    "FeedbackForTokenClassification",
    "FeedbackModel",
    "FeedbackModelOutput",
    "FeedbackQuestionAnsweringOutput",
    "FeedbackTaskOutput",
    "UnsupportedBackboneError",
    "__version__",
    "add_feedback",
    "load_feedback",
]
