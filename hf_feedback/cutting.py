"""Cutting of long texts into overlapping segments, each a row of the batch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .backbone_layout import is_decoder
from .max_length import max_positions
from .segments import Segments, best_copies
from .validation import Keywords

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig

PairOption = Literal["first", "every"]
# Inputs that can be cut: those with one entry per token.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "inputs_embeds")


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The number of special tokens that a tokenizer adds at the start and at the end of a text."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    more = len(whole) - len(bare)
    front = next(i for i in range(more + 1) if whole[i : i + len(bare)] == bare)
    return [front, more - front]


def find_special_tokens(name_or_path: str | Path, **hub_kwargs: Any) -> list[int] | None:
    """Numbers of special tokens before and after a text, of the tokenizer in a folder or repository; `None` where there
    is none."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name_or_path, **{"trust_remote_code": False, **hub_kwargs}
        )
    except (OSError, ValueError):
        return None
    return special_tokens_of(tokenizer) if len(tokenizer) > len(tokenizer.all_special_ids) else None


@dataclass(frozen=True)
class Cutting:
    """The settings by which texts are cut.

    Args:
        length: tokens of a segment, special tokens included.
        overlap: tokens that a segment shares with the one before.
        special_tokens: number of special tokens at the start and at the end of a text, repeated around every segment.
        max_segments: maximum number of segments of a text.
        pad_token_id: id of the padding token.
        pair: `"every"`: the first text of a pair stands in every segment, as in the windows of a tokenizer that cuts
            the second text alone; `"first"`: a pair is cut as one text.
    """

    length: int
    overlap: int
    special_tokens: tuple[int, int]
    max_segments: int
    pad_token_id: int
    pair: PairOption = "first"

    @property
    def step(self) -> int:
        """The distance in tokens between the starts of consecutive segments."""
        return self.length - sum(self.special_tokens) - self.overlap

    @property
    def longest(self) -> int:
        """Tokens of the longest text that fits into `max_segments`; of a pair fewer fit if `pair` is `"every"`."""
        return self.length + (self.max_segments - 1) * self.step

    def num_segments(self, num_tokens: int) -> int:
        """Of one text; of a pair more if `pair` is `"every"`."""
        return 1 + -(-max(0, num_tokens - self.length) // self.step)

    def cut(self, inputs: Keywords) -> tuple[Keywords, Segments]:
        """Texts → their segments.

        Args:
            inputs: inputs of `forward`, tensors `(B, T)`, padded on either side.

        Returns:
            The same with tensors of N rows of at most `length` tokens, padded on the right, and the text of each row;
            as it was where no text is longer than one segment.

        Raises:
            ValueError: a text needs more than `max_segments`, something among the inputs cannot be cut, or `pair` is
                `"every"` and it is not known where a first text ends, or it leaves no room.
        """
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        tokens = tensors.get("input_ids", tensors.get("inputs_embeds"))
        if tokens is None:
            raise ValueError("`feedback_span='segment'` needs `input_ids` or `inputs_embeds`.")
        num_texts, num_tokens = tokens.shape[:2]
        mask = tensors.get("attention_mask")
        if mask is not None and mask.shape != tokens.shape[:2]:
            raise ValueError(
                f"`attention_mask` must have shape (batch, tokens), {(num_texts, num_tokens)}, got {tuple(mask.shape)}."
            )
        # padding on the left, and holes, are moved: a text is read alike whatever stands beside it in the batch
        in_place = mask is None or not bool(((mask[:, 1:] != 0) & (mask[:, :-1] == 0)).any())
        real = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask != 0
        if num_tokens <= self.length and in_place:
            number = torch.arange(real.numel(), device=real.device).view_as(real)
            return inputs, Segments(number[:, 0] // num_tokens, num_texts, number.masked_fill(~real, -1))
        if strange := sorted(tensors.keys() - set(PER_TOKEN)):
            raise ValueError(
                f"`{strange[0]}` cannot be cut into segments; leave it out, or give texts of at most {self.length} "
                f"tokens (got {num_tokens}), padded on the right."
            )
        for name, value in tensors.items():
            if value.shape[:2] != tokens.shape[:2]:
                raise ValueError(
                    f"`{name}` must have shape (batch, tokens), {(num_texts, num_tokens)}, to be cut into segments, "
                    f"got {tuple(value.shape)}."
                )
        text, positions, exists = self._lay_out(real, tensors)
        cut: Keywords = {}
        for name, value in {**tensors, "attention_mask": real.long() if mask is None else mask}.items():
            rows = value[text[:, None], positions]
            fill = self.pad_token_id if name == "input_ids" else 0
            cut[name] = rows.masked_fill(~exists.view(*exists.shape, *[1] * (rows.dim() - 2)), fill)
        copies = best_copies(text, positions, exists, (num_texts, num_tokens))
        return {**inputs, **cut}, Segments(text, num_texts, copies)

    def _lay_out(self, real: torch.Tensor, tensors: Keywords) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Assigns tokens to segments.

        Args:
            real: `(B, T)`, true at the tokens of a text.
            tensors: what the texts consist of.

        Returns:
            `(N,)` the text, `(N, n)` the positions in it, n ≤ length, and `(N, n)` false after the end.
        """
        tokens, order = real.sum(1), (~real).int().argsort(dim=1, stable=True)  # the positions of the tokens come first
        back = self.special_tokens[1]
        front = self._front(tensors, tokens, order)
        inner = (tokens - front - back).clamp_min(0)  # without those that stand around
        room = self.length - front - back
        step = room - self.overlap
        counts = 1 + ((inner - room).clamp_min(0) + step - 1) // step
        if (most := int(counts.max())) > self.max_segments:
            row = int(counts.argmax())
            longest = self.length + (self.max_segments - 1) * int(step[row])
            raise ValueError(
                f"A text of {int(tokens[row])} tokens makes {most} segments of {self.length}, more than "
                f"`max_segments`={self.max_segments}; raise that, or cut texts at {longest} tokens "
                f"(`truncation=True, max_length={longest}` in the tokenizer's call)."
            )
        text = torch.repeat_interleave(counts)
        number = torch.arange(len(text), device=text.device) - (counts.cumsum(0) - counts)[text]
        inner, tokens, front, room = (one[text, None] for one in (inner, tokens, front, room))
        offset = number[:, None] * step[text, None]
        size = torch.minimum(inner - offset, room)
        j = torch.arange(min(self.length, real.shape[1]), device=text.device)[None]
        place = torch.where(j < front, j, torch.where(j < front + size, offset + j, inner + j - size))
        exists = (j < front + size + back) & (place < tokens)
        return text, order[text[:, None], torch.where(exists, place, 0)], exists

    def _front(self, tensors: Keywords, tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """`(B,)`, how many tokens at the start of each text stand in every segment of it.

        Args:
            tensors: what the texts consist of.
            tokens: `(B,)`, how many each has.
            order: `(B, T)`, where they stand, and after them the padding.
        """
        front, back = self.special_tokens
        if self.pair == "first":
            return torch.full_like(tokens, front)
        ends = end_of_first_text(tensors, tokens, order, self.special_tokens)
        long = tokens > self.length
        if (long & (ends < 0)).any():
            row = int((long & (ends < 0)).int().argmax())
            raise ValueError(
                f"`segment_pair='every'`: where the first text ends in row {row} of the batch is not known; give pairs "
                "with `token_type_ids`, or with the token between them that is also their last, as "
                "`tokenizer(first_texts, second_texts)` makes them, or use 'first'."
            )
        if (most := int((ends * long).max())) + back + self.overlap >= self.length:
            raise ValueError(
                f"`segment_pair='every'`: a first text of {most} tokens leaves no room in a segment of {self.length} "
                f"beside {back} special tokens and an overlap of {self.overlap}; raise `segment_length`, or use "
                "'first'."
            )
        return torch.where(long, ends, front)


def end_of_first_text(
    tensors: Keywords, tokens: torch.Tensor, order: torch.Tensor, special_tokens: tuple[int, int]
) -> torch.Tensor:
    """`(B,)`, how many tokens come before the second text of each pair, −1 where that is not known.

    The second text starts at the first token of type 1. Where no token has type 1, it starts after the first special
    token like that which ends the text, or after several such in a row.

    Args:
        tensors: what the texts consist of.
        tokens: `(B,)`, how many each has.
        order: `(B, T)`, where they stand, and after them the padding.
        special_tokens: how many stand at the start and at the end.
    """
    front, back = special_tokens
    place = torch.arange(order.shape[1], device=order.device)
    num_before = torch.full_like(tokens, -1)
    if "input_ids" in tensors and back:
        ids = tensors["input_ids"].gather(1, order)
        last = ids.gather(1, (tokens - back).clamp_min(0)[:, None])
        is_separator = (ids == last) & (place >= front) & (place < tokens[:, None] - back)
        is_after = is_separator.cumsum(1).bool() & ~is_separator
        num_before = torch.where(is_separator.any(1), is_after.int().argmax(1), num_before)
    if "token_type_ids" in tensors:
        is_second = (tensors["token_type_ids"].gather(1, order) == 1) & (place < tokens[:, None])
        num_before = torch.where(is_second.any(1), is_second.int().argmax(1), num_before)
    return num_before


def cutting_of(config: "FeedbackConfig", backbone: PreTrainedModel) -> Cutting | None:
    """Returns the settings by which a model cuts texts into segments; `None` if it does not.

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
    cutting = Cutting(
        int(length), overlap, (front, back), config.max_segments, config.pad_token_id or 0, config.segment_pair
    )
    if cutting.step < 1:
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
