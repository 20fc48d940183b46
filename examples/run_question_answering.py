"""Fine-tune a backbone with feedback to find the answer to a question in a text.

    python examples/run_question_answering.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/questions/train.jsonl --validation-file examples/data/questions/validation.jsonl

Files: JSON lines (or parquet) as SQuAD has them: {"question": "...", "context": "...", "answers": {"text": ["..."],
"answer_start": [17]}}. A text that is too long is read in several windows. Where training questions have no answers
(empty lists), the model learns to say so. Works under `accelerate launch` and `torchrun` too, with all options of
`hf-feedback train`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorWithPadding, EvalPrediction

from hf_feedback import FeedbackForQuestionAnswering
from hf_feedback.training import FeedbackTrainingArguments
from hf_feedback.training.arguments import FileArguments, ModelArguments
from hf_feedback.training.command import script
from hf_feedback.training.data import check_rows, read_splits
from hf_feedback.training.label_names import label_name
from hf_feedback.training.questions import answer_scores, best_answers, windows_of
from hf_feedback.training.run import Split, Task, prepare_run, run_task
from hf_feedback.training.starting import load_tokenizer, make_model, max_length_of, set_padding


@dataclass
class QuestionArguments(FileArguments):
    """How texts are cut and answered."""

    max_length: int | None = field(default=None, metadata={"help": "Tokens a window, the question included (384)."})
    stride: int | None = field(default=None, metadata={"help": "Tokens that windows share (a third of a window)."})
    max_answer_length: int = field(default=30, metadata={"help": "Tokens of an answer at most."})


def fault(question: Any, context: Any, answers: Any) -> str | None:
    """What is wrong with a row."""
    for name, value in (("question", question), ("context", context)):
        if not isinstance(value, str) or not value.strip():
            return f"`{name}` must be a text, got {value!r}"
    texts, starts = (answers.get("text"), answers.get("answer_start")) if isinstance(answers, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return f'`answers` must be {{"text": [...], "answer_start": [...]}}, both of one length, got {answers!r}'
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip():
            return f"an answer must be a text, got {text!r}"
        place = label_name(start)
        if not place.isdecimal() or context[int(place) :][: len(text)] != text:
            return f"the answer {text!r} does not stand at character {start!r} of the context"
    return None


def make_compute_metrics(
    data: Dataset, windows: Dataset, max_answer_length: int, may_be_empty: bool
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Exact match and F1 of the best answers over all windows."""
    contexts, references = data["context"][:], [answers["text"] for answers in data["answers"]]
    places = windows.select_columns(["example", "offsets", "null"])

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        start, end = (np.asarray(logits) for logits in prediction.predictions)
        return answer_scores(references, best_answers(start, end, places, contexts, max_answer_length, may_be_empty))

    return compute_metrics


def train(model_args: ModelArguments, data_args: QuestionArguments, args: FeedbackTrainingArguments) -> dict[str, Any]:
    """Fine-tunes, evaluates and saves; see `run_task`."""
    prepare_run(args)
    if data_args.max_answer_length < 1:
        raise ValueError(f"`max_answer_length` must be at least 1, got {data_args.max_answer_length}.")
    splits = read_splits(data_args)
    for data, source in splits.values():
        check_rows(data, source, ("question", "context", "answers"), fault)
    may_be_empty = any(not answers["text"] for answers in splits["train"][0]["answers"])
    tokenizer = load_tokenizer(model_args.model, model_args.revision, of_words=True)
    tokenizer.padding_side = "right"  # tokens keep their places, which answers are counted by, in every batch
    model = make_model(FeedbackForQuestionAnswering, model_args)
    set_padding(model, tokenizer)
    length = data_args.max_length or min(384, max_length_of(None, tokenizer, model))
    length = tokenizer.model_max_length = max_length_of(length, tokenizer, model)
    stride = length // 3 if data_args.stride is None else data_args.stride
    if stride < 0:
        raise ValueError(f"`stride` must be at least 0, got {stride}.")
    encoded: dict[str, Split] = {}
    for split, (data, source) in splits.items():
        windows = windows_of(data, tokenizer, length, stride, source)
        measure = partial(make_compute_metrics, data, windows, data_args.max_answer_length, may_be_empty)
        encoded[split] = Split(windows, source, len(data), None if split == "train" else measure())
    task = Task(
        model=model,
        processor=tokenizer,
        splits=encoded,
        collator=DataCollatorWithPadding(tokenizer),
        metrics={"f1": True, "exact_match": True},
    )
    return run_task(task, model_args, args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return script(train, QuestionArguments, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
