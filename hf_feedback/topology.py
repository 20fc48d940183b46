"""Edge sets by name or by list, and the range of layers that they span."""

from reprlib import repr as shortened

from .validation import MAX_LAYERS


def adjacent(num_layers: int) -> list[tuple[int, int]]:
    """Layer l + 1 sends messages to layer l."""
    return [(target + 1, target) for target in range(num_layers - 1)]


def top(num_layers: int) -> list[tuple[int, int]]:
    """The last layer sends messages to every lower one."""
    return [(num_layers - 1, target) for target in range(num_layers - 1)]


def dense(num_layers: int) -> list[tuple[int, int]]:
    """Every higher layer sends messages to every lower one: `h^(l) = f^(l)(h^(l-1), h^(l+1), …, h^(L))`."""
    return [(source, target) for source in range(num_layers) for target in range(source)]


TOPOLOGIES = {"adjacent": adjacent, "top": top, "dense": dense}
DEFAULT_TOPOLOGY = "top"


def resolve_edges(
    num_layers: int,
    topology: str | None = None,
    edges: list[list[int]] | None = None,
    layers: list[int] | None = None,
) -> list[tuple[int, int]]:
    """The edges that a topology, or an explicit list, stands for.

    Args:
        num_layers: L, the number of layers, counted from 0.
        topology: a name in `TOPOLOGIES`; `None` means `"top"` where `edges` is `None` too.
        edges: explicit `[[source, target], …]`; excludes `topology` and `layers`.
        layers: `[lowest, highest]`, the targets that a topology is confined to.

    Returns:
        Sorted `(source, target)` pairs.

    Raises:
        ValueError: contradictory options, an edge that is out of range, not downwards or given twice, or no edge.
    """
    if not 1 <= num_layers <= MAX_LAYERS:
        raise ValueError(f"The backbone must have 1 to {MAX_LAYERS} layers, got {num_layers}.")
    if edges is not None:
        for name, value in (("feedback_topology", topology), ("feedback_layers", layers)):
            if value is not None:
                raise ValueError(
                    f"`feedback_edges` and `{name}` exclude each other, got both ({name}={value!r}); leave one out."
                )
        return _check_edges(num_layers, edges)
    name = DEFAULT_TOPOLOGY if topology is None else topology
    pairs = TOPOLOGIES[name](num_layers)
    if layers is not None:
        lowest, highest = _check_range(num_layers, layers)
        pairs = [(source, target) for source, target in pairs if lowest <= target <= highest]
    if not pairs:
        raise ValueError(
            f"`feedback_topology`={name!r} gives no edge for {num_layers} layer(s) with `feedback_layers`={layers}; "
            "feedback needs at least two layers and a target below the last one."
        )
    return sorted(pairs)


def _check_edges(num_layers: int, edges: list[list[int]]) -> list[tuple[int, int]]:
    shape = "`feedback_edges` must be a list of [source, target] pairs of layer numbers"
    if not isinstance(edges, list | tuple) or not edges:
        raise ValueError(f"{shape}, got {shortened(edges)}.")
    pairs: set[tuple[int, int]] = set()
    for edge in edges:
        if not isinstance(edge, list | tuple) or len(edge) != 2 or not all(type(end) is int for end in edge):
            raise ValueError(f"{shape}, got {shortened(edge)} in it.")
        source, target = edge
        if not (0 <= target < num_layers and 0 <= source < num_layers):
            raise ValueError(
                f"`feedback_edges`: {list(edge)} is out of range; layers are counted from 0 to {num_layers - 1}."
            )
        if target >= source:
            raise ValueError(
                f"`feedback_edges`: {list(edge)} does not point downwards; feedback goes from a higher source to a "
                f"lower target: did you mean {[target, source]}?"
            )
        if (source, target) in pairs:
            raise ValueError(f"`feedback_edges`: {list(edge)} is given twice; give each edge once.")
        pairs.add((source, target))
    return sorted(pairs)


def _check_range(num_layers: int, layers: list[int]) -> tuple[int, int]:
    if (
        not isinstance(layers, list | tuple)
        or len(layers) != 2
        or not all(type(end) is int for end in layers)
        or not 0 <= layers[0] <= layers[1] < num_layers
    ):
        raise ValueError(
            f"`feedback_layers` must be [lowest, highest] with 0 <= lowest <= highest < {num_layers}, got {layers!r}."
        )
    return layers[0], layers[1]


def looped_range_of(edges: list[tuple[int, int]]) -> tuple[int, int]:
    """The layers that are repeated: from the lowest target to the highest source, both included."""
    return min(target for _, target in edges), max(source for source, _ in edges)
