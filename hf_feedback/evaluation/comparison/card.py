"""The model card of comparisons."""

import statistics
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ...training.data.splits import SPLITS
from ...training.model_card import escape_name, is_hub_id, short_name
from ...whole_files import whole_file
from ..markdown_tables import markdown_table
from .contrasts import write_verdict
from .joined_results import contrasts_of, float_of, join_results

# Feedback options that a card lists.
SHOWN_OPTIONS = (
    *("backbone_layers", "num_iterations", "feedback_type", "feedback_edges", "feedback_topology", "feedback_rank"),
    "freeze",
)


def comparison_card_data(name: str, results: dict[str, dict[str, Any]], base_model: str | None = None) -> ModelCardData:
    """Returns the metadata of the card, as the Hub reads it.

    Args:
        name: name of the card.
        results: contents of `comparison.json`, by data set.
        base_model: hub id of the backbone, where the comparisons do not name it.
    """
    found = [
        EvalResult(
            task_type=result["task"],
            dataset_type=short_name(data),  # to identify the results
            dataset_name=short_name(data),
            dataset_split="test",
            metric_type="f1" if result["metric"].endswith("f1") else result["metric"],
            metric_name=result["metric"],
            metric_value=round(_mean(result["arms"][result["feedback"]]), 4),
        )
        for data, result in results.items()
    ]
    first = next(iter(results.values()))
    return ModelCardData(
        base_model=base_model
        or (first["model"] if first.get("is_on_hub") is True and is_hub_id(first["model"]) else None),
        library_name="transformers",
        pipeline_tag=first["task"],
        tags=["hf_feedback", "feedback"],
        metrics=sorted({one.metric_type for one in found}),
        model_name=short_name(name),
        eval_results=found,
    )


def write_comparison_card(file: Path, results: dict[str, dict[str, Any]], base_model: str | None = None) -> None:
    """Writes a card with verdicts, differences and settings.

    Args:
        file: the card; its name without the ending is that of the card.
        results: contents of `comparison.json`, by data set.
        base_model: hub id of the backbone, where the comparisons do not name it.

    Raises:
        ValueError: the comparisons have no feedback and alternative in common, or other models or options.
    """
    first = next(iter(results.values()))
    for name, values in _values(results).items():
        if name == "model" and base_model is not None:
            continue  # folders in which it lay
        if values.count(values[0]) < len(values):
            raise ValueError(
                f"`card`: these comparisons differ in `{name}`: {', '.join(map(str, values))}; a card is of "
                "one model and its options. Join those that are equal."
            )
    options = [(escape_name(name), _option(value)) for name, value in _options(first).items() if value is not None]
    arms = list(dict.fromkeys(name for result in results.values() for name in result["arms"]))
    means = [(escape_name(data), *(_mean_test(result, name) for name in arms)) for data, result in results.items()]
    sizes = [
        (
            escape_name(data),
            *(escape_name(result["settings"].get(f"rows of {split}", "")) for split in SPLITS),
            ", ".join(map(escape_name, result["seeds"])),
        )
        for data, result in results.items()
    ]
    machines = dict.fromkeys(
        ", ".join(f"{escape_name(name)} {escape_name(version)}" for name, version in result["machine"].items())
        for result in results.values()
    )
    parts = [
        f"# {escape_name(file.stem)}",
        f"Feedback compared with matched alternatives by `hf-feedback compare`. The backbone is "
        f"{escape_name(base_model or '/'.join(Path(first['model']).parts[-2:]))}.",
        "\n".join(f"- **{escape_name(data)}**: {_verdict(result)}" for data, result in results.items()),
        "## Feedback beside each alternative, test",
        join_results(results),
        f"## Test, mean over seeds ({first['metric']}{', %' * (first['scale'] == 100)})",
        markdown_table(("data", *map(escape_name, arms)), means),
        "## How",
        markdown_table(("option", "value"), options),
        markdown_table(("data", *SPLITS, "seeds"), sizes),
        f"Run on: {'; '.join(machines)}.",
    ]
    card = ModelCard(
        f"---\n{comparison_card_data(file.stem, results, base_model)}\n---\n\n" + "\n\n".join(parts) + "\n"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        partial.write_text(str(card), encoding="utf-8")


def _option(value: Any) -> str:
    """An option as a command takes it."""
    return escape_name(" ".join(map(str, value)) if isinstance(value, list) else value)


def _values(results: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """What a card says once, with its values in all comparisons."""
    found = {name: [result[name] for result in results.values()] for name in ("model", "task")}
    options = [_options(result) for result in results.values()]
    names = dict.fromkeys(name for one in options for name in one)
    return found | {name: [one.get(name) for one in options] for name in names}


def _options(result: dict[str, Any]) -> dict[str, Any]:
    """The options of the feedback that the verdict is about."""
    own = result["arms"][result["feedback"]].get("options", {})
    return {**{name: result["settings"].get(name) for name in SHOWN_OPTIONS}, **own}


def _verdict(result: dict[str, Any]) -> str:
    contrasts = [one for one in contrasts_of(result) if one.feedback == escape_name(result["feedback"])]
    constant = (
        float(result["scale"]) * float_of(result.get("constant")) if result.get("nothing_learned") is True else None
    )
    has_several = len({one["feedback"] for one in result["differences"]}) > 1
    name = escape_name(result["feedback"]) if has_several else None
    return write_verdict(contrasts, result["metric"], result["margin"], constant, name)


def _mean_test(result: dict[str, Any], arm: str) -> str:
    """Mean over seeds, or nothing where a comparison has no such arm."""
    found = result["arms"].get(arm)
    return f"{result['scale'] * _mean(found):.1f}" if found else ""


def _mean(arm: dict[str, Any]) -> float:
    return statistics.mean(map(float_of, arm["test"]))
