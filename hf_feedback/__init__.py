"""Top-down feedback for pretrained transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .backbone_layout import UnsupportedBackboneError
from .configuration_feedback import FeedbackConfig
from .configuration_fnn import FNNConfig
from .modeling_base import FeedbackPreTrainedModel
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
    load_feedback,
)
from .modeling_fnn import FNNForSequenceClassification, FNNModel
from .modeling_outputs import FeedbackModelOutput, FeedbackQuestionAnsweringOutput, FeedbackTaskOutput
from .version import HF_FEEDBACK_VERSION as __version__

AutoConfig.register(FeedbackConfig.model_type, FeedbackConfig, exist_ok=True)
FeedbackConfig.register_for_auto_class()
_MODELS: tuple[type[FeedbackPreTrainedModel], ...] = (FeedbackModel, *HEADS)
for model_class in _MODELS:
    auto_class = model_class.traits.auto_class or AutoModel
    auto_class.register(FeedbackConfig, model_class, exist_ok=True)
    model_class.register_for_auto_class(auto_class.__name__)

AutoConfig.register(FNNConfig.model_type, FNNConfig, exist_ok=True)
FNNConfig.register_for_auto_class()
AutoModel.register(FNNConfig, FNNModel, exist_ok=True)
FNNModel.register_for_auto_class("AutoModel")
AutoModelForSequenceClassification.register(FNNConfig, FNNForSequenceClassification, exist_ok=True)
FNNForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "FNNConfig",
    "FNNForSequenceClassification",
    "FNNModel",
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
