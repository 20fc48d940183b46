"""Feedback connections: the messages from a higher layer to the lower ones, one class per operator.

A connection holds all edges of one source. Its parameters are stacked over their targets, so that edges that share a
source are one matrix product. A further operator is one subclass of `FeedbackConnection` and one row in `CONNECTIONS`.

Letters: `h` the source's state of iteration k − 1, `x` the input of the target layer in iteration k, both `(B, T, d)`;
`z` the inner state of a message, `(B, T, r)`; n edges, rank r, width d. Every message is `scale · up(z)`, and `up` is
zero at the start.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn
from torch.nn import functional as F

from .activations import Swish, make_activation
from .iteration_cache import IterationCache
from .iteration_trace import States, batch_first
from .pooling import pool
from .segments import Segments, SegmentSummaries
from .stacked_linear import Damping, Gate, Recurrence, StackedLinear, ZeroLinear, on_device_of
from .validation import is_integer

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig

# What `project_source` makes of one source for all its targets; a list of these if several operators are summed.
SourceMessage = torch.Tensor | list[Any]


@dataclass(frozen=True)
class MessageContext:
    """What a message may read besides the states.

    Args:
        mask: `(B, T)`, true at real tokens; `None`: all are.
        causal: whether a message must not inform a token about later ones.
        class_probabilities: `(B, C)`, the answer after iteration k − 1; for messages that read it.
        batch_dim: which dimension of the states is the batch; 1 in XLNet.
        segments: which text each row belongs to, if texts were cut.
        cache: holds what messages of this iteration read of earlier tokens, in generation; `mask` then covers these.
    """

    mask: torch.Tensor | None = None
    causal: bool = False
    class_probabilities: torch.Tensor | None = None
    batch_dim: int = 0
    segments: Segments | None = None
    cache: IterationCache | None = None

    def with_earlier_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """What a message reads of the tokens of this call → of these and all earlier ones, if there is a cache.

        Args:
            tokens: `(B, T, n, r)`.

        Returns:
            `(B, past + T, n, r)`.
        """
        return tokens if self.cache is None else self.cache.remember(tokens)


class FeedbackConnection(nn.Module):
    """`message_{s→l} = scale · up_l(z_l)`, added to the input of layer l: what all operators share.

    A subclass overrides `project_source`, `combine` or `project_target`, of which a message consists; it may add
    modules in its `__init__`, and check options in `check_options`. Modules other than those of `stacked_linear.py` are
    initialized as transformers initializes them, or by a method `init_feedback_weights` of their own.

    With `feedback_signal="error"`, h_s − x_l takes the place of h_s: the message reads how far the source's state and
    the input of the target layer are apart.

    Args:
        config: the feedback options.
        hidden_size: d, the backbone's hidden size.
        num_edges: n, the number of targets of the source.
        causal: whether a message must not inform a token about later ones.

    Shapes:
        `forward(h, context)`: the source's state `(B, T, d)` → its part of all messages, `(B, T, n, r)`.
        `message(source_message, edge, x, context)`: → the message of one edge, `(B, T, d)`.
    """

    # Whether a message informs a token about others.
    mixes_tokens: ClassVar[bool] = False
    # Whether it reads earlier tokens by `context.with_earlier_tokens`, once in each `project_source`, so that texts can
    # be generated token by token.
    remembers_tokens: ClassVar[bool] = False
    # Whether it cannot do without informing tokens about later ones, so that causal models have to allow that.
    needs_later_tokens: ClassVar[bool] = False
    # What it leaves out in a causal model, which would inform tokens about later ones.
    left_out_if_causal: ClassVar[str | None] = None
    # Whether there are messages in iteration 1 too, from the target's own input alone.
    acts_in_first_iteration: ClassVar[bool] = False
    # Whether messages may read the class probabilities of the iteration before.
    may_read_classes: ClassVar[bool] = False

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__()
        self.rank = hidden_size if config.feedback_rank is None else config.feedback_rank
        self.hidden_size, self.num_edges = hidden_size, num_edges
        self.config = config
        self.reads_error = config.feedback_signal == "error"
        self.norm: nn.Module = nn.LayerNorm(hidden_size)
        self.down = StackedLinear(hidden_size, num_edges, self.rank)
        self.activation = make_activation(config.feedback_activation, num_edges)
        self.dropout = nn.Dropout(config.feedback_dropout)
        self.up = ZeroLinear(self.rank, num_edges, hidden_size)

    @classmethod
    def check_options(cls, config: "FeedbackConfig") -> None:
        """Raises `ValueError` where an option of this operator does not fit the others."""

    def forward(self, h: torch.Tensor, context: MessageContext) -> SourceMessage:
        h = on_device_of(self.up, h)
        return h if self.reads_error else self.project_source(self.norm(h), context)

    def message(
        self, source_message: SourceMessage | None, edge: int, x: torch.Tensor, context: MessageContext
    ) -> torch.Tensor:
        """The message of one edge, `(B, T, d)`.

        Args:
            source_message: from `forward`; `None` in iteration 1.
            edge: number of the edge among those of the source.
            x: `(B, T, d)`, the input of the target layer.
            context: what the message may read besides.
        """
        x, index = on_device_of(self.up, x), edge
        projected = cast(torch.Tensor | None, source_message)
        if self.reads_error and projected is not None:
            projected, index = self.project_source(self.norm(projected - x), context, edge), 0
        if projected is not None:
            projected = projected[..., index : index + 1, :]
        message = self.project_target(self.combine(projected, edge, x, context), edge, x)
        return message if self.config.feedback_scale == 1.0 else self.config.feedback_scale * message

    def project_source(self, h: torch.Tensor, context: MessageContext, edge: int | None = None) -> torch.Tensor:
        """`f(down(h))` of the normed source: `(B, T, d)` → `(B, T, n, r)`, or `(B, T, 1, r)` of one edge."""
        return self.dropout(self.activate(self.down(h, edge), edge))

    def combine(
        self, projected: torch.Tensor | None, edge: int, x: torch.Tensor, context: MessageContext
    ) -> torch.Tensor:
        """z of one edge, `(B, T, r)`, from its projected source `(B, T, 1, r)` and the target layer's input x."""
        return cast(torch.Tensor, projected).squeeze(-2)

    def project_target(self, z: torch.Tensor, edge: int, x: torch.Tensor) -> torch.Tensor:
        """`up(z)`, `(B, T, r)` → `(B, T, d)`."""
        return self.up(z, edge)

    def activate(self, z: torch.Tensor, edge: int | None = None) -> torch.Tensor:
        """f, of all edges or of one."""
        return self.activation(z, edge) if isinstance(self.activation, Swish) else self.activation(z)

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """Floating-point operations of the matrix products, per token.

        Args:
            length: tokens of the text, or of each of its segments.
            num_segments: S, if texts are cut.

        Returns:
            Of the projected source, once for each set of weights, and of each edge.
        """
        return 2 * self.hidden_size * self.rank, 2 * self.hidden_size * self.rank


