"""The segments of long texts: their texts, neighbours, and sums and means over them."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .stacked_linear import ZeroLinear, on_device_of


@dataclass(frozen=True)
class Segments:
    """The text of each row of a batch. The segments of a text are consecutive rows, in order.

    Args:
        text: `(N,)`, the number of the text, ascending.
        num_texts: B.
        tokens: `(B, T)`, for each token of the texts its number among the N·n tokens of all segments, −1 at padding;
            `None` if tokens are not needed.
    """

    text: torch.Tensor
    num_texts: int
    tokens: torch.Tensor | None = None

    def shift_right(self, x: torch.Tensor) -> torch.Tensor:
        """x_{t−1} for each segment t, `(N, …)`; 0 for the first of a text."""
        return F.pad(x[:-1] * self._joined(x), (*(0, 0) * (x.dim() - 1), 1, 0))

    def shift_left(self, x: torch.Tensor) -> torch.Tensor:
        """x_{t+1} for each segment t, `(N, …)`; 0 for the last of a text."""
        return F.pad(x[1:] * self._joined(x), (*(0, 0) * (x.dim() - 1), 0, 1))

    def _joined(self, x: torch.Tensor) -> torch.Tensor:
        same = self.text[1:] == self.text[:-1]
        return same.to(x).view(-1, *[1] * (x.dim() - 1))

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Over the segments of each text: `(N, …)` → `(B, …)`."""
        return x.new_zeros(self.num_texts, *x.shape[1:]).index_add(0, self.text.to(x.device), x)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Over the segments of each text: `(N, …)` → `(B, …)`."""
        counts = self.sum(torch.ones_like(self.text))
        return self.sum(x) / counts.to(x).view(-1, *[1] * (x.dim() - 1))

    def weighted_mean(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Over the segments of each text, with weights `softmax(scores)`: `(N, C)` and `(N,)` → `(B, C)`."""
        text = self.text.to(x.device)
        largest = scores.new_full((self.num_texts,), -math.inf).scatter_reduce(0, text, scores.detach(), "amax")
        weights = (scores - largest[text]).exp()[:, None]
        return self.sum(weights * x) / self.sum(weights)

    def per_token(self, x: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """The tokens of the segments → those of the texts, `(N, n, C)` → `(B, T, C)`; see `best_copies`.

        Args:
            x: values of each token of each segment.
            fill: value at padding.
        """
        if self.tokens is None:
            return x
        tokens = self.tokens.to(x.device)
        return x.flatten(0, 1)[tokens.clamp_min(0)].masked_fill((tokens < 0)[..., None], fill)

    def of_same_text(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All segments of the text of each segment; S of them in the longest text.

        Returns:
            `(N, S)` their rows, −1 where a text has fewer; and `(N, S)`, how many segments later each of them is, below
            0 if it is earlier.
        """
        counts = self.sum(torch.ones_like(self.text))
        number = torch.arange(int(counts.max()), device=self.text.device)
        rows = (counts.cumsum(0) - counts)[self.text, None] + number
        distance = rows - torch.arange(len(self.text), device=self.text.device)[:, None]
        return rows.masked_fill(number >= counts[self.text, None], -1), distance

    def select_rows(self, rows: torch.Tensor) -> "Segments":
        """Those rows alone, of a text all or none; without the places of their tokens, which whole batches have."""
        return Segments(self.text[rows.to(self.text.device)], self.num_texts)


def best_copies(
    text: torch.Tensor, positions: torch.Tensor, real: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """Chooses the copy of a token that occurs in several segments: that with the most tokens on either side; the first
    of several such, as of special tokens and of a first text that stands in every segment.

    Args:
        text: `(N,)`, the text of each segment.
        positions: `(N, n)`, where the segments' tokens stand in their texts.
        real: `(N, n)`, false at padding.
        shape: B and T, of the texts.

    Returns:
        `(B, T)`, as in `Segments`.
    """
    place = torch.arange(real.shape[1], device=real.device)
    context = torch.minimum(place, real.sum(1, keepdim=True) - 1 - place)  # on the side that has less
    token = (text[:, None] * shape[1] + positions)[real]  # its number among the B·T
    most = token.new_full((shape[0] * shape[1],), -1).scatter_reduce(0, token, context[real], "amax")
    number = torch.arange(real.numel(), device=real.device).view_as(real)[real]
    is_best = context[real] == most[token]
    none = real.numel()
    first = token.new_full(most.shape, none).scatter_reduce(0, token[is_best], number[is_best], "amin")
    return first.masked_fill(first == none, -1).view(shape)


class SegmentSummaries(nn.Module):
    """`c_j = Σ_u softmax_u(s_j · h_u) h_u` over the tokens u of a segment, for m learned vectors s_j.

    Args:
        hidden_size: d.
        num_summaries: m.

    Shapes:
        h `(N, T, d)` of about unit variance, and a mask `(N, T)`, true at real tokens → `(N, m, d)`.
    """

    def __init__(self, hidden_size: int, num_summaries: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_summaries, hidden_size))

    def init_feedback_weights(self) -> None:
        """Starts the first summary as the mean of all tokens, and each other one with a few tokens, so that what a
        single token holds is not averaged away."""
        start = torch.randn_like(self.weight) * 4 / math.sqrt(self.weight.shape[-1])
        start[0] = 0
        init.copy_(self.weight, start)

    def forward(self, h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        scores = F.linear(h, self.weight)
        if mask is not None:
            scores = scores.masked_fill(~mask.to(h.device)[..., None], torch.finfo(scores.dtype).min)
        return scores.softmax(1).transpose(1, 2).to(h) @ h


class SegmentPooling(nn.Module):
    """`y = Σ_t a_t y_t`, `a = softmax_t(w · v_t)` over the segments t of a text; w = 0 at the start: the mean.

    Args:
        hidden_size: d.

    Shapes:
        the segments' answers y_t `(N, C)` and pooled states v_t `(N, d)` → `(B, C)`.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = ZeroLinear(hidden_size, 1, 1)

    def forward(self, answers: torch.Tensor, pooled: torch.Tensor, segments: Segments) -> torch.Tensor:
        scores = self.query(on_device_of(self.query, pooled), 0)[:, 0]
        return segments.weighted_mean(answers, scores.to(answers.device))
