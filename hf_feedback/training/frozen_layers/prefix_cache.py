"""Cache of the states of frozen layers, in memory-mapped files."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...precision import relative_spacing
from ...validation import Keywords

# Inputs of the backbone besides flags; any other could change the states.
TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
TOLERANCE = 1e-3  # relative to the largest state, between batches of different shapes
MAX_SPACINGS = 4  # or so many `relative_spacing`s: in half precision those of MiniLM differ by 0.6 of one
BYTES_OF_A_NUMBER = 4
BYTES_OF_A_BLOCK = 512  # of `st_blocks`, on any disk


@dataclass(frozen=True)
class TextStates:
    """The positions of a batch of texts in the cache.

    Args:
        numbers: number of each text in the cache.
        lengths: number of its tokens.
        batch_length: number of tokens of the batch, with padding on the right.
        device: device of the batch.
    """

    numbers: list[int]
    lengths: list[int]
    batch_length: int
    device: torch.device


def key_of_text(ids: Any, types: Any = None) -> bytes:
    """Returns the key of a text by its content.

    Args:
        ids: its tokens, without padding.
        types: token types, if the backbone reads these.
    """
    digest = blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16)
    if types is not None:
        digest.update(np.asarray(types, dtype=np.int64).tobytes())
    return digest.digest()


class PrefixCache:
    """The states of some layers for every text of some rows, in memory-mapped files that processes and runs may share.

    Args:
        folder: folder of the files, for certain weights, see `fingerprint_weights`.
        rows: rows of `input_ids` and, only where the backbone reads them, `token_type_ids`.
        depth: number of layers, from below, that are read instead of run.
        layers: the layers whose states are stored.
        width: d, width of the states.
        max_gigabytes: maximum size of the files.

    Raises:
        ValueError: the rows are not texts, or the files would exceed the limit or the free disk space.
    """

    def __init__(
        self,
        folder: Path,
        rows: Iterable[Mapping[str, Any]],
        depth: int,
        layers: Sequence[int],
        width: int,
        max_gigabytes: float,
    ) -> None:
        self.folder, self.depth, self.layers, self.width = folder, depth, list(layers), width
        self._numbers: dict[bytes, int] = {}
        lengths: list[int] = []
        for row in rows:
            ids = row.get("input_ids")
            if ids is None or np.ndim(ids) != 1:
                raise ValueError(
                    "`cache_prefix` stores states of texts, rows of `input_ids`, which these rows do not have."
                )
            mask = row.get("attention_mask")
            length = len(ids) if mask is None else int(np.sum(np.asarray(mask)))
            types = row.get("token_type_ids")
            key = key_of_text(ids[:length], None if types is None else types[:length])
            if self._numbers.setdefault(key, len(lengths)) == len(lengths):
                lengths.append(length)
        self._starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        self._name = blake2b(b"".join(self._numbers), digest_size=8).hexdigest()
        self._check_size(max_gigabytes)
        self._states: torch.Tensor | None = None
        self._is_written = torch.zeros(0, dtype=torch.uint8)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all texts, without padding."""
        return int(self._starts[-1])

    @property
    def num_bytes(self) -> int:
        """Size of the files, in float32."""
        return self.num_tokens * len(self.layers) * self.width * BYTES_OF_A_NUMBER

    def _check_size(self, max_gigabytes: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        own = sum(file.stat().st_blocks * BYTES_OF_A_BLOCK for file in self.folder.glob(f"{self._name}-*"))
        free = shutil.disk_usage(self.folder).free + own
        if self.num_bytes > min(max_gigabytes * 1e9, free):
            raise ValueError(
                f"`cache_prefix` would keep {self.num_tokens:,} tokens × {len(self.layers)} layers × {self.width} "
                f"numbers = {self.num_bytes / 1e9:.3g} GB; `cache_prefix_gigabytes` allows {max_gigabytes:g}, and "
                f"{free / 1e9:.3g} are free at {self.folder}. Raise it, freeze otherwise, or leave `cache_prefix` out."
            )

    def find(self, inputs: Keywords) -> TextStates | None:
        """Finds the texts of a batch in the cache; `None` if one is missing.

        Args:
            inputs: inputs of the backbone.

        Raises:
            ValueError: the batch is not padded on the right.
        """
        tensors = {name for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        if "input_ids" not in tensors or not tensors <= TEXT_INPUTS:
            return None
        ids, types = inputs["input_ids"], inputs.get("token_type_ids")
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        if mask.shape != ids.shape:
            return None
        real = (mask != 0).to(ids)
        lengths = real.sum(1).tolist()
        if not torch.equal(real, real.cummin(1).values):
            raise ValueError("`cache_prefix` needs batches that are padded on the right (`padding_side`='right').")
        numbers = []
        rows, row_types = ids.cpu().numpy(), None if types is None else types.cpu().numpy()
        for row, length in enumerate(lengths):
            key = key_of_text(rows[row, :length], None if row_types is None else row_types[row, :length])
            number = self._numbers.get(key)
            if number is None:
                return None
            numbers.append(number)
        return TextStates(numbers, lengths, ids.shape[1], ids.device)

    def read(self, texts: TextStates) -> dict[int, torch.Tensor] | None:
        """Returns layer → states `(B, T, d)`, zeros at padding; `None` unless the cache has all of them."""
        if self._states is None or not self._is_written[texts.numbers].all():
            return None
        shape = (len(self.layers), len(texts.numbers), texts.batch_length, self.width)
        batch = torch.zeros(shape, dtype=self._states.dtype)
        for row, (number, length) in enumerate(zip(texts.numbers, texts.lengths, strict=True)):
            start = int(self._starts[number])
            batch[:, row, :length] = self._states[:, start : start + length]
        return dict(zip(self.layers, batch.to(texts.device), strict=True))

    def write(self, texts: TextStates, states: Mapping[int, torch.Tensor]) -> None:
        """Stores the states of a batch.

        Args:
            texts: their positions.
            states: layer → states `(B, T, d)`.

        Raises:
            OSError: the disk is full.
            ValueError: the stored states of a text differ.
        """
        found = torch.stack([states[layer].detach() for layer in self.layers]).cpu()
        if self._states is None:
            self._states = self._open(found.dtype)
        kept, tolerance = self._states, _tolerance(next(iter(states.values())))
        for row, (number, length) in enumerate(zip(texts.numbers, texts.lengths, strict=True)):
            start, new = int(self._starts[number]), found[:, row, :length]
            if not self._is_written[number]:
                kept[:, start : start + length] = new
                self._is_written[number] = 1
            elif (kept[:, start : start + length] - new).abs().max() > tolerance * new.abs().max():
                raise ValueError(
                    "`cache_prefix`: the backbone has other states for the same text in another batch, so that they "
                    "cannot be kept; leave it out, or compute in float32 (`--bf16 False --dtype float32`)."
                )

    def _open(self, dtype: torch.dtype) -> torch.Tensor:
        """The states of all texts, `(layers, tokens, d)`."""
        shape = (len(self.layers), self.num_tokens, self.width)
        name = f"{self._name}-{str(dtype).removeprefix('torch.')}"
        states = _map_file(self.folder / f"{name}.states", int(np.prod(shape)), dtype)
        self._is_written = _map_file(self.folder / f"{name}.written", len(self._starts) - 1, torch.uint8)
        return states.view(shape)


def _tolerance(state: torch.Tensor) -> float:
    """By how much a state may differ between batches, relative to the largest: by what the precision rounds."""
    return max(TOLERANCE, MAX_SPACINGS * relative_spacing(state))


def _map_file(file: Path, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns a tensor in a file whose disk space is allocated at once, since a full disk would kill the process."""
    file.touch()
    try:
        with file.open("r+b") as opened:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(opened.fileno(), 0, size * dtype.itemsize)
    except OSError as error:
        raise OSError(
            f"`cache_prefix`: {file} has no room for {size * dtype.itemsize / 1e9:.3g} GB ({error.strerror}); make "
            "room, or leave it out."
        ) from error
    return torch.from_file(str(file), shared=True, size=size, dtype=dtype)
