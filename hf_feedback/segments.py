"""Long texts as overlapping segments, each a row of the batch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .backbone_layout import is_decoder, max_positions
from .validation import Keywords

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig

# What can be cut: whatever has one entry per token.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "inputs_embeds")


@dataclass(frozen=True)
class Segments:
    """Which text each row of a batch belongs to. The segments of a text are consecutive rows, in order.

    Args:
        text: `(N,)`, the number of the text, ascending.
        num_texts: B.
    """

    text: torch.Tensor
    num_texts: int

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """x_{t−1} for each segment t, `(N, …)`; 0 for the first of a text."""
        return F.pad(x[:-1] * self._joined(x), (*(0, 0) * (x.dim() - 1), 1, 0))

    def after(self, x: torch.Tensor) -> torch.Tensor:
        """x_{t+1} for each segment t, `(N, …)`; 0 for the last of a text."""
        return F.pad(x[1:] * self._joined(x), (*(0, 0) * (x.dim() - 1), 0, 1))

    def _joined(self, x: torch.Tensor) -> torch.Tensor:
        same = self.text[1:] == self.text[:-1]
        return same.to(x).view(-1, *[1] * (x.dim() - 1))

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Over the segments of each text: `(N, …)` → `(B, …)`."""
        return x.new_zeros(self.num_texts, *x.shape[1:]).index_add(0, self.text.to(x.device), x)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Over the segments of each text: `(N, …)` → `(B, …)`."""
        counts = self.sum(torch.ones_like(self.text))
        return self.sum(x) / counts.to(x).view(-1, *[1] * (x.dim() - 1))

    def select_rows(self, rows: torch.Tensor) -> "Segments":
        """Those rows alone; of a text all or none."""
        return Segments(self.text[rows.to(self.text.device)], self.num_texts)


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """How many tokens a tokenizer puts at the start and at the end of a text."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    more = len(whole) - len(bare)
    front = next(i for i in range(more + 1) if whole[i : i + len(bare)] == bare)
    return [front, more - front]


def find_special_tokens(name_or_path: str | Path, **hub_kwargs: Any) -> list[int] | None:
    """The same of the tokenizer in a folder or repository; `None` where there is none."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name_or_path, **{"trust_remote_code": False, **hub_kwargs}
        )
    except (OSError, ValueError):
        return None
    return special_tokens_of(tokenizer) if len(tokenizer) > len(tokenizer.all_special_ids) else None


@dataclass(frozen=True)
class Cutting:
    """How texts are cut.

    Args:
        length: tokens of a segment, those that stand around a text included.
        overlap: tokens that a segment shares with the one before.
        special_tokens: how many tokens at the start and at the end of a text stand around every segment of it.
        max_segments: of a text.
        pad_token_id: fills up the last segments.
    """

    length: int
    overlap: int
    special_tokens: tuple[int, int]
    max_segments: int
    pad_token_id: int

    @property
    def stride(self) -> int:
        """By how many tokens a segment starts later than the one before."""
        return self.length - sum(self.special_tokens) - self.overlap

    @property
    def longest(self) -> int:
        """Tokens of the longest text that fits into `max_segments`."""
        return self.length + (self.max_segments - 1) * self.stride

    def cut(self, inputs: Keywords) -> tuple[Keywords, Segments]:
        """Texts → their segments.

        Args:
            inputs: what `forward` was called with, tensors `(B, T)`, padded on either side.

        Returns:
            The same with tensors of N rows of at most `length` tokens, padded on the right, and the text of each row;
            as it was where no text is longer than one segment.

        Raises:
            ValueError: a text needs more than `max_segments`, or something among the inputs cannot be cut.
        """
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        tokens = tensors.get("input_ids", tensors.get("inputs_embeds"))
        if tokens is None:
            raise ValueError("`feedback_span='segment'` needs `input_ids` or `inputs_embeds`.")
        num_texts, num_tokens = tokens.shape[:2]
        mask = tensors.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise ValueError(f"`attention_mask` must have shape (batch, tokens), got {tuple(mask.shape)}.")
        # padding on the left, and holes, are moved: a text is read alike whatever stands beside it in the batch
        in_place = mask is None or not bool(((mask[:, 1:] != 0) & (mask[:, :-1] == 0)).any())
        if num_tokens <= self.length and in_place:
            return inputs, Segments(torch.arange(num_texts, device=tokens.device), num_texts)
        if strange := sorted(tensors.keys() - set(PER_TOKEN)):
            raise ValueError(
                f"`{strange[0]}` cannot be cut into segments; leave it out, or give texts of at most {self.length} "
                f"tokens (got {num_tokens}), padded on the right."
            )
        if mask is None:
            mask = tokens.new_ones((num_texts, num_tokens), dtype=torch.long)
        text, index, real = self._token_indices(mask != 0)
        cut: Keywords = {}
        for name, value in {**tensors, "attention_mask": mask}.items():
            rows = value[text[:, None], index]
            fill = self.pad_token_id if name == "input_ids" else 0
            cut[name] = rows.masked_fill(~real.view(*real.shape, *[1] * (rows.dim() - 2)), fill)
        return {**inputs, **cut}, Segments(text, num_texts)

    def _token_indices(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where the tokens of each segment stand.

        Args:
            real: `(B, T)`, true at the tokens of a text.

        Returns:
            `(N,)` the text, `(N, n)` the positions in it, n ≤ length, and `(N, n)` false after the end.
        """
        front, back = self.special_tokens
        room = self.length - front - back
        tokens, order = real.sum(1), (~real).int().argsort(dim=1, stable=True)  # the positions of the tokens come first
        inner = (tokens - front - back).clamp_min(0)  # without those that stand around
        counts = 1 + ((inner - room).clamp_min(0) + self.stride - 1) // self.stride
        if (most := int(counts.max())) > self.max_segments:
            raise ValueError(
                f"A text of {int(tokens.max())} tokens makes {most} segments of {self.length}, more than "
                f"`max_segments`={self.max_segments}; raise that, or cut texts at {self.longest} tokens "
                f"(`truncation=True, max_length={self.longest}` in the tokenizer's call)."
            )
        text = torch.repeat_interleave(counts)
        number = torch.arange(len(text), device=text.device) - (counts.cumsum(0) - counts)[text]
        offset, inner, tokens = (number * self.stride)[:, None], inner[text, None], tokens[text, None]
        size = (inner - offset).clamp_max(room)
        j = torch.arange(min(self.length, real.shape[1]), device=text.device)[None]
        position = torch.where(j < front, j, torch.where(j < front + size, offset + j, inner + j - size))
        exists = (j < front + size + back) & (position < tokens)
        return text, order[text[:, None], torch.where(exists, position, 0)], exists


