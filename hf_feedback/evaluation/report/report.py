"""Report on the effect of iterations of a trained model, as JSON and as one HTML page."""

import json
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ...version import HF_FEEDBACK_VERSION
from ...whole_files import finite, whole_file
from ..diagnostics import Calibration, ConfusionChange
from .svg_charts import line_chart, reliability_diagram


@dataclass(frozen=True)
class ItemChange:
    """An item whose prediction became right or wrong.

    Args:
        row: row of the file, counted from 1.
        before, word, after: its text; see `ShownItem`.
        label: the right class.
        answers: predicted class after each iteration.
        label_probabilities: probability of the right class after each iteration.
    """

    row: int
    before: str
    word: str
    after: str
    label: str
    answers: list[str]
    label_probabilities: list[float]

    @property
    def answer_runs(self) -> list[tuple[str, str]]:
        """Ranges of iterations with the same prediction, such as `("2–4", "lost")`."""
        runs = [list(run) for _, run in groupby(enumerate(self.answers, 1), key=itemgetter(1))]
        return [(f"{run[0][0]}–{run[-1][0]}" if len(run) > 1 else str(run[0][0]), run[0][1]) for run in runs]


@dataclass(frozen=True)
class Step:
    """The changes from one iteration to another.

    Args:
        first, last: the iterations.
        fixed, broken: items that became right, and items that became wrong.
        other_changes: number of items that changed from one wrong class to another.
        p_value: p-value of McNemar's exact test; `None` if examples have several items, which depend on each other.
    """

    first: int
    last: int
    fixed: list[ItemChange]
    broken: list[ItemChange]
    other_changes: int
    p_value: float | None


@dataclass(frozen=True)
class Residuals:
    """The change of the states in one iteration, over the examples.

    Args:
        iteration: from 2 on.
        median, high: median and 90th percentile of `‖h^(k) − h^(k−1)‖ / ‖h^(k)‖`.
    """

    iteration: int
    median: float
    high: float


@dataclass(frozen=True)
class Contraction:
    """The factor by which one more iteration shrinks a small difference between states after K iterations.

    Args:
        num_examples: number of examples of the estimate, the first of the file.
        median, largest: over the examples.
        expanding: share of the examples with a factor above 1.
    """

    num_examples: int
    median: float
    largest: float
    expanding: float


@dataclass(frozen=True)
class EdgeSummary:
    """The messages of one edge.

    Args:
        source, target: layers, from 0.
        beta: β of Swish; `None` for other activations.
        norms: mean of ‖message‖ in each iteration, `None` if there is none.
        shares: mean of ‖message‖ / ‖x‖, x the input of the target layer.
    """

    source: int
    target: int
    beta: float | None
    norms: list[float | None]
    shares: list[float | None]


@dataclass(frozen=True)
class Picture:
    """The tokens of one example in every iteration.

    Args:
        change: the example; the first item that changed, if it has several.
        tokens: tokens of the model's input.
        movement: movement of each token in iterations 2 to the last, `‖h_t^(k) − h_t^(k−1)‖ / ‖h_t^(k)‖`.
        most_moved: number of the token that moved most in each of these iterations.
        attended: attention of that token in that iteration, one weight per token; empty if unknown.
        attention_source: description of the attention.
    """

    change: ItemChange
    tokens: list[str]
    movement: list[list[float]]
    most_moved: list[int]
    attended: list[list[float]]
    attention_source: str


@dataclass(frozen=True)
class Report:
    """Report on the iterations of a trained model; iterations are counted from 1.

    Args:
        model, file: names of the model and of the file.
        unit: name of the items, in the plural; there are `num_items`, in `num_examples` rows.
        num_iterations: the model's own K; `observed` iterations were run.
        label_names: the classes.
        accuracy: accuracy after each iteration.
        oracle_accuracy: accuracy after each iteration if the best iteration so far were known.
        f1: F1 after each iteration, of entities for BIO tags, otherwise the mean over classes.
        f1_name: name of this F1.
        whole: changes from iteration 1 to K.
        steps: changes from each iteration to the next.
        residuals, contraction: convergence of the states.
        edges: the messages.
        calibration: calibration of each iteration.
        confusion_first, confusion_last: confusion after iteration 1 and K; labels in rows, predictions in columns.
        confusion_changes: cells that differ, the largest change first.
        pictures: tokens of some examples by iteration.
        versions: versions of the packages.
    """

    model: str
    file: str
    unit: str
    num_items: int
    num_examples: int
    num_iterations: int
    observed: int
    label_names: tuple[str, ...]
    accuracy: list[float]
    oracle_accuracy: list[float]
    f1: list[float]
    f1_name: str
    whole: Step
    steps: list[Step]
    residuals: list[Residuals]
    contraction: Contraction
    edges: list[EdgeSummary]
    calibration: list[Calibration]
    confusion_first: list[list[int]]
    confusion_last: list[list[int]]
    confusion_changes: list[ConfusionChange]
    pictures: list[Picture]
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "hf_feedback": HF_FEEDBACK_VERSION,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }
    )

    @property
    def verdict(self) -> str:
        """The change from iteration 1 to K in one sentence."""
        first, last = self.accuracy[0], self.accuracy[self.num_iterations - 1]
        if self.num_iterations == 1:
            return f"The model takes one iteration, with an accuracy of {first:.1%} on {self.num_items} {self.unit}."
        fixed, broken, p = len(self.whole.fixed), len(self.whole.broken), self.whole.p_value
        change = (
            f"From iteration 1 to K = {self.num_iterations} the accuracy goes from {first:.1%} to {last:.1%}: of "
            f"{self.num_items} {self.unit}, {fixed} become right and {broken} become wrong."
        )
        if p is None:
            return change
        chance = "is more than chance" if p < 0.05 else "may be chance"
        return f"{change} This {chance} (McNemar's exact test, p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{p:.2g})."

    def to_json(self) -> str:
        """The report as JSON, `verdict` included; `null` for numbers that are not finite."""
        values = finite({"verdict": self.verdict, **asdict(self)})
        return json.dumps(values, ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """The report as one page without external resources."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"percent": _percent, "decimal": _decimal}
        return environment.get_template("template.html").render(report=self, charts=self._charts())

    def _charts(self) -> dict[str, Any]:
        iterations = list(range(1, self.observed + 1))
        accuracy = {"accuracy": self.accuracy, "best iteration so far": self.oracle_accuracy}
        residuals = {
            "median": [one.median for one in self.residuals],
            "90th percentile": [one.high for one in self.residuals],
        }
        shown = sorted({1, self.num_iterations})
        charts: dict[str, Any] = {
            "accuracy": line_chart(
                accuracy, iterations, "Accuracy after each iteration", marked=self.num_iterations, percent=True
            ),
            "residuals": line_chart(
                residuals, iterations[1:], "Relative change of the states in each iteration", percent=True
            ),
        }
        reliability = {
            k: reliability_diagram(self.calibration[k - 1]["bins"], f"Accuracy over confidence after iteration {k}")
            for k in shown
        }
        return {
            **{name: Markup(chart) for name, chart in charts.items()},
            "reliability": {k: Markup(diagram) for k, diagram in reliability.items()},
            "largest_share": max([share or 0.0 for edge in self.edges for share in edge.shares], default=0.0) or 1.0,
        }


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def write_report(report: Report, folder: Path) -> None:
    """Writes `report.json` and `report.html` into a folder."""
    texts = {"report.json": report.to_json(), "report.html": report.to_html()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
