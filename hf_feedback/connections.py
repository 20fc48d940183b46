"""The operators of feedback connections, one class each.

A new operator is a subclass of `FeedbackConnection`, which explains the letters of the equations, and a row in
`CONNECTIONS`.
"""

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from .feedback_connection import FeedbackConnection as FeedbackConnection
from .feedback_connection import MessageContext as MessageContext
from .pooling import pool
from .stacked_linear import Gate, Recurrence, StackedLinear
from .validation import is_integer

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig


class AdditiveConnection(FeedbackConnection):
    """`message = scale · up(f(down(LayerNorm(h))))`, token by token; f is the activation.

    The cheapest operator, to be tried first; prefer another one if a token needs information that its own higher state
    does not contain. It costs 4·d·r operations per token and edge.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    >>> options = dict(feedback_rank=8, feedback_type="additive")
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), **options)
    >>> type(model.feedback.connection(2)).__name__, model.feedback.connection(2).flops(length=16)
    ('AdditiveConnection', (512, 512))

    ```
    """


class GatedConnection(FeedbackConnection):
    """`message = gate ⊙ scale · up(f(down(LayerNorm(h))))`, `gate = sigmoid(A(z + read(LayerNorm(x))) + b)`.

    The target's input decides per token and channel how much of the message passes; the gate reads source and target
    and is nearly closed at the start. Prefer it if messages help some tokens and harm others. It costs twice as much as
    `"additive"`.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    >>> options = dict(feedback_rank=8, feedback_type="gated")
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), **options)
    >>> type(model.feedback.connection(2)).__name__, model.feedback.connection(2).flops(length=16)
    ('GatedConnection', (512, 1536))

    ```
    """

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.reader_norm = nn.LayerNorm(hidden_size)
        self.reader = StackedLinear(hidden_size, num_edges, self.rank)
        self.gate = Gate(self.rank, num_edges, hidden_size)

    def project_target(self, z: torch.Tensor, edge: int, x: torch.Tensor) -> torch.Tensor:
        """`gate ⊙ up(z)`, the gate made of z and the input of the target layer."""
        read = self.reader(self.reader_norm(x), edge)[..., 0, :]
        return self.gate(z + read, edge) * self.up(z, edge)

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """`read` and the gate cost an edge as much as `up`, each."""
        return 2 * self.hidden_size * self.rank, 6 * self.hidden_size * self.rank


class JointConnection(FeedbackConnection):
    """`message = scale · up(f(down(LayerNorm(h)) + read(LayerNorm(x))))`: one activation for source and target.

    In iteration 1, where there is no source yet, the message reads the target's input alone: an adapter. K = 1 is then
    the adapted backbone and not the bare one. Prefer it where the backbone is frozen and has to be adapted anyway. It
    costs half as much again as `"additive"`.

    Source: Houlsby et al. 2019, arXiv 1902.00751, for the adapter.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    >>> options = dict(feedback_rank=8, feedback_type="joint")
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), **options)
    >>> type(model.feedback.connection(2)).__name__, model.feedback.connection(2).flops(length=16)
    ('JointConnection', (512, 1024))

    ```
    """

    acts_in_first_iteration = True

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.reader_norm = nn.LayerNorm(hidden_size)
        self.reader = StackedLinear(hidden_size, num_edges, self.rank)

    def project_source(self, h: torch.Tensor, context: MessageContext, edge: int | None = None) -> torch.Tensor:
        """`down(h)`; the activation comes after the target has been added."""
        return self.down(h, edge)

    def combine(
        self, projected: torch.Tensor | None, edge: int, x: torch.Tensor, context: MessageContext
    ) -> torch.Tensor:
        """`z = f(down(h) + read(LayerNorm(x)))`; in iteration 1 without `down(h)`."""
        z = self.reader(self.reader_norm(x), edge)
        if projected is not None:
            z = z + projected
        return self.dropout(self.activate(z, edge))[..., 0, :]

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """`read` costs an edge as much as `up`."""
        return 2 * self.hidden_size * self.rank, 4 * self.hidden_size * self.rank