class AdditiveConnection(FeedbackConnection):
    """`message = scale · up(f(down(LayerNorm(h))))`, token by token; f is the activation.

    The cheapest operator, and the one to start with: prefer another one where a token needs what its own higher state
    does not hold. It costs 4·d·r operations a token and edge.

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

    The target's input decides per token and channel how much of the message passes; the gate reads both ends and is
    nearly closed at the start. Prefer it where messages help some tokens and harm others. It costs twice as much as
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
        read = self.reader(self.reader_norm(x), edge)[..., 0, :]
        return self.gate(z + read, edge) * self.up(z, edge)

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
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
        return self.down(h, edge)

    def combine(
        self, projected: torch.Tensor | None, edge: int, x: torch.Tensor, context: MessageContext
    ) -> torch.Tensor:
        z = self.reader(self.reader_norm(x), edge)
        if projected is not None:
            z = z + projected
        return self.dropout(self.activate(z, edge))[..., 0, :]

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        return 2 * self.hidden_size * self.rank, 4 * self.hidden_size * self.rank


class AttentionConnection(FeedbackConnection):
    """`message_t = scale · up(f(Σ_u a_tu · value(h_u)))`, a_t = softmax over u of `query(x_t) · key(h_u) / √(r/heads)`.

    Tokens of the target layer attend to the source's tokens of the previous iteration with a few low-rank heads.
    Padding is never attended to; on causal backbones later tokens are not either, unless `feedback_future` allows it.
    Prefer it where a token needs particular others, such as a decoder's early tokens those after them. It costs twice
    as much as `"additive"`, and 4·T·r operations a token and edge for the attention itself.

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
    remembers_tokens = True

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.num_heads = config.feedback_heads
        self.key = StackedLinear(hidden_size, num_edges, self.rank)
        self.reader_norm = nn.LayerNorm(hidden_size)
        self.reader = StackedLinear(hidden_size, num_edges, self.rank)

    @classmethod
    def check_options(cls, config: "FeedbackConfig") -> None:
        rank = config.hidden_size if config.feedback_rank is None else config.feedback_rank
        if is_integer(rank) and rank % config.feedback_heads:
            raise ValueError(
                f"`feedback_heads` must divide the rank of the messages, {rank}, got {config.feedback_heads}; change "
                "it or `feedback_rank`."
            )

    def project_source(self, h: torch.Tensor, context: MessageContext, edge: int | None = None) -> torch.Tensor:
        return context.with_earlier_tokens(torch.cat((self.key(h, edge), self.down(h, edge)), -1))

    def combine(
        self, projected: torch.Tensor | None, edge: int, x: torch.Tensor, context: MessageContext
    ) -> torch.Tensor:
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
        """What tokens attend to: keys and values `(B, U, 2r)`, and a mask or bias `(B or 1, heads or 1, T or 1, U)`."""
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
    remembers_tokens = True
    left_out_if_causal = "V"

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.num_sweeps = config.feedback_sweeps
        self.W = Recurrence(num_edges, self.rank)
        self.V = None if causal else Recurrence(num_edges, self.rank)

    def project_source(self, h: torch.Tensor, context: MessageContext, edge: int | None = None) -> torch.Tensor:
        length = h.shape[1]
        U_h = context.with_earlier_tokens(self.down(h, edge))  # (B, T, n, r), b included
        real = None if context.mask is None else context.mask[:, : U_h.shape[1], None, None].to(h.device)
        if context.cache is not None:  # each sweep reaches back by one token
            U_h = U_h[:, -(length + self.num_sweeps - 1) :]
            real = None if real is None else real[:, -U_h.shape[1] :]
        m = self.activate(U_h, edge)
        for _ in range(self.num_sweeps - 1):
            m = m if real is None else m * real
            z = U_h + self.W(F.pad(m, (0, 0, 0, 0, 1, -1)), edge)
            if self.V is not None:
                z = z + self.V(F.pad(m, (0, 0, 0, 0, -1, 1)), edge)
            m = self.activate(z, edge)
        return self.dropout(m[:, -length:])

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
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
        alone = config.feedback_type == "context"
        if config.feedback_context == "classes" and alone and config.feedback_signal == "error":
            raise ValueError(
                "`feedback_signal`='error' compares states, and `feedback_context='classes'` reads none; leave one out."
            )

    def project_source(self, h: torch.Tensor, context: MessageContext, edge: int | None = None) -> torch.Tensor:
        read = context.class_probabilities if self.reads_classes else pool(h, context.mask, "mean")
        read = cast(torch.Tensor, read).to(h)
        return self.dropout(self.activate(self.down(read, edge), edge))[:, None]  # (B, 1, n, r)

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        return 2 * self.down.in_features * self.rank // length, 2 * self.hidden_size * self.rank // length


