"""An independent, plainly written feedback model: the whole backbone run K times, messages added by hand.

It shares no code with the package: layers are found by their attribute, messages are written out from the raw
parameters, and every iteration runs every layer of the backbone anew.
"""

import torch
from torch.nn import functional as F

ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
}


def message(parameters, prefix, index, h, activation, scale):
    """`scale · up(activation(down(LayerNorm(h))))` of one edge, its slice of the stacked parameters cut by hand."""
    up = parameters[f"{prefix}.up.weight"][index]  # (d, r)
    rank = up.shape[1]
    rows = slice(index * rank, (index + 1) * rank)
    normed = F.layer_norm(h, h.shape[-1:], parameters[f"{prefix}.norm.weight"], parameters[f"{prefix}.norm.bias"])
    z = normed @ parameters[f"{prefix}.down.weight"][rows].T + parameters[f"{prefix}.down.bias"][rows]
    if activation == "swish":
        z = z * torch.sigmoid(parameters[f"{prefix}.activation.beta"][index] * z)
    else:
        z = ACTIVATIONS[activation](z)
    return scale * (z @ up.T)


class Parts:
    """The raw parameters of one edge, cut out of the stacked ones by hand."""

    def __init__(self, parameters, prefix, index, activation):
        self.parameters, self.prefix, self.index, self.kind = parameters, prefix, index, activation
        self.up = self["up.weight"][index]  # (d, r)
        self.rank = self.up.shape[1]
        self.rows = slice(index * self.rank, (index + 1) * self.rank)

    def __getitem__(self, name):
        return self.parameters[f"{self.prefix}.{name}"]

    def linear(self, name, x):
        return x @ self[f"{name}.weight"][self.rows].T + self[f"{name}.bias"][self.rows]

    def normed(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"])

    def f(self, z):
        if self.kind == "swish":
            return z * torch.sigmoid(self["activation.beta"][self.index] * z)
        return ACTIVATIONS[self.kind](z)


def gated(p, h, x, mask, causal, options):
    z = p.f(p.linear("down", p.normed("norm", h)))
    both = z + p.linear("reader", p.normed("reader_norm", x))
    gate = torch.sigmoid(both @ p["gate.weight"][p.index].T + p["gate.bias"][p.index])
    return gate * (z @ p.up.T)


def joint(p, h, x, mask, causal, options):
    z = p.linear("reader", p.normed("reader_norm", x))
    if h is not None:
        z = z + p.linear("down", p.normed("norm", h))
    return p.f(z) @ p.up.T


def attention(p, h, x, mask, causal, options):
    """Token by token and head by head."""
    heads, size = options.get("feedback_heads", 4), p.rank // options.get("feedback_heads", 4)
    source = p.normed("norm", h)
    keys, values = p.linear("key", source), p.linear("down", source)
    queries = p.linear("reader", p.normed("reader_norm", x))
    rows = []
    for b in range(h.shape[0]):
        for t in range(h.shape[1]):
            seen = [u for u in range(h.shape[1]) if u == t or (mask[b, u] and (u <= t or not causal))]
            said = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = keys[b, seen][:, part] @ queries[b, t, part] / size**0.5
                said.append(scores.softmax(0) @ values[b, seen][:, part])
            rows.append(p.f(torch.cat(said)) @ p.up.T)
    return torch.stack(rows).view(h.shape)


def temporal(p, h, x, mask, causal, options):
    """`m_t = f(U x_t + W m_{t−1} + V m_{t+1} + b)`, sweep by sweep and token by token."""
    U_x = p.linear("down", p.normed("norm", h))
    W, V = p["W.weight"][p.index], None if causal else p["V.weight"][p.index]
    nothing = torch.zeros(p.rank, dtype=h.dtype)
    texts = []
    for b in range(h.shape[0]):
        m = [nothing] * h.shape[1]
        for _ in range(options.get("feedback_sweeps", 3)):
            m = [m[t] if mask[b, t] else nothing for t in range(len(m))]
            left, right = [nothing, *m[:-1]], [*m[1:], nothing]
            m = [p.f(U_x[b, t] + W @ left[t] + (nothing if causal else V @ right[t])) for t in range(len(m))]
        texts.append(torch.stack(m) @ p.up.T)
    return torch.stack(texts)


def context(p, h, x, mask, causal, options):
    source = p.normed("norm", h)
    texts = []
    for b in range(h.shape[0]):
        mean = source[b, mask[b]].mean(0, keepdim=True)
        texts.append((p.f(p.linear("down", mean)) @ p.up.T).expand(h.shape[1:]))
    return torch.stack(texts)


def additive(p, h, x, mask, causal, options):
    return p.f(p.linear("down", p.normed("norm", h))) @ p.up.T


OPERATORS = dict(additive=additive, gated=gated, joint=joint, attention=attention, temporal=temporal, context=context)


def operator_message(parameters, source, index, h, x, mask, causal, options):
    """The message of any operator, or the sum of several; `h` is `None` in iteration 1."""
    total = torch.zeros_like(x)
    names = options.get("feedback_type", "additive").split("+")
    shared = options.get("feedback_sharing") == "targets"
    for place, name in enumerate(names):
        if h is None and name != "joint":
            continue
        prefix = f"sources.{source}" + (f".{place}" if len(names) > 1 else "")
        parts = Parts(parameters, prefix, 0 if shared else index, options.get("feedback_activation", "swish"))
        read = h - x if h is not None and options.get("feedback_signal") == "error" else h
        total = total + OPERATORS[name](parts, read, x, mask, causal, options)
    return options.get("feedback_scale", 1.0) * total


def run_operators(
    backbone, stack, parameters, edges, inputs, num_iterations, options, causal=False, alpha=1.0, keep_graph=None
):
    """The last hidden state after K whole passes with any operator; see `run_reference`.

    Args:
        alpha: damping of what messages read.
        keep_graph: how many passes, counted from the last, messages reach back to with a graph; `None`: all.
    """
    layers = list(backbone.get_submodule(stack))
    targets_of = {source: sorted(t for s, t in edges if s == source) for source, _ in edges}
    previous, current = {}, []
    mask = inputs["attention_mask"].bool()

    def add_messages(module, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        receiver = x
        for source, target in edges:
            if target == len(current):
                index, h = targets_of[source].index(target), previous.get(source)
                x = x + operator_message(parameters, source, index, h, receiver, mask, causal, options)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def keep_state(module, args, output):
        current.append(output[0] if isinstance(output, tuple | list) else output)

    handles = [layer.register_forward_pre_hook(add_messages, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(keep_state) for layer in layers]
    try:
        for k in range(1, num_iterations + 1):
            current.clear()
            output = backbone(**inputs)
            old, new = previous, dict(enumerate(current))
            previous = {i: old[i] + alpha * (state - old[i]) if old else state for i, state in new.items()}
            if keep_graph is not None and k <= num_iterations - keep_graph:
                previous = {i: state.detach() for i, state in previous.items()}
    finally:
        for handle in handles:
            handle.remove()
    return output.last_hidden_state


def run_reference(backbone, stack, passes, parameters, edges, inputs, num_iterations, activation="swish", scale=1.0):
    """The backbone's whole output after K whole passes, and the last states of all layers.

    Args:
        backbone: the bare backbone.
        stack: the name of its list of layers.
        passes: how many calls each of them gets in one pass.
        parameters: the feedback parameters by name, e.g. `sources.3.up.weight`.
        edges: `(source, target)` pairs.
    """
    layers = list(backbone.get_submodule(stack))
    targets_of = {source: sorted(t for s, t in edges if s == source) for source, _ in edges}
    previous, current = {}, []

    def add_messages(module, args, kwargs):
        index = len(current)
        x = args[0] if args else kwargs["hidden_states"]
        for source, target in edges:
            if target == index and previous:
                place = targets_of[source].index(target)
                x = x + message(parameters, f"sources.{source}", place, previous[source], activation, scale)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def keep_state(module, args, output):
        current.append(output[0] if isinstance(output, tuple | list) else output)

    handles = []
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(add_messages, with_kwargs=True))
        handles.append(layer.register_forward_hook(keep_state))
    try:
        for _ in range(num_iterations):
            current.clear()
            output = backbone(**inputs)
            assert len(current) == len(layers) * passes
            previous = dict(enumerate(current))
    finally:
        for handle in handles:
            handle.remove()
    return output, [previous[index] for index in range(len(previous))]
