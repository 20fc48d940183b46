"""Fingerprints of rows, files and weights by their contents."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import torch
from datasets import Dataset
from transformers import PreTrainedConfig


def fingerprint_rows(data: Dataset) -> str:
    """Returns the number of rows and a fingerprint of their contents.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> same = [fingerprint_rows(Dataset.from_dict({"text": ["late", "lost"]})) for _ in range(2)]
    >>> same[0] == same[1], same[0].split("(")[0]
    (True, '2 rows ')

    ```
    """
    digest = hashlib.blake2b(digest_size=6)
    for table in data.with_format("arrow").iter(batch_size=1000):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata(None).combine_chunks())
        digest.update(sink.getvalue())
    return f"{len(data)} rows ({digest.hexdigest()})"


def fingerprint_file(file: Path, blocks: int = 64, size: int = 2**16) -> str:
    """Returns the size of a file and a fingerprint of its contents; of a large file, of evenly spaced blocks.

    Args:
        file: the file.
        blocks: number of blocks; the last one is at the end.
        size: bytes of a block.
    """
    length = file.stat().st_size
    last = max(0, length - size)
    starts = range(0, length, size) if length <= blocks * size else [last * i // (blocks - 1) for i in range(blocks)]
    digest = hashlib.blake2b(digest_size=6)
    with file.open("rb") as stream:
        for start in starts:
            stream.seek(start)
            digest.update(stream.read(size))
    return f"{length} bytes ({digest.hexdigest()})"


def fingerprint_weights(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Returns a fingerprint of tensors with their names."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_config(config: PreTrainedConfig) -> str:
    """Returns a fingerprint of a model's config without names, paths and versions."""
    values = json.dumps(_described(config.to_dict()), sort_keys=True, default=str)
    return hashlib.blake2b(values.encode(), digest_size=8).hexdigest()


def _described(value: Any) -> Any:
    """What describes a model in a part of its config."""
    if not isinstance(value, dict):
        return value
    left_out = ("transformers_version", "architectures", "name_or_path")
    return {str(key): _described(one) for key, one in value.items() if str(key).removeprefix("_") not in left_out}
