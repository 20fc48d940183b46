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


def run_reference(backbone, stack, passes, parameters, edges, inputs, num_iterations, activation="swish", scale=1.0):
    """The last hidden state after K whole passes, `(B, T, d)`, and the last states of all layers.

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
    return output.last_hidden_state, [previous[index] for index in range(len(previous))]
