"""The feedback models: the plain one and its heads."""

from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import can_return_tuple

from .backbones import is_decoder
from .configuration_feedback import FeedbackConfig
from .loading import LoadableFeedbackModel
from .modeling_outputs import FeedbackModelOutput, FeedbackSequenceClassifierOutput
from .pooling import pool


class FeedbackModel(LoadableFeedbackModel):
    """A backbone with feedback, without a head: `(B, T)` token ids → `(B, T, d)` hidden states after K iterations."""

    def __init__(self, config: FeedbackConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Any = None,
        num_iterations: int | None = None,
        output_iterations: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> FeedbackModelOutput:
        """Runs K iterations.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: `(B, T)`; inputs_embeds: `(B, T, d)`.
            past_key_values: refused; named here so that prefix-tuning, which passes it, meets the refusal.
            num_iterations: K for this call; the config's by default.
            output_iterations: also return `residuals` and `iterations`.
            output_hidden_states, output_attentions: also return those of the last iteration.
            **kwargs: further inputs of the backbone.
        """
        outputs, trace, _ = self._run(
            num_iterations,
            output_iterations,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )
        return FeedbackModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            **(trace.fields() if trace else {}),
        )


class FeedbackForSequenceClassification(LoadableFeedbackModel):
    """A backbone with feedback and a classifier (or, with one label, a regressor) over the whole text.

    With `head="new"`, `model.classifier` reads the pooled last hidden state; with `head="backbone"`, the backbone is
    the family's own `…ForSequenceClassification` and its head answers.
    """

    _backbone_task_class = AutoModelForSequenceClassification

    def __init__(self, config: FeedbackConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self.num_labels = config.num_labels
        if config.head == "new":
            self.dropout = nn.Dropout(_classifier_dropout(config))
            self.classifier = nn.Linear(config.hidden_size, len(config.id2label or {}))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Any = None,
        num_iterations: int | None = None,
        output_iterations: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> FeedbackSequenceClassifierOutput:
        """Runs K iterations and classifies.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: `(B, T)`; inputs_embeds: `(B, T, d)`.
            labels: `(B,)` class numbers, `(B,)` or `(B, num_labels)` targets for regression, `(B, num_labels)` zeros
                and ones for several labels at once.
            past_key_values: refused; named here so that prefix-tuning, which passes it, meets the refusal.
            num_iterations: K for this call; the config's by default.
            output_iterations: also return `iteration_logits`, `residuals` and `iterations`. Each iteration but the
                last then costs one more pass through the backbone.
            output_hidden_states, output_attentions: also return those of the last iteration.
            **kwargs: further inputs of the backbone.
        """
        outputs, trace, inputs = self._run(
            num_iterations,
            output_iterations,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )
        logits = self._logits(outputs, input_ids, attention_mask)
        fields: dict[str, Any] = {}
        if trace:
            earlier = [self._run_from(inputs, state) for state in trace.ends[:-1]]
            fields.update(trace.fields())
            fields["iteration_logits"] = (*(self._logits(o, input_ids, attention_mask) for o in earlier), logits)
        return FeedbackSequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            **fields,
        )

    def _logits(self, outputs: Any, input_ids: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        """`(B, num_labels)` from the backbone's output."""
        if self.config.head == "backbone":
            return outputs.logits
        how = self.config.pooling
        if how == "auto":
            config = cast(PreTrainedConfig, self.config.backbone_config)
            how = "last" if is_decoder(config, self.config.backbone_part) else "cls"
        pad = self.config.pad_token_id
        if mask is None and how == "last" and input_ids is not None and pad is not None:
            mask = (input_ids != pad).int()
        hidden = outputs.last_hidden_state
        return self.classifier(self.dropout(pool(hidden, mask, how).to(self.classifier.weight.device)))

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        problem = self.config.problem_type
        if problem == "multi_label_classification" or self.config.num_labels == 1 or labels.is_floating_point():
            labels = labels.to(logits.dtype)
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)


def _classifier_dropout(config: FeedbackConfig) -> float:
    """The option, or the first that the backbone's config has of its own classifier, hidden or general dropout."""
    if config.classifier_dropout is not None:
        return config.classifier_dropout
    names = ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "dropout")
    values = (getattr(config.text_config, name, None) for name in names)
    return next((float(value) for value in values if value is not None), 0.0)


def add_feedback(
    task_model: PreTrainedModel, config: FeedbackConfig | None = None
) -> FeedbackForSequenceClassification:
    """Adds fresh feedback to a fine-tuned task model; its head is kept, and it answers exactly as before.

    Args:
        task_model: a transformers model for sequence classification; it is used as it is, not copied.
        config: the feedback options, without a `backbone_config`; the defaults of `FeedbackConfig` if left out.
            Labels are the task model's.

    Raises:
        ValueError: the model is not of a kind that can be wrapped, or an option contradicts it.
        UnsupportedBackboneError: the model cannot be looped exactly; says why.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> from hf_feedback import FeedbackConfig, add_feedback
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = add_feedback(BertForSequenceClassification(tiny), FeedbackConfig(num_iterations=3))
    >>> model.check_equivalence({"input_ids": torch.tensor([[5, 6, 7]])})
    0.0

    ```
    """
    if config is None:
        config = FeedbackConfig()
    if config.backbone_config is not None:
        raise ValueError(
            "`add_feedback` takes the feedback options alone; got a config with a `backbone_config`. Leave it out."
        )
    labels = ("id2label", "label2id", "problem_type", "head")
    options = {name: value for name, value in config.options().items() if name not in labels}
    return FeedbackForSequenceClassification.from_backbone(task_model, head="backbone", **options)
