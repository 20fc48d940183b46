"""The operators between the segments of a long text, those of `feedback_span="segment"`."""

import math
from typing import TYPE_CHECKING, ClassVar

import torch

from .connections import AttentionConnection
from .feedback_connection import FeedbackConnection, MessageContext
from .pooling import pool
from .segments import Segments, SegmentSummaries
from .stacked_linear import StackedLinear, ZeroLinear

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig


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
        """`f(U h_t + W h_{t−1} + V h_{t+1} + b)` of each segment t, `(N, 1, n, r)`."""
        h = pool(h, context.mask, "mean")  # (N, d)
        z = self.down(h, edge)
        if context.segments is not None:
            z = z + self.W(context.segments.shift_right(h), edge) + self.V(context.segments.shift_left(h), edge)
        return self.dropout(self.activate(z, edge))[:, None]  # (N, 1, n, r)

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """Those of one token with three maps instead of one, divided among the tokens of a segment."""
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
        """`key(c_j)` and `value(c_j)` of the m summaries of each segment, `(N, m, n, 2r)`."""
        c = self.summaries(h, context.mask)
        return torch.cat((self.key(c, edge), self.down(c, edge)), -1)

    def memory(
        self, projected: torch.Tensor, edge: int, x: torch.Tensor, context: MessageContext
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Keys and values of all segments of the text, and b_j, which is −∞ where a text has fewer segments."""
        segments = context.segments or Segments(torch.arange(len(x), device=x.device), len(x))
        rows, distance = (one.to(x.device) for one in segments.of_same_text())
        far = self.MAX_DISTANCE
        bias = self.distance.weight[edge].T[distance.clamp(-far, far) + far]  # (N, S, heads)
        bias = bias.masked_fill((rows < 0)[..., None], -math.inf).repeat_interleave(self.num_summaries, 1)
        return projected[rows.clamp_min(0)].flatten(1, 2), bias.transpose(1, 2)[:, :, None]

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """Summaries, keys and values once for each segment; queries, `up` and attention of an edge."""
        d, r, m = self.hidden_size, self.rank, self.num_summaries
        sharing = 1 if self.reads_error else self.num_edges  # the edges read the same summaries
        return 4 * d * m // sharing + 4 * d * r * m // length, 4 * d * r + 4 * num_segments * m * r


# By their names in the option `feedback_type`, with `feedback_span="segment"`.
SEGMENT_CONNECTIONS: dict[str, type[FeedbackConnection]] = {
    "additive": SegmentConnection,
    "memory": SegmentMemoryConnection,
}
