"""The plan of a comparison: its runs and their costs."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader

from ...backbone_fingerprint import fingerprint
from ...configuration_feedback import FeedbackConfig
from ...modeling_base import FeedbackPreTrainedModel
from ...summary import count_parameters
from ...training.data.labels import SINGLE_LABEL, ProblemType
from ...training.data.splits import SPLITS, Row
from ...training.flops import count_flops
from ...training.resuming.checkpoints import Record
from ...training.resuming.fingerprints import fingerprint_rows, fingerprint_weights
from ...training.resuming.run_record import run_record
from ...training.starting_model.model_sources import read_config
from ...training.tasks import CausalLM, MaskedLM, PreparedTask, QuestionAnswering
from ...training.trainer import FeedbackTrainer
from ...validation import Keywords
from .arm_runs import ArmTrainer, Job, num_training_steps
from .arms import Budget, CombinedArm
from .example_scores import constant_answers
from .settings import Comparison

BATCHES = 3  # that costs are measured with


@dataclass(frozen=True)
class ArmCost:
    """The cost of one arm.

    Args:
        parameters: number of trained parameters.
        flops: FLOPs of a training step per example.
        examples: number of training examples over all epochs.
    """

    parameters: int
    flops: float
    examples: float

    @property
    def total(self) -> float:
        """FLOPs of one run."""
        return self.flops * self.examples


@dataclass(frozen=True)
class Plan:
    """The runs of a comparison.

    Args:
        budget: resources of the feedback arm.
        costs: by arm.
        left_out: arms that cannot be compared, with the reason.
        seconds_a_flop: seconds per FLOP, measured with a few batches on this machine.
        record: settings that the result depends on, see `run_record`.
        constant: contributions `(N, s)` of the test examples to the metric with the same answer for all of them, see
            `constant_answers`; `None` where answers are texts.
        longer: the resources with FLOPs relative to those of the arm itself, by arm, for those that train longer.
    """

    budget: Budget
    costs: Mapping[str, ArmCost]
    left_out: Mapping[str, str]
    seconds_a_flop: float
    record: Record
    constant: np.ndarray | None = None
    longer: Mapping[str, Budget] = field(default_factory=dict)

    def budget_of(self, arm: str) -> Budget:
        """Returns the resources that an arm matches."""
        return self.longer.get(arm, self.budget)

    def seconds(self, jobs: Sequence[Job]) -> float:
        """Estimated seconds of training, for one job at a time."""
        return sum(self.costs[job.arm].total for job in jobs) * self.seconds_a_flop


def choosing_jobs(comparison: Comparison, arms: list[str]) -> list[Job]:
    """The runs that choose the rates: every arm with every factor, with the first seed."""
    return [Job(arm, comparison.seeds[0], factor) for factor in comparison.rate_factors for arm in arms]


def seed_jobs(comparison: Comparison, chosen: Mapping[str, float]) -> list[Job]:
    """The runs with all other seeds and the chosen rates."""
    return [Job(arm, seed, factor) for seed in comparison.seeds[1:] for arm, factor in chosen.items()]


def _longest_row(prepared: PreparedTask) -> Row:
    """The longest text of all splits; for other data than texts any row."""
    splits = [cast(Dataset, split.data) for split in prepared.splits.values()]
    if "input_ids" not in splits[0].column_names:
        return splits[0][0]
    lengths = [[len(ids) for ids in data["input_ids"]] for data in splits]
    data, of_rows = max(zip(splits, lengths, strict=True), key=lambda pair: max(pair[1]))
    return data[of_rows.index(max(of_rows))]


def make_plan(comparison: Comparison) -> Plan:
    """Builds every arm once and counts its cost.

    Raises:
        ValueError: an option, a file or a label is invalid.
        UnsupportedBackboneError: the backbone cannot be looped exactly.
    """
    first, arm = next((name, arm) for name, arm in comparison.arms.items() if arm.is_feedback)
    arm = arm.parts[0] if isinstance(arm, CombinedArm) else arm
    prepared, model = comparison.prepare(arm, comparison.seeds[0], Budget(0))
    _check_splits(comparison, prepared)
    metric = comparison.score_of(prepared)[0]
    feedback = cast(FeedbackPreTrainedModel, model)
    left_out = _left_out_arms(comparison, feedback, _longest_row(prepared))
    if "iteration_targets" in cast(Dataset, prepared.splits["train"].data).column_names:
        _check_targets_are_read(comparison, feedback.config.iteration_loss)
    budget = _budget_without_flops(feedback)
    record = _record_of(comparison, prepared, feedback, metric)
    constant = _constant_examples(comparison, prepared)
    del prepared, model, feedback
    measured = {name: _measure(comparison, name, budget) for name in comparison.arms if name not in left_out}
    reference, seconds = measured[first]
    without = next((measured[name][0].flops for name in ("plain", "plain-longer") if name in measured), reference.flops)
    budget = replace(budget, flops=reference.flops / without)
    longer = {
        name: replace(budget, flops=reference.flops / cost.flops)
        for name, (cost, _) in measured.items()
        if comparison.arms[name].trains_longer
    }
    costs = {
        name: replace(cost, examples=cost.examples * comparison.arms[name].training_factor(longer.get(name, budget)))
        for name, (cost, _) in measured.items()
    }
    return Plan(budget, costs, left_out, seconds / reference.flops, record, constant, longer)


def _left_out_arms(comparison: Comparison, feedback: FeedbackPreTrainedModel, row: Row) -> dict[str, str]:
    """Returns the reasons why arms cannot be compared, by arm, for those that cannot.

    Args:
        comparison: the comparison.
        feedback: the feedback model.
        row: the longest encoded example.

    Raises:
        ValueError: a feedback arm cannot be compared, or no other arm can.
    """
    reasons = {name: arm.why_not(feedback, row, comparison.freeze) for name, arm in comparison.arms.items()}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    if not any(name not in left_out for name, arm in comparison.arms.items() if not arm.is_feedback):
        reasons_in_words = "; ".join(f"no {name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"`arms`: there is nothing to compare feedback with ({reasons_in_words}); name other arms.")
    if wrong := next((name for name in left_out if comparison.arms[name].is_feedback), None):
        raise ValueError(f"`variants`: there can be no {wrong}, since {left_out[wrong]}; leave it out.")
    return left_out


def _budget_without_flops(feedback: FeedbackPreTrainedModel) -> Budget:
    """The resources of the feedback arm that can be read from its model."""
    cutting = feedback.cutting
    return Budget(
        parameters=count_parameters(feedback.feedback),
        num_iterations=feedback.config.num_iterations,
        segment_tokens=None if cutting is None else cutting.length,
        text_tokens=None if cutting is None else cutting.longest,
    )


def _record_of(
    comparison: Comparison, prepared: PreparedTask, feedback: FeedbackPreTrainedModel, metric: str
) -> Record:
    """What `Plan.record` holds."""
    rows = {name: cast(Dataset, split.data) for name, split in prepared.splits.items()}
    record = run_record(comparison.args, feedback.config, rows, prepared.collator)
    _check_rows_differ(record)
    record["weights of the backbone"] = sorted(fingerprint(feedback).values())
    record["metric"] = metric
    for split, encoded in prepared.splits.items():
        if encoded.references is not None:
            record[f"right answers of {split}"] = fingerprint_rows(Dataset.from_dict(dict(encoded.references)))
    if weights := _other_loaded_weights(comparison, feedback):
        record["other weights of the model"] = fingerprint_weights(weights.items())
    return record | {name: getattr(comparison.data_args, name) for name in comparison.task.evaluation_options}


def _other_loaded_weights(comparison: Comparison, feedback: FeedbackPreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights that are loaded, not drawn, besides those of the backbone's layers: of a backbone's own head, or of a
    feedback model that is trained further."""
    stored = read_config(comparison.model_args.model, comparison.model_args.revision)
    is_trained = stored.get("model_type") == FeedbackConfig.model_type
    has_same_head = type(feedback).__name__ in (stored.get("architectures") or ())
    loaded = {"backbone"} if feedback.config.head == "backbone" else set()
    loaded |= {"backbone", "feedback"} if is_trained else set()
    return {
        name: tensor
        for name, tensor in feedback.state_dict().items()
        if (is_trained and has_same_head) or name.split(".")[0] in loaded
    }