def cutting_of(config: "FeedbackConfig", backbone: PreTrainedModel) -> Cutting | None:
    """How a model cuts texts into segments; `None` if it does not.

    Args:
        config: the feedback options.
        backbone: limits the length of a segment.

    Raises:
        ValueError: an option is missing, or there is no room in a segment.
    """
    if config.feedback_span != "segment":
        return None
    most = max_positions(backbone, config.text_config)
    length = config.segment_length or most
    if most < length < math.inf:
        raise ValueError(f"`segment_length` must be at most {most}, what the backbone reads, got {length}.")
    if config.segment_special_tokens is None or length == math.inf:
        missing = "segment_length" if length == math.inf else "segment_special_tokens"
        raise ValueError(
            f"`{missing}` is not known and must be given"
            f"{': [1, 1] where a text is [CLS] … [SEP], [0, 0] for bare tokens' * (length != math.inf)}."
        )
    overlap = int(length) // 8 if config.segment_overlap is None else config.segment_overlap
    front, back = config.segment_special_tokens
    cutting = Cutting(int(length), overlap, (front, back), config.max_segments, config.pad_token_id or 0)
    if cutting.stride < 1:
        raise ValueError(
            f"`segment_length`={length} leaves no room beside {front + back} special tokens and an overlap of "
            f"{overlap}; raise it, or lower `segment_overlap`."
        )
    return cutting


def cut_texts(cutting: Cutting, inputs: Keywords, config: "FeedbackConfig") -> tuple[Keywords, Segments]:
    """Texts → their segments, as in `Cutting.cut`, for a model.

    Raises:
        ValueError: also where the backbone's own head could not find the last token of each segment.
    """
    cut, segments = cutting.cut(inputs)
    needed = {"pad_token_id": config.pad_token_id, "input_ids": inputs.get("input_ids")}
    missing = [name for name, value in needed.items() if value is None]
    decoder = is_decoder(cast(PreTrainedConfig, config.backbone_config), config.backbone_part)
    if missing and cut is not inputs and config.head == "backbone" and decoder:
        raise ValueError(
            f"`{missing[0]}` is needed where a decoder's own head reads segments, to find the last token of each; give "
            "it, or use `head='new'`."
        )
    return cut, segments
