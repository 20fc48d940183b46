"""The feedback models: the plain one and its heads."""

from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput, can_return_tuple

from .class_predictors import AudioPredictor, ChoicePredictor, ImagePredictor, TagPredictor, TextPredictor
from .configuration_feedback import FeedbackConfig
from .forward_context import ForwardContext, token_mask, tokens_of
from .generation import FeedbackGenerativeModel
from .masked_lm_head import MaskedLMHead
from .modeling_base import FeedbackPreTrainedModel, classifier_dropout
from .modeling_outputs import (
    BackboneOutput,
    FeedbackCausalLMOutput,
    FeedbackModelOutput,
    FeedbackQuestionAnsweringOutput,
    FeedbackTaskOutput,
)
from .next_tokens import NextTokens
from .passage_predictors import ContinuationPredictor, MaskPredictor, SpanPredictor
from .segments import Segments
from .stacked_linear import on_device_of
from .task_traits import TaskTraits
from .token_classification_pipeline import FeedbackTokenClassificationPipeline
from .validation import Keywords


class FeedbackModel(FeedbackPreTrainedModel):
    """A backbone with feedback, without a head: `(B, T)` token ids → `(B, T, d)` hidden states after K iterations.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackModel
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackModel.from_backbone(BertModel(tiny), num_iterations=3)
    >>> model(torch.tensor([[5, 6, 7]])).last_hidden_state.shape
    torch.Size([1, 3, 32])

    ```
    """

    traits = TaskTraits(may_read_later_tokens=False)

    def _make_head(self, config: FeedbackConfig) -> None:
        pass

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
            input_ids, attention_mask, token_type_ids, position_ids: `(B, T)`.
            inputs_embeds: `(B, T, d)`, instead of `input_ids`.
            past_key_values: refused; named here so that prefix-tuning, which passes it, gets the refusal.
            num_iterations: K for this call; the config's by default.
            output_iterations: also return `residuals` and `iterations`.
            output_hidden_states, output_attentions: also return those of the last iteration.
            **kwargs: further inputs of the backbone.
        """
        context, result = self._run(
            dict(
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
            num_iterations,
            keep_trace=output_iterations,
        )
        fields = {**self._collected(context, result), **result.statistics()}
        return FeedbackModelOutput(last_hidden_state=result.output.last_hidden_state, **fields)


class FeedbackTextModel(FeedbackPreTrainedModel):
    """A task model that reads token ids and answers with one tensor of logits."""

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
        iteration_targets: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FeedbackTaskOutput:
        """Runs K iterations and answers.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: `(B, T)`; in `FeedbackForMultipleChoice` with a
                dimension for the choices after the first.
            inputs_embeds: `(B, T, d)`, instead of `input_ids`.
            labels: targets, shape as in the class docstring.
            past_key_values: refused; named here so that prefix-tuning, which passes it, gets the refusal.
            num_iterations: K for this call; the config's by default.
            output_iterations: also return `iteration_logits`, `residuals` and `iterations`. Where layers follow those
                that loop, these run for every iteration; with a decoder's own head, everything does.
            output_hidden_states, output_attentions: also return those of the last iteration.
            iteration_targets: class numbers that iterations 1 … J answer in training, instead of the labels: their
                shape with a dimension J after the first, −100 where there is none. For `iteration_loss="uniform"` or
                `"linear"`.
            **kwargs: further inputs of the backbone.
        """
        return cast(
            FeedbackTaskOutput,
            self._forward(
                labels,
                num_iterations,
                output_iterations,
                iteration_targets,
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


class FeedbackForSequenceClassification(FeedbackTextModel):
    """A backbone with feedback and a classifier (or, with one label, a regressor) over the whole text.

    With `head="new"`, `model.classifier` reads the pooled last hidden state; with `head="backbone"`, the backbone is
    the family's own `…ForSequenceClassification` and its head answers.

    Shapes:
        labels: `(B,)` class numbers, `(B,)` or `(B, num_labels)` targets for regression, `(B, num_labels)` zeros and
            ones for several labels at once; logits: `(B, num_labels)`. With `feedback_span="segment"` texts may be
            longer than the backbone reads; states and attentions are then those of the N segments, `(N, T, d)`.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=3)
    >>> output = model(torch.tensor([[5, 6, 7]]), output_iterations=True)
    >>> output.logits.shape, len(output.iteration_logits)
    (torch.Size([1, 3]), 2)

    ```
    """

    traits = TaskTraits(AutoModelForSequenceClassification, answers_once=True, takes_segments=True)
    predictor = TextPredictor


class FeedbackForTokenClassification(FeedbackTextModel):
    """A backbone with feedback and a classifier over every token.

    The label of a word stands at its `config.label_piece`. Where that is the last, `pipeline("token-classification",
    folder, trust_remote_code=True)` reads it there; without remote code, or with a model instead of a folder, pass
    `pipeline_class=FeedbackForTokenClassification.pipeline_class`.

    Shapes:
        labels: `(B, T)` class numbers, −100 where there is none; logits: `(B, T, num_labels)`. With
            `feedback_span="segment"` they are still those of the text: if several segments hold a token,
            the copy with the most context on both sides counts. Padding has logits of 0 then.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForTokenClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForTokenClassification.from_backbone(BertModel(tiny), num_labels=5)
    >>> model(torch.tensor([[5, 6, 7]])).logits.shape
    torch.Size([1, 3, 5])

    ```
    """

    traits = TaskTraits(AutoModelForTokenClassification, takes_segments=True, labels_words=True)
    predictor = TagPredictor
    pipeline_class: ClassVar[type[FeedbackTokenClassificationPipeline]] = FeedbackTokenClassificationPipeline

    def _new_head_logits(self, hidden: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        return self.classifier(self.dropout(on_device_of(self.classifier, hidden)))

    def _join_segments(self, logits: torch.Tensor, outputs: BackboneOutput, context: ForwardContext) -> torch.Tensor:
        return cast(Segments, context.segments).per_token(logits)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss_function(logits, labels, self.config)


class FeedbackForQuestionAnswering(FeedbackPreTrainedModel):
    """A backbone with feedback and a head that finds the answer to a question in a text: its first and last token.

    Shapes:
        start_positions, end_positions: `(B,)`; start_logits, end_logits: `(B, T)`. With `feedback_span="segment"` they
            are still those of the text, so that all its segments compete for the answer; if several segments hold a
            token, the copy with the most context on both sides counts. Padding cannot be an answer then.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForQuestionAnswering
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForQuestionAnswering.from_backbone(BertModel(tiny))
    >>> model(torch.tensor([[5, 6, 7]])).start_logits.shape
    torch.Size([1, 3])

    ```
    """

    traits = TaskTraits(
        AutoModelForQuestionAnswering, predicts_config_labels=False, num_backbone_head_outputs=2, takes_segments=True
    )
    predictor = SpanPredictor

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
            num_iterations: K for this call; the config's by default.
            output_iterations: also return the answers of every iteration, `residuals` and `iterations`.
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, output_hidden_states,
                output_attentions, **kwargs: as in `FeedbackForSequenceClassification`.
        """
        labels = None if start_positions is None or end_positions is None else (start_positions, end_positions)
        return cast(
            FeedbackQuestionAnsweringOutput,
            self._forward(
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

    def _new_head_logits(self, hidden: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """`(B, T, 2)`: start and end."""
        return self.qa_outputs(on_device_of(self.qa_outputs, hidden))

    def _backbone_head_logits(self, outputs: BackboneOutput) -> torch.Tensor:
        return torch.stack((outputs.start_logits, outputs.end_logits), -1)

    def _join_segments(self, logits: torch.Tensor, outputs: BackboneOutput, context: ForwardContext) -> torch.Tensor:
        return cast(Segments, context.segments).per_token(logits, torch.finfo(logits.dtype).min)

    def _loss(self, logits: torch.Tensor, labels: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.loss_function(*logits.unbind(-1), *labels)

    def _make_output(self, logits: torch.Tensor, fields: Keywords) -> ModelOutput:
        start, end = (part.contiguous() for part in logits.unbind(-1))
        return FeedbackQuestionAnsweringOutput(start_logits=start, end_logits=end, **fields)


class FeedbackForMultipleChoice(FeedbackTextModel):
    """A backbone with feedback and a head that chooses one of C texts.

    Shapes:
        inputs: `(B, C, T)`; labels: `(B,)` numbers of the right choices; logits: `(B, C)`; states, residuals and
            iterations: every choice counts as one of B·C texts.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForMultipleChoice
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForMultipleChoice.from_backbone(BertModel(tiny))
    >>> model(torch.tensor([[[5, 6, 7], [5, 8, 9]]])).logits.shape
    torch.Size([1, 2])

    ```
    """

    traits = TaskTraits(AutoModelForMultipleChoice, predicts_config_labels=False)
    predictor = ChoicePredictor

    def _make_head(self, config: FeedbackConfig) -> None:
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)

    def _flatten_choices(self, inputs: Keywords) -> tuple[Keywords, int | None]:
        for name, dimensions in (("input_ids", 3), ("inputs_embeds", 4)):
            tensor = inputs.get(name)
            if tensor is not None and tensor.dim() != dimensions:
                raise ValueError(
                    f"`{name}` must have a dimension for the choices after the first, (batch, choices, tokens"
                    f"{', width' * (dimensions - 3)}), got {tuple(tensor.shape)}."
                )
        text = tokens_of(inputs)
        if self.config.head == "new":  # the backbone's own head does this itself
            inputs = {k: v.flatten(0, 1) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        return inputs, text.shape[1]

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss_function = vars(self).get("_loss_function", F.cross_entropy)  # unless another one was set
        return loss_function(logits, labels.to(logits.device))


class FeedbackForMaskedLM(FeedbackTextModel):
    """A backbone with feedback and a masked-language-model head: the backbone's own, its tied embeddings kept.

    If the family has no such head, a new one is made that is tied to the input embeddings (`config.head == "new"`); if
    only its weights are missing, they are new. Either gives a warning: such a head must be trained.

    Shapes:
        labels: `(B, T)` token ids, −100 where nothing is to be predicted; logits: `(B, T, V)`.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertForMaskedLM
    >>> from hf_feedback import FeedbackForMaskedLM
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForMaskedLM.from_backbone(BertForMaskedLM(tiny))
    >>> model(torch.tensor([[5, 6, 7]])).logits.shape
    torch.Size([1, 3, 99])

    ```
    """

    traits = TaskTraits(AutoModelForMaskedLM, predicts_config_labels=False, prefers_backbone_head=True)
    predictor = MaskPredictor

    def _make_head(self, config: FeedbackConfig) -> None:
        embeddings = cast(nn.Embedding, self.get_input_embeddings())
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self.lm_head = MaskedLMHead(config.hidden_size, embeddings)
        self._tied_weights_keys = {**(self._tied_weights_keys or {}), "lm_head.decoder.weight": f"{name}.weight"}
        config.__dict__.setdefault("tie_word_embeddings", True)  # unless they were untied since

    def init_parallel_plans(self) -> None:
        """As in transformers; a new head is cut by rows if the input embeddings are, to which it is tied."""
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

    def _new_head_logits(self, hidden: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        return self.lm_head(hidden)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss_function(logits, labels, vocab_size=logits.shape[-1])


class FeedbackForCausalLM(FeedbackGenerativeModel):
    """A decoder with feedback and its own language-model head, tied embeddings kept: predicts the next token.

    Messages never inform a token about later ones. `generate` takes K iterations for every token, with a cache that has
    slots for each of them; its result is that of the whole text read at once. With `feedback_shift=1` the state of a
    token is carried to the next one, and `generate` takes one pass a token, as does `forward` with `use_cache=True`.
    With `halting` each token stops by itself: in the iterations that it does not take, it keeps the hidden states, keys
    and values of its last one.

    Shapes:
        labels: `(B, T)` token ids, the inputs themselves (they are shifted here), −100 where nothing is to be
            predicted; logits: `(B, T, V)`.

    Example:

    ```python
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from hf_feedback import FeedbackForCausalLM
    >>> tiny = LlamaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, eos_token_id=None)
    >>> model = FeedbackForCausalLM.from_backbone(LlamaForCausalLM(tiny), num_iterations=3)
    >>> prompt = torch.tensor([[5, 6, 7]])
    >>> model.generate(prompt, max_new_tokens=4, do_sample=False).shape
    torch.Size([1, 7])
    >>> model(prompt, labels=prompt).loss.shape
    torch.Size([])

    ```
    """

    accepts_loss_kwargs = True
    traits = TaskTraits(
        AutoModelForCausalLM, predicts_config_labels=False, may_read_later_tokens=False, predicts_next_token=True
    )
    predictor = ContinuationPredictor

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_iterations: int | None = None,
        output_iterations: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FeedbackCausalLMOutput:
        """Runs K iterations and predicts the next tokens.

        Args:
            input_ids, token_type_ids, position_ids: `(B, T)`, of the tokens that are not in the cache.
            attention_mask: `(B, past + T)`, 0 at padding.
            inputs_embeds: `(B, T, d)`, instead of `input_ids`.
            labels: `(B, T)`, see the class docstring.
            padding_mask: `(B, past + T)`, 0 at padding, if `attention_mask` has another shape, as for a static cache.
            past_key_values: a cache of transformers, in which every iteration gets slots of its own.
            use_cache: return a cache; by default only if one is given, unlike transformers: training needs none, and
                `generate` gives one.
            logits_to_keep: number of last tokens to predict from, or their places; 0: all.
            num_iterations: K for this call; the config's by default.
            output_iterations: also return `iteration_logits`, `residuals` and `iterations`; not with a cache.
            output_hidden_states, output_attentions: also return those of the last iteration.
            num_items_in_batch: the number of labels that the loss is divided by; those of this batch by default.
            **kwargs: further inputs of the backbone.
        """
        output = cast(
            FeedbackCausalLMOutput,
            self._forward(
                None if labels is None else NextTokens(labels, num_items_in_batch),
                num_iterations,
                output_iterations,
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                padding_mask=padding_mask,
                past_key_values=past_key_values,
                use_cache=past_key_values is not None if use_cache is None else use_cache,
                logits_to_keep=logits_to_keep,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                **kwargs,
            ),
        )
        if "logits_to_keep" not in self.layout.arguments and output.logits is not None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            output.logits = output.logits[:, kept]
            if output.iteration_logits is not None:
                output.iteration_logits = tuple(logits[:, kept] for logits in output.iteration_logits)
        return output

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_output_embeddings(value)

    def _batch_weight(self, labels: NextTokens) -> float | torch.Tensor:
        return labels.batch_weight

    def _loss(self, logits: torch.Tensor, labels: NextTokens) -> torch.Tensor:
        return self.loss_function(
            logits, labels.token_ids, vocab_size=logits.shape[-1], num_items_in_batch=labels.num_items_in_batch
        )

    def _make_output(self, logits: torch.Tensor, fields: Keywords) -> ModelOutput:
        return FeedbackCausalLMOutput(logits=logits, **fields)


class FeedbackForImageClassification(FeedbackPreTrainedModel):
    """A vision backbone with feedback and a classifier over the whole image.

    Shapes:
        labels: as in `FeedbackForSequenceClassification`; logits: `(B, num_labels)`.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig, ViTModel
    >>> from hf_feedback import FeedbackForImageClassification
    >>> tiny = ViTConfig(image_size=32, patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForImageClassification.from_backbone(ViTModel(tiny), num_labels=3)
    >>> model(torch.zeros(1, 3, 32, 32)).logits.shape
    torch.Size([1, 3])

    ```
    """

    traits = TaskTraits(AutoModelForImageClassification, answers_once=True)
    predictor = ImagePredictor

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
            labels, num_iterations, output_iterations, output_hidden_states, output_attentions, **kwargs: as in
                `FeedbackForSequenceClassification`.
        """
        return cast(
            FeedbackTaskOutput,
            self._forward(
                labels,
                num_iterations,
                output_iterations,
                pixel_values=pixel_values,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                **kwargs,
            ),
        )


