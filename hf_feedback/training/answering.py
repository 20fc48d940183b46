"""A trained model answers texts: `evaluate` and `predict`."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_feedback import FeedbackConfig
from ..configuration_fnn import FNNConfig
from ..feedback_checkpoint import whole_file
from ..modeling_feedback import FeedbackForSequenceClassification
from ..modeling_fnn import FNNForSequenceClassification
from ..validation import check_integer
from .arguments import FeedbackTrainingArguments, LabelArguments, TextArguments
from .callbacks import show_plain_metrics
from .classification import columns_of
from .columns import Columns
from .data import encode, read_file, texts_of
from .labels import LabelSet
from .metrics import decide, default_metrics, make_compute_metrics
from .outputs import check_writable
from .sources import check_source, check_trained_for, hub_options
from .starting import load_tokenizer, max_length_of, set_options
from .trainer import FeedbackTrainer


def load_for_inference(
    name: str, revision: str | None = None
) -> tuple[FeedbackForSequenceClassification | FNNForSequenceClassification, PreTrainedTokenizerBase]:
    """A trained model and its tokenizer, from a folder or hub id.

    Raises:
        ValueError: it is missing or damaged, is no feedback model, or was trained for another task.
    """
    config = check_source(name, revision)
    heads: dict[str, Any] = {
        FeedbackConfig.model_type: FeedbackForSequenceClassification,
        FNNConfig.model_type: FNNForSequenceClassification,
    }
    head = heads.get(str(config.get("model_type")))
    if head is None:
        raise ValueError(f"`model`: {name} is no feedback model; make one with `hf-feedback train`.")
    check_trained_for(name, config, [head.__name__])
    return head.from_pretrained(name, **hub_options(revision)), load_tokenizer(name, revision)


@dataclass
class Answering:
    """A trained model with a file of texts to answer.

    Args:
        model: folder or hub id of the model.
        file: the texts.
        args: columns, `max_length` and, with labels, metrics.
        revision: of the hub repository.
        num_iterations: K; the model's own by default.
        halting: options of halting by name; the model's own by default.
        batch_size: texts a batch.
        bf16: compute in bfloat16.
    """

    model: str
    file: str
    args: TextArguments = field(default_factory=LabelArguments)
    revision: str | None = None
    num_iterations: int | None = None
    halting: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    bf16: bool = False

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1, "texts a batch")

    def _prepare(self, metrics: Sequence[str] | None, labelled: bool) -> tuple[FeedbackTrainer, Dataset, Dataset]:
        model, tokenizer = load_for_inference(self.model, self.revision)
        if self.num_iterations is not None:
            model.set_num_iterations(self.num_iterations)
        if self.halting:
            set_options(model, self.model, self.halting)
        data, labels = read_file(self.file), LabelSet.of_model(model)
        columns = columns_of(data, self.file, self.args, labelled, Columns.of_model(model.config))
        max_length = max_length_of(self.args.max_length, tokenizer, model)
        encoded = encode(data, columns, tokenizer, max_length, self.file, labels if labelled else None)
        args = FeedbackTrainingArguments(
            output_dir=tempfile.gettempdir(),
            per_device_eval_batch_size=self.batch_size,
            bf16=self.bf16,
            report_to=[],
            use_cpu=not torch.accelerator.is_available(),
        )
        names = metrics or default_metrics(labels.problem_type, labels.num_labels)
        trainer = FeedbackTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=make_compute_metrics(labels.problem_type, names) if labelled else None,
        )
        show_plain_metrics(trainer)
        return trainer, data, encoded

    def evaluate(self) -> dict[str, float]:
        """Metrics of the model on the file, which has labels.

        Raises:
            ValueError: the model, the file or a label is not as it must be.
        """
        trainer, _, encoded = self._prepare(getattr(self.args, "metrics", None), labelled=True)
        return trainer.evaluate(encoded)

    def predict(self, output: str, force: bool = False) -> int:
        """Writes the answers as JSON lines: the text, the label and all probabilities.

        The output appears when it is complete; a run that dies half-way leaves none.

        Args:
            output: the file to write.
            force: write over a file that is there.

        Returns:
            The number of lines.

        Raises:
            ValueError: the model or the file is not as it must be.
        """
        check_writable(str(Path(output).parent), "output")
        if Path(output).is_dir():
            raise ValueError(f"`output`: {output} is a folder; name a file.")
        if Path(output).exists() and not force:
            which = "the file of texts itself" if Path(output).samefile(self.file) else "there already"
            raise ValueError(f"`output`: {output} is {which}; name another, or write over it (`--force`).")
        trainer, data, encoded = self._prepare(None, labelled=False)
        logits = np.asarray(trainer.predict(encoded).predictions)
        model = cast(PreTrainedModel, trainer.model)
        columns = columns_of(data, self.file, self.args, False, Columns.of_model(model.config))
        texts = [{"text": text} for text in texts_of(data[columns.text], columns.text, self.file)]
        if columns.text_pair is not None:
            pairs = texts_of(data[columns.text_pair], columns.text_pair, self.file)
            texts = [{**text, "text_pair": pair} for text, pair in zip(texts, pairs, strict=True)]
        answers = _answers(texts, logits, LabelSet.of_model(model))
        lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
        with whole_file(Path(output)) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return len(lines)


def _answers(texts: Sequence[dict[str, str | None]], logits: np.ndarray, labels: LabelSet) -> Iterator[dict[str, Any]]:
    decided = decide(logits, labels.problem_type)
    scores = torch.as_tensor(logits).float()
    several = labels.problem_type == "multi_label_classification"
    probabilities = scores.sigmoid() if several else F.softmax(scores, -1)
    for line, answer, row in zip(texts, decided, probabilities.tolist(), strict=True):
        if labels.problem_type == "regression":
            yield {**line, "value": float(answer)}
            continue
        named = {name: round(p, 6) for name, p in zip(labels.names, row, strict=True)}
        if several:
            yield {
                **line,
                "labels": [n for n, yes in zip(labels.names, answer, strict=True) if yes],
                "probabilities": named,
            }
        else:
            yield {**line, "label": labels.names[int(answer)], "score": max(named.values()), "probabilities": named}
