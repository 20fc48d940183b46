"""Joint tables of comparisons on several data sets."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...training.model_card import escape_name
from ..markdown_tables import markdown_table
from .contrasts import NOT_FINITE, TOO_FEW_SEEDS, Contrast, format_difference, format_p_value
from .example_scores import EXAMPLE_SCORES
from .statistics import MIN_SEEDS, VERDICTS, Difference, holm, mean_over_data


def read_results(folders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads the results of comparisons by the names of their folders, or by their paths where the names are the same.

    Raises:
        ValueError: a folder holds no finished comparison, or is named twice.
    """
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ValueError(f"`join`: a comparison is named twice in {', '.join(folders)}; name each once.")
    results: dict[str, dict[str, Any]] = {}
    names = Counter(Path(folder).resolve().name for folder in folders)
    for folder in folders:
        file = Path(folder) / "comparison.json"
        if not file.is_file():
            raise ValueError(f"`join`: {folder} holds no finished comparison; run `hf-feedback compare` first.")
        name = Path(folder).resolve().name
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"`join`: {file} cannot be read ({error}).") from error
        try:
            check_result(result)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"`join`: {file} holds no comparison ({error!r}).") from error
        results[name if names[name] == 1 else folder] = result
    for setting in ("metric", "margin"):
        if len(values := {result[setting] for result in results.values()}) > 1:
            raise ValueError(f"`join`: these comparisons have different {setting}s, {', '.join(map(str, values))}.")
    return results


def check_result(result: dict[str, Any]) -> None:
    """Raises an error for something that is not the result of a comparison, of which a table or a card could be made.

    Args:
        result: contents of a `comparison.json`.
    """
    contrasts = contrasts_of(result)
    if result["metric"] not in EXAMPLE_SCORES or any(contrast.verdict not in VERDICTS for contrast in contrasts):
        raise ValueError("unknown metric or verdict")
    for arm in result["arms"].values():
        statistics.mean(map(float_of, arm["test"]))
        if not isinstance(arm.get("options", {}), dict):
            raise TypeError(f"options of an arm are {arm['options']!r}")
    kinds = {"model": str, "task": str, "settings": dict, "machine": dict, "seeds": list, "scale": float | int}
    for name, kind in {**kinds, "margin": float | int}.items():
        if not isinstance(result[name], kind):
            raise TypeError(f"{name} is {result[name]!r}")
    result["arms"][result["feedback"]]


def contrasts_of(result: dict[str, Any]) -> list[Contrast]:
    """The differences between feedback and alternatives, with names that are neither HTML nor Markdown.

    Args:
        result: contents of a `comparison.json`.
    """
    return [
        Contrast(
            feedback=escape_name(one["feedback"]),
            other=escape_name(one["other"]),
            difference=_read_difference(one["difference"]),
            verdict=one["verdict"],
            seeds_needed=one["seeds_needed"],
            learned=one.get("learned") is not False,
        )
        for one in result["differences"]
    ]


def float_of(value: float | None) -> float:
    """A number of a result, where what is not finite is stored as `None`."""
    return math.nan if value is None else value


def _read_difference(stored: dict[str, Any]) -> Difference:
    numbers = {name: float_of(stored[name]) for name in ("mean", "low", "high")}
    by_seed = tuple(map(float_of, stored["by_seed"]))
    low, high = map(float_of, stored["equivalence"])
    return Difference(**{**stored, **numbers, "by_seed": by_seed, "equivalence": (low, high)})


def join_results(results: dict[str, dict[str, Any]]) -> str:
    """Returns one table for each pair of feedback and alternative that every comparison has.

    p-values are adjusted by Holm's method over the data sets; with too few seeds there are none. The last row is the
    mean over the data sets, without those on which neither of the two has learned anything; it is one test.

    Args:
        results: contents of `comparison.json`, by data set.
    """
    pairs: dict[tuple[str, str], dict[str, Contrast]] = {}
    for data, result in results.items():
        for contrast in contrasts_of(result):
            pairs.setdefault((contrast.feedback, contrast.other), {})[data] = contrast
    first = next(iter(results.values()))
    is_greater_better, margin = EXAMPLE_SCORES[first["metric"]].greater_is_better, float(first["margin"])
    tables = []
    for (feedback, other), contrasts in pairs.items():
        if len(contrasts) < len(results):
            continue
        adjusted = _format_adjusted(list(contrasts.values()))
        rows = [
            _row(escape_name(data), contrast.difference, p_value, contrast.verdict)
            for (data, contrast), p_value in zip(contrasts.items(), adjusted, strict=True)
        ]
        learned = [contrast.difference for contrast in contrasts.values() if contrast.learned]
        if len(learned) > 1:
            mean, left_out = mean_over_data(learned), [data for data, one in contrasts.items() if not one.learned]
            without = f" (without {', '.join(map(escape_name, left_out))})" if left_out else ""
            seeds = sorted({difference.num_seeds for difference in learned})
            p_value = format_p_value(mean) if len(seeds) == 1 else "numbers of seeds differ"
            cells = (format_difference(mean), " to ".join(map(str, seeds[:: len(seeds) - 1 or 1])), p_value)
            rows.append((f"mean of {len(learned)}{without}", *cells, mean.verdict(margin)))
        minus = f"{feedback} minus {other}" if is_greater_better else f"{other} minus {feedback}"
        head = (minus, "points", "seeds", "p (Holm)", "verdict")
        tables.append(markdown_table(head, rows))
    if not tables:
        raise ValueError("`join`: no feedback and alternative are in all of these comparisons.")
    return "\n\n".join(tables)


def _row(data: str, difference: Difference, p_value: str, verdict: str) -> tuple[str, ...]:
    return data, format_difference(difference), str(difference.num_seeds), p_value, verdict


def _format_adjusted(contrasts: Sequence[Contrast]) -> list[str]:
    """Formats the adjusted p-values."""
    differences = [contrast.difference for contrast in contrasts]
    has_seeds = min(difference.num_seeds for difference in differences) >= MIN_SEEDS
    adjusted = holm([1.0 if difference.p_value is None else difference.p_value for difference in differences])

    def shown(difference: Difference, p_value: float) -> str:
        if not difference.is_finite:
            return NOT_FINITE
        is_shown = has_seeds and difference.least_p_value * len(differences) <= 0.05
        return f"{p_value:.2g}" if is_shown else TOO_FEW_SEEDS

    return [shown(*pair) for pair in zip(differences, adjusted, strict=True)]
