"""Predictions and token movements of one text by iteration."""

from dataclasses import dataclass
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_feedback import FeedbackForSequenceClassification
from ...predictor import filler_row
from ...training.data.labels import SINGLE_LABEL, LabelSet
from .observation import observe
from .svg_charts import line_chart
from .token_traces import trace_tokens


@dataclass(frozen=True)
class TextSteps:
    """The iterations of a model on one text, counted from 1.

    Args:
        label_names: the classes.
        probabilities: class probabilities, one list per iteration.
        tokens: tokens of the model's input.
        movement: `‖h_t^(k) − h_t^(k−1)‖ / ‖h_t^(k)‖` of each token, one list per iteration from the second on; empty
            for a text in several segments.
        residuals: the same over the whole text and all sources.
    """

    label_names: tuple[str, ...]
    probabilities: list[list[float]]
    tokens: list[str]
    movement: list[list[float]]
    residuals: list[float]

    def class_probabilities(self, k: int) -> dict[str, float]:
        """The probability of each class after iteration k."""
        return dict(zip(self.label_names, self.probabilities[k - 1], strict=True))

    def moved_tokens(self, k: int) -> list[tuple[str, float]]:
        """Each token with its movement in iteration k, as a share of the largest movement in any iteration."""
        largest = max((max(line) for line in self.movement), default=0.0) or 1.0
        line = self.movement[k - 2] if k > 1 and self.movement else [0.0] * len(self.tokens)
        return [(token, moved / largest) for token, moved in zip(self.tokens, line, strict=True)]

    def describe(self, k: int) -> str:
        """Describes the change in iteration k in one sentence."""
        now = self.class_probabilities(k)
        answer = max(now, key=now.__getitem__)
        if k == 1:
            return f"Iteration 1 answers {answer} ({now[answer]:.1%})."
        before = self.class_probabilities(k - 1)
        earlier = max(before, key=before.__getitem__)
        change = f"still answers {answer}" if answer == earlier else f"changes the answer from {earlier} to {answer}"
        return (
            f"Iteration {k} {change} ({before[answer]:.1%} → {now[answer]:.1%}) and moves the states by "
            f"{self.residuals[k - 2]:.1%} of their size."
        )

    def chart(self, most: int = 3) -> str:
        """A chart of the classes that are most probable in any iteration, as SVG text.

        Args:
            most: number of classes, at most 3.
        """
        peaks = {name: max(p[i] for p in self.probabilities) for i, name in enumerate(self.label_names)}
        shown = sorted(peaks, key=lambda name: -peaks[name])[:most]
        series = {name: [p[self.label_names.index(name)] for p in self.probabilities] for name in shown}
        iterations = range(1, len(self.probabilities) + 1)
        return line_chart(series, iterations, "Probability of the classes by iteration", percent=True)


def check_text_classifier(model: PreTrainedModel) -> LabelSet:
    """Returns the labels of a model that gives a text one class.

    Args:
        model: the model.

    Raises:
        ValueError: the model does not give a text one class.
    """
    labels = LabelSet.of_model(model)
    if not isinstance(model, FeedbackForSequenceClassification) or labels.problem_type != SINGLE_LABEL:
        raise ValueError(
            f"`model` must be a FeedbackForSequenceClassification that gives a text one class, got "
            f"{type(model).__name__} for {labels.problem_type}; train one with `hf-feedback train`."
        )
    return labels


def step_through(
    model: FeedbackPreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, num_iterations: int
) -> TextSteps:
    """Traces a text through the iterations of a text classifier.

    Args:
        model: a model that gives a text one class.
        tokenizer: its tokenizer.
        text: the text.
        num_iterations: number of traced iterations.

    Raises:
        ValueError: the model does not give a text one class.
    """
    labels = check_text_classifier(model)
    row = dict(tokenizer(text, truncation=True))
    row = row if row["input_ids"] else filler_row(row, tokenizer)
    inputs = {name: torch.tensor([values]) for name, values in row.items()}
    seen = observe(model, [{**inputs, "labels": torch.tensor([0])}], num_iterations)
    trace = trace_tokens(model, inputs, num_iterations)
    return TextSteps(
        label_names=labels.names,
        probabilities=seen.answers.probabilities[:, 0].tolist(),
        tokens=[cast(str, tokenizer.decode([number])).strip() or "␣" for number in inputs["input_ids"][0].tolist()],
        movement=[] if trace is None else trace.movement.tolist(),
        residuals=seen.residuals[0].tolist(),
    )
