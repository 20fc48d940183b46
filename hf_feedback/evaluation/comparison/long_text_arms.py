"""The arms that feedback over segments is compared with on long texts."""

from typing import cast

import torch
from torch import nn

from ...configuration_feedback import FeedbackConfig
from ...forward_context import ForwardContext
from ...max_length import max_positions
from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_outputs import BackboneOutput
from ...segments import Segments
from ...training.data.splits import Row
from ...training.starting_model.model_arguments import Options
from .arms import Budget, Plain

# Options that `feedback_span='token'` excludes.
SEGMENT_OPTIONS = tuple(name for name in FeedbackConfig.declared_options() if "segment" in name)


class Truncated(Plain):
    """Texts are truncated to the length of one segment."""

    description = "the first segment's length of the text"

    def model_options(self) -> Options:
        defaults = FeedbackConfig()  # also instead of what a recipe sets
        others = {name: getattr(defaults, name) for name in (*SEGMENT_OPTIONS, "feedback_type")}
        return {"num_iterations": 1, **others, "feedback_span": "token"}

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        return None if model.cutting is not None else "texts are not cut into segments"

    def data_options(self, budget: Budget) -> Options:
        return {"max_length": budget.segment_tokens}


class WholeText(Truncated):
    """The backbone reads the whole text at once."""

    description = "the whole text at once"

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        if model.cutting is not None and model.cutting.longest > max_positions(
            model.backbone, model.config.text_config
        ):
            return "the backbone does not read so many tokens; lower `max_segments`"
        return super().why_not(model, row, freeze)

    def data_options(self, budget: Budget) -> Options:
        return {"max_length": budget.text_tokens}


class Windows(Plain):
    """Segments without messages."""

    description = "segments without messages"

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        return None if model.cutting is not None else "texts are not cut into segments"


class WindowTransformer(nn.Module):
    """A small transformer over the vectors of a text's segments; its mean is the vector of the text.

    Args:
        hidden_size: d.
        num_heads: attention heads.
        max_segments: maximum number of segments of a text.

    Shapes:
        the segments' vectors `(N, d)` → `(B, d)`.
    """

    def __init__(self, hidden_size: int, num_heads: int, max_segments: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_segments, hidden_size)
        nn.init.normal_(self.positions.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(hidden_size, num_heads, 4 * hidden_size, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)

    def forward(self, vectors: torch.Tensor, segments: Segments) -> torch.Tensor:
        rows, distance = segments.of_same_text()
        rows = rows[distance[:, 0] == 0]  # of the first segment of each text: (B, S)
        h = vectors[rows.clamp_min(0)] + self.positions.weight[: rows.shape[1]]
        h = self.encoder(h, src_key_padding_mask=rows < 0)
        real = (rows >= 0)[..., None].to(h)
        return (h * real).sum(1) / real.sum(1)


class ToBERT(Windows):
    """A transformer over the segments' vectors, trained with the rest.

    Source: Pappagari et al. 2019, Hierarchical Transformers for Long Document Classification, arXiv 1910.10781.
    """

    description = "a transformer over the segments"

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        if model.cutting is not None and not (model.traits.answers_once and model.config.head == "new"):
            return "the task has no new head that answers once for a text"
        return super().why_not(model, row, freeze)

    def adapt_model(self, model: FeedbackPreTrainedModel, budget: Budget) -> nn.Module:
        config = model.config
        over_windows = WindowTransformer(config.hidden_size, config.num_attention_heads or 1, config.max_segments)
        model.add_module("window_transformer", over_windows)

        def join(logits: torch.Tensor, outputs: BackboneOutput, context: ForwardContext) -> torch.Tensor:
            vectors = model._pooled(outputs.last_hidden_state, context)
            return model.classifier(over_windows(vectors, cast(Segments, context.segments)))

        model._join_segments = join  # type: ignore[method-assign]
        return model
