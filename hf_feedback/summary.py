"""What feedback weighs and costs, beside the backbone, as a table."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .modeling_base import FeedbackPreTrainedModel


def summarize(model: "FeedbackPreTrainedModel", length: int) -> str:
    """See `FeedbackPreTrainedModel.feedback_summary`."""
    feedback, (first, last) = model.feedback, model._segment
    length = min(length, model.cutting.length) if model.cutting else length
    rows = [("source", "targets", "parameters an edge", "FLOPs a token and edge")]
    messages = 0
    for source, connection in feedback.sources.items():
        made: Any = connection
        targets = sorted(t for t, incoming in feedback.incoming.items() if int(source) in dict(incoming))
        sets = len({dict(feedback.incoming[t])[int(source)] for t in targets})  # of weights
        said, heard = made.flops(length)
        # an error is that of an edge: nothing is said once for all of them
        total = said * (len(targets) if model.config.feedback_signal == "error" else sets) + heard * len(targets)
        messages += total
        parameters = sum(p.numel() for p in made.parameters()) // sets
        rows.append((f"layer {source}", ", ".join(map(str, targets)), f"{parameters:,}", f"{total // len(targets):,}"))
    layers = model._layers()
    looped = 2 * sum(p.numel() for layer in layers[first : last + 1] for p in layer.parameters())
    of_feedback, of_backbone = (sum(p.numel() for p in part.parameters()) for part in (feedback, model.backbone))
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
