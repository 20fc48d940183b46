"""A trained text classifier on a file of texts: evaluation and predictions."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from ..feedback_checkpoint import whole_file
from ..validation import check_integer
from .arguments import FeedbackTrainingArguments
from .callbacks import show_plain_metrics
from .data.columns import Columns
from .data.files import read_file
from .data.labels import LabelSet
from .data.splits import Split
from .data.texts import encode_texts, texts_of
from .metrics import ComputeMetrics, default_metrics, make_compute_metrics
from .model_arguments import Options
from .model_setup import load_tokenizer, resolve_max_length, set_options
from .model_sources import check_source, hub_options
from .output_folder import check_writable
from .tasks import TASKS, NetworkTextClassification, TextClassification
from .tasks.task import Model
from .tasks.text_classification import LabelArguments, TextArguments, columns_of, predictions_of
from .trainer import FeedbackTrainer

TEXT_TASKS = {
    task.model_class.config_class.model_type: task for task in (TextClassification, NetworkTextClassification)
}
HEADLESS = ("FeedbackModel", "FNNModel")


def load_classifier(name: str, revision: str | None = None) -> tuple[Model, PreTrainedTokenizerBase]:
    """Returns a trained text classifier and its tokenizer.

    Args:
        name: folder or hub id.
        revision: branch, tag or commit of the hub repository.

    Raises:
        ValueError: it is missing or damaged, is no feedback model, or was trained for another task.
    """
    config = check_source(name, revision)
    task = TEXT_TASKS.get(str(config.get("model_type")))
    if task is None:
        raise ValueError(f"`model`: {name} is no feedback model; make one with `hf-feedback train`.")
    _check_task(name, config, task)
    return task.model_class.from_pretrained(name, **hub_options(revision)), load_tokenizer(name, revision)


def _check_task(name: str, config: Mapping[str, object], needed: type[TextClassification]) -> None:
    """Refuses a model that was trained for another task."""
    architectures = config.get("architectures")
    known = (*TASKS, *HEADLESS)  # a class of another name is a user's own
    trained = [one for one in architectures if one in known] if isinstance(architectures, list) else []
    if trained and needed.model_class.__name__ not in trained:
        task = "a model without a head" if trained[0] in HEADLESS else TASKS[trained[0]].card.model_with_article
        raise ValueError(
            f"`model`: {name} was trained as {task} ({trained[0]}), and this needs {needed.card.model_with_article}."
        )


@dataclass
class TextInference:
    """A trained text classifier and a file of texts.

    Args:
        model: folder or hub id of the model.
        file: file of the texts.
        args: columns, `max_length` and, with labels, metrics.
        revision: branch, tag or commit of the hub repository.
        num_iterations: K; the model's own by default.
        halting: options of halting by name; the model's own by default.
        batch_size: texts of a batch.
        bf16: whether to compute in bfloat16.

    Example:

    ```python
    >>> TextInference("out", "test.csv", batch_size=0)
    Traceback (most recent call last):
    ValueError: `batch_size` must be an integer of at least 1, got 0 (texts a batch).

    ```
    """

    model: str
    file: str
    args: TextArguments = field(default_factory=LabelArguments)
    revision: str | None = None
    num_iterations: int | None = None
    halting: Options = field(default_factory=dict)
    batch_size: int = 32
    bf16: bool = False

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1, "texts a batch")

    def evaluate(self) -> dict[str, float]:
        """Returns the metrics of the model on the file, which has labels.

        Raises:
            ValueError: the model, the file or a label is not as it must be.
        """
        trainer, data = self.load_labelled()
        return trainer.evaluate(data)

    def load_labelled(self) -> tuple[FeedbackTrainer, Dataset]:
        """Returns the model in a trainer that evaluates it, and the encoded rows of the file, which has labels.

        Raises:
            ValueError: the model, the file or a label is not as it must be.
        """
        model, tokenizer = self._load_model()
        split, labels = Split(read_file(self.file), self.file), LabelSet.of_model(model)
        columns = columns_of(split, self.args, trained=Columns.of_model(model.config))
        max_length = resolve_max_length(self.args.max_length, tokenizer, model)
        data = encode_texts(split, columns, tokenizer, max_length, labels)
        metrics = getattr(self.args, "metrics", None) or default_metrics(labels.problem_type, labels.num_labels)
        return self._make_trainer(model, tokenizer, make_compute_metrics(labels.problem_type, metrics)), data

    def predict(self, output: str, force: bool = False) -> int:
        """Writes predictions as JSON lines: the text, the label and all probabilities.

        The output appears when it is complete; a run that dies half-way leaves none.

        Args:
            output: the file to write.
            force: whether to write over a file that exists.

        Returns:
            The number of lines.

        Raises:
            ValueError: the model or the file is not as it must be.
        """
        self._check_output(output, force)
        model, tokenizer = self._load_model()
        split = Split(read_file(self.file), self.file)
        columns = columns_of(split, self.args, needs_label=False, trained=Columns.of_model(model.config))
        data = encode_texts(split, columns, tokenizer, resolve_max_length(self.args.max_length, tokenizer, model))
        logits = np.asarray(self._make_trainer(model, tokenizer).predict(data).predictions)
        predictions = predictions_of(logits, LabelSet.of_model(model))
        rows = zip(_rows_of_texts(split, columns), predictions, strict=True)
        lines = [json.dumps({**texts, **prediction}, ensure_ascii=False) for texts, prediction in rows]
        with whole_file(Path(output)) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return len(lines)

    def _check_output(self, output: str, force: bool) -> None:
        check_writable(str(Path(output).parent), "output")
        if Path(output).is_dir():
            raise ValueError(f"`output`: {output} is a folder; name a file.")
        if Path(output).exists() and not force:
            which = "the file of texts itself" if Path(output).samefile(self.file) else "there already"
            raise ValueError(f"`output`: {output} is {which}; name another, or write over it (`--force`).")

    def _load_model(self) -> tuple[Model, PreTrainedTokenizerBase]:
        model, tokenizer = load_classifier(self.model, self.revision)
        if self.num_iterations is not None:
            model.set_num_iterations(self.num_iterations)
        if self.halting:
            set_options(model, self.model, self.halting)
        return model, tokenizer

    def _make_trainer(
        self, model: Model, tokenizer: PreTrainedTokenizerBase, compute_metrics: ComputeMetrics | None = None
    ) -> FeedbackTrainer:
        args = FeedbackTrainingArguments(
            output_dir=tempfile.gettempdir(),
            per_device_eval_batch_size=self.batch_size,
            bf16=self.bf16,
            report_to=[],
            use_cpu=not torch.accelerator.is_available(),
        )
        trainer = FeedbackTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=compute_metrics,
        )
        show_plain_metrics(trainer)
        return trainer


def _rows_of_texts(split: Split, columns: Columns) -> Iterator[dict[str, str | None]]:
    """The texts of every row, by `text` and `text_pair`."""
    columns_by_name = {"text": columns.text, "text_pair": columns.text_pair}
    texts = {
        name: texts_of(split.data[column], column, split.source)
        for name, column in columns_by_name.items()
        if column is not None
    }
    for row in zip(*texts.values(), strict=True):
        yield dict(zip(texts, row, strict=True))
