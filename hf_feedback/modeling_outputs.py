"""Outputs of feedback models."""

from dataclasses import dataclass
from typing import Protocol

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import selected_hidden_states


def select_states(
    states: tuple[torch.Tensor, ...], output_hidden_states: bool | int | list[int] | None
) -> tuple[torch.Tensor | None, ...]:
    """The states that `output_hidden_states` selects, as in transformers: all, or those of the numbers in a list (which
    count from the end where they are negative), with `None` in the places of the others."""
    selected = selected_hidden_states(output_hidden_states)
    if selected is None:
        return states
    chosen = {number % len(states) for number in selected if -len(states) <= number < len(states)}
    return tuple(state if i in chosen else None for i, state in enumerate(states))


@dataclass
class FeedbackModelOutput(ModelOutput):
    """Output of `FeedbackModel`.

    Args:
        last_hidden_state: `(B, T, d)`, after K iterations.
        hidden_states: L + 1 tensors `(B, T, d)` of the last iteration, with `output_hidden_states=True`.
        attentions: L tensors `(B, heads, T, T)` of the last iteration, with `output_attentions=True`.
        residuals: `(B, K − 1)`, `‖h^(k) − h^(k−1)‖ / ‖h^(k)‖` over the sources' states, with `output_iterations=True`.
        iterations: `(B,)`, number of iterations of each example, with `output_iterations=True` or `halting`.
        jacobian_penalty: scalar, without its weight, in training with that option; a loss of your own has to add it.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    residuals: torch.Tensor | None = None
    iterations: torch.Tensor | None = None
    jacobian_penalty: torch.Tensor | None = None


@dataclass
class FeedbackTaskOutput(ModelOutput):
    """Output of the models with a task head.

    Args:
        loss: scalar, where `labels` were given.
        logits: `(B, num_labels)`; for the shapes of other tasks see their classes.
        hidden_states, attentions, residuals, iterations: as in `FeedbackModelOutput`.
        iteration_logits: K tensors of the shape of `logits`, one an iteration, with `output_iterations=True`.
        jacobian_penalty: scalar, without its weight, in training with that option; `loss` includes it.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    iteration_logits: tuple[torch.Tensor, ...] | None = None
    residuals: torch.Tensor | None = None
    iterations: torch.Tensor | None = None
    jacobian_penalty: torch.Tensor | None = None


@dataclass
class FeedbackCausalLMOutput(FeedbackTaskOutput):
    """Output of `FeedbackForCausalLM`.

    Args:
        loss: scalar, where `labels` were given.
        logits: `(B, T, V)`, or of the last tokens alone, with `logits_to_keep`.
        past_key_values: the cache of all iterations, with `use_cache=True`.
        hidden_states, attentions, residuals, iteration_logits: as in `FeedbackTaskOutput`.
        iterations: `(B,)`; with `halting` `(B, T)`, how many each token took.
    """

    past_key_values: Cache | None = None

    @property
    def last_hidden_state(self) -> torch.Tensor | None:
        """`(B, T, d)`, what the LM head reads, with `output_hidden_states=True`. Libraries that compute the loss from
        it call the model as its own base model."""
        return None if self.hidden_states is None else self.hidden_states[-1]


@dataclass
class FeedbackQuestionAnsweringOutput(ModelOutput):
    """Output of `FeedbackForQuestionAnswering`.

    Args:
        loss: scalar, where `start_positions` and `end_positions` were given.
        start_logits, end_logits: `(B, T)`.
        hidden_states, attentions, residuals, iterations: as in `FeedbackModelOutput`.
        iteration_logits: K tensors `(B, T, 2)`, start and end after each iteration, with `output_iterations=True`.
        jacobian_penalty: as in `FeedbackTaskOutput`.
    """

    loss: torch.Tensor | None = None
    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    iteration_logits: tuple[torch.Tensor, ...] | None = None
    residuals: torch.Tensor | None = None
    iterations: torch.Tensor | None = None
    jacobian_penalty: torch.Tensor | None = None


# The fields of a backbone's output that are logits, or that a head reads.
OUTPUT_FIELDS = ("last_hidden_state", "logits", "start_logits", "end_logits")


class BackboneOutput(Protocol):
    """The part of a backbone's output that a head reads: the last hidden state, or the logits of its own head."""

    last_hidden_state: torch.Tensor
    logits: torch.Tensor
    start_logits: torch.Tensor
    end_logits: torch.Tensor


class IterationOutput:
    """A backbone's output for one of several iterations; a plain class, which compiled graphs can build."""

    last_hidden_state: torch.Tensor
    logits: torch.Tensor
    start_logits: torch.Tensor
    end_logits: torch.Tensor

    def __init__(self, fields: dict[str, torch.Tensor]) -> None:
        for name in OUTPUT_FIELDS:
            setattr(self, name, fields.get(name))


def split_iterations(outputs: ModelOutput, num_iterations: int) -> list[IterationOutput]:
    """The outputs of several iterations that went through as one larger batch, the first iteration first."""
    chunks = {name: outputs[name].chunk(num_iterations) for name in OUTPUT_FIELDS if outputs.get(name) is not None}
    return [IterationOutput({name: chunk[i] for name, chunk in chunks.items()}) for i in range(num_iterations)]