class FeedbackForAudioClassification(FeedbackPreTrainedModel):
    """An audio backbone with feedback and a classifier over the whole recording (`pooling="auto"`: the mean).

    Shapes:
        labels: as in `FeedbackForSequenceClassification`; logits: `(B, num_labels)`.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ASTConfig, ASTModel
    >>> from hf_feedback import FeedbackForAudioClassification
    >>> tiny = ASTConfig(max_length=32, num_mel_bins=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForAudioClassification.from_backbone(ASTModel(tiny), num_labels=3)
    >>> model(torch.zeros(1, 32, 16)).logits.shape
    torch.Size([1, 3])

    ```
    """

    traits = TaskTraits(AutoModelForAudioClassification, answers_once=True, auto_pooling="mean")
    predictor = AudioPredictor

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
            input_values: `(B, samples)` waves.
            input_features: `(B, bins, frames)` spectra, if the backbone reads these instead.
            attention_mask: `(B, samples)` or `(B, frames)`.
            labels, num_iterations, output_iterations, output_hidden_states, output_attentions, **kwargs: as in
                `FeedbackForSequenceClassification`.
        """
        return cast(
            FeedbackTaskOutput,
            self._forward(
                labels,
                num_iterations,
                output_iterations,
                input_values=input_values,
                input_features=input_features,
                attention_mask=attention_mask,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                **kwargs,
            ),
        )

    def _pooling_mask(self, hidden: torch.Tensor, context: ForwardContext) -> torch.Tensor | None:
        mask = context.attention_mask
        return None if mask is None else token_mask(self.backbone, mask, hidden.shape[1])


HEADS: tuple[type[FeedbackPreTrainedModel], ...] = (
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
    FeedbackForQuestionAnswering,
    FeedbackForMultipleChoice,
    FeedbackForMaskedLM,
    FeedbackForCausalLM,
    FeedbackForImageClassification,
    FeedbackForAudioClassification,
)
