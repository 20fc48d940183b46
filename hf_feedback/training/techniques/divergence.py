"""The symmetric Kullback–Leibler divergence of two predictions of a model, for every task."""

from typing import cast

import torch
from torch import nn
from transformers.utils import ModelOutput

from ...forward_context import without_targets
from ...label_options import predicts_values
from ...modeling_feedback import (
    FeedbackForCausalLM,
    FeedbackForMaskedLM,
    FeedbackForMultipleChoice,
    FeedbackForQuestionAnswering,
    FeedbackForTokenClassification,
)
from ..batch_weights import has_answer
from ..data.labels import IGNORED, MULTI_LABEL, REGRESSION, SINGLE_LABEL, ProblemType
from ..parameters.model_parts import any_model_in
from .batch_loss import Inputs

PADDING_LOGIT = -1e4  # of a token that cannot be an answer


def symmetric_divergence(first: torch.Tensor, second: torch.Tensor, problem: ProblemType) -> torch.Tensor:
    """`KL(p‖q) + KL(q‖p) = Σ (p − q)(log p − log q)`, p and q the distributions of the logits.

    Several labels of one text are separate distributions, whose divergences are summed. For values to predict it is the
    squared difference, as in SMART.

    Args:
        first, second: logits, `(N, C)`.
        problem: problem type of the logits.

    Returns:
        `(N,)`, in float32 at least.

    Example:

    ```python
    >>> import math, torch
    >>> even, sure = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    >>> round(symmetric_divergence(even, sure, "single_label_classification").item(), 4)  # (3/4 − 1/2) log 3
    0.2747

    ```
    """
    exact = torch.promote_types(first.dtype, torch.float32)
    first, second = first.to(exact), second.to(exact)
    if problem == REGRESSION:
        return (first - second).square().sum(-1)
    if problem == MULTI_LABEL:
        return ((first.sigmoid() - second.sigmoid()) * (first - second)).sum(-1)
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def problem_of(model: nn.Module, inputs: Inputs) -> ProblemType:
    """Returns the problem type of a model, also before the model infers it from its first labels.

    Args:
        model: a feedback model, wrapped or not.
        inputs: a batch.
    """
    core = any_model_in(model)[1]
    of_tokens = (FeedbackForTokenClassification, FeedbackForQuestionAnswering, FeedbackForMultipleChoice)
    if isinstance(core, (*of_tokens, FeedbackForMaskedLM, FeedbackForCausalLM)):
        return SINGLE_LABEL
    if predicts_values(core.config.problem_type, core.config.num_labels or 0):
        return REGRESSION
    if core.config.problem_type is not None:
        return cast(ProblemType, core.config.problem_type)
    labels = inputs.get("labels")
    return MULTI_LABEL if labels is not None and labels.is_floating_point() else SINGLE_LABEL


def final_logits(outputs: ModelOutput) -> torch.Tensor:
    """The logits of the last iteration; of a question `(B, T, 2)`, as in `iteration_logits`."""
    if "start_logits" in outputs:
        return torch.stack((outputs["start_logits"], outputs["end_logits"]), -1)
    return outputs["logits"]


def answers_in(logits: torch.Tensor, model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Returns the logits of a model's answers, one per row.

    Args:
        logits: logits of one iteration.
        model: a feedback model, wrapped or not.
        inputs: their batch. With labels, only labelled answers count, as in the loss; without, all except padding.

    Returns:
        `(N, C)`: of texts, of tokens, or of the starts and ends of answers, which are tokens.
    """
    core = any_model_in(model)[1]
    mask, labels = inputs.get("attention_mask"), inputs.get("labels")
    if isinstance(core, FeedbackForQuestionAnswering):
        if mask is not None:
            logits = logits.masked_fill((mask == 0)[..., None], PADDING_LOGIT)
        answered = has_answer(inputs)
        logits = logits if answered is None else logits[answered]
        return logits.transpose(1, 2).flatten(0, 1)
    if not isinstance(core, FeedbackForTokenClassification | FeedbackForMaskedLM | FeedbackForCausalLM):
        has_classes = labels is not None and labels.shape == logits.shape[:1] and not labels.is_floating_point()
        return logits[labels != IGNORED] if has_classes else logits
    counts = mask != 0 if mask is not None else logits.new_ones(logits.shape[:2], dtype=torch.bool)
    if labels is not None:
        counts = labels != IGNORED
    if isinstance(core, FeedbackForCausalLM):  # the prediction at a token is the next one
        logits, counts = logits[:, :-1], counts[:, 1:]
    return logits[counts]


def count_answers(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """The number of answers in a batch, of texts or of tokens that are not padding, whether they have labels or not.

    Args:
        model: a feedback model, wrapped or not.
        inputs: the batch, with `input_ids`.
    """
    return torch.tensor(len(answers_in(inputs["input_ids"][..., None], model, without_targets(inputs))))


def mean_divergence(
    first: torch.Tensor, second: torch.Tensor, model: nn.Module, inputs: Inputs, labelled_only: bool = True
) -> torch.Tensor:
    """The mean of `symmetric_divergence` over the answers in two tensors of logits, a scalar.

    Args:
        first, second: logits of one iteration each, as the model gives them.
        model: a feedback model, wrapped or not.
        inputs: their batch.
        labelled_only: whether only labelled answers count, or all except padding.
    """
    batch = inputs if labelled_only else without_targets(inputs)
    p, q = (answers_in(logits, model, batch) for logits in (first, second))
    each = symmetric_divergence(p, q, problem_of(model, inputs))
    return each.sum() / max(1, len(each))
