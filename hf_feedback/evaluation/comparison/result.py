"""Results of a comparison: differences with intervals, a verdict, tables and JSON."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...training.model_card import is_hub_id
from ...whole_files import finite, whole_file
from ..machine import machine_and_versions
from ..markdown_tables import format_values, markdown_table
from .arm_runs import CONTROLS, ArmRun
from .contrasts import Contrast, contrast_table, write_verdict
from .plan import Plan
from .settings import Comparison, name_of_test_file
from .statistics import compare_paired, draw_examples, resample_examples, seeds_needed


@dataclass(frozen=True)
class ComparisonResult:
    """The runs of a comparison and the results.

    Args:
        comparison: the comparison.
        plan: the plan with the costs.
        choosing: the runs that chose the rates.
        runs: the runs with the chosen rates, every arm with every seed.
    """

    comparison: Comparison
    plan: Plan
    choosing: Sequence[ArmRun]
    runs: Sequence[ArmRun]

    @cached_property
    def by_arm(self) -> dict[str, list[ArmRun]]:
        """The runs of each arm, in the order of the seeds."""
        arms = dict.fromkeys(run.job.arm for run in self.runs)
        order = self.comparison.seeds.index
        return {
            arm: sorted((r for r in self.runs if r.job.arm == arm), key=lambda r: order(r.job.seed)) for arm in arms
        }

    @property
    def metric(self) -> str:
        """Name of the deciding metric."""
        return str(self.runs[0].facts["metric"])

    @property
    def unit(self) -> float:
        """Points per unit of the metric: 100 for a metric between 0 and 1; negative if smaller is better."""
        return 100.0 if self.runs[0].score.greater_is_better else -1.0

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """Each feedback arm compared with every other arm."""
        arms = self.comparison.arms
        with_feedback = [name for name in self.by_arm if arms[name].is_feedback]
        others = [name for name in self.by_arm if not arms[name].is_feedback]
        return [self._contrast(one, other, self.by_arm[other], "own") for one in with_feedback for other in others]

    @cached_property
    def further_contrasts(self) -> list[Contrast]:
        """Each feedback arm compared with every other arm on every further test file."""
        files = [name_of_test_file(file) for file in self.comparison.also_test]
        return [
            replace(self._contrast(one.feedback, one.other, self.by_arm[one.other], file, file), test=file)
            for file in files
            for one in self.contrasts
        ]

    @cached_property
    def drops(self) -> list[Contrast]:
        """How much less feedback loses from the test file to each further file with the same examples."""
        number = len(self.runs[0].examples["own"])
        files = [name_of_test_file(file) for file in self.comparison.also_test]
        return [
            replace(self._contrast(c.feedback, c.other, self.by_arm[c.other], file, file, since="own"), test=file)
            for file in files
            if len(self.runs[0].examples[file]) == number
            for c in self.contrasts
        ]

    @cached_property
    def controls(self) -> list[Contrast]:
        """Each feedback arm compared with itself with other messages."""
        return [
            self._contrast(name, control, runs, control)
            for name, runs in self.by_arm.items()
            for control in CONTROLS
            if control in runs[0].examples
        ]

    def _contrast(
        self,
        feedback: str,
        other: str,
        other_runs: Sequence[ArmRun],
        theirs: str,
        ours: str = "own",
        since: str | None = None,
    ) -> Contrast:
        """The lead of feedback over an alternative on the examples of a name, less that on those named `since`."""
        runs, metric = self.by_arm[feedback], self.runs[0].score.metric
        number = len(runs[0].examples[ours])
        weights = self._weights(number)

        def values(some: Sequence[ArmRun], name: str) -> tuple[np.ndarray, np.ndarray]:
            point = np.array([run.test_value(name) for run in some])
            return point, resample_examples([run.examples[name] for run in some], metric, weights)

        pairs = zip(values(runs, ours), values(other_runs, theirs), strict=True)
        point, replicates = (self.unit * (with_feedback - without) for with_feedback, without in pairs)
        if since is not None:
            pairs = zip(values(runs, since), values(other_runs, since), strict=True)
            before = [self.unit * (with_feedback - without) for with_feedback, without in pairs]
            point, replicates = point - before[0], replicates - before[1]
        resolution = 3 * self.unit / number if self.unit > 0 else 0.0  # the rule of three
        difference, margin = compare_paired(point, replicates, resolution=resolution), self.comparison.margin
        learned = self._learned[feedback] or self._learned.get(other, False)
        verdict, needed = difference.verdict(margin) if learned else "cannot tell", None
        if learned and not difference.needs_more_examples(margin):
            needed = seeds_needed(difference.by_seed, margin, difference.of_examples)
        return Contrast(feedback, other, difference, verdict, needed, learned=learned)

    @cached_property
    def constant(self) -> float | None:
        """The metric of the same answer for every test example; `None` where answers are no labels."""
        examples = self.plan.constant
        return None if examples is None else float(self.runs[0].score.metric(examples.sum(0)))

    @cached_property
    def _learned(self) -> dict[str, bool]:
        """Whether an arm is shown to be ahead of the same answer for every test example, by arm; true where answers are
        no labels."""
        if self.constant is None:
            return dict.fromkeys(self.by_arm, True)
        metric, examples = self.runs[0].score.metric, cast(np.ndarray, self.plan.constant)
        weights = self._weights(len(examples))
        without = resample_examples([examples], metric, weights)
        learned = {}
        for arm, runs in self.by_arm.items():
            point = np.array([run.test_value() for run in runs]) - self.constant
            values = resample_examples([run.examples["own"] for run in runs], metric, weights)
            learned[arm] = compare_paired(point, values - without).low > 0
        return learned

    @property
    def nothing_learned(self) -> bool:
        """Whether no arm is shown to be ahead of the same answer for every test example."""
        return not any(self._learned.values())

    @cached_property
    def _weights(self) -> Callable[[int], np.ndarray]:
        return lru_cache(maxsize=4)(draw_examples)

    @property
    def first_feedback(self) -> str:
        """The feedback arm whose costs are the budget of the other arms."""
        return next(name for name, arm in self.comparison.arms.items() if arm.is_feedback)

    def best_feedback(self) -> str:
        """The feedback arm that is best on validation."""
        arms = [name for name in self.by_arm if self.comparison.arms[name].is_feedback]
        alone = [name for name in arms if "+" not in name]  # others have more parameters than their alternatives
        arms = alone or arms
        return max(arms, key=lambda name: statistics.mean(run.gain for run in self.by_arm[name]))

    def verdict(self) -> str:
        """The verdict in one sentence, about the feedback arm that is best on validation."""
        best = self.best_feedback()
        contrasts = [contrast for contrast in self.contrasts if contrast.feedback == best]
        constant = abs(self.unit) * cast(float, self.constant) if self.nothing_learned else None
        name = best if len({contrast.feedback for contrast in self.contrasts}) > 1 else None
        return write_verdict(contrasts, self.metric, self.comparison.margin, constant, name)

    def as_json(self) -> dict[str, Any]:
        """Returns all results as JSON values."""
        comparison = self.comparison
        further, model = [name_of_test_file(file) for file in comparison.also_test], comparison.model_args.model
        return {
            "verdict": self.verdict(),
            "feedback": self.best_feedback(),
            "task": comparison.pipeline_tag,
            "model": model,
            # asked where it was run: elsewhere a relative path may look like an id
            "is_on_hub": is_hub_id(model),
            "metric": self.metric,
            "scale": abs(self.unit),
            "margin": comparison.margin,
            "constant": self.constant,
            "nothing_learned": self.nothing_learned,
            "seeds": list(comparison.seeds),
            "rate_factors": list(comparison.rate_factors),
            "arms": {
                name: {
                    "description": comparison.arms[name].description,
                    "options": dict(comparison.arms[name].model_options()),
                    **asdict(self.plan.costs[name]),
                    "rates": runs[0].job.factor,
                    "validation": [run.validation for run in runs],
                    "test": [run.test_value() for run in runs],
                    "also_test": {file: [run.test_value(file) for run in runs] for file in further},
                    "runs": [run.facts for run in runs],
                }
                for name, runs in self.by_arm.items()
            },
            "choosing": [
                {**asdict(run.job), "validation": run.validation, "divergence": run.divergence} for run in self.choosing
            ],
            "differences": [asdict(contrast) for contrast in self.contrasts],
            "further_differences": [asdict(contrast) for contrast in self.further_contrasts],
            "drops": [asdict(contrast) for contrast in self.drops],
            "controls": [asdict(contrast) for contrast in self.controls],
            "left_out": dict(self.plan.left_out),
            "settings": self.plan.record,
            "machine": self._machines(),
        }

    def _machines(self) -> dict[str, str]:
        """The machines and versions of the runs; of this process where runs of earlier versions do not tell theirs."""
        of_runs = [run.facts.get("machine") for runs in self.by_arm.values() for run in runs]
        found = [one for one in of_runs if isinstance(one, dict)] or [machine_and_versions()]
        return {name: ", ".join(dict.fromkeys(str(one[name]) for one in found if name in one)) for name in found[0]}

    def save(self) -> list[Path]:
        """Writes `comparison.json` and `comparison.md` into the output folder; returns both."""
        folder = self.comparison.folder
        contents = {
            "comparison.json": json.dumps(finite(self.as_json()), indent=1, default=str),
            "comparison.md": self.as_markdown(),
        }
        for name, content in contents.items():
            with whole_file(folder / name) as partial:
                partial.write_text(content, encoding="utf-8")
        return [folder / name for name in contents]

    def as_markdown(self) -> str:
        """Returns the verdict and the tables of arms and differences as Markdown."""
        plan, base = self.plan, self.plan.costs.get("plain", next(iter(self.plan.costs.values())))
        percent = abs(self.unit)
        arms = [
            (
                name, f"{plan.costs[name].parameters:,}", f"{plan.costs[name].total / base.total:.2f}",
                f"{runs[0].job.factor:g}{' (edge)' if self._is_at_edge(runs[0].job.factor) else ''}",
                *(format_values([percent * value for value in values]) for values in
                  ([run.validation for run in runs], [run.test_value() for run in runs])),
                ", ".join(f"{percent * run.test_value():.1f}" for run in runs),
            )
            for name, runs in self.by_arm.items()
        ]  # fmt: skip
        metric = f"{self.metric} (%)" if percent == 100 else self.metric
        head = ("arm", "trained parameters", "FLOPs of training", "rates ×", f"validation {metric}", "test", "by seed")
        return (
            "\n\n".join(
                [
                    f"# {self.comparison.arms[self.best_feedback()].description.capitalize()}: does it help?",
                    self.verdict(),
                    markdown_table(head, arms),
                    *self._constant_in_words(),
                    f"Alternatives with as many parameters, FLOPs or layers have those of {self.first_feedback}.",
                    "Differences in points with 95% intervals over seeds and test examples; above 0, feedback leads.",
                    self._table(self.contrasts),
                    "The same model without its messages (silent), and with those of another example (swapped).",
                    self._table(self.controls),
                    *self._further_tables(),
                    *(f"No {name}: {reason}." for name, reason in plan.left_out.items()),
                    *(f"{run.job.name} diverged: {run.divergence}" for run in self.choosing if run.divergence),
                ]
            )
            + "\n"
        )

    def _constant_in_words(self) -> list[str]:
        if self.constant is None:
            return []
        answer = "the mean of all" if self.runs[0].score.is_of_values else "the most frequent one"
        return [f"The same answer for every test example, {answer}: {abs(self.unit) * self.constant:.1f}."]

    def _table(self, contrasts: Sequence[Contrast]) -> str:
        return contrast_table(contrasts, self.comparison.margin, self.metric)

    def _further_tables(self) -> list[str]:
        """Tables of all arms and of the differences on further test files."""
        files = [name_of_test_file(file) for file in self.comparison.also_test]
        if not files:
            return []
        scale = abs(self.unit)
        rows = [
            (name, *(format_values([scale * run.test_value(file) for run in runs]) for file in ("own", *files)))
            for name, runs in self.by_arm.items()
        ]
        differences = [self._table([one for one in self.further_contrasts if one.test == file]) for file in files]
        tables = [f"On {file}:\n\n{table}" for file, table in zip(files, differences, strict=True)]
        for file in files:
            if drops := [one for one in self.drops if one.test == file]:
                table = self._table(drops)
                tables.append(f"How much less feedback loses from test to {file} (above 0: it loses less):\n\n{table}")
        return ["The same models on further test files.", markdown_table(("arm", "test", *files), rows), *tables]

    def _is_at_edge(self, factor: float) -> bool:
        factors = self.comparison.rate_factors
        return len(factors) > 1 and factor in (min(factors), max(factors))
