"""A trained model and a file of labelled examples, encoded and as text for reports."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from ...modeling_base import FeedbackPreTrainedModel
from ...prediction.trained_model import TrainedModel
from ...training.data.columns import Columns
from ...training.data.labels import IGNORED, SINGLE_LABEL, LabelSet
from ...training.data.splits import Split
from ...training.data.texts import texts_of
from ...training.tasks import (
    AudioClassification,
    ImageClassification,
    MultipleChoice,
    NetworkTextClassification,
    TextClassification,
    TokenClassification,
)
from ...training.tasks.task import Collator, Processor, Task, TextTask
from ...training.tasks.text_classification import columns_of
from ...words import space_before_words
from ..evaluation_run import load_labelled

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
            batch_size: examples per batch.
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
    trained = TrainedModel(model, revision)
    options = {name: value for name, value in (columns or {}).items() if value is not None}
    task_class = trained.task()
    _check_task(model, task_class)
    task, encoded = load_labelled(trained, file, options)
    labels = LabelSet.of_model(task.model)
    if isinstance(task, TextClassification) and labels.problem_type != SINGLE_LABEL:
        raise ValueError(
            f"`model`: {model} was trained for {labels.problem_type}; a report is about models that give each text one "
            "class."
        )
    data, names = cast(Dataset, encoded.data), labels.names
    if isinstance(task, MultipleChoice):
        names = tuple(f"choice {i}" for i in range(len(data[0]["input_ids"])))
    return LabelledExamples(
        model=cast(FeedbackPreTrainedModel, task.model),
        processor=task.processor,
        data=data,
        collator=task.make_collator(),
        label_names=names,
        unit={TokenClassification: "words", MultipleChoice: "questions"}.get(task_class, task_class.card.inputs),
        show=_shown_by(task, file, data),
    )


def _check_task(model: str, task: type[Task]) -> None:
    """Refuses a model that does not answer with one class for each item."""
    if task is NetworkTextClassification:
        raise ValueError(f"`model`: {model} is a feedback network from scratch; a report is about feedback models.")
    if task not in SUPPORTED:
        kinds = ", ".join(one.card.model_with_article for one in SUPPORTED)
        raise ValueError(
            f"`model`: {model} is {task.card.model_with_article}; a report is about models that answer with one class "
            f"for each item: {kinds}."
        )


def _shown_by(task: Task, file: str, encoded: Dataset) -> Callable[[int, int], ShownItem]:
    """Returns the function that shows the items of a task as text."""
    if not isinstance(task, TextTask):
        return lambda example, number: ShownItem(f"{task.card.inputs[:-1]} {example + 1}")
    rows = task.read(file)
    if isinstance(task, TokenClassification):
        return lambda example, number: _show_word(task, rows[example], encoded[example]["labels"], number)
    if isinstance(task, MultipleChoice):
        return lambda example, number: ShownItem("\n".join(_lines_of_question(rows[example])))
    columns = columns_of(Split(rows, file), task.data_args, trained=Columns.of_model(task.model.config))
    texts = [texts_of(rows[column], column, file) for column in (columns.text, columns.text_pair) if column]
    return lambda example, number: ShownItem("\n".join(column[example] or "" for column in texts))


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