class AttentionConnection(FeedbackConnection):
    """`message_t = scale · up(f(Σ_u a_tu · value(h_u)))`, a_t = softmax over u of `query(x_t) · key(h_u) / √(r/heads)`.

    Tokens of the target layer attend to the source's tokens of the previous iteration with a few low-rank heads.
    Padding is never attended to; on causal backbones later tokens are not either, unless `feedback_future` allows it.
    Prefer it if a token needs particular other tokens, such as a decoder's early tokens later ones. It costs twice as
    much as `"additive"`, and 4·T·r operations per token and edge for the attention itself.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    >>> options = dict(feedback_rank=8, feedback_type="attention")
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), **options)
    >>> type(model.feedback.connection(2)).__name__, model.feedback.connection(2).flops(length=16)
    ('AttentionConnection', (1024, 1536))

    ```
    """

    mixes_tokens = True
    separates_texts = True
    remembers_tokens = True

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.num_heads = config.feedback_heads
        self.key = StackedLinear(hidden_size, num_edges, self.rank)
        self.reader_norm = nn.LayerNorm(hidden_size)
        self.reader = StackedLinear(hidden_size, num_edges, self.rank)

    @classmethod
    def check_options(cls, config: "FeedbackConfig") -> None:
        """Refuses a rank that the heads do not divide."""
        rank = config.hidden_size if config.feedback_rank is None else config.feedback_rank
        if is_integer(rank) and rank % config.feedback_heads:
            raise ValueError(
                f"`feedback_heads` must divide the rank of the messages, {rank}, got {config.feedback_heads}; change "
                "it or `feedback_rank`."
            )

    def project_source(self, h: torch.Tensor, context: MessageContext, edge: int | None = None) -> torch.Tensor:
        """`key(h)` and `value(h)` of this call and of earlier tokens, `(B, past + T, n, 2r)`."""
        return context.with_earlier_tokens(torch.cat((self.key(h, edge), self.down(h, edge)), -1))

    def combine(
        self, projected: torch.Tensor | None, edge: int, x: torch.Tensor, context: MessageContext
    ) -> torch.Tensor:
        """`z_t = f(Σ_u a_tu · value(h_u))`."""
        q, k, v, mask = self._read(projected, edge, x, context)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return self.dropout(self.activate(z.unsqueeze(-2), edge))[..., 0, :]

    def attention_weights(
        self, projected: torch.Tensor | None, edge: int, x: torch.Tensor, context: MessageContext
    ) -> torch.Tensor:
        """a of one edge, `(B, heads, T, U)`; arguments as in `combine`, what there is to attend to as in `memory`."""
        q, k, _, mask = self._read(projected, edge, x, context)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
        return scores.softmax(-1)

    def memory(
        self, projected: torch.Tensor, edge: int, x: torch.Tensor, context: MessageContext
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Keys and values `(B, U, 2r)`, and a mask or bias `(B or 1, heads or 1, T or 1, U)`."""
        return projected, _attention_mask(context, x.shape[1], projected.shape[1], x.device)

    def _read(
        self, projected: torch.Tensor | None, edge: int, x: torch.Tensor, context: MessageContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Queries `(B, heads, T, r / heads)`, keys and values `(B, heads, U, r / heads)`, and a mask or bias."""
        memory, mask = self.memory(cast(torch.Tensor, projected).squeeze(-2), edge, x, context)
        query = self.reader(self.reader_norm(x), edge)[..., 0, :]
        q, k, v = (z.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for z in (query, *memory.chunk(2, -1)))
        return q, k, v, mask if mask is None or mask.dtype is torch.bool else mask.to(q)

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """Keys and values of a source; queries, `up` and attention of an edge."""
        return 4 * self.hidden_size * self.rank, 4 * self.hidden_size * self.rank + 4 * length * self.rank


class TemporalConnection(FeedbackConnection):
    """`message_t = scale · up(m_t)`, `m_t = f(U h_t + W m_{t−1} + V m_{t+1} + b)` over the source's normed tokens.

    The temporal feedback network inside a transformer, solved by `feedback_sweeps` parallel sweeps from m = 0. Padding
    counts as m = 0, as do the ends. On causal backbones there is no V unless `feedback_future` allows it. Prefer it
    where a token needs its neighbours. It costs 2·r² operations a token, edge, sweep and neighbour more than
    `"additive"`.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    >>> options = dict(feedback_rank=8, feedback_type="temporal")
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), **options)
    >>> type(model.feedback.connection(2)).__name__, model.feedback.connection(2).flops(length=16)
    ('TemporalConnection', (1024, 512))

    ```
    """

    mixes_tokens = True
    separates_texts = True
    remembers_tokens = True
    left_out_if_causal = "V"

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.num_sweeps = config.feedback_sweeps
        self.W = Recurrence(num_edges, self.rank)
        self.V = None if causal else Recurrence(num_edges, self.rank)

    def project_source(self, h: torch.Tensor, context: MessageContext, edge: int | None = None) -> torch.Tensor:
        """m after all sweeps, `(B, T, n, r)`; the first sweep is `f(U h)`."""
        length = h.shape[1]
        U_h = context.with_earlier_tokens(self.down(h, edge))  # (B, T, n, r), b included
        real = None if context.mask is None else context.mask[:, : U_h.shape[1], None, None].to(h.device)
        if context.cache is not None:  # each sweep reaches back by one token
            U_h = U_h[:, -(length + self.num_sweeps - 1) :]
            real = None if real is None else real[:, -U_h.shape[1] :]
        m = self.activate(U_h, edge)
        for _ in range(self.num_sweeps - 1):
            m = m if real is None else m * real
            z = U_h + self.W(context.shift(m, 1), edge)
            if self.V is not None:
                z = z + self.V(context.shift(m, -1), edge)
            m = self.activate(z, edge)
        return self.dropout(m[:, -length:])

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """W, and V if there is one, in each sweep but the first."""
        neighbours = 1 if self.V is None else 2
        sweeps = 2 * neighbours * (self.num_sweeps - 1) * self.rank**2
        return 2 * self.hidden_size * self.rank + sweeps, 2 * self.hidden_size * self.rank


class ContextConnection(FeedbackConnection):
    """`message = scale · up(f(down(c)))` for all tokens alike, c the normed mean of the source's states over the text.

    With `feedback_context="classes"`, c is the vector of class probabilities of the previous iteration, and `down` a
    learned class embedding. Prefer it where the topic of the whole text decides how its tokens are to be read. It costs
    as much for a text as `"additive"` for a token.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    >>> options = dict(feedback_rank=8, feedback_type="context")
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), **options)
    >>> type(model.feedback.connection(2)).__name__, model.feedback.connection(2).flops(length=16)
    ('ContextConnection', (32, 32))

    ```
    """

    mixes_tokens = True
    needs_later_tokens = True
    may_read_classes = True

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.reads_classes = config.feedback_context == "classes"
        if self.reads_classes:
            self.norm = nn.Identity()
            self.down = StackedLinear(len(config.id2label or {}), num_edges, self.rank)

    @classmethod
    def check_options(cls, config: "FeedbackConfig") -> None:
        """Refuses `feedback_signal="error"` where no state is read."""
        alone = config.feedback_type == "context"
        if config.feedback_context == "classes" and alone and config.feedback_signal == "error":
            raise ValueError(
                "`feedback_signal`='error' compares states, and `feedback_context='classes'` reads none; leave one out."
            )

    def project_source(self, h: torch.Tensor, context: MessageContext, edge: int | None = None) -> torch.Tensor:
        """`f(down(c))`, the same for all tokens: `(B, 1, n, r)`."""
        read = context.class_probabilities if self.reads_classes else pool(h, context.mask, "mean")
        read = cast(torch.Tensor, read).to(h)
        return self.dropout(self.activate(self.down(read, edge), edge))[:, None]  # (B, 1, n, r)

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """Those of one token, divided among all."""
        return 2 * self.down.in_features * self.rank // length, 2 * self.hidden_size * self.rank // length


def _attention_mask(context: MessageContext, length: int, num_read: int, device: torch.device) -> torch.Tensor | None:
    """`(B or 1, 1, T, past + T)`, true where token t may attend to token u; each to itself always, so that no row is
    empty.

    Args:
        context: context of the message.
        length: T, the tokens of this call.
        num_read: past + T, the tokens that can be read.
        device: device of the mask.
    """
    past = num_read - length
    texts = context.packed_texts
    if context.mask is None and texts is None and not (context.causal and length > 1):
        return None
    allowed = torch.ones(1, 1, length, num_read, dtype=torch.bool, device=device)
    itself = allowed.tril(past).triu(past)
    if context.causal:
        allowed = allowed.tril(past)
    if context.mask is not None:
        allowed = allowed & context.mask[:, None, None, :num_read].to(device)
    if texts is not None:
        allowed = allowed & (texts[:, None, :, None] == texts[:, None, None, :]).to(device)
    return allowed | itself


# By their names in the option `feedback_type`.
CONNECTIONS: dict[str, type[FeedbackConnection]] = {
    "additive": AdditiveConnection,
    "gated": GatedConnection,
    "attention": AttentionConnection,
    "temporal": TemporalConnection,
    "context": ContextConnection,
    "joint": JointConnection,
}
