"""Runs of a comparison: one arm with one seed and one set of rates, trained, tested and saved."""

import copy
import json
import math
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import EvalPrediction, set_seed

from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_feedback import FeedbackForMultipleChoice
from ...training.arguments import FeedbackTrainingArguments
from ...training.data.labels import SINGLE_LABEL, ProblemType
from ...training.dry_run import count_steps
from ...training.parameters.model_parts import any_model_in
from ...training.trainer import FeedbackTrainer
from ...whole_files import finite, whole_file
from ..machine import machine_and_versions
from .arms import Budget
from .example_scores import EXAMPLE_SCORES, ExampleScore, SplitAnswers
from .message_controls import SilentConnections, SwappedConnections, other_messages
from .settings import Comparison, name_of_test_file

CONTROLS = ("silent", "swapped")
RATES = ("learning_rate", "backbone_lr", "feedback_lr", "head_lr")


def num_training_steps(args: FeedbackTrainingArguments, num_examples: int, limit: int | None = None) -> int:
    """Returns the number of steps of a training.

    Args:
        args: the training arguments.
        num_examples: number of training examples.
        limit: maximum number of steps.
    """
    steps = count_steps(args, math.ceil(num_examples / args.train_batch_size))
    return steps if limit is None else min(limit, steps)


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        arm: name of the arm.
        seed: the seed.
        factor: factor on all rates.
    """

    arm: str
    seed: int
    factor: float

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.arm}.seed{self.seed}.rates{self.factor:g}"


@dataclass(frozen=True)
class ArmRun:
    """The measurements of one run.

    Args:
        job: the run.
        validation: the deciding metric on validation.
        examples: contributions `(N, s)` of every test example to the metric, by name: `"own"` with the trained
            messages, for feedback also `"silent"` and `"swapped"`, and the name of every further test file. Empty if it
            was not tested.
        facts: other measurements: parameters, epochs, seconds, the metric at every iteration, …
    """

    job: Job
    validation: float
    examples: dict[str, np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> ExampleScore:
        """The deciding metric."""
        return EXAMPLE_SCORES[self.facts["metric"]]

    @property
    def divergence(self) -> str | None:
        """Why the training ended before its last step, if it did."""
        return self.facts.get("divergence")

    @property
    def gain(self) -> float:
        """The metric on validation, negated if smaller is better; the least of all for a training that diverged."""
        if self.divergence is not None or not math.isfinite(self.validation):
            return -math.inf
        return self.validation if self.score.greater_is_better else -self.validation

    def test_value(self, messages: str = "own") -> float:
        """The metric on test."""
        return float(self.score.metric(self.examples[messages].sum(0)))

    def save(self, folder: Path) -> None:
        """Writes two files; the second one marks both as complete."""
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / f"{self.job.name}.npz") as partial, partial.open("wb") as stream:
            arrays: dict[str, Any] = {f"of {name}": one for name, one in self.examples.items()}
            np.savez_compressed(stream, **arrays)
        content = {**asdict(self.job), "validation": self.validation, **self.facts}
        with whole_file(folder / f"{self.job.name}.json") as partial:
            partial.write_text(json.dumps(finite(content), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, job: Job) -> "ArmRun | None":
        """Returns the finished run of a job; `None` if there is none, or its files are damaged."""
        try:
            facts = json.loads((folder / f"{job.name}.json").read_text(encoding="utf-8"))
            with np.load(folder / f"{job.name}.npz", allow_pickle=False) as arrays:
                examples = {name.removeprefix("of "): arrays[name] for name in arrays}
            validation = facts.pop("validation")
            if facts["metric"] not in EXAMPLE_SCORES or not isinstance(validation, float | int | None):
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error):
            return None
        validation = math.nan if validation is None else validation
        return cls(job, validation, examples, {name: v for name, v in facts.items() if name not in asdict(job)})


class ArmTrainer:
    """Trains and evaluates one job.

    Args:
        comparison: settings that all jobs share.
        job: the job.
        budget: resources of the feedback arm.
    """

    def __init__(self, comparison: Comparison, job: Job, budget: Budget) -> None:
        self.comparison, self.job = comparison, job
        self.arm = comparison.arms[job.arm]
        self.prepared, model = comparison.prepare(self.arm, job.seed, budget)
        self.core = cast(FeedbackPreTrainedModel, any_model_in(model)[1])
        self.folder = tempfile.TemporaryDirectory()  # removed with this object
        self.trainer = self._make_trainer(model, budget)

    def _make_trainer(self, model: nn.Module, budget: Budget) -> FeedbackTrainer:
        task = self.prepared
        train = self.arm.adapt_data(cast(Dataset, task.splits["train"].data))
        config = self.core.config
        answers_once = config.num_iterations == 1 or config.iteration_loss == "last"
        if answers_once and "iteration_targets" in train.column_names:  # the one answer is the label
            train = train.remove_columns("iteration_targets")
        set_seed(self.job.seed)  # the same order of examples, whatever random numbers building the model used
        return FeedbackTrainer(
            model=model,
            args=self._training_arguments(budget, len(train)),
            train_dataset=train,
            processing_class=task.processor,
            data_collator=task.collator,
            preprocess_logits_for_metrics=task.preprocess_logits,
        )

    def _training_arguments(self, budget: Budget, num_examples: int) -> FeedbackTrainingArguments:
        args = copy.deepcopy(self.comparison.args)
        args.output_dir = self.folder.name
        args._n_gpu = min(1, args.n_gpu)
        args.seed, args.data_seed = self.job.seed, None
        args.eval_strategy = args.save_strategy = "no"
        args.load_best_model_at_end = args.push_to_hub = False
        args.report_to, args.disable_tqdm = [], True
        args.freeze = self.arm.frozen_parts(self.comparison.freeze)
        for name, value in self.arm.training_options().items():
            setattr(args, name, value)
        factor = self.arm.training_factor(budget)
        steps = num_training_steps(args, num_examples, self.comparison.most_steps)
        args.max_steps = max(1, round(steps * factor)) if self.comparison.limits_steps else -1
        args.num_train_epochs *= factor
        if self.core.config.num_iterations == 1:
            args.train_iterations, args.agreement_weight = "fixed", 0.0
        if self.prepared.keep_all_columns:
            args.remove_unused_columns = False
        if self.arm.trains_new_parts_only:
            args.backbone_lr = None
        for rate in RATES:
            if getattr(args, rate) is not None:
                setattr(args, rate, getattr(args, rate) * self.job.factor)
        mapping = args.learning_rate_mapping
        if isinstance(mapping, dict):
            args.learning_rate_mapping = {pattern: rate * self.job.factor for pattern, rate in mapping.items()}
        return args

    def run(self, to_beat: float = -math.inf) -> ArmRun:
        """Trains for all epochs and evaluates the model of the last step.

        Args:
            to_beat: gain of the best run with other rates. One with less is not tested.
        """
        started, processor = time.perf_counter(), time.process_time()
        self.trainer.train()
        facts: dict[str, Any] = {
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - processor,
            "machine": machine_and_versions(),
            "steps": self.trainer.state.global_step,
            "epochs": self.trainer.args.num_train_epochs,
            "rates": {name: getattr(self.trainer.args, name) for name in RATES},
        }
        facts["metric"] = self.comparison.score_of(self.prepared)[0]
        run = ArmRun(self.job, self._validate(), {}, facts)
        return run if run.gain < to_beat else self._test(run)

    def diverged(self, reason: str) -> ArmRun:
        """Returns the run of a training that could not go on.

        Args:
            reason: the message of the error.
        """
        facts = {"metric": self.comparison.score_of(self.prepared)[0], "divergence": reason}
        return ArmRun(self.job, math.nan, {}, facts)

    @property
    def _score(self) -> ExampleScore:
        return self.comparison.score_of(self.prepared)[1]

    def _validate(self) -> float:
        return float(self._score.metric(self._measure("validation").sum(0)))

    def _test(self, run: ArmRun) -> ArmRun:
        """Returns the run with the contributions of the test examples, for feedback also with other messages."""
        further = {name: self._measure(name) for name in map(name_of_test_file, self.comparison.also_test)}
        examples = {"own": self._measure("test"), **further}
        if not self.arm.is_feedback:
            return replace(run, examples=examples)
        with other_messages(self.core, SilentConnections):
            examples["silent"] = self._measure("test")
        if self._can_swap():
            with other_messages(self.core, SwappedConnections):  # files may be sorted by label
                examples["swapped"] = self._measure("test", in_random_order=True)
        return replace(run, examples=examples, facts={**run.facts, "by_iteration": self._metric_by_iteration()})

    def _can_swap(self) -> bool:
        """Whether every row is preceded by a row of another example."""
        several_rows = self.prepared.splits["test"].answer_texts is not None or isinstance(
            self.core, FeedbackForMultipleChoice
        )
        are_several = len(cast(Dataset, self.prepared.splits["test"].data)) > 1
        return not several_rows and are_several and self.trainer.args.eval_batch_size > 1

    def _measure(self, split: str, in_random_order: bool = False) -> np.ndarray:
        """Contributions `(N, s)` of the examples of a split, which are read in batches of about one length."""
        encoded = self.prepared.splits[split]
        data = self.arm.adapt_data(cast(Dataset, encoded.data))
        order = np.arange(len(data))
        if in_random_order:
            order = np.random.default_rng(0).permutation(len(data))
            if len(data) % self.trainer.args.eval_batch_size == 1:
                order = np.append(order, order[0])  # no example is alone in its batch
        elif encoded.answer_texts is None and "input_ids" in data.column_names:
            order = np.argsort([len(ids) for ids in data["input_ids"]], kind="stable")
        output = self.trainer.predict(data.select(order))
        prediction = EvalPrediction(cast(np.ndarray, output.predictions), cast(np.ndarray, output.label_ids))
        config = self.core.config
        names = cast(dict[int, str], config.id2label or {})
        answers = SplitAnswers(
            prediction,
            cast(ProblemType, config.problem_type or SINGLE_LABEL),
            tuple(names[i] for i in range(len(names))),
            None if encoded.answer_texts is None else encoded.answer_texts(prediction),
        )
        examples = self._score.of_examples(answers)
        # texts answer questions, each of which may have several rows
        if encoded.answer_texts is not None:
            return examples
        return examples[: len(data)][np.argsort(order[: len(data)])]

    def _metric_by_iteration(self) -> list[float]:
        """The metric on validation for 1 to K + 1 iterations."""
        num_iterations, values = self.core.config.num_iterations, []
        for k in range(1, num_iterations + 2):
            self.core.set_num_iterations(k)
            values.append(self._validate())
        self.core.set_num_iterations(num_iterations)
        return values