def _check_rows_differ(record: Record) -> None:
    """Refuses splits with the rows of another one."""
    for one, other in combinations(SPLITS, 2):
        if record[f"rows of {one}"] == record[f"rows of {other}"]:
            raise ValueError(
                f"`{other}_file`: these rows are those of {one}; what is chosen on rows, or trained on "
                "them, is not tested on them. Give another file."
            )


def _constant_examples(comparison: Comparison, prepared: PreparedTask) -> np.ndarray | None:
    """What `Plan.constant` holds."""
    config, data = prepared.model.config, cast(Dataset, prepared.splits["test"].data)
    if issubclass(comparison.task, CausalLM | MaskedLM | QuestionAnswering):
        return None
    labels = data["labels" if "labels" in data.column_names else "label"][:]
    names = cast(dict[int, str], config.id2label or {})
    problem = cast(ProblemType, config.problem_type or SINGLE_LABEL)
    answers = constant_answers(labels, problem, tuple(names[i] for i in range(len(names))))
    return comparison.score_of(prepared)[1].of_examples(answers)


def _check_targets_are_read(comparison: Comparison, trained_rule: str) -> None:
    """Refuses targets of iterations that no arm reads; `trained_rule` is the `iteration_loss` of a model as it is."""
    options = {"iteration_loss": trained_rule, **comparison.model_args.config_options()}
    rules = [
        {**options, **arm.model_options()}["iteration_loss"] for arm in comparison.arms.values() if arm.is_feedback
    ]
    if set(rules) == {"last"}:
        raise ValueError(
            "`iteration_target_columns` are read where every iteration has a loss, and no arm has one; give "
            "`iteration_loss` 'uniform' or 'linear', or leave them out."
        )


