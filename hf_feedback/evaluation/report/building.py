"""Builds a report: observes a model on labelled examples and summarizes the results."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ...modeling_base import FeedbackPreTrainedModel
from ...training.data.tags import entity_scores, is_bio
from ...training.iteration_logs.message_recorder import MessageRecord, swish_betas
from ...training.metrics import METRICS
from ...validation import MAX_ITERATIONS
from ..diagnostics import calibration, confusion, confusion_changes, flips, mcnemar
from .labelled_examples import LabelledExamples
from .observation import Observation, observe, without_halting
from .report import Contraction, EdgeSummary, ItemChange, Picture, Report, Residuals, Step
from .token_traces import trace_tokens

FURTHER_ITERATIONS = 2  # observed after the model's own K
CONTRACTION_EXAMPLES = 32  # for the estimate of the contraction
MAX_TOKENS = 200  # of a picture


def make_report(
    examples: LabelledExamples, model_name: str, file: str, batch_size: int = 32, num_pictures: int = 8
) -> Report:
    """Observes a model on labelled examples, for two more iterations than it is used with.

    Args:
        examples: the model and the examples.
        model_name: name of the model in the report.
        file: name of the file in the report.
        batch_size: examples per batch.
        num_pictures: number of examples whose tokens are drawn.
    """
    model = examples.model
    k = model.config.num_iterations
    observed = min(k + FURTHER_ITERATIONS, MAX_ITERATIONS)
    seen = observe(model, examples.batches(batch_size), observed)
    if unknown := int(np.isnan(seen.answers.probabilities[:k]).any((0, 2)).sum()):
        raise ValueError(
            f"`model`: {unknown} of {len(seen.answers.labels)} answers are NaN within its {k} iterations: its weights "
            "are not finite, or its iterations diverge (train with a smaller `feedback_lr`)."
        )
    changes = _Changes(seen, examples)
    whole = changes.make_step(1, k)
    f1_name, f1 = f1_scores(seen, examples.label_names)
    return Report(
        model=model_name,
        file=file,
        unit=examples.unit,
        num_items=len(seen.answers.labels),
        num_examples=len(examples.data),
        num_iterations=k,
        observed=observed,
        label_names=examples.label_names,
        accuracy=seen.answers.accuracy,
        oracle_accuracy=seen.answers.oracle_accuracy,
        f1=f1,
        f1_name=f1_name,
        whole=whole,
        steps=[changes.make_step(one, one + 1) for one in range(1, observed)],
        residuals=_summarize_residuals(seen.residuals),
        contraction=_estimate_contraction(model, examples, batch_size),
        edges=summarize_edges(model, seen.messages, observed),
        calibration=[calibration(seen.answers, one) for one in range(1, observed + 1)],
        confusion_first=confusion(seen.answers, 1).tolist(),
        confusion_last=confusion(seen.answers, k).tolist(),
        confusion_changes=confusion_changes(seen.answers, 1, k),
        pictures=_draw_pictures(examples, changes, whole, observed, num_pictures),
    )


@dataclass(frozen=True)
class _Changes:
    """Items of an observation as a report shows them."""

    seen: Observation
    examples: LabelledExamples

    def item(self, number: int) -> ItemChange:
        """The item with that number, for the report."""
        answers, names = self.seen.answers, self.examples.label_names
        example, label = int(self.seen.examples[number]), int(answers.labels[number])
        shown = self.examples.show(example, int(self.seen.numbers[number]))
        return ItemChange(
            row=example + 1,
            before=shown.before,
            word=shown.word,
            after=shown.after,
            label=names[label],
            answers=[names[answer] for answer in answers.predictions[:, number]],
            label_probabilities=answers.probabilities[:, number, label].tolist(),
        )

    def make_step(self, first: int, last: int) -> Step:
        fixed, broken, others = flips(self.seen.answers, first, last)
        return Step(
            first=first,
            last=last,
            fixed=list(map(self.item, fixed)),
            broken=list(map(self.item, broken)),
            other_changes=others,
            p_value=None if self.seen.numbers.any() else mcnemar(len(fixed), len(broken)),
        )

    def most_moved_first(self) -> Iterator[ItemChange]:
        """One item per example, ordered by the change of its states in iteration 2, the largest first."""
        first_items = np.unique(self.seen.examples, return_index=True)[1]
        residuals = self.seen.residuals[self.seen.examples[first_items], 0]
        yield from (self.item(int(first_items[i])) for i in np.argsort(-residuals))


def f1_scores(seen: Observation, label_names: Sequence[str]) -> tuple[str, list[float]]:
    """Returns the name and the values of F1 after each iteration: of entities if all classes are BIO tags, otherwise
    the mean over classes.

    Args:
        seen: the observation.
        label_names: names of the classes.
    """
    answers = seen.answers
    if not all(map(is_bio, label_names)):
        macro_f1 = METRICS["macro_f1"].compute
        return "macro F1", [float(macro_f1(answers.labels, predicted)) for predicted in answers.predictions]
    starts = np.flatnonzero(np.diff(seen.examples)) + 1

    def tags_of(numbers: np.ndarray) -> list[list[str]]:
        return [[label_names[number] for number in example] for example in np.split(numbers, starts)]

    right = tags_of(answers.labels)
    return "entity F1", [entity_scores(right, tags_of(predicted))["entity_f1"] for predicted in answers.predictions]


def _summarize_residuals(residuals: np.ndarray) -> list[Residuals]:
    quantiles = np.quantile(residuals, (0.5, 0.9), axis=0)
    return [Residuals(k, float(median), float(high)) for k, (median, high) in enumerate(quantiles.T, 2)]


def _estimate_contraction(model: FeedbackPreTrainedModel, examples: LabelledExamples, batch_size: int) -> Contraction:
    with without_halting(model):
        batches = examples.batches(batch_size, CONTRACTION_EXAMPLES)
        # the choices of a question: it contracts as little as any of them
        found = [model.estimate_contraction(batch).view(len(batch["labels"]), -1).amax(1) for batch in batches]
    factors = torch.cat(found)
    return Contraction(
        num_examples=min(CONTRACTION_EXAMPLES, len(examples.data)),
        median=factors.median().item(),
        largest=factors.max().item(),
        expanding=(~(factors <= 1)).float().mean().item(),  # one that is not finite has not converged
    )


def summarize_edges(model: FeedbackPreTrainedModel, messages: MessageRecord, num_iterations: int) -> list[EdgeSummary]:
    """Returns the messages of every edge.

    Args:
        model: the model.
        messages: the recorded sizes of its messages.
        num_iterations: number of observed iterations.
    """
    betas = swish_betas(model)
    return [
        EdgeSummary(source, target, betas.get((source, target)), *messages.means((source, target), num_iterations))
        for source, target in model.config.edges()
    ]


def choose_examples(whole: Step, others: Iterable[ItemChange], most: int) -> list[ItemChange]:
    """Chooses examples to draw: fixed and broken ones alternately, then others.

    Args:
        whole: the changes from iteration 1 to K.
        others: one item per example, in the order of preference.
        most: maximum number of examples.
    """
    pairs = max(len(whole.fixed), len(whole.broken))
    by_turns = [step[i] for i in range(pairs) for step in (whole.fixed, whole.broken) if i < len(step)]
    by_row: dict[int, ItemChange] = {}
    for item in chain(by_turns, others):
        if len(by_row) == most:
            break
        by_row.setdefault(item.row, item)
    return list(by_row.values())


def _draw_pictures(
    examples: LabelledExamples, changes: _Changes, whole: Step, num_iterations: int, most: int
) -> list[Picture]:
    if not examples.reads_tokens:
        return []
    chosen = choose_examples(whole, changes.most_moved_first(), most)
    pictures = (_draw_picture(examples, item, num_iterations) for item in chosen)
    return [picture for picture in pictures if picture is not None]


def _draw_picture(examples: LabelledExamples, item: ItemChange, num_iterations: int) -> Picture | None:
    inputs = examples.inputs(item.row - 1)
    trace = trace_tokens(examples.model, inputs, num_iterations)
    if trace is None or not isinstance(examples.processor, PreTrainedTokenizerBase):
        return None
    numbers = inputs["input_ids"][0, :MAX_TOKENS].tolist()
    tokens = [cast(str, examples.processor.decode([number])).strip() or "␣" for number in numbers]
    most_moved = trace.movement[:, : len(tokens)].argmax(1).tolist()
    attended = [
        weights[token, : len(tokens)].tolist()
        for weights, token in zip(trace.attention, most_moved, strict=bool(trace.attention))  # unknown, or of all
    ]
    return Picture(
        change=item,
        tokens=tokens,
        movement=trace.movement[:, : len(tokens)].tolist(),
        most_moved=most_moved,
        attended=attended,
        attention_source=trace.attention_source,
    )
