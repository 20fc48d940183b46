"""What follows from the task of a class of models."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .configuration_feedback import HeadOption
from .pooling import Pooling

if TYPE_CHECKING:
    from .modeling_base import FeedbackPreTrainedModel

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class TaskTraits:
    """Properties of a class of feedback models that follow from its task.

    Args:
        auto_class: the Auto class of transformers' models for the task; `None` for a class without a head.
        predicts_config_labels: whether the head predicts the labels that the config names (`num_labels`, `id2label`),
            not choices, tokens or their positions.
        num_backbone_head_outputs: `num_labels` of the backbone's own head, where that does not depend on the data.
        answers_once: whether the output is `(B, num_labels)`, one prediction per row of the batch.
        takes_segments: whether it predicts for a text that is cut into segments, or for its tokens.
        may_read_later_tokens: whether what it returns of a token may depend on later tokens, since it predicts for a
            complete text or its tokens.
        labels_words: whether the labels are those of words, at one of their pieces.
        prefers_backbone_head: whether the backbone's own head is used where its family has one.
        predicts_next_token: whether each token is predicted only from those before it, so that text can be generated;
            the head is always the backbone's own.
        auto_pooling: the pooling of `"auto"` for bidirectional backbones.
    """

    auto_class: Any = None
    predicts_config_labels: bool = True
    num_backbone_head_outputs: int | None = None
    answers_once: bool = False
    takes_segments: bool = False
    may_read_later_tokens: bool = True
    labels_words: bool = False
    prefers_backbone_head: bool = False
    predicts_next_token: bool = False
    auto_pooling: Pooling = "cls"

    def task_models(self, config: PreTrainedConfig) -> tuple[type[PreTrainedModel], ...]:
        """The classes of transformers of that family with a head for this task; usually one, possibly none."""
        mapping = {} if self.auto_class is None else self.auto_class._model_mapping
        classes = mapping.get(type(config), ())
        return classes if isinstance(classes, tuple) else (classes,)

    def is_task_model(self, backbone: PreTrainedModel | PreTrainedConfig) -> bool:
        """Whether it has a head for this task; for a config, whether its family has one."""
        if isinstance(backbone, PreTrainedConfig):
            return bool(self.task_models(backbone))
        return type(backbone) in self.task_models(backbone.config)

    def has_trained_head(self, config: PreTrainedConfig) -> bool:
        """Whether the folder of this config holds a transformers model that was trained for this task."""
        return any(one.__name__ in (config.architectures or ()) for one in self.task_models(config))

    def choose_head(self, head: HeadOption, backbone: PreTrainedModel | PreTrainedConfig) -> HeadOption:
        """The value of `config.head` for a backbone, or a backbone to be loaded by its config."""
        if self.predicts_next_token:
            self._check_has_lm_head(backbone)
            return "backbone"
        if not self.prefers_backbone_head:
            return head
        if self.is_task_model(backbone):
            return "backbone"
        logger.warning(
            f"{type(backbone).__name__} has no masked-LM head: a new one is made, tied to the input embeddings. It "
            "is not trained; train it."
        )
        return "new"

    def _check_has_lm_head(self, backbone: PreTrainedModel | PreTrainedConfig) -> None:
        if self.is_task_model(backbone):
            return
        models = [] if isinstance(backbone, PreTrainedConfig) else self.task_models(backbone.config)
        instead = models[0].__name__ if models else "a causal language model, such as LlamaForCausalLM"
        raise ValueError(
            f"FeedbackForCausalLM predicts with the backbone's own LM head, and {type(backbone).__name__} has none; "
            f"pass {instead}, or use FeedbackModel for the hidden states alone."
        )


def check_task_model(model_class: "type[FeedbackPreTrainedModel]", model: PreTrainedModel) -> None:
    """Raises `ValueError` where a model has no head for the task of a class."""
    if not model_class.traits.is_task_model(model):
        raise ValueError(
            f"`head='backbone'` of {model_class.__name__} takes a transformers model that has its task head, got "
            f"{type(model).__name__}; use `head='new'`."
        )
