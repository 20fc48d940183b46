"""Top-down feedback for pretrained transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .backbones import UnsupportedBackboneError
from .configuration_feedback import HF_FEEDBACK_VERSION as __version__
from .configuration_feedback import FeedbackConfig
from .modeling_feedback import FeedbackForSequenceClassification, FeedbackModel, add_feedback
from .modeling_outputs import FeedbackModelOutput, FeedbackSequenceClassifierOutput

AutoConfig.register(FeedbackConfig.model_type, FeedbackConfig, exist_ok=True)
FeedbackConfig.register_for_auto_class()
for auto_class, model_class in (
    (AutoModel, FeedbackModel),
    (AutoModelForSequenceClassification, FeedbackForSequenceClassification),
):
    auto_class.register(FeedbackConfig, model_class, exist_ok=True)
    model_class.register_for_auto_class(auto_class.__name__)

__all__ = [
    "FeedbackConfig",
    "FeedbackForSequenceClassification",
    "FeedbackModel",
    "FeedbackModelOutput",
    "FeedbackSequenceClassifierOutput",
    "UnsupportedBackboneError",
    "__version__",
    "add_feedback",
]
