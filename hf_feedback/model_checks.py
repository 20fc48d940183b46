"""Checks of a model on a batch: does it equal its backbone, and does its loop contract?"""

from typing import TYPE_CHECKING, cast

import torch
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.utils import logging

from .evaluation_mode import evaluating
from .forward_context import without_targets
from .validation import Keywords, check_integer

if TYPE_CHECKING:
    from .modeling_base import FeedbackPreTrainedModel

logger = logging.get_logger(__name__)


class ModelChecks:
    """Gives a model `check_equivalence` and `estimate_contraction`."""

    def check_equivalence(self, batch: Keywords) -> float:
        """Returns the largest difference from the bare backbone with the same head, in evaluation mode. With trained
        `"joint"` messages, which act in iteration 1 too, it is not zero for K = 1 either.

        Args:
            batch: what `forward` takes, such as a tokenizer's output.

        Returns:
            The largest |Δ| of a logit (for `FeedbackModel`, of a hidden state). Exactly 0.0 for fresh feedback, whose
            two runs call the same kernels on the same batch; where `halting` sends texts on in a smaller batch, the two
            are compiled apart, or a text is read token by token (`feedback_shift` with `use_cache=True`), kernels may
            differ, and with them the last digits.

        Example:

        ```python
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from hf_feedback import FeedbackForSequenceClassification
        >>> tiny = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_iterations=3)
        >>> model.check_equivalence({"input_ids": torch.tensor([[5, 6, 7]])})
        0.0

        ```
        """
        model = cast("FeedbackPreTrainedModel", self)
        inputs = _inputs_of(batch, model.device)
        with evaluating(model):
            looped = model(**inputs, return_dict=True)
            with model.feedback_disabled():
                bare = model(**inputs, return_dict=True)
        keys = [key for key in ("logits", "start_logits", "end_logits") if key in looped] or ["last_hidden_state"]
        return torch.stack([(looped[key].double() - bare[key].double()).abs().max() for key in keys]).max().item()

    def estimate_contraction(self, batch: Keywords, num_iterations: int | None = None, steps: int = 12) -> torch.Tensor:
        """How strongly the loop contracts on a batch: by which factor one more iteration shrinks a small difference
        between states after K. Above 1 the iterations diverge, with a warning.

        Args:
            batch: what `forward` takes, such as a tokenizer's output.
            num_iterations: K; the config's by default.
            steps: number of steps of the power iteration.

        Returns:
            `(B,)`, an estimate of the spectral radius of the loop's Jacobian.

        Raises:
            ValueError: the model is sharded with FSDP, whose weights come together in `forward` alone; `steps` is no
                integer of at least 1.

        Example:

        ```python
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from hf_feedback import FeedbackModel
        >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> model = FeedbackModel.from_backbone(BertModel(tiny))
        >>> model.estimate_contraction({"input_ids": torch.tensor([[5, 6, 7]])}) < 1  # its messages are zero
        tensor([True])

        ```
        """
        model = cast("FeedbackPreTrainedModel", self)
        check_integer("steps", steps, 1, "more of them estimate better")
        if is_fsdp_managed_module(model):
            raise ValueError(
                "`estimate_contraction` cannot run on a model that is sharded with FSDP; load it without `fsdp_size`."
            )
        inputs = _inputs_of(batch, model.device)
        k = model._choose_num_iterations(num_iterations)
        with evaluating(model):
            context = model._make_context(
                {"output_hidden_states": False, "output_attentions": False, **inputs}, k, False
            )
            factors = model.runner.estimate_contraction(context, steps)
        expanding = factors[factors > 1]  # no number where states are not finite
        if len(expanding):
            logger.warning(
                f"The loop expands on {len(expanding)} of {len(factors)} inputs (by up to {expanding.max():.2f} an "
                "iteration): more iterations will not settle. Train with a smaller `feedback_lr` or more weight decay, "
                "a smaller `feedback_scale`, or `feedback_damping` below 1."
            )
        return factors


def _inputs_of(batch: Keywords, device: torch.device) -> Keywords:
    """A batch without targets, on the device of the model."""
    inputs = without_targets(batch)
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
