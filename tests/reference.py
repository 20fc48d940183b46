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


def stack_of(backbone):
    """The list of layers, by the names that the families use."""
    for path in ("encoder.layer", "layers", "transformer.layer"):
        try:
            return backbone.get_submodule(path)
        except AttributeError:
            continue
    raise AssertionError(f"where are the layers of {type(backbone).__name__}?")


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


def run_reference(backbone, parameters, edges, inputs, num_iterations, activation="swish", scale=1.0):
    """The last hidden state after K whole passes, `(B, T, d)`, and the residual-free states of every layer.

    Args:
        backbone: the bare backbone.
        parameters: the feedback parameters by name, e.g. `sources.3.up.weight`.
        edges: `(source, target)` pairs.
    """
    layers = list(stack_of(backbone))
    targets_of = {source: sorted(t for s, t in edges if s == source) for source, _ in edges}
    previous, current = {}, {}

    def add_messages(index):
        def hook(module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            for source, target in edges:
                if target == index and previous:
                    place = targets_of[source].index(target)
                    x = x + message(parameters, f"sources.{source}", place, previous[source], activation, scale)
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        return hook

    def keep_state(index):
        def hook(module, args, output):
            current[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = []
    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(add_messages(index), with_kwargs=True))
        handles.append(layer.register_forward_hook(keep_state(index)))
    try:
        for _ in range(num_iterations):
            current = {}
            output = backbone(**inputs)
            previous = current
    finally:
        for handle in handles:
            handle.remove()
    return output.last_hidden_state, [current[index] for index in range(len(layers))]
