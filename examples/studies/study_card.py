"""Model cards of the studies whose models are trained from scratch on texts that a script draws."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmark_parts import interval
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_feedback.evaluation.markdown_tables import half_width, markdown_table

Run: TypeAlias = dict[str, Any]
# By what is measured: the percentage of a run
Measures: TypeAlias = dict[str, Callable[[Run], float]]


def add_card(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names a file for the card."""
    parser.add_argument("--card", type=Path, help="file for a model card with these results, of two arms or more")


def check_card(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses a card of one arm, with which nothing is compared; call it before anything is run."""
    if args.card is not None and len(set(args.arms)) < 2:
        parser.error(f"--card: a card compares arms, and --arms names {args.arms[0]!r} alone. Give it another one.")


def differences(runs: dict[str, Sequence[Run]], measures: Measures) -> tuple[str, str]:
    """A sentence about the first measure, and a table of all.

    Args:
        runs: by arm, one a seed, those of feedback first.
        measures: what is compared.
    """
    (feedback, own), *others = runs.items()
    found: dict[str, list[str]] = {"ahead of": [], "behind": [], "not told apart from": []}
    rows = []
    for arm, other in others:
        points = {name: [of(a) - of(b) for a, b in zip(own, other, strict=True)] for name, of in measures.items()}
        rows.append((arm, *(interval(values) for values in points.values())))
        values = next(iter(points.values()))
        mean, half = sum(values) / len(values), half_width(values)
        found["ahead of" if mean > half else "behind" if -mean > half else "not told apart from"].append(arm)
    parts = [f"{word} {'; '.join(arms)}" for word, arms in found.items() if arms]
    return f"{next(iter(measures))}: “{feedback}” is {', and '.join(parts)}.", markdown_table(
        (f"{feedback} minus", *measures), rows
    )


def write_card(
    file: Path,
    data: str,
    task: str,
    runs: dict[str, Sequence[Run]],
    measures: Measures,
    tables: str,
    settings: Sequence[str],
    limits: str,
) -> None:
    """Writes the card: verdict, differences with intervals, the tables of the study, and how they were made.

    Args:
        file: the card; its name without the ending is that of the card.
        data: name of what the texts hold.
        task: as the Hub calls that of the models.
        runs: by arm, one a seed, those of feedback first.
        measures: what is compared; the first one is that of the metadata.
        tables: of the study.
        settings: options of the study that runs hold.
        limits: what limits the verdict, in sentences.
    """
    first = next(iter(runs.values()))
    measured, of = next(iter(measures.items()))
    result = EvalResult(
        task_type=task,
        dataset_type=data.replace(" ", "-"),
        dataset_name=data,
        dataset_split="test",
        metric_type="accuracy",
        metric_name=f"accuracy, {measured}",
        metric_value=round(sum(map(of, first)) / len(first) / 100, 4),
    )
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=["hf_feedback", "feedback"],
        metrics=["accuracy"],
        model_name=file.stem,
        eval_results=[result],
    )
    verdict, compared = differences(runs, measures)
    parts = [
        f"# {file.stem}",
        f"Feedback compared with alternatives on {data}. The models are small ones that start from random weights, and "
        "the texts are drawn by the script: the card is of a way to build and train a model, not of one to download.",
        verdict,
        limits,
        "## Differences",
        "Points of accuracy, paired by seed, with 95% intervals of Student's t and the number of seeds.",
        compared,
        "## Test",
        tables,
        "## How",
        markdown_table(("option", "value"), [(name, first[0][name]) for name in settings if name in first[0]]),
        f"Seeds {', '.join(str(run['seed']) for run in first)}; "
        + ", ".join(f"{name} {version}" for name, version in first[0]["machine"].items())
        + ".",
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(str(ModelCard(f"---\n{metadata}\n---\n\n" + "\n\n".join(parts) + "\n")), encoding="utf-8")
