"""What all heads share: from the K iterations to logits, their loss, and the answers of earlier iterations."""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import can_return_tuple, logging

from .backbones import is_decoder, unstack
from .configuration_feedback import FeedbackConfig
from .dynamics import IterationTrace
from .loading import LoadableFeedbackModel
from .maps import on_device_of
from .modeling_loop import Call
from .modeling_outputs import FeedbackTaskOutput
from .pooling import pool
from .segments import Segments

logger = logging.get_logger(__name__)


class FeedbackTaskModel(LoadableFeedbackModel):
    """A feedback model with a task head: the backbone's own with `head="backbone"`, else the one of `_make_head`."""

    def __init__(self, config: FeedbackConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self.num_labels = config.num_labels
        # transformers finds the loss by the name of the class; a subclass may have any
        tasks = [kind.__name__.removeprefix("Feedback") for kind in type(self).__mro__]
        self.loss_type = self.loss_type or next((task for task in tasks if task.startswith("For")), "")
        if config.head == "new":
            self._make_head(config)
        self.post_init()

    def _make_head(self, config: FeedbackConfig) -> None:
        """Adds the modules of a new head."""
        raise NotImplementedError

    def _head(self, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        """What a new head makes of the last hidden state `(B, T, d)`."""
        raise NotImplementedError

    def _logits(self, outputs: Any, call: Call) -> torch.Tensor:
        """The answer that the backbone's output holds; the mean over the segments of a text that was cut."""
        own = self.config.head == "backbone"
        logits = outputs.logits if own else self._head(outputs.last_hidden_state, call)
        return logits if call.segments is None else call.segments.mean(logits)

    def _loss(self, logits: torch.Tensor, labels: Any) -> torch.Tensor:
        raise NotImplementedError

    def _answer_at(self, call: Call, state: torch.Tensor) -> torch.Tensor:
        if not self._answers_once:
            return super()._answer_at(call, state)
        if self._final is None and self._halts():
            logger.warning_once(
                f"`halting`={self.config.halting!r} reads the answer after every iteration, which costs a pass through "
                "the whole backbone each time where layers follow those that loop, and with `head='backbone'`; "
                "'convergence' does not."
            )
        return self._logits(self._run_from(call, state), call)

    def _output(self, logits: torch.Tensor, **fields: Any) -> Any:
        return FeedbackTaskOutput(logits=logits, **fields)

    def _answer(
        self, labels: Any, num_iterations: int | None, output_iterations: bool, /, **inputs: Any
    ) -> FeedbackTaskOutput:
        """K iterations on the inputs, and the output that goes with them."""
        rule = self.config.iteration_loss if self.training and labels is not None else "last"
        notes = output_iterations or rule != "last"
        outputs, trace, call = self._run(num_iterations, notes, stacks=True, **inputs)
        answers = self._answers(outputs, trace, call)
        fields: dict[str, Any] = {**self._collected(outputs, call), "iterations": call.iterations}
        if trace and output_iterations:
            fields |= {**trace.fields(), "iteration_logits": answers}
        if labels is not None:
            losses = [self._loss(logits, labels) for logits in (answers[-1:] if rule == "last" else answers)]
            weights = range(1, len(losses) + 1) if rule == "linear" else [1] * len(losses)
            fields["loss"] = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
            if call.penalty is not None:
                fields["loss"] = fields["loss"] + self.config.jacobian_penalty * call.penalty.to(answers[-1].device)
        return self._output(answers[-1], **fields)

    def _answers(self, outputs: Any, trace: IterationTrace | None, call: Call) -> tuple[torch.Tensor, ...]:
        """The logits of the iterations that were noted, or those of the last one alone."""
        if trace is None:
            return (self._logits(outputs, call),)
        if trace.stacked:
            return tuple(self._logits(one, call) for one in unstack(outputs, len(trace.ends)))
        earlier = (self._logits(self._run_from(call, state), call) for state in trace.ends[:-1])
        return (*earlier, self._logits(outputs, call))


class FeedbackTextModel(FeedbackTaskModel):
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
        **kwargs: Any,
    ) -> FeedbackTaskOutput:
        """Runs K iterations and answers.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: `(B, T)`; inputs_embeds: `(B, T, d)`. (With a
                dimension for the choices after the first in `FeedbackForMultipleChoice`.)
            labels: what is right; its shape stands at the class.
            past_key_values: refused; named here so that prefix-tuning, which passes it, meets the refusal.
            num_iterations: K for this call; the config's by default.
            output_iterations: also return `iteration_logits`, `residuals` and `iterations`. Where layers follow those
                that loop, these run for every iteration; with a decoder's own head, everything does.
            output_hidden_states, output_attentions: also return those of the last iteration.
            **kwargs: further inputs of the backbone.
        """
        return self._answer(
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
        )


class PooledHead(FeedbackTaskModel):
    """One answer per input: dropout and a linear `classifier` over the pooled last hidden state."""

    _answers_once = True
    # The pooling that `"auto"` stands for where the backbone reads in both directions.
    _auto_pooling = "cls"

    def _num_outputs(self, config: FeedbackConfig) -> int:
        return len(config.id2label or {})

    def _make_head(self, config: FeedbackConfig) -> None:
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, self._num_outputs(config))

    def _pooling(self) -> str:
        if self.config.pooling != "auto":
            return self.config.pooling
        config = cast(PreTrainedConfig, self.config.backbone_config)
        return "last" if is_decoder(config, self.config.backbone_part) else self._auto_pooling

    def _mask(self, hidden: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor | None:
        """`(B, T)`, 0 where the last hidden state stands for padding."""
        return self._text_mask(inputs)

    def _text_mask(self, inputs: dict[str, Any]) -> torch.Tensor | None:
        """`(B, T)`, 0 at padding, which may have to be found by its token."""
        mask, input_ids, pad = inputs.get("attention_mask"), inputs.get("input_ids"), self.config.pad_token_id
        if mask is None and input_ids is not None and pad is not None and self._pooling() == "last":
            mask = (input_ids != pad).int()
        return mask

    def _cut(self, tensors: dict[str, Any]) -> tuple[dict[str, Any], Segments | None]:
        if self.config.feedback_span == "segment":
            tensors = {**tensors, "attention_mask": self._text_mask(tensors)}
        return super()._cut(tensors)

    def _head(self, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        pooled = pool(hidden, self._mask(hidden, call.given), self._pooling())
        return self.classifier(self.dropout(on_device_of(self.classifier, pooled)))

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        problem = self.config.problem_type
        if problem == "multi_label_classification" or self.config.num_labels == 1 or labels.is_floating_point():
            labels = labels.to(logits.dtype)
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)


def classifier_dropout(config: FeedbackConfig) -> float:
    """The option, or the first that the backbone's config has of its own classifier, hidden or general dropout."""
    if config.classifier_dropout is not None:
        return config.classifier_dropout
    names = ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "dropout")
    values = (getattr(config.text_config, name, None) for name in names)
    return next((float(value) for value in values if value is not None), 0.0)
