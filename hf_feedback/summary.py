"""Table of the size and cost of the feedback, compared with the backbone."""

from torch import nn
from transformers import PreTrainedModel

from .backbone_layout import BackboneLayout
from .configuration_feedback import FeedbackConfig
from .cutting import Cutting
from .model_connections import FeedbackConnections


def summarize(
    config: FeedbackConfig,
    feedback: FeedbackConnections,
    backbone: PreTrainedModel,
    layout: BackboneLayout,
    cutting: Cutting | None,
    length: int,
) -> str:
    """See `FeedbackPreTrainedModel.feedback_summary`.

    Args:
        config: the feedback options.
        feedback, backbone: the modules.
        layout: layout of the backbone.
        cutting: how texts are cut, if they are.
        length: tokens of a text.
    """
    num_segments = cutting.num_segments(length) if cutting else 1
    length = min(length, cutting.length) if cutting else length
    rows = [("source", "targets", "parameters an edge", "FLOPs a token and edge")]
    messages = 0
    for source in feedback.source_layers:
        connection = feedback.connection(source)
        edges = {target: dict(incoming) for target, incoming in feedback.incoming.items()}
        targets = sorted(target for target, incoming in edges.items() if source in incoming)
        weight_sets = len({edges[target][source] for target in targets})
        # an operator of a user's own may know of no segments
        of_source, of_edge = connection.flops(length, num_segments) if cutting else connection.flops(length)
        # an error is that of an edge: no part of its message is made once for all of them
        per_edge = config.feedback_signal == "error"
        total = of_source * (len(targets) if per_edge else weight_sets) + of_edge * len(targets)
        messages += total
        parameters = count_parameters(connection) // weight_sets
        rows.append((f"layer {source}", ", ".join(map(str, targets)), f"{parameters:,}", f"{total // len(targets):,}"))
    first, last = layout.looped_range
    looped = 2 * sum(map(count_parameters, layout.layers(backbone)[first : last + 1]))
    of_feedback, of_backbone = count_parameters(feedback), count_parameters(backbone)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [
            *table,
            f"{of_feedback:,} parameters of feedback, {of_feedback / of_backbone:.2%} of the backbone's "
            f"{of_backbone:,}",
            f"every iteration after the first: layers {first} to {last}, {looped:,} FLOPs a token (and attention), and "
            f"messages, {messages:,} ({length} tokens)",
        ]
    )


def count_parameters(module: nn.Module) -> int:
    """The number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