class SegmentConnection(FeedbackConnection):
    """`message = scale · up(f(U h_t + W h_{t−1} + V h_{t+1} + b))` for all tokens of segment t alike.

    h_t is the mean of the source's normed states over segment t, 0 beyond the ends of a text; U and b are `down`. The
    operator of `feedback_span="segment"`, for texts that are longer than the backbone reads: with K iterations a
    segment is informed about the K − 1 segments on either side. It costs three times as much for a segment as
    `"additive"` for a token.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    >>> options = dict(feedback_rank=8, feedback_span="segment")
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), **options)
    >>> type(model.feedback.connection(2)).__name__, model.feedback.connection(2).flops(length=16)
    ('SegmentConnection', (96, 32))

    ```
    """

    mixes_tokens = True
    needs_later_tokens = True

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.W = StackedLinear(hidden_size, num_edges, self.rank, bias=False)
        self.V = StackedLinear(hidden_size, num_edges, self.rank, bias=False)

    def project_source(self, h: torch.Tensor, context: MessageContext, edge: int | None = None) -> torch.Tensor:
        h = pool(h, context.mask, "mean")  # (N, d)
        z = self.down(h, edge)
        if context.segments is not None:
            z = z + self.W(context.segments.before(h), edge) + self.V(context.segments.after(h), edge)
        return self.dropout(self.activate(z, edge))[:, None]  # (N, 1, n, r)

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        return 6 * self.hidden_size * self.rank // length, 2 * self.hidden_size * self.rank // length


