"""A perturbation of the word embeddings of a batch, whatever the family of the backbone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...cutting import PER_TOKEN
from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_fnn import FNNPreTrainedModel
from ..parameters.model_parts import any_model_in
from .batch_loss import Inputs


def text_norms(x: torch.Tensor) -> torch.Tensor:
    """The length of each text's vector, all its tokens together: `(B, T, e)` → `(B, 1, 1)`."""
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)


def scale_texts(x: torch.Tensor, length: float) -> torch.Tensor:
    """Each text's vector with another length; zero where it is zero or not finite.

    Args:
        x: `(B, T, e)`.
        length: length of the result.
    """
    norms = text_norms(x)
    return torch.where((norms > 0) & norms.isfinite(), x * (length / norms), 0.0)


def project_texts(x: torch.Tensor, radius: float) -> torch.Tensor:
    """Each text's vector, shortened to a radius if it is longer.

    Args:
        x: `(B, T, e)`.
        radius: radius of the ball.
    """
    return x * (radius / text_norms(x).clamp_min(1e-30)).clamp_max(1.0)


def word_embeddings_of(core: FeedbackPreTrainedModel | FNNPreTrainedModel) -> nn.Module:
    """The module that turns token ids into vectors.

    Raises:
        ValueError: the model reads no token ids.
    """
    if core.main_input_name != "input_ids":
        raise ValueError(
            f"Adversarial training perturbs word embeddings, and {type(core).__name__} reads "
            f"`{core.main_input_name}`; use `adversarial`='none'."
        )
    return core.get_input_embeddings()


class WordPerturbation:
    """A vector for each token of a batch, `(B, T, e)`, that is added to its word embedding; never at padding.

    It is added by a hook on the module that `get_input_embeddings()` returns, so that what a family derives from token
    ids, such as positions, stays as it is. Of texts that are cut into segments, a token has the same vector in all
    segments that it stands in. In multiple choice every choice is a text: `(B, C, T, e)`.

    Args:
        model: a feedback model, wrapped or not.
        inputs: the batch.
        start: zeros and which tokens are real, `(B, T, 1)` → the vectors to start with; zeros if left out.

    Attributes:
        vectors: the vectors, a leaf whose `.grad` a backward pass fills; `None` before the first forward pass.

    Raises:
        ValueError: the model or the batch has no token ids, or the mask is not one of tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        start: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._core = any_model_in(model)[1]
        self._embeddings, self._start = word_embeddings_of(self._core), start
        self._per_token = {name: inputs[name] for name in PER_TOKEN if inputs.get(name) is not None}
        input_ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if input_ids is None:
            raise ValueError("Adversarial training perturbs the embeddings of `input_ids`; the batch has none.")
        if mask is not None and mask.shape != input_ids.shape:
            raise ValueError(
                f"Adversarial training leaves padding alone and needs an `attention_mask` of the shape of `input_ids`, "
                f"{tuple(input_ids.shape)}, got {tuple(mask.shape)}."
            )
        self._real = (torch.ones_like(input_ids) if mask is None else mask).ne(0)[..., None]
        self.vectors: torch.Tensor | None = None

    @contextmanager
    def added(self) -> Iterator[None]:
        """Context in which the model reads the perturbed embeddings.

        Raises:
            RuntimeError: they were not read.
        """
        reads = 0

        def add(module: nn.Module, args: tuple[Any, ...], embeddings: torch.Tensor) -> torch.Tensor:
            nonlocal reads
            reads += 1
            return embeddings + self._as_read(embeddings).to(embeddings.dtype)

        hook = self._embeddings.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()
        if not reads:
            raise RuntimeError(
                f"The perturbation was not read: {type(self._core).__name__} did not call "
                f"{type(self._embeddings).__name__}, its input embeddings, or was compiled before. Train it with "
                "`adversarial`='none', or without compiling it."
            )

    def move(self, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        """Replaces the vectors.

        Args:
            change: the vectors and their gradient, both `(B, T, e)` → the new vectors.

        Raises:
            RuntimeError: no backward pass has reached them.
        """
        if self.vectors is None or self.vectors.grad is None:
            raise RuntimeError("The loss does not depend on the word embeddings: no gradient reaches them.")
        gradient = self.vectors.grad * self._real
        self.vectors = change(self.vectors.detach(), gradient).detach().requires_grad_()

    def _as_read(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The vectors in the shape in which the model reads its tokens."""
        if self.vectors is None:
            exact = torch.promote_types(embeddings.dtype, torch.float32)  # small steps are lost in half precision
            shape = (*self._real.shape[:-1], embeddings.shape[-1])
            zeros = torch.zeros(shape, dtype=exact, device=embeddings.device)
            self.vectors = (self._start(zeros, self._real) if self._start else zeros).requires_grad_()
        vectors = self.vectors
        if isinstance(self._core, FeedbackPreTrainedModel):
            if self._core.cutting is not None:
                vectors = self._core._cut({**self._per_token, "inputs_embeds": vectors})[0]["inputs_embeds"]
            vectors = vectors.flatten(0, -3)  # of choices
            if self._core.layout.batch_dim == 1:
                vectors = vectors.transpose(0, 1)
        if vectors.shape != embeddings.shape:
            raise ValueError(
                f"Adversarial training: {type(self._core).__name__} embeds its tokens in the shape "
                f"{tuple(embeddings.shape)} instead of {tuple(vectors.shape)}; use `adversarial`='none'."
            )
        return vectors