def _check_splits(comparison: Comparison, prepared: PreparedTask) -> None:
    """Refuses data without validation and test splits of known length."""
    for split in ("validation", "test"):
        if split not in prepared.splits:
            if file := getattr(comparison.data_args, f"{split}_file", None):
                raise ValueError(f"`{split}_file`: {file} has no labels; a comparison needs them.")
            raise ValueError(f"Rates are chosen on validation and results are read on test: give `{split}_file` too.")
    if not isinstance(prepared.splits["train"].data, Dataset):
        raise ValueError("`streaming`: a comparison needs to know how many examples there are; leave it out.")


def _measure(comparison: Comparison, arm: str, budget: Budget) -> tuple[ArmCost, float]:
    """Returns the cost of an arm, and the seconds of a step per example, with a few batches."""
    made = ArmTrainer(comparison, Job(arm, comparison.seeds[0], 1.0), budget)
    trainer, model = made.trainer, cast(nn.Module, made.trainer.model).train()
    made.core.config.jacobian_penalty = 0.0  # it is differentiated twice, which the counter does not support
    batches = [trainer._prepare_inputs(batch) for batch in _some_batches(trainer.get_train_dataloader())]
    size = sum(len(next(iter(batch.values()))) for batch in batches)

    def take_steps(k: int | None) -> None:
        for batch in batches:
            trainer.compute_loss(model, batch if k is None else {**batch, "num_iterations": k}).backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    counts = Counter(drawn_iterations(trainer))
    shares: dict[int | None, float] = {k: count / counts.total() for k, count in counts.items()}
    shares = shares or {None: 1.0}
    flops = sum(share * count_flops(partial(take_steps, k)) for k, share in shares.items())
    started = time.perf_counter()
    for k in shares:
        take_steps(k)
    seconds = (time.perf_counter() - started) / len(shares)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    args, number = comparison.args, len(cast(Dataset, trainer.train_dataset))
    a_step = args.train_batch_size * args.gradient_accumulation_steps
    steps = num_training_steps(args, number, comparison.most_steps)
    examples = steps * a_step if comparison.limits_steps else number * args.num_train_epochs
    return ArmCost(parameters, flops / size, examples), seconds / size


def drawn_iterations(trainer: FeedbackTrainer) -> list[int]:
    """The K of every step of a training; nothing where it is the model's own in all."""
    if trainer.args.train_iterations == "fixed":
        return []
    steps = num_training_steps(trainer.args, len(cast(Dataset, trainer.train_dataset)))
    return [trainer.iterations_of(step, steps) for step in range(steps)]


def _some_batches(loader: DataLoader) -> list[Keywords]:
    """Random batches: the first one is the longest of all where texts of similar length are grouped."""
    rows = list(cast(Iterable[list[int]], loader.batch_sampler))
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:BATCHES].tolist()
    return [loader.collate_fn([loader.dataset[row] for row in rows[i]]) for i in chosen]


def format_plan(comparison: Comparison, plan: Plan) -> str:
    """Formats the plan as a table, with the number of runs and the estimated time."""
    costs = plan.costs
    rows = [("arm", "trained parameters", "FLOPs of training, relative")]
    base = next(iter(costs.values())) if "plain" not in costs else costs["plain"]
    for name, cost in costs.items():
        rows.append((name, f"{cost.parameters:,}", f"{cost.total / base.total:.2f}"))
    jobs = choosing_jobs(comparison, list(costs)) + seed_jobs(comparison, dict.fromkeys(costs, 1.0))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"no {name}: {reason}" for name, reason in plan.left_out.items()]
    trials, others = len(comparison.rate_factors), len(comparison.seeds) - 1
    lines.append(
        f"{len(jobs)} runs: {len(costs)} arms, each with {trials} set{'s' * (trials != 1)} of rates and then {others} "
        f"more seed{'s' * (others != 1)}; {format_seconds(plan.seconds(jobs))} of training, one after the other."
    )
    return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    """Formats a time in seconds, minutes or hours.

    Example:

    ```python
    >>> format_seconds(40), format_seconds(3000), format_seconds(9000)
    ('about 40 seconds', 'about 50 minutes', 'about 2.5 hours')

    ```
    """
    if seconds < 100:
        return f"about {seconds:.0f} seconds"
    return f"about {seconds / 60:.0f} minutes" if seconds < 6000 else f"about {seconds / 3600:.1f} hours"
