"""Feedback connections: what a higher layer tells the lower ones, one class per message operator.

A connection holds all edges of one source. Its parameters are stacked over their targets, so that edges sharing a
source are one matrix product. A further operator is one class here and one row in `CONNECTIONS`.

Letters: `h` the source's state of iteration k − 1, `x` the input of the target layer in iteration k, `z` what a message
says inside, `(B, T, r)`; n edges, rank r, width d. Every message is `scale · up(z)`, and `up` is zero at the start.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from .activations import Swish, make_activation
from .maps import Damping, Gate, Recurrence, StackedLinear, ZeroLinear, on_device_of
from .pooling import pool
from .segments import Segments

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig


@dataclass(frozen=True)
class Reading:
    """What a message may know besides the states.

    Args:
        mask: `(B, T)`, true at real tokens; `None`: all are.
        causal: whether a token must not be told of later ones.
        beliefs: `(B, C)`, what the model answered after iteration k − 1; for messages that read it.
        batch_dim: which dimension of the states is the batch; 1 in XLNet.
        segments: which text each row belongs to, where texts were cut.
    """

    mask: torch.Tensor | None = None
    causal: bool = False
    beliefs: torch.Tensor | None = None
    batch_dim: int = 0
    segments: Segments | None = None


class AdditiveConnection(nn.Module):
    """`message_{s→l} = scale · up_l(f(down_l(LayerNorm(h_s))))`, added to the input of layer l; f is the activation.

    With `feedback_signal="error"`, h_s − x_l takes the place of h_s: the message reads how far the source's state and
    what the target layer is about to read are apart.

    Args:
        config: the feedback options.
        hidden_size: d, the backbone's hidden size.
        num_edges: n, how many targets the source speaks to.
        causal: whether a token must not be told of later ones.

    Shapes:
        `forward(h)`: the source's state `(B, T, d)` → what it says to all targets, `(B, T, n, r)`.
        `message(said, edge, x)`: → the message of one edge, `(B, T, d)`.
    """

    # Whether a message tells a token of others; whether there are messages in iteration 1 too, where nothing is said.
    mixes_tokens = False
    adapts = False

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__()
        self.rank = hidden_size if config.feedback_rank is None else config.feedback_rank
        self.hidden_size, self.num_edges = hidden_size, num_edges
        self.config = config
        self.reads_error = config.feedback_signal == "error"
        self.norm: Any = nn.LayerNorm(hidden_size)
        self.down = StackedLinear(hidden_size, num_edges, self.rank)
        self.activation = make_activation(config.feedback_activation, num_edges)
        self.dropout = nn.Dropout(config.feedback_dropout)
        self.up = ZeroLinear(self.rank, num_edges, hidden_size)

    def forward(self, h: torch.Tensor, reading: Reading) -> Any:
        h = on_device_of(self.up, h)
        return h if self.reads_error else self.speak(self.norm(h), reading)

    def message(self, said: Any, edge: int, x: torch.Tensor, reading: Reading) -> torch.Tensor:
        x, place = on_device_of(self.up, x), edge
        if self.reads_error and said is not None:
            said, place = self.speak(self.norm(said - x), reading, edge), 0
        message = self.deliver(self.hear(said, place, edge, x, reading), edge, x)
        return message if self.config.feedback_scale == 1.0 else self.config.feedback_scale * message

    def speak(self, h: torch.Tensor, reading: Reading, edge: int | None = None) -> Any:
        """What the normed source says to all targets, or to one: `(B, T, n or 1, r)`."""
        return self.dropout(self.activate(self.down(h, edge), edge))

    def hear(self, said: Any, place: int, edge: int, x: torch.Tensor, reading: Reading) -> torch.Tensor:
        """What arrives at one target, z `(B, T, r)`; `place` is that of the edge in `said`."""
        return said[..., place, :]

    def deliver(self, z: torch.Tensor, edge: int, x: torch.Tensor) -> torch.Tensor:
        """The message that z becomes, `(B, T, d)`."""
        return self.up(z, edge)

    def activate(self, z: torch.Tensor, edge: int | None = None) -> torch.Tensor:
        """f, of all edges or of one."""
        return self.activation(z, edge) if isinstance(self.activation, Swish) else self.activation(z)

    def flops(self, length: int) -> tuple[int, int]:
        """Floating-point operations per token in a text of `length` tokens, of the matrix products: of what the source
        says, once for each set of weights, and of each edge."""
        return 2 * self.hidden_size * self.rank, 2 * self.hidden_size * self.rank


class GatedConnection(AdditiveConnection):
    """`gate ⊙ message`, where `gate = sigmoid(A(z + read(LayerNorm(x))) + b)`: the receiving state decides, per token
    and channel, how much it takes. The gate reads both ends and is nearly closed at the start.
    """

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.reader_norm = nn.LayerNorm(hidden_size)
        self.reader = StackedLinear(hidden_size, num_edges, self.rank)
        self.gate = Gate(self.rank, num_edges, hidden_size)

    def deliver(self, z: torch.Tensor, edge: int, x: torch.Tensor) -> torch.Tensor:
        read = self.reader(self.reader_norm(x), edge)[..., 0, :]
        return self.gate(z + read, edge) * self.up(z, edge)

    def flops(self, length: int) -> tuple[int, int]:
        return 2 * self.hidden_size * self.rank, 6 * self.hidden_size * self.rank


class JointConnection(AdditiveConnection):
    """`message = scale · up(f(down(LayerNorm(h)) + read(LayerNorm(x))))`: one activation for source and receiver.

    In iteration 1, where there is no source yet, the message reads the receiver alone: an adapter (Houlsby et al. 2019,
    arXiv 1902.00751). K = 1 is then the adapted backbone and not the bare one.
    """

    adapts = True

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.reader_norm = nn.LayerNorm(hidden_size)
        self.reader = StackedLinear(hidden_size, num_edges, self.rank)

    def speak(self, h: torch.Tensor, reading: Reading, edge: int | None = None) -> torch.Tensor:
        return self.down(h, edge)

    def hear(self, said: Any, place: int, edge: int, x: torch.Tensor, reading: Reading) -> torch.Tensor:
        z = self.reader(self.reader_norm(x), edge)
        if said is not None:
            z = z + said[..., place : place + 1, :]
        return self.dropout(self.activate(z, edge))[..., 0, :]

    def flops(self, length: int) -> tuple[int, int]:
        return 2 * self.hidden_size * self.rank, 4 * self.hidden_size * self.rank


class AttentionConnection(AdditiveConnection):
    """`message_t = scale · up(f(Σ_u a_tu · value(h_u)))`, a_t = softmax over u of `query(x_t) · key(h_u) / √(r/heads)`:
    a lower token queries the higher layer's tokens of the previous iteration with a few low-rank heads.

    Padding is never attended to; on causal backbones later tokens are not either, unless `feedback_future` allows it.
    """

    mixes_tokens = True

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.num_heads = config.feedback_heads
        self.key = StackedLinear(hidden_size, num_edges, self.rank)
        self.reader_norm = nn.LayerNorm(hidden_size)
        self.reader = StackedLinear(hidden_size, num_edges, self.rank)

    def speak(self, h: torch.Tensor, reading: Reading, edge: int | None = None) -> torch.Tensor:
        return torch.cat((self.key(h, edge), self.down(h, edge)), -1)

    def hear(self, said: Any, place: int, edge: int, x: torch.Tensor, reading: Reading) -> torch.Tensor:
        key, value = said[..., place, :].chunk(2, -1)
        query = self.reader(self.reader_norm(x), edge)[..., 0, :]
        q, k, v = (z.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for z in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=_may_read(reading, x.shape[1], x.device))
        z = attended.transpose(1, 2).flatten(2)
        return self.dropout(self.activate(z.unsqueeze(-2), edge))[..., 0, :]

    def flops(self, length: int) -> tuple[int, int]:
        return 4 * self.hidden_size * self.rank, 4 * self.hidden_size * self.rank + 4 * length * self.rank


class TemporalConnection(AdditiveConnection):
    """`message_t = scale · up(m_t)`, `m_t = f(U x_t + W m_{t−1} + V m_{t+1} + b)` over the source's tokens, x_t their
    normed states: the temporal feedback network inside a transformer, by `feedback_sweeps` parallel sweeps from m = 0.

    Padding counts as m = 0, as do the ends. On causal backbones there is no V unless `feedback_future` allows it.
    """

    mixes_tokens = True

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.num_sweeps = config.feedback_sweeps
        self.W = Recurrence(num_edges, self.rank)
        self.V = None if causal else Recurrence(num_edges, self.rank)

    def speak(self, h: torch.Tensor, reading: Reading, edge: int | None = None) -> torch.Tensor:
        real = None if reading.mask is None else reading.mask[:, :, None, None].to(h.device)
        U_x = self.down(h, edge)  # (B, T, n, r), b included
        m = self.activate(U_x, edge)
        for _ in range(self.num_sweeps - 1):
            m = m if real is None else m * real
            z = U_x + self.W(F.pad(m, (0, 0, 0, 0, 1, -1)), edge)
            if self.V is not None:
                z = z + self.V(F.pad(m, (0, 0, 0, 0, -1, 1)), edge)
            m = self.activate(z, edge)
        return self.dropout(m)

    def flops(self, length: int) -> tuple[int, int]:
        neighbours = 1 if self.V is None else 2
        sweeps = 2 * neighbours * (self.num_sweeps - 1) * self.rank**2
        return 2 * self.hidden_size * self.rank + sweeps, 2 * self.hidden_size * self.rank


class ContextConnection(AdditiveConnection):
    """`message = scale · up(f(down(c)))` for all tokens alike, c what the model currently believes: the mean of the
    source's states over the text, or (`feedback_context="classes"`) the probabilities of its answer after the previous
    iteration through a learned class embedding.
    """

    mixes_tokens = True

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.reads_classes = config.feedback_context == "classes"
        if self.reads_classes:
            self.norm = nn.Identity()
            self.down = StackedLinear(len(config.id2label or {}), num_edges, self.rank)

    def speak(self, h: torch.Tensor, reading: Reading, edge: int | None = None) -> torch.Tensor:
        read: Any = reading.beliefs if self.reads_classes else pool(h, reading.mask, "mean")
        return self.dropout(self.activate(self.down(read.to(h), edge), edge))[:, None]  # (B, 1, n, r)

    def flops(self, length: int) -> tuple[int, int]:
        return 2 * self.down.in_features * self.rank // length, 2 * self.hidden_size * self.rank // length


class SegmentConnection(AdditiveConnection):
    """`message = scale · up(m_t)` for all tokens of segment t alike, `m_t = f(U h_t + W h_{t−1} + V h_{t+1} + b)`, h_t
    the mean of the source's normed states over segment t: the temporal feedback network over the segments of a text.

    h = 0 beyond the ends of a text; U and b are `down`. With K iterations, news travels K − 1 segments far.
    """

    mixes_tokens = True

    def __init__(self, config: "FeedbackConfig", hidden_size: int, num_edges: int, causal: bool = False) -> None:
        super().__init__(config, hidden_size, num_edges, causal)
        self.W = StackedLinear(hidden_size, num_edges, self.rank, bias=False)
        self.V = StackedLinear(hidden_size, num_edges, self.rank, bias=False)

    def speak(self, h: torch.Tensor, reading: Reading, edge: int | None = None) -> torch.Tensor:
        h = pool(h, reading.mask, "mean")  # (N, d)
        z = self.down(h, edge)
        if reading.segments is not None:
            z = z + self.W(reading.segments.before(h), edge) + self.V(reading.segments.after(h), edge)
        return self.dropout(self.activate(z, edge))[:, None]  # (N, 1, n, r)

    def flops(self, length: int) -> tuple[int, int]:
        return 6 * self.hidden_size * self.rank // length, 2 * self.hidden_size * self.rank // length


def _may_read(reading: Reading, length: int, device: torch.device) -> torch.Tensor | None:
    """`(B or 1, 1, T, T)`, true where token t may attend to token u; each to itself always, so that no row is empty."""
    if reading.mask is None and not reading.causal:
        return None
    allowed = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    if reading.causal:
        allowed = allowed.tril()
    if reading.mask is not None:
        allowed = allowed & reading.mask[:, None, None].to(device)
    return allowed | torch.eye(length, dtype=torch.bool, device=device)


CONNECTIONS: dict[str, type[AdditiveConnection]] = {
    "additive": AdditiveConnection,
    "gated": GatedConnection,
    "attention": AttentionConnection,
    "temporal": TemporalConnection,
    "context": ContextConnection,
    "joint": JointConnection,
}


class SumConnection(nn.ModuleList):
    """Several operators on the same edges, as in `feedback_type="additive+context"`: their messages are added."""

    def forward(self, h: torch.Tensor, reading: Reading) -> list[Any]:
        return [connection(h, reading) for connection in self]

    def message(self, said: list[Any] | None, edge: int, x: torch.Tensor, reading: Reading) -> torch.Tensor:
        return sum(  # type: ignore[return-value]
            one.message(None if said is None else said[i], edge, x, reading)  # type: ignore[operator]
            for i, one in enumerate(self)
            if said is not None or one.adapts
        )

    def flops(self, length: int) -> tuple[int, int]:
        said, heard = zip(*(one.flops(length) for one in self), strict=True)  # type: ignore[operator]
        return sum(said), sum(heard)


class FeedbackConnections(nn.Module):
    """All feedback connections of a model, one module per source.

    Args:
        config: the feedback options.
        edges: `(source, target)` pairs, layers counted from 0.
        hidden_size: d, the backbone's hidden size.
        causal: whether a token must not be told of later ones.

    Shapes:
        `forward(h, reading)`: the sources' states of iteration k − 1, `{source: (B, T, d)}` → what they say, for `add`.
        `add(said, target, x, reading)`: the input of layer `target`, `(B, T, d)` → the same with its messages. `said`
        is `None` in iteration 1, where only adapting operators have any.
    """

    def __init__(
        self, config: "FeedbackConfig", edges: list[tuple[int, int]], hidden_size: int, causal: bool = False
    ) -> None:
        super().__init__()
        targets: dict[int, list[int]] = {}
        for source, target in sorted(edges):
            targets.setdefault(source, []).append(target)
        shared = config.feedback_sharing == "targets"
        kinds = [CONNECTIONS[name] for name in config.feedback_type.split("+")]
        if config.feedback_span == "segment":
            kinds = [SegmentConnection]
        self.adapts = any(kind.adapts for kind in kinds)
        self.mixes_tokens = any(kind.mixes_tokens for kind in kinds)
        self.reads_classes = config.feedback_context == "classes" and ContextConnection in kinds

        def connection(num_edges: int) -> nn.Module:
            made = [kind(config, hidden_size, 1 if shared else num_edges, causal) for kind in kinds]
            return made[0] if len(made) == 1 else SumConnection(made)

        self.sources = nn.ModuleDict({str(source): connection(len(its)) for source, its in targets.items()})
        self.config = config
        self.damping = Damping(len(targets), config.feedback_damping) if config.learn_damping else None
        # target → the (source, number among the source's edges) pairs that speak to it
        self.incoming: dict[int, list[tuple[int, int]]] = {}
        for source, its_targets in targets.items():
            for edge, target in enumerate(its_targets):
                self.incoming.setdefault(target, []).append((source, 0 if shared else edge))

    def forward(self, h: dict[int, torch.Tensor], reading: Reading) -> dict[int, Any]:
        return {source: self.sources[str(source)](h[source].transpose(0, reading.batch_dim), reading) for source in h}

    @property
    def damps(self) -> bool:
        """Whether messages read other states than the new ones."""
        return self.damping is not None or self.config.feedback_damping < 1.0

    def damp(self, previous: dict[int, torch.Tensor], new: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
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

    def add(self, said: dict[int, Any] | None, target: int, x: torch.Tensor, reading: Reading) -> torch.Tensor:
        """`x + Σ_{s → target} message_{s→target}`, in the dtype and on the device of `x`."""
        receiver = x.transpose(0, reading.batch_dim)
        for source, edge in self.incoming.get(target, ()):
            connection: Any = self.sources[str(source)]
            heard = None if said is None else said[source]
            x = x + connection.message(heard, edge, receiver, reading).transpose(0, reading.batch_dim).to(x)
        return x
