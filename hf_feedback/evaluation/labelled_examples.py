"""A trained model and a file of labelled examples, encoded and as text for reports."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from ..max_length import resolve_max_length
from ..modeling_base import FeedbackPreTrainedModel
from ..training.data.columns import Columns
from ..training.data.files import read_file
from ..training.data.labels import IGNORED, SINGLE_LABEL, LabelSet
from ..training.data.splits import Split
from ..training.data.texts import encode_texts, texts_of
from ..training.model_arguments import ModelArguments
from ..training.model_sources import check_source
from ..training.tasks import (
    TASKS,
    AudioClassification,
    ImageClassification,
    MultipleChoice,
    TextClassification,
    TokenClassification,
)
from ..training.tasks.task import Collator, Processor, Task
from ..training.tasks.text_classification import LabelArguments, columns_of
from ..training.trained_model import load_classifier
from ..words import space_before_words

SUPPORTED: tuple[type[Task], ...] = (
    TextClassification,
    TokenClassification,
    MultipleChoice,
    ImageClassification,
    AudioClassification,
)


@dataclass(frozen=True)
class ShownItem:
    """An item as text.

    Args:
        before: the text, or the part before the tagged word.
        word: the tagged word; empty if the item is the whole text.
        after: the part after it.
    """

    before: str
    word: str = ""
    after: str = ""


@dataclass(frozen=True)
class LabelledExamples:
    """A trained model and a file of labelled examples.

    Args:
        model: the model.
        processor: its tokenizer, image processor or feature extractor.
        data: one row per example, for the collator.
        collator: makes batches of rows.
        label_names: names of the classes.
        unit: name of the items, in the plural.
        show: number of an example, and number of the item among its items → the item as text.
    """

    model: FeedbackPreTrainedModel
    processor: Processor
    data: Dataset
    collator: Collator
    label_names: tuple[str, ...]
    unit: str
    show: Callable[[int, int], ShownItem]

    def batches(self, batch_size: int, most: int | None = None) -> DataLoader:
        """Batches for `forward`, in the order of the rows.

        Args:
            batch_size: examples of a batch.
            most: maximum number of examples, from the first on.
        """
        data = self.data if most is None else self.data.select(range(min(most, len(self.data))))
        return DataLoader(cast(Any, data), batch_size, collate_fn=self.collator)

    @property
    def reads_tokens(self) -> bool:
        """Whether an example is a text of tokens."""
        return isinstance(self.processor, PreTrainedTokenizerBase) and self.unit != "questions"

    def inputs(self, example: int) -> dict[str, torch.Tensor]:
        """An example as a batch of one, without its label."""
        batch = self.collator([self.data[example]])
        return {name: cast(torch.Tensor, value) for name, value in batch.items() if name != "labels"}


def load_examples(
    model: str, file: str, revision: str | None = None, columns: Mapping[str, Any] | None = None
) -> LabelledExamples:
    """Loads a trained model, and a file of labelled examples for it.

    Args:
        model: folder or hub id.
        file: file or, for images and recordings, folder.
        revision: branch, tag or commit of the hub repository.
        columns: options of the task's data by name, such as `label_column`.

    Raises:
        ValueError: the model or the file is invalid, the model does not predict one class per item, or an option is not
            one of the task.
    """
    options = {name: value for name, value in (columns or {}).items() if value is not None}
    task_class = _task_of(model, revision)
    known = {one.name for one in fields(task_class.data_arguments)}
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"`{unknown[0]}`: {model} is {task_class.card.model_with_article}; leave the option out.")
    if task_class is TextClassification:
        return _load_texts(model, file, revision, LabelArguments(**options))
    data_args = task_class.data_arguments(train_file=file, **options)
    task = task_class(ModelArguments(model=model, revision=revision), data_args)
    prepared = task.prepare(announce=False)
    trained = cast(FeedbackPreTrainedModel, prepared.model)
    rows = task.read_splits()["train"].data
    return LabelledExamples(
        model=trained,
        processor=prepared.processor,
        data=cast(Dataset, prepared.splits["train"].data),
        collator=prepared.collator,
        label_names=_label_names(trained, rows, task_class),
        unit={TokenClassification: "words", MultipleChoice: "questions"}.get(task_class, task_class.card.inputs),
        show=_shown_by(task, rows, prepared.splits["train"].data),
    )


def _task_of(model: str, revision: str | None) -> type[Task]:
    """The task that a model was trained for."""
    architectures = check_source(model, revision).get("architectures") or ()
    task = next((TASKS[name] for name in architectures if name in TASKS), TextClassification)
    if task not in SUPPORTED:
        kinds = ", ".join(one.card.model_with_article for one in SUPPORTED)
        raise ValueError(
            f"`model`: {model} is {task.card.model_with_article}; a report is about models that answer with one class "
            f"for each item: {kinds}."
        )
    return task


def _load_texts(name: str, file: str, revision: str | None, args: LabelArguments) -> LabelledExamples:
    model, tokenizer = load_classifier(name, revision)
    if not isinstance(model, FeedbackPreTrainedModel):
        raise ValueError(f"`model`: {name} is a feedback network from scratch; a report is about feedback models.")
    split, labels = Split(read_file(file), file), LabelSet.of_model(model)
    if labels.problem_type != SINGLE_LABEL:
        raise ValueError(
            f"`model`: {name} was trained for {labels.problem_type}; a report is about models that give each text one "
            "class."
        )
    columns = columns_of(split, args, trained=Columns.of_model(model.config))
    max_length = resolve_max_length(args.max_length, tokenizer, model)
    texts = [texts_of(split.data[column], column, file) for column in (columns.text, columns.text_pair) if column]

    def show(example: int, number: int) -> ShownItem:
        return ShownItem("\n".join(column[example] or "" for column in texts))

    return LabelledExamples(
        model=model,
        processor=tokenizer,
        data=encode_texts(split, columns, tokenizer, max_length, labels),
        collator=DataCollatorWithPadding(tokenizer),
        label_names=labels.names,
        unit="texts",
        show=show,
    )


def _label_names(model: FeedbackPreTrainedModel, rows: Dataset, task_class: type[Task]) -> tuple[str, ...]:
    if task_class is MultipleChoice:
        return tuple(f"choice {i}" for i in range(len(rows[0]["choices"])))
    return LabelSet.of_model(model).names


def _shown_by(task: Task, rows: Dataset, encoded: Dataset) -> Callable[[int, int], ShownItem]:
    """Returns the function that shows the items of a task as text."""
    if isinstance(task, TokenClassification):
        return lambda example, number: _show_word(task, rows[example], encoded[example]["labels"], number)
    if isinstance(task, MultipleChoice):
        return lambda example, number: ShownItem("\n".join(_lines_of_question(rows[example])))
    return lambda example, number: ShownItem(f"{task.card.inputs[:-1]} {example + 1}")


def _lines_of_question(row: Mapping[str, Any]) -> Iterator[str]:
    yield row["context"]
    yield from (f"choice {i}: {choice}" for i, choice in enumerate(row["choices"]))


def _show_word(task: TokenClassification, row: Mapping[str, Any], labels: list[int], number: int) -> ShownItem:
    """A tagged word in its sentence."""
    words: list[str] = row[task.data_args.tokens_column]
    position = [i for i, label in enumerate(labels) if label != IGNORED][number]
    space = space_before_words(task.processor)
    encoding = task.processor(
        [space + word for word in words], is_split_into_words=True, truncation=True, max_length=task.max_length
    )
    word = encoding.word_ids()[position] or 0
    return ShownItem(" ".join(words[:word]), words[word], " ".join(words[word + 1 :]))
