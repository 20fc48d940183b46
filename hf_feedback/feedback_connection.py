"""Base of all feedback connections: the messages from one higher layer to the lower ones.

A connection holds all edges of one source. Its parameters are stacked over their targets, so that edges that share a
source are one matrix product.

Letters: `h` the source's state of iteration k − 1, `x` the input of the target layer in iteration k, both `(B, T, d)`;
`z` the inner state of a message, `(B, T, r)`; n edges, rank r, width d. Every message is `scale · up(z)`, and `up` is
zero at the start.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn
from torch.nn import functional as F

from .activations import ACTIVATIONS, make_activation
from .iteration_cache import IterationCache
from .segments import Segments
from .stacked_linear import StackedLinear, ZeroLinear, on_device_of

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig

# What `project_source` makes of one source for all its targets; a list of these if several operators are summed.
SourceMessage = torch.Tensor | list[Any]


@dataclass(frozen=True)
class MessageContext:
    """Inputs of a message besides the states.

    Args:
        mask: `(B, T)`, true at real tokens; `None`: all are.
        packed_texts: `(B, T)`, the number of the text of each token, where rows hold several texts; `None`: one each.
        causal: whether a message must not inform a token about later ones.
        class_probabilities: `(B, C)`, class probabilities after iteration k − 1, for messages that read them.
        batch_dim: batch dimension of the states; 1 in XLNet.
        segments: the text of each row, if texts were cut.
        cache: in generation, stores the inputs of messages for earlier tokens, which `mask` then covers too.
    """

    mask: torch.Tensor | None = None
    packed_texts: torch.Tensor | None = None
    causal: bool = False
    class_probabilities: torch.Tensor | None = None
    batch_dim: int = 0
    segments: Segments | None = None
    cache: IterationCache | None = None

    def with_earlier_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Extends the inputs of a message for the tokens of this call to all earlier tokens, if there is a cache.

        Args:
            tokens: `(B, T, n, r)`.

        Returns:
            `(B, past + T, n, r)`.
        """
        return tokens if self.cache is None else self.cache.remember(tokens)

    def shift(self, tokens: torch.Tensor, by: int) -> torch.Tensor:
        """Gives every token t the values of token t − `by`, and 0 where there is none in its text.

        Args:
            tokens: `(B, T, …)`.
            by: 1 for the token before, −1 for the one after.
        """
        sides = (0, 0) * (tokens.dim() - 2)
        shifted = F.pad(tokens, (*sides, by, -by))
        if self.packed_texts is None:
            return shifted
        texts = self.packed_texts.to(tokens.device)
        same = texts == F.pad(texts, (by, -by), value=-1)
        return shifted * same.view(*same.shape, *(1 for _ in shifted.shape[2:]))


class FeedbackConnection(nn.Module):
    """`message_{s→l} = scale · up_l(z_l)`, added to the input of layer l: what all operators share.

    A message is `scale · project_target(combine(project_source(norm(h)), x))`. A subclass overrides any of the three
    methods; it may add modules in its `__init__`, and check options in `check_options`. Modules other than those of
    `stacked_linear.py` are initialized as transformers initializes them, or by their own `init_feedback_weights`.

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
    # Whether it keeps the texts of a row apart that `context.packed_texts` tells, if it mixes tokens.
    separates_texts: ClassVar[bool] = False
    # Whether it reads earlier tokens by `context.with_earlier_tokens`, once in each `project_source`, so that texts can
    # be generated token by token.
    remembers_tokens: ClassVar[bool] = False
    # Whether it cannot do without informing tokens about later ones, so that causal models have to allow that.
    needs_later_tokens: ClassVar[bool] = False
    # The part that it omits in causal models, since it would inform tokens about later ones.
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
        x = on_device_of(self.up, x)
        projected = None  # (B, T, 1, r); iteration 1 has no source yet
        if source_message is not None and self.reads_error:
            error = cast(torch.Tensor, source_message) - x  # `forward` has returned the source's state itself
            projected = self.project_source(self.norm(error), context, edge)
        elif source_message is not None:
            projected = cast(torch.Tensor, source_message)[..., edge : edge + 1, :]
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
        has_edges = isinstance(self.activation, tuple(ACTIVATIONS.values()))
        return self.activation(z, edge) if has_edges else self.activation(z)

    def flops(self, length: int, num_segments: int = 1) -> tuple[int, int]:
        """Floating-point operations of the matrix products, per token.

        Args:
            length: tokens of the text, or of each of its segments.
            num_segments: S, if texts are cut.

        Returns:
            Those of projecting the source, which are paid once for each set of weights, and those of each edge.
        """
        return 2 * self.hidden_size * self.rank, 2 * self.hidden_size * self.rank
