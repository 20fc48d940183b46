"""What feedback models return."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class FeedbackModelOutput(ModelOutput):
    """Output of `FeedbackModel`.

    Args:
        last_hidden_state: `(B, T, d)`, after K iterations.
        hidden_states: L + 1 tensors `(B, T, d)` of the last iteration, with `output_hidden_states=True`.
        attentions: L tensors `(B, heads, T, T)` of the last iteration, with `output_attentions=True`.
        residuals: `(B, K − 1)`, `‖h^(k) − h^(k−1)‖ / ‖h^(k)‖` over the sources' states, with `output_iterations=True`.
        iterations: `(B,)`, how many iterations each example took, with `output_iterations=True`.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    residuals: torch.Tensor | None = None
    iterations: torch.Tensor | None = None


@dataclass
class FeedbackSequenceClassifierOutput(ModelOutput):
    """Output of `FeedbackForSequenceClassification`.

    Args:
        loss: scalar, where `labels` were given.
        logits: `(B, num_labels)`.
        hidden_states, attentions, residuals, iterations: as in `FeedbackModelOutput`.
        iteration_logits: K tensors `(B, num_labels)`, the answer after each iteration, with `output_iterations=True`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    iteration_logits: tuple[torch.Tensor, ...] | None = None
    residuals: torch.Tensor | None = None
    iterations: torch.Tensor | None = None
