"""Extractive question answering."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedTokenizerBase

from ...max_length import resolve_max_length
from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_feedback import FeedbackForQuestionAnswering
from ...validation import check_integer, option
from ...words import space_between_texts
from ..data.answers import WindowEncoder, answer_scores, best_answers
from ..data.columns import check_rows
from ..data.label_names import label_name
from ..data.labels import LabelSet
from ..data.splits import FileArguments, Split
from ..metrics import MetricInfo
from ..task_card import TaskCard
from .task import AnswerTexts, EncodedSplit, TextTask


def usage_of(space: str = "") -> str:
    """Returns the Python lines of the model card; transformers has no pipeline for this task.

    Args:
        space: prefix of the context, see `space_between_texts`.
    """
    return f"""from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{{model}}")
model = AutoModelForQuestionAnswering.from_pretrained("{{model}}", trust_remote_code=True)
question, text = "Where is the parcel?", "{space}The parcel is at the depot."
batch = tokenizer(question, text, return_tensors="pt")
output = model(**batch)
start, end = output.start_logits.argmax(), output.end_logits.argmax()
print(tokenizer.decode(batch["input_ids"][0, start : end + 1]))"""


@dataclass
class QuestionArguments(FileArguments):
    """Windows and answers."""

    max_length: int | None = option(
        None,
        "Tokens of a window, question included (default: 384, or as many as the model reads; all of them for a model "
        "with segments).",
    )
    stride: int | None = option(None, "Tokens by which windows overlap (default: a third of a window).")
    max_answer_length: int = option(30, "Maximum number of tokens of an answer.")
    may_be_empty: bool | None = option(
        None, "Questions may have no answer (default: if one of the training file has none)."
    )


def find_fault(question: object, context: object, answers: object) -> str | None:
    """Returns what is wrong with a row, or `None`.

    Example:

    ```python
    >>> find_fault("When?", "On Monday.", {"text": ["Sunday"], "answer_start": [3]})
    "the answer 'Sunday' is not at character 3 of the context"

    ```
    """
    for name, value in (("question", question), ("context", context)):
        if not isinstance(value, str) or not value.strip():
            return f"`{name}` must be a text, got {value!r}"
    texts, starts = (answers.get("text"), answers.get("answer_start")) if isinstance(answers, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return f'`answers` must be {{"text": [...], "answer_start": [...]}}, both of one length, got {answers!r}'
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip():
            return f"an answer must be a text, got {text!r}"
        position = label_name(start)
        if not position.isdecimal() or not str(context).startswith(text, int(position)):
            return f"the answer {text!r} is not at character {start!r} of the context"
    return None


def make_answer_texts(
    contexts: Sequence[str],
    references: Sequence[Sequence[str]],
    windows: Dataset,
    max_answer_length: int,
    may_be_empty: bool,
) -> AnswerTexts:
    """Returns a function from predictions to the right answers and the best answers over all windows.

    Args:
        contexts: the contexts, one per question.
        references: the right answers, one list per question.
        windows: windows of a `WindowEncoder`.
        max_answer_length: maximum number of tokens of an answer.
        may_be_empty: whether a question may have no answer.
    """
    positions = windows.select_columns(["example", "offsets", "null"])

    def answer_texts(prediction: EvalPrediction) -> tuple[Sequence[Sequence[str]], list[str]]:
        start, end = (np.asarray(logits) for logits in prediction.predictions)
        return references, best_answers(start, end, positions, contexts, max_answer_length, may_be_empty)

    return answer_texts


class QuestionAnswering(TextTask[QuestionArguments]):
    """Finds the answer to a question in a text.

    Example:

    ```python
    >>> from hf_feedback.training.starting_model.model_arguments import ModelArguments
    >>> task = QuestionAnswering(ModelArguments(model="bert-base-uncased"), QuestionArguments("train.jsonl"))
    >>> task.card.pipeline_tag
    'question-answering'

    ```
    """

    data_arguments = QuestionArguments
    model_class = FeedbackForQuestionAnswering
    card = TaskCard(pipeline_tag="question-answering", model="model that finds answers in texts", usage=usage_of())
    metrics = {"f1": MetricInfo(), "exact_match": MetricInfo()}  # noqa: RUF012
    peft_task_type = "QUESTION_ANS"
    reads_words = True
    evaluation_options = ("stride", "max_answer_length", "may_be_empty")

    def check_options(self) -> None:
        check_integer("max_answer_length", self.data_args.max_answer_length, 1, "tokens of an answer")
        if self.data_args.stride is not None:
            check_integer("stride", self.data_args.stride, 0, "tokens that windows have in common")

    def check_split(self, split: Split) -> Split:
        check_rows(split, ("question", "context", "answers"), find_fault)
        return split

    def find_labels(self, train: Split) -> LabelSet | None:
        if self.data_args.may_be_empty is None:
            self.data_args.may_be_empty = any(not answers["text"] for answers in train.data["answers"])
        return None

    def load_trained(self, split: Split) -> None:
        super().load_trained(split)
        self.find_labels(split)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer.padding_side = "right"  # positions of answer tokens must be the same in every batch
        self.card = replace(self.card, usage=usage_of(space_between_texts(tokenizer)))

    def find_max_length(self, tokenizer: PreTrainedTokenizerBase, model: FeedbackPreTrainedModel) -> int:
        longest = resolve_max_length(None, tokenizer, model)
        length = longest if model.cutting else min(384, longest)  # segments are windows that exchange messages
        requested = self.data_args.max_length
        return resolve_max_length(length if requested is None else requested, tokenizer, model)

    def encode(self, name: str, split: Split) -> EncodedSplit:
        stride = self.max_length // 3 if self.data_args.stride is None else self.data_args.stride
        windows = WindowEncoder(self.processor, self.max_length, stride, self.encoder).encode(split)
        if name == "train":
            return EncodedSplit(windows, split.source, len(split.data))
        contexts, references = split.data["context"][:], [answers["text"] for answers in split.data["answers"]]
        answer_texts = make_answer_texts(
            contexts, references, windows, self.data_args.max_answer_length, bool(self.data_args.may_be_empty)
        )

        def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
            return answer_scores(*answer_texts(prediction))

        right = {"context": contexts, "answers": references}
        return EncodedSplit(windows, split.source, len(split.data), compute_metrics, answer_texts, right)
