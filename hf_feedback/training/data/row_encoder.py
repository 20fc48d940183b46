"""Encoding of rows with a cache on disk, keyed by rows, tokenizer and options."""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import transformers
from accelerate import PartialState
from datasets import Dataset
from pyarrow import ArrowException
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ...validation import check_integer, option
from ...version import HF_FEEDBACK_VERSION
from ..resuming.fingerprints import fingerprint_rows

logger = logging.get_logger(__name__)

CACHE_FOLDER = "hf_feedback"  # in the cache of `datasets`


@dataclass(frozen=True)
class RowEncoder:
    """Encodes rows, in one process or several.

    Args:
        num_workers: number of processes; one by default, in which a fast tokenizer uses all cores.
        keeps: whether encoded rows are cached on disk, in the cache of `datasets`.
        overwrites: whether cached rows are encoded again.

    Example:

    ```python
    >>> data = Dataset.from_dict({"text": ["late", "lost"], "id": [1, 2]})
    >>> RowEncoder().encode(data, ["text"], lambda batch, rows: {"size": [len(text) for text in batch["text"]]})[0]
    {'size': 4}

    ```
    """

    num_workers: int | None = None
    keeps: bool = False
    overwrites: bool = False

    def encode(
        self,
        data: Dataset,
        columns: Sequence[str],
        function: Callable[[dict[str, list[Any]], list[int]], Mapping[str, object]],
        tokenizer: PreTrainedTokenizerBase | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Dataset:
        """Returns the encoded rows.

        Args:
            data: the rows.
            columns: columns that the function reads.
            function: maps a batch of rows and their numbers, from 0, to encoded rows.
            tokenizer: tokenizer that the function calls; only rows of a fast one are cached.
            options: everything else that the result depends on, as JSON values.
        """
        read = data.select_columns(list(dict.fromkeys(columns)))
        call = {
            "function": function,
            "batched": True,
            "with_indices": True,
            "remove_columns": read.column_names,
            "num_proc": self.num_workers if self.num_workers != 1 else None,
        }
        state = tokenizer_state(tokenizer)
        if not self.keeps or state is None or not datasets.is_caching_enabled():
            return read.map(**call, load_from_cache_file=False)
        code = inspect.getsource(inspect.getmodule(function) or function)
        key = cache_key(fingerprint_rows(read), code, function.__qualname__, state, options or {})
        file = Path(datasets.config.HF_DATASETS_CACHE) / CACHE_FOLDER / f"{key}.arrow"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            return read.map(**call, cache_file_name=str(file), load_from_cache_file=not self.overwrites)
        except (OSError, ArrowException) as error:
            reason = " ".join(str(error).split())
            logger.warning(f"{file.parent}: encoded rows cannot be kept there ({reason}); they are made in memory.")
            return read.map(**call, keep_in_memory=True, load_from_cache_file=False)


IN_MEMORY = RowEncoder()


@dataclass(kw_only=True)
class EncodingArguments:
    """Preprocessing."""

    preprocessing_num_workers: int | None = option(
        None, "Number of processes that encode rows (default: one, in which a fast tokenizer uses all cores)."
    )
    overwrite_cache: bool = option(
        False, "Encode the rows again, and overwrite those that an earlier run cached on disk."
    )

    @property
    def row_encoder(self) -> RowEncoder:
        """The encoder of the rows of a run.

        Raises:
            ValueError: `preprocessing_num_workers` is not a number of processes.
        """
        if self.preprocessing_num_workers is not None:
            check_integer("preprocessing_num_workers", self.preprocessing_num_workers, 1, "processes")
        return RowEncoder(self.preprocessing_num_workers, keeps=True, overwrites=self.overwrite_cache)


@contextmanager
def one_process_first() -> Iterator[None]:
    """Context in which one process of each machine runs first, so that the others find its cached rows.

    Unlike that of accelerate, it also lets the others continue if the first one fails; they raise the same error.
    """
    state = PartialState()
    if not state.is_local_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_local_main_process:
            state.wait_for_everyone()


def tokenizer_state(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, object] | None:
    """Returns the state of a tokenizer that tokens depend on; `None` for a slow tokenizer, which has none.

    Truncation and padding of the last call are left out, since they change with the first use of a tokenizer.
    """
    if tokenizer is None or not tokenizer.is_fast:
        return None
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return {
        **{name: value for name, value in backend.items() if name not in ("truncation", "padding")},
        "class": type(tokenizer).__name__,
        "inputs": tokenizer.model_input_names,
        "special tokens": tokenizer.special_tokens_map,
        "sides": (tokenizer.truncation_side, tokenizer.padding_side),
    }


def cache_key(*parts: object) -> str:
    """Returns the cache key of encoded rows, from their dependencies and the versions of the packages involved.

    Example:

    ```python
    >>> cache_key("2 rows", {"max_length": 8}) == cache_key("2 rows", {"max_length": 9})
    False

    ```
    """
    versions = (HF_FEEDBACK_VERSION, transformers.__version__, tokenizers.__version__, datasets.__version__)
    text = json.dumps([*versions, *parts], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
