"""A new masked-language-model head, for backbones whose family has none."""

import torch
from torch import nn
from torch.nn import functional as F

from .stacked_linear import on_device_of


class MaskedLMHead(nn.Module):
    """`decoder(LayerNorm(gelu(dense(h))))`; the decoder's weight is that of the input embeddings.

    Args:
        hidden_size: d.
        embeddings: the input embeddings, V of them.

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
