"""Images and recordings: columns of encoded files, folders of files, and WAV files as waves."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from math import gcd
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from datasets import Audio, Dataset, Image, load_dataset
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from pyarrow import ArrowException
from scipy.io import wavfile
from scipy.signal import resample_poly

from .columns import check_rows
from .files import read_file, root_cause
from .splits import Split
from .text_files import DEFAULT_FORMAT, TextFormat


class MediaCell(TypedDict):
    """An image or recording as `datasets` stores it: the bytes of its file, or the path of one."""

    bytes: bytes | None
    path: str | None


class _AudioPath(Audio):
    """A recording that is kept as a path; `Audio` requires torchcodec even where nothing is decoded."""

    def encode_example(self, value: str) -> MediaCell:
        return {"bytes": None, "path": value}


class _AudioFolder(AudioFolder):
    BASE_FEATURE = _AudioPath


def read_media(
    file: str, folder_type: Literal["imagefolder", "audiofolder"], text_format: TextFormat = DEFAULT_FORMAT
) -> Dataset:
    """Reads a parquet file, or a folder with one folder per class.

    Args:
        file: path of either.
        folder_type: type of folder, as `datasets` names it.
        text_format: separator and encoding of a text file.

    Raises:
        ValueError: the file is missing or cannot be read.
    """
    if not Path(file).is_dir():
        return read_file(file, text_format)
    try:
        if folder_type == "imagefolder":  # with labels, even if all files have the same
            return load_dataset(folder_type, data_dir=file, split="train", drop_labels=False)
        files = DataFilesDict.from_patterns(get_data_patterns(file), base_path=file)
        builder = _AudioFolder(data_dir=file, data_files=files, drop_labels=False)
        builder.download_and_prepare()
        return builder.as_dataset("train")
    except Exception as error:
        raise ValueError(
            f"{file}: cannot be read as a folder with one folder per class ({root_cause(error)})."
        ) from error


def check_media(
    split: Split, column: str, feature: Image | Audio, decode: Callable[[bytes], object], option: str
) -> Split:
    """Casts a column to cells of bytes and paths, and decodes each of them once.

    Args:
        split: the rows.
        column: column of the images or recordings.
        feature: `Image(decode=False)` or `Audio(decode=False)`.
        decode: raises an error if the bytes are not an image or recording.
        option: option that names the column.

    Returns:
        The split with that column as `MediaCell`s.

    Raises:
        ValueError: the column is missing or holds something else, or a row cannot be decoded.
    """

    def find_fault(cell: MediaCell | None) -> str | None:
        try:
            decode(read_bytes(cell))
        except Exception as error:  # decoders may raise any exception
            file = f" {cell['path']}" if cell and cell["bytes"] is None and cell["path"] else ""
            return f"`{column}`{file} cannot be read ({error})"
        return None

    if column in split.data.column_names:
        stored_feature = split.data.features[column]
        try:
            split = replace(split, data=split.data.cast_column(column, feature))
        except (TypeError, ValueError, ArrowException) as error:
            raise ValueError(
                f"{split.source}: column {column!r} must hold the bytes of files, it holds {stored_feature}."
            ) from error
    check_rows(split, (column,), find_fault, (option,))
    return split


def read_bytes(cell: MediaCell | None) -> bytes:
    """Returns the bytes of the file that a cell holds or names.

    Raises:
        ValueError: the cell is empty.
        OSError: the file is missing.
    """
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("there is nothing")
    return Path(str(cell["path"])).read_bytes() if cell["bytes"] is None else cell["bytes"]


def read_wave(content: bytes, sampling_rate: int | None = None) -> np.ndarray:
    """Decodes a WAV file.

    Args:
        content: bytes of the file.
        sampling_rate: samples per second of the result; those of the file by default.

    Returns:
        The wave `(samples,)` between −1 and 1, its channels averaged.

    Raises:
        ValueError: the bytes are not a WAV file, or have no samples.
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