class SegmentMemoryConnection(AttentionConnection):
    """`message_t = scale · up(f(Σ_j a_tj · value(c_j)))`, a_tj ∝ `exp(query(x_t) · key(c_j) / √(r/heads) + b_j)`.

    c_j are m learned summaries of every segment of the text, `c_j = Σ_u softmax_u(s_j · h_u) h_u` over the source's
    normed states in the segment; b_j is a learned bias for how many segments later or earlier j's is, the same from
    `MAX_DISTANCE` on. With `feedback_type="memory"` and `feedback_span="segment"`: tokens of iteration k read what they
    ask for of all segments of iteration k − 1. Prefer it where a segment needs what stands in another, near or far.
    Beside the maps of `"attention"` it costs 4·S·m·r operations a token and edge, S the segments of the text: linear in
    its length times S·m.

    Shapes:
        `forward(h, context)`: `(N, T, d)` → `(N, m, n, 2r)`, keys and values of each segment.

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    >>> options = dict(feedback_rank=8, feedback_span="segment", feedback_type="memory", segment_summaries=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), **options)
    >>> connection = model.feedback.connection(2)
    >>> type(connection).__name__, connection.flops(length=16), connection.flops(length=16, num_segments=4)
    ('SegmentMemoryConnection', (256, 1088), (256, 1280))

    ```
    """

    remembers_tokens = False
    needs_later_tokens = True
    MAX_DISTANCE: ClassVar[int] = 4

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.num_summaries = config.segment_summaries
        self.summaries = SegmentSummaries(hidden_size, self.num_summaries)
        self.distance = ZeroLinear(2 * self.MAX_DISTANCE + 1, num_edges, self.num_heads)

    def project_source(self, h: torch.Tensor, context: MessageContext, edge: int | None = None) -> torch.Tensor:
        c = self.summaries(h, context.mask)
        return torch.cat((self.key(c, edge), self.down(c, edge)), -1)

    def memory(
        self, projected: torch.Tensor, edge: int, x: torch.Tensor, context: MessageContext
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        segments = context.segments or Segments(torch.arange(len(x), device=x.device), len(x))
        rows, distance = (one.to(x.device) for one in segments.of_same_text())
        far = self.MAX_DISTANCE
        bias = self.distance.weight[edge].T[distance.clamp(-far, far) + far]  # (N, S, heads)
        bias = bias.masked_fill((rows < 0)[..., None], -math.inf).repeat_interleave(self.num_summaries, 1)
        return projected[rows.clamp_min(0)].flatten(1, 2), bias.transpose(1, 2)[:, :, None]

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        d, r, m = self.hidden_size, self.rank, self.num_summaries
        sharing = 1 if self.reads_error else self.num_edges  # the edges read the same summaries
        return 4 * d * m // sharing + 4 * d * r * m // length, 4 * d * r + 4 * num_segments * m * r


def _attention_mask(context: MessageContext, length: int, num_read: int, device: torch.device) -> torch.Tensor | None:
    """`(B or 1, 1, T, past + T)`, true where token t may attend to token u; each to itself always, so that no row is
    empty.

    Args:
        context: of the message.
        length: T, the tokens of this call.
        num_read: past + T, the tokens that can be read.
        device: of the mask.
    """
    past = num_read - length
    if context.mask is None and not (context.causal and length > 1):
        return None
    allowed = torch.ones(1, 1, length, num_read, dtype=torch.bool, device=device)
    itself = allowed.tril(past).triu(past)
    if context.causal:
        allowed = allowed.tril(past)
    if context.mask is not None:
        allowed = allowed & context.mask[:, None, None, :num_read].to(device)
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
# The same with `feedback_span="segment"`.
SEGMENT_CONNECTIONS: dict[str, type[FeedbackConnection]] = {
    "additive": SegmentConnection,
    "memory": SegmentMemoryConnection,
}


def operators_of(config: "FeedbackConfig") -> list[type[FeedbackConnection]]:
    """The operators whose messages are added.

    Raises:
        ValueError: one is not registered.
    """
    names = config.feedback_type.split("+")
    if config.feedback_span == "segment":
        return [SEGMENT_CONNECTIONS[name] for name in names]
    if unknown := [name for name in names if name not in CONNECTIONS]:
        raise ValueError(
            f"`feedback_type`: {unknown[0]!r} is not among the operators {', '.join(CONNECTIONS)}; import the module "
            "that registers it in `hf_feedback.connections.CONNECTIONS`, or pass `trust_remote_code=True` to "
            "`from_pretrained` if the folder holds its code."
        )
    return [CONNECTIONS[name] for name in names]


def previous_tokens(h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`h_{t−1}` for every token t, 0 for the first one and after padding.

    Args:
        h: `(B, T, d)`.
        mask: `(B, T)`, true at real tokens; `None`: all are.
    """
    if mask is not None:
        h = h * mask.to(h.device)[..., None]
    return F.pad(h[:, :-1], (0, 0, 1, 0))


class SumConnection(nn.ModuleList):
    """Several operators on the same edges, as in `feedback_type="additive+context"`: their messages are added."""

    def forward(self, h: torch.Tensor, context: MessageContext) -> SourceMessage:
        return [operator(h, context) for operator in self]

    def message(
        self, source_message: SourceMessage | None, edge: int, x: torch.Tensor, context: MessageContext
    ) -> torch.Tensor:
        """The sum of the messages of one edge; see `FeedbackConnection.message`."""
        messages = [
            operator.message(None if source_message is None else source_message[i], edge, x, context)
            for i, operator in enumerate(cast(list[FeedbackConnection], self))
            if source_message is not None or operator.acts_in_first_iteration
        ]
        return cast(torch.Tensor, sum(messages))

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """The sums of `FeedbackConnection.flops`."""
        costs = [operator.flops(length, num_segments) for operator in cast(list[FeedbackConnection], self)]
        return sum(source for source, _ in costs), sum(edge for _, edge in costs)


class FeedbackConnections(nn.Module):
    """All feedback connections of a model, one module per source.

    Args:
        config: the feedback options.
        edges: `(source, target)` pairs, layers counted from 0.
        hidden_size: d, the backbone's hidden size.
        causal: whether messages must not inform a token about later ones.

    Shapes:
        `forward(h, context)`: the sources' states of iteration k − 1, `{source: (B, T, d)}` → their parts of the
        messages, for `add_messages`.
    """

    def __init__(
        self, config: "FeedbackConfig", edges: list[tuple[int, int]], hidden_size: int, causal: bool = False
    ) -> None:
        super().__init__()
        targets: dict[int, list[int]] = {}
        for source, target in sorted(edges):
            targets.setdefault(source, []).append(target)
        shared = config.feedback_sharing == "targets"
        operators = operators_of(config)
        self.acts_in_first_iteration = any(operator.acts_in_first_iteration for operator in operators)
        self.mixes_tokens = any(operator.mixes_tokens for operator in operators)
        self.can_generate = all(operator.remembers_tokens or not operator.mixes_tokens for operator in operators)
        remembered = sum(operator.remembers_tokens for operator in operators)
        # of each iteration: what its messages read of a source, which with the error signal depends on the target too
        self.num_message_slots = remembered * len(edges if config.feedback_signal == "error" else targets)
        self.reads_classes = config.feedback_context == "classes" and any(one.may_read_classes for one in operators)

        def connection(num_edges: int) -> nn.Module:
            made = [operator(config, hidden_size, 1 if shared else num_edges, causal) for operator in operators]
            return made[0] if len(made) == 1 else SumConnection(made)

        self.sources = nn.ModuleDict({str(source): connection(len(its)) for source, its in targets.items()})
        self.config = config
        self.damping = Damping(len(targets), config.feedback_damping) if config.learn_damping else None
        # target → (source, number of the edge among those of the source)
        self.incoming: dict[int, list[tuple[int, int]]] = {}
        for source, its_targets in targets.items():
            for edge, target in enumerate(its_targets):
                self.incoming.setdefault(target, []).append((source, 0 if shared else edge))

    def connection(self, source: int) -> FeedbackConnection:
        """The connection of a source, or several as a `SumConnection`."""
        return cast(FeedbackConnection, self.sources[str(source)])

    def forward(self, h: States, context: MessageContext) -> dict[int, SourceMessage]:
        states = {source: batch_first(h[source], context.batch_dim) for source in h}
        if self.config.feedback_shift:
            states = {source: previous_tokens(state, context.mask) for source, state in states.items()}
        return self.project(states, context)

    def project(self, states: States, context: MessageContext) -> dict[int, SourceMessage]:
        """Each source's part of the messages, from the states that its messages read, `(B, T, d)`."""
        return {source: self.connection(source)(state, context) for source, state in states.items()}

    def add_messages(
        self, x: torch.Tensor, target: int, source_messages: dict[int, SourceMessage] | None, context: MessageContext
    ) -> torch.Tensor:
        """`x + Σ_{s → target} message_{s→target}`, in the dtype and on the device of `x`.

        Args:
            x: `(B, T, d)`, the input of layer `target`.
            target: its number.
            source_messages: from `forward`; `None` in iteration 1, where only some operators have messages.
            context: what messages may read besides.
        """
        target_input = batch_first(x, context.batch_dim)
        for source, edge in self.incoming.get(target, ()):
            projected = None if source_messages is None else source_messages[source]
            message = self.connection(source).message(projected, edge, target_input, context)
            x = x + batch_first(message, context.batch_dim).to(x)
        return x

    @property
    def damps(self) -> bool:
        """Whether messages read other states than the new ones."""
        return self.damping is not None or self.config.feedback_damping < 1.0

    def damp(self, previous: States, new: States) -> States:
        """What messages read next: the new states, damped towards the previous ones."""
        if self.damping is not None:
            return {s: self.damping(previous[s], new[s], i) for i, s in enumerate(sorted(new))}
        alpha = self.config.feedback_damping
        return {s: torch.lerp(previous[s], new[s], alpha) for s in new} if self.damps else new

    @property
    def weight(self) -> None:
        """Nothing; PEFT reads and sets it on every module in `modules_to_save` when adapters such as IA³ are merged."""
        return None

    @weight.setter
    def weight(self, value: None) -> None:
        pass
