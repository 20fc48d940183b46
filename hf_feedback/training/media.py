"""Files of images and recordings."""

from collections.abc import Callable
from io import BytesIO
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Audio, Dataset, load_dataset
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from pyarrow import ArrowException
from scipy.io import wavfile
from scipy.signal import resample_poly

from .data import check_rows
from .files import read_file, root_cause


class _Recording(Audio):
    """A recording that stays in its file; `Audio` asks for torchcodec even where nothing is decoded."""

    def encode_example(self, value: Any) -> dict:
        return {"bytes": None, "path": value}


class _RecordingFolder(AudioFolder):
    BASE_FEATURE = _Recording


def read_media(file: str, kind: str) -> Dataset:
    """A parquet file, or a folder with one folder of files a class.

    Args:
        file: either of them.
        kind: of folder, as `datasets` names it: `"imagefolder"` or `"audiofolder"`.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    if not Path(file).is_dir():
        return read_file(file)
    try:
        if kind == "imagefolder":  # with labels, even if all files have the same
            return load_dataset(kind, data_dir=file, split="train", drop_labels=False)
        files = DataFilesDict.from_patterns(get_data_patterns(file), base_path=file)
        builder = _RecordingFolder(data_dir=file, data_files=files, drop_labels=False)
        builder.download_and_prepare()
        return builder.as_dataset("train")
    except Exception as error:
        raise ValueError(
            f"{file}: cannot be read as a folder with one folder of files a class ({root_cause(error)})."
        ) from error


def as_bytes(data: Dataset, column: str, feature: Any, source: str, read: Callable[[bytes], Any]) -> Dataset:
    """The data with that column as `{"bytes", "path"}`, each of them tried.

    Args:
        data: the rows.
        column: of the images or recordings.
        feature: `Image(decode=False)` or `Audio(decode=False)`.
        source: the file, for messages.
        read: raises where the bytes are not what they must be.

    Raises:
        ValueError: the column is missing or holds something else, or a row cannot be read.
    """

    def fault(cell: dict[str, Any] | None) -> str | None:
        try:
            read(bytes_of(cell))
        except Exception as error:  # decoders raise anything
            file = f" {cell['path']}" if cell and cell["bytes"] is None and cell["path"] else ""
            return f"`{column}`{file} cannot be read ({error})"
        return None

    if column in data.column_names:
        there = data.features[column]
        try:
            data = data.cast_column(column, feature)
        except (TypeError, ValueError, ArrowException) as error:
            raise ValueError(f"{source}: column {column!r} must hold the bytes of files, it holds {there}.") from error
    check_rows(data, source, (column,), fault)
    return data


def bytes_of(cell: dict[str, Any] | None) -> bytes:
    """The bytes of a file that stands in a cell, or that the cell names.

    Raises:
        ValueError: there is none; OSError: it is not there.
    """
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("there is nothing")
    return Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]


def read_wave(content: bytes, sampling_rate: int | None = None) -> np.ndarray:
    """A WAV file → `(samples,)` between −1 and 1, its channels averaged, at `sampling_rate` (its own by default).

    Raises:
        ValueError: it is no WAV file, or has no samples.
    """
    rate, samples = wavfile.read(BytesIO(content))
    if len(samples) == 0:
        raise ValueError("a recording without samples")
    if samples.dtype == np.uint8:
        wave = (samples.astype(np.float32) - 128) / 128
    elif np.issubdtype(samples.dtype, np.integer):
        wave = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    else:
        wave = samples.astype(np.float32)
    if wave.ndim > 1:
        wave = wave.mean(1)
    if sampling_rate is not None and rate != sampling_rate:
        common = gcd(rate, sampling_rate)
        wave = resample_poly(wave, sampling_rate // common, rate // common).astype(np.float32)
    return wave
