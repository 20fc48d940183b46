"""One vector per example from the hidden states of its tokens."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.utils import cached_file

Pooling = Literal["cls", "mean", "last"]


def pool(hidden: torch.Tensor, mask: torch.Tensor | None, how: str) -> torch.Tensor:
    """Pools over the real tokens, whichever side the padding is on.

    Args:
        hidden: `(B, T, d)`.
        mask: `(B, T)`, 0 at padding; `None`: every token counts.
        how: `"cls"` (the first token), `"mean"` or `"last"`.

    Returns:
        `(B, d)`.
    """
    if how not in ("cls", "mean", "last"):
        raise ValueError(f"`pooling` must be one of 'cls', 'mean', 'last', got {how!r}.")
    if mask is None:
        return {"cls": hidden[:, 0], "last": hidden[:, -1]}[how] if how != "mean" else hidden.mean(1)
    if mask.dim() != 2:
        raise ValueError(
            f"`attention_mask` must have shape (batch, tokens) to pool by {how!r}, got {tuple(mask.shape)}; use "
            "`head='backbone'` or `FeedbackModel` with masks of other shapes."
        )
    mask = mask.to(hidden.device)
    if how == "mean":
        exact = torch.promote_types(hidden.dtype, torch.float32)  # a sum of many tokens can overflow in float16
        weights = (mask != 0).to(exact).unsqueeze(-1)
        return ((hidden * weights).sum(1) / weights.sum(1).clamp_min(1)).to(hidden.dtype)
    real = (mask != 0).int()
    index = real.argmax(1) if how == "cls" else real.shape[1] - 1 - real.flip(1).argmax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), index]


def find_pooling(name_or_path: str | Path, subfolder: str = "", **hub_kwargs: Any) -> Pooling | None:
    """The pooling that a sentence-transformers folder or repository names; `None` where it names none of ours.

    Raises:
        ValueError: the file that names it is damaged.
    """
    file = cached_file(
        str(name_or_path),
        "config.json",
        subfolder="/".join(part for part in (subfolder, "1_Pooling") if part),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub_kwargs,
    )
    if file is None:
        return None
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"`pooling`: {file} is damaged; copy or download it again, or say which pooling to use.")
    modes: dict[Pooling, tuple[str, str]] = {
        "cls": ("pooling_mode_cls_token", "cls"),
        "mean": ("pooling_mode_mean_tokens", "mean"),
        "last": ("pooling_mode_lasttoken", "lasttoken"),
    }
    named = [how for how, (flag, mode) in modes.items() if values.get(flag) or values.get("pooling_mode") == mode]
    return named[0] if len(named) == 1 else None
