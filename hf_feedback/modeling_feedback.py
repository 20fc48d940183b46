"""The feedback models: the plain one and its heads."""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import can_return_tuple, logging

from .configuration_feedback import FeedbackConfig, HeadOption
from .loading import LoadableFeedbackModel
from .maps import on_device_of
from .modeling_loop import Call
from .modeling_outputs import FeedbackModelOutput, FeedbackQuestionAnsweringOutput, FeedbackTaskOutput
from .modeling_task import FeedbackTaskModel, FeedbackTextModel, PooledHead, classifier_dropout

logger = logging.get_logger(__name__)


class FeedbackModel(LoadableFeedbackModel):
    """A backbone with feedback, without a head: `(B, T)` token ids → `(B, T, d)` hidden states after K iterations."""

    _answers_texts = False

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
        outputs, trace, call = self._run(
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
        fields: dict[str, Any] = {**self._collected(outputs, call), "iterations": call.iterations}
        fields |= trace.fields() if trace else {}
        return FeedbackModelOutput(last_hidden_state=outputs.last_hidden_state, **fields)


class FeedbackForSequenceClassification(PooledHead, FeedbackTextModel):
    """A backbone with feedback and a classifier (or, with one label, a regressor) over the whole text.

    With `head="new"`, `model.classifier` reads the pooled last hidden state; with `head="backbone"`, the backbone is
    the family's own `…ForSequenceClassification` and its head answers.

    Shapes:
        labels: `(B,)` class numbers, `(B,)` or `(B, num_labels)` targets for regression, `(B, num_labels)` zeros and
            ones for several labels at once; logits: `(B, num_labels)`. With `feedback_span="segment"` texts may be
            longer than the backbone reads; states and attentions are then those of the N segments, `(N, T, d)`.
    """

    _backbone_task_class = AutoModelForSequenceClassification
    _answers_segments = True


class FeedbackForTokenClassification(FeedbackTextModel):
    """A backbone with feedback and a classifier over every token.

    Shapes:
        labels: `(B, T)` class numbers, −100 where there is none; logits: `(B, T, num_labels)`.
    """

    _backbone_task_class = AutoModelForTokenClassification

    def _make_head(self, config: FeedbackConfig) -> None:
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or {}))

    def _head(self, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        return self.classifier(self.dropout(on_device_of(self.classifier, hidden)))

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss_function(logits, labels, self.config)


class FeedbackForQuestionAnswering(FeedbackTaskModel):
    """A backbone with feedback and a head that finds the answer to a question in a text: where it starts and ends."""

    _backbone_task_class = AutoModelForQuestionAnswering
    _labelled = False
    _num_outputs_of_own_head = 2

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        past_key_values: Any = None,
        num_iterations: int | None = None,
        output_iterations: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> FeedbackQuestionAnsweringOutput:
        """Runs K iterations and answers.

        Args:
            start_positions, end_positions: `(B,)`, the tokens where the answer starts and ends; those outside the text
                are left out of the loss.
            (the others): as in `FeedbackTextModel.forward`.
        """
        labels = None if start_positions is None or end_positions is None else (start_positions, end_positions)
        return cast(
            FeedbackQuestionAnsweringOutput,
            self._answer(
                labels,
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
            ),
        )

    def _make_head(self, config: FeedbackConfig) -> None:
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def _head(self, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        return self.qa_outputs(on_device_of(self.qa_outputs, hidden))

    def _logits(self, outputs: Any, call: Call) -> torch.Tensor:
        """`(B, T, 2)`: start and end."""
        if self.config.head == "backbone":
            return torch.stack((outputs.start_logits, outputs.end_logits), -1)
        return super()._logits(outputs, call)

    def _loss(self, logits: torch.Tensor, labels: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.loss_function(*logits.unbind(-1), *labels)

    def _output(self, logits: torch.Tensor, **fields: Any) -> FeedbackQuestionAnsweringOutput:
        start, end = (part.contiguous() for part in logits.unbind(-1))
        return FeedbackQuestionAnsweringOutput(start_logits=start, end_logits=end, **fields)


class FeedbackForMultipleChoice(PooledHead, FeedbackTextModel):
    """A backbone with feedback and a head that chooses one of C texts.

    Shapes:
        inputs: `(B, C, T)`; labels: `(B,)` numbers of the right choices; logits: `(B, C)`; states, residuals and
            iterations: every choice counts as one of B·C texts.
    """

    _backbone_task_class = AutoModelForMultipleChoice
    _labelled = False
    _answers_once = False

    def _num_outputs(self, config: FeedbackConfig) -> int:
        return 1

    def _call(self, tensors: dict[str, Any]) -> Call:
        text = tensors["inputs_embeds"] if tensors.get("input_ids") is None else tensors["input_ids"]
        if self.config.head == "new":  # the backbone's own head does this itself
            tensors = {k: v.flatten(0, 1) if isinstance(v, torch.Tensor) else v for k, v in tensors.items()}
        call = super()._call(tensors)
        call.choices = text.shape[1]
        return call

    def _head(self, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        return super()._head(hidden, call).view(-1, cast(int, call.choices))

    def _answer(
        self, labels: Any, num_iterations: int | None, output_iterations: bool, /, **inputs: Any
    ) -> FeedbackTaskOutput:
        for name, dimensions in (("input_ids", 3), ("inputs_embeds", 4)):
            given = inputs[name]
            if given is not None and given.dim() != dimensions:
                raise ValueError(
                    f"`{name}` must have a dimension for the choices after the first, (batch, choices, tokens"
                    f"{', width' * (dimensions - 3)}), got {tuple(given.shape)}."
                )
        return super()._answer(labels, num_iterations, output_iterations, **inputs)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels.to(logits.device))


class MaskedLMHead(nn.Module):
    """`decoder(LayerNorm(gelu(dense(h))))`; the decoder's weight is that of the input embeddings.

    Shapes:
        `(B, T, d)` → `(B, T, V)`.
    """

    def __init__(self, hidden_size: int, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, embeddings.embedding_dim)
        self.norm = nn.LayerNorm(embeddings.embedding_dim)
        self.decoder = nn.Linear(embeddings.embedding_dim, embeddings.num_embeddings)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(on_device_of(self.dense, hidden)))))


