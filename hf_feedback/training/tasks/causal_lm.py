"""Causal language modelling: texts packed into blocks, and continuations of prompts."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ...max_length import resolve_max_length
from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_feedback import FeedbackForCausalLM
from ...validation import check_integer, option
from ...whole_files import whole_file
from ..data.columns import find_columns
from ..data.labels import IGNORED
from ..data.splits import Batch, Row, Split
from ..data.text_files import TextFormat
from ..data.texts import TextLengths, texts_of, warn_of_cut_texts
from ..task_card import TaskCard, pipeline_usage
from .plain_texts import PlainTextArguments, PlainTextTask, perplexity_of_losses, stream_texts, token_losses
from .task import Collator, EncodedSplit, PreprocessLogits

LONGEST_BLOCK = 512  # by default: the logits of a batch are (B, T, V), gigabytes for longer ones
PROMPTS_AT_ONCE = 8  # their caches share the memory with what training filled
TEXTS_AT_ONCE = 1000  # are tokenized together


@dataclass
class CausalLMArguments(PlainTextArguments):
    """Packing and prompts."""

    max_length: int | None = option(
        None, f"Tokens of a block (default: as many as the model reads, at most {LONGEST_BLOCK})."
    )
    packing: bool = field(
        default=True,
        metadata={
            "help": (
                "Join texts, with an end-of-text token after each, into blocks of --max-length tokens; otherwise each "
                "text is a row, truncated to that length."
            )
        },
    )
    prompt_file: str | None = option(
        None,
        "File of prompts; the trained model's continuations are written to continuations.jsonl in the output folder.",
    )
    max_new_tokens: int = option(40, "Maximum number of tokens of a continuation.")


@dataclass(frozen=True)
class TextBlocks:
    """Converts texts to training rows of a language model.

    With packing, texts are joined, each followed by an end-of-text token, and cut into blocks of equal length, of which
    only the last may be shorter. A token can read the texts before its own.

    Args:
        tokenizer: a tokenizer with an end-of-text token.
        length: maximum number of tokens of a row, at least 2.
        packing: whether to join texts; otherwise each is a row.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    packing: bool = True

    def rows_of(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yields rows of at least two token ids, since a single one has no target."""
        return self.rows_from(self.tokens_of(texts))

    def rows_from(self, tokens: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields rows of token ids from tokenized texts."""
        rows = self._join(tokens) if self.packing else (ids[: self.length] for ids in tokens)
        return (row for row in rows if len(row) > 1)

    def tokens_of(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yields the tokens of each text with words, with the end-of-text token."""
        texts, end = (text for text in texts if text.strip()), self.tokenizer.eos_token_id
        while together := list(islice(texts, TEXTS_AT_ONCE)):
            for ids in self.tokenizer(together, verbose=False)["input_ids"]:
                yield np.asarray(ids if ids[-1:] == [end] else [*ids, end], dtype=np.int32)

    def stream(self, file: str, column: str, text_format: TextFormat) -> Iterator[Row]:
        """Streams the rows of a file.

        Args:
            file: its path.
            column: column of the texts.
            text_format: format of the file.
        """
        for ids in self.rows_of(stream_texts(file, column, text_format)):
            yield {"input_ids": ids}

    def _join(self, texts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        for ids in texts:
            waiting.append(ids)
            if sum(map(len, waiting)) >= self.length:
                joined = np.concatenate(waiting)
                whole = len(joined) // self.length * self.length
                yield from joined[:whole].reshape(-1, self.length)
                waiting = [joined[whole:]]
        if waiting:
            yield np.concatenate(waiting)


class NextTokenCollator:
    """Collator that pads rows on the right and adds labels.

    Padding is recognized by its position, since the padding token may be the end-of-text token, which is a target.

    Args:
        tokenizer: tokenizer of the texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        ids = [{"input_ids": row["input_ids"]} for row in rows]
        batch = dict(self.tokenizer.pad(ids, padding_side="right", return_attention_mask=True, return_tensors="pt"))
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        batch["labels"][:, 0] = IGNORED
        return batch


def next_token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the loss of every token given those before it; 0 for the first token and for padding.

    Args:
        logits: `(B, T, V)`.
        labels: `(B, T)`, −100 for tokens that are not targets.

    Returns:
        `(B, T)`.
    """
    return F.pad(token_losses(logits[:, :-1], labels[:, 1:]), (1, 0))


class CausalLM(PlainTextTask[CausalLMArguments]):
    """Predicts the next token.

    Example:

    ```python
    >>> from hf_feedback.training.starting_model.model_arguments import ModelArguments
    >>> task = CausalLM(ModelArguments(model="Qwen/Qwen3-0.6B-Base"), CausalLMArguments(train_file="train.txt"))
    >>> task.data_args.packing
    True

    ```
    """

    data_arguments = CausalLMArguments
    model_class = FeedbackForCausalLM
    card = TaskCard(
        pipeline_tag="text-generation",
        model="language model",
        usage=pipeline_usage("text-generation", 'print(answer("Where is my", max_new_tokens=20)[0]["generated_text"])'),
    )
    peft_task_type = "CAUSAL_LM"
    evaluation_options = ("max_length", "packing")

    model: FeedbackForCausalLM
    prompts: list[str]

    def check_options(self) -> None:
        check_integer("max_new_tokens", self.data_args.max_new_tokens, 1, "tokens of a continuation")
        file = self.data_args.prompt_file
        self.prompts = [] if file is None else list(self.texts_of(Split(self.read(file), file)))

    def text_column_of(self, split: Split) -> str:
        """Returns the column of the texts of a split."""
        names, trained = split.data.column_names, getattr(self, "columns", None)
        return find_columns(names, split.source, self.data_args.text_column, needs_label=False, trained=trained).text

    def texts_of(self, split: Split) -> Iterator[str]:
        """Yields the texts of a split that have words."""
        column = self.text_column_of(split)
        return (text for text in texts_of(split.data[column], column, split.source) if text and text.strip())

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"`model`: the tokenizer of {self.model_args.model} has no end-of-text token (`eos_token`), by which a "
                "language model ends a text; use one that has."
            )
        tokenizer.padding_side = "left"  # for generation, also in pipelines

    def find_max_length(self, tokenizer: PreTrainedTokenizerBase, model: FeedbackPreTrainedModel) -> int:
        requested = self.data_args.max_length
        check_integer("max_length", 2 if requested is None else requested, 2, "one token to read and one to predict")
        length = resolve_max_length(requested, tokenizer, model)
        return length if requested is not None else min(length, LONGEST_BLOCK)

    def encode(self, name: str, split: Split) -> EncodedSplit:
        blocks = TextBlocks(self.processor, self.max_length, self.data_args.packing)
        if name == "train" and self.data_args.streaming:
            return self.stream(split, blocks.stream, packing=blocks.packing)
        tokens = self.tokenize(split, blocks)
        rows = list(blocks.rows_from(tokens))
        if not rows:
            raise ValueError(f"{split.source}: column {self.columns.text!r} holds no words.")
        lengths = None
        if not blocks.packing:
            lengths = TextLengths(np.array(list(map(len, tokens))), self.max_length)
            warn_of_cut_texts(split, lengths.cut, self.max_length)
        data = Dataset.from_dict({"input_ids": rows})
        return EncodedSplit(data, split.source, len(split.data), perplexity_of_losses, lengths=lengths)

    def tokenize(self, split: Split, blocks: TextBlocks) -> list[np.ndarray]:
        """Returns the tokens of each text of a split that has words."""
        column = self.text_column_of(split)

        def encode(batch: Batch, rows: list[int]) -> Batch:
            texts = texts_of(batch[column], column, split.source, split.rows_of(rows))
            return {"input_ids": list(blocks.tokens_of(text or "" for text in texts))}

        encoded = self.encoder.encode(split.data, [column], encode, self.processor, {"column": column})
        return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]] if len(encoded) else []

    def make_collator(self) -> Collator:
        return NextTokenCollator(self.processor)

    def preprocess_logits(self) -> PreprocessLogits:
        return next_token_losses

    def write_predictions(self, folder: Path) -> None:
        if self.prompts:
            options = {"batch_size": PROMPTS_AT_ONCE, "max_new_tokens": self.data_args.max_new_tokens}
            answers = self.model.predict(self.prompts, self.processor, **options)
            pairs = zip(self.prompts, answers, strict=True)
            lines = [json.dumps({"prompt": prompt, **answer}, ensure_ascii=False) for prompt, answer in pairs]
            with whole_file(folder / "continuations.jsonl") as partial:
                partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
