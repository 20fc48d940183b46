"""The choice of the text that goes on best."""

from dataclasses import dataclass

from datasets import Dataset
from transformers import DataCollatorForMultipleChoice, PreTrainedTokenizerBase

from ...modeling_feedback import FeedbackForMultipleChoice
from ...validation import option
from ..data.columns import check_rows
from ..data.label_names import label_name
from ..data.labels import SINGLE_LABEL
from ..data.splits import FileArguments, Row, Split
from ..metrics import METRICS, make_compute_metrics
from ..model_card import TaskCard
from .task import Collator, EncodedSplit, TextTask

# transformers has no pipeline for this task
USAGE = """from transformers import AutoModelForMultipleChoice, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{model}")
model = AutoModelForMultipleChoice.from_pretrained("{model}", trust_remote_code=True)
context, choices = "Where is my parcel?", ["It comes on Monday.", "The lamp is blue."]
batch = tokenizer([context] * len(choices), choices, padding=True, return_tensors="pt")
batch = {{name: tensor.unsqueeze(0) for name, tensor in batch.items()}}  # (1, choices, tokens)
print(choices[model(**batch).logits.argmax()])"""


@dataclass
class ChoiceArguments(FileArguments):
    """How texts are cut."""

    max_length: int | None = option(
        None, "Cut context and choice at so many tokens (default: as many as the model reads)."
    )


def encode_choices(data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Pairs every choice with its context: token ids `(choices, tokens)` a row, and the number of the right choice.

    Args:
        data: rows of `context`, `choices` and `label`.
        tokenizer: tokenizer of the model.
        max_length: pairs are cut at this number of tokens.
    """

    def tokenize(row: Row) -> Row:
        contexts = [row["context"]] * len(row["choices"])
        encoding = tokenizer(contexts, row["choices"], truncation=True, max_length=max_length)
        return {**encoding, "labels": int(label_name(row["label"]))}

    return data.map(tokenize, remove_columns=data.column_names, load_from_cache_file=False)


class MultipleChoice(TextTask[ChoiceArguments]):
    """Chooses one of several texts.

    Example:

    ```python
    >>> from hf_feedback.training.model_arguments import ModelArguments
    >>> task = MultipleChoice(ModelArguments(model="bert-base-uncased"), ChoiceArguments(train_file="train.jsonl"))
    >>> list(task.metrics)
    ['accuracy']

    ```
    """

    data_arguments = ChoiceArguments
    model_class = FeedbackForMultipleChoice
    card = TaskCard(
        pipeline_tag="multiple-choice", model="model that chooses one of several texts", usage=USAGE, pooled=True
    )
    metrics = {"accuracy": METRICS["accuracy"]}  # noqa: RUF012

    def check_split(self, split: Split) -> Split:
        first = split.data[0].get("choices")
        count = len(first) if isinstance(first, list) else 0

        def find_fault(context: object, choices: object, label: object) -> str | None:
            if not isinstance(context, str):
                return f"`context` must be a text, got {context!r}"
            if not (isinstance(choices, list) and len(choices) >= 2 and all(isinstance(text, str) for text in choices)):
                return f"`choices` must be a list of at least two texts, got {choices!r}"
            if len(choices) != count:
                return f"`choices` has {len(choices)} texts, row 1 has {count}; all rows must have the same number"
            if label_name(label) not in map(str, range(count)):
                return f"`label` must be the number of the right choice, 0 to {count - 1}, got {label!r}"
            return None

        check_rows(split, ("context", "choices", "label"), find_fault)
        return split

    def encode(self, name: str, split: Split) -> EncodedSplit:
        data = encode_choices(split.data, self.processor, self.max_length)
        return EncodedSplit(data, split.source, len(split.data), make_compute_metrics(SINGLE_LABEL, list(self.metrics)))

    def make_collator(self) -> Collator:
        return DataCollatorForMultipleChoice(self.processor)