class FeedbackForMaskedLM(FeedbackTextModel):
    """A backbone with feedback and a masked-language-model head: the backbone's own, its tied embeddings kept.

    Where the family has no such head, a new one is made that is tied to the input embeddings (`config.head == "new"`);
    where only its weights are missing, they are new. Either is said in a warning: such a head must be trained.

    Shapes:
        labels: `(B, T)` token ids, −100 where nothing is to be predicted; logits: `(B, T, V)`.
    """

    _backbone_task_class = AutoModelForMaskedLM
    _labelled = False

    @classmethod
    def _choose_head(cls, head: HeadOption, backbone: PreTrainedModel | PreTrainedConfig) -> HeadOption:
        if cls._is_task_model(backbone):
            return "backbone"
        logger.warning(
            f"{type(backbone).__name__} has no masked-LM head: a new one is made, tied to the input embeddings. It "
            "knows nothing yet; train it."
        )
        return "new"

    def _make_head(self, config: FeedbackConfig) -> None:
        embeddings = cast(nn.Embedding, self.get_input_embeddings())
        place = next(name for name, module in self.named_modules() if module is embeddings)
        self.lm_head = MaskedLMHead(config.hidden_size, embeddings)
        self._tied_weights_keys = {**(self._tied_weights_keys or {}), "lm_head.decoder.weight": f"{place}.weight"}
        config.__dict__.setdefault("tie_word_embeddings", True)  # unless they were untied since

    def init_parallel_plans(self) -> None:
        """As in transformers; a new head is cut by rows where the input embeddings are that it is tied to."""
        super().init_parallel_plans()
        plan, tied = cast(dict[str, str], self._tp_plan), (self._tied_weights_keys or {}).get("lm_head.decoder.weight")
        if self.config.head == "new" and plan.get(str(tied).removesuffix(".weight")) == "embedding_rowwise":
            plan["lm_head.decoder"] = "colwise_gather_output"

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head.decoder if self.config.head == "new" else self.backbone.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        if self.config.head == "new":
            self.lm_head.decoder = value
        else:
            self.backbone.set_output_embeddings(value)

    def _head(self, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        return self.lm_head(hidden)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss_function(logits, labels, vocab_size=logits.shape[-1])


class FeedbackForImageClassification(PooledHead):
    """A vision backbone with feedback and a classifier over the whole image.

    Shapes:
        labels: as in `FeedbackForSequenceClassification`; logits: `(B, num_labels)`.
    """

    _backbone_task_class = AutoModelForImageClassification

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_iterations: int | None = None,
        output_iterations: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> FeedbackTaskOutput:
        """Runs K iterations and answers.

        Args:
            pixel_values: `(B, channels, height, width)`.
            (the others): as in `FeedbackTextModel.forward`.
        """
        return self._answer(
            labels,
            num_iterations,
            output_iterations,
            pixel_values=pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )


class FeedbackForAudioClassification(PooledHead):
    """An audio backbone with feedback and a classifier over the whole recording (`pooling="auto"`: the mean).

    Shapes:
        labels: as in `FeedbackForSequenceClassification`; logits: `(B, num_labels)`.
    """

    _backbone_task_class = AutoModelForAudioClassification
    _auto_pooling = "mean"

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_iterations: int | None = None,
        output_iterations: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> FeedbackTaskOutput:
        """Runs K iterations and answers.

        Args:
            input_values: `(B, samples)` waves, or input_features: `(B, bins, frames)` spectra, whichever the backbone
                reads; attention_mask: `(B, samples)` or `(B, frames)`.
            (the others): as in `FeedbackTextModel.forward`.
        """
        return self._answer(
            labels,
            num_iterations,
            output_iterations,
            input_values=input_values,
            input_features=input_features,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )

    def _mask(self, hidden: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor | None:
        mask = inputs.get("attention_mask")
        return None if mask is None else self._real_tokens(mask, hidden.shape[1])


HEADS: tuple[type[FeedbackTaskModel], ...] = (
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
    FeedbackForQuestionAnswering,
    FeedbackForMultipleChoice,
    FeedbackForMaskedLM,
    FeedbackForImageClassification,
    FeedbackForAudioClassification,
)


def add_feedback(task_model: PreTrainedModel, config: FeedbackConfig | None = None) -> FeedbackTaskModel:
    """Adds fresh feedback to a fine-tuned task model; its head is kept, and it answers exactly as before.

    Args:
        task_model: a transformers model for sequence, token, image or audio classification, question answering,
            multiple choice or masked language modelling; it is used as it is, not copied.
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
    for head in HEADS:
        if head._is_task_model(task_model):
            return head.from_backbone(task_model, head="backbone", **options)
    kinds = ", ".join(head.__name__.removeprefix("Feedback") for head in HEADS)
    raise ValueError(
        f"`task_model` must be a transformers model of one of the kinds {kinds}, got a {type(task_model).__name__}; "
        "a backbone without a head becomes a feedback model with `from_backbone`."
    )
