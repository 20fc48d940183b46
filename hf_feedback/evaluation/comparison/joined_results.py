"""Joint tables of comparisons on several data sets."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..markdown_tables import markdown_table
from .statistics import MIN_SEEDS, holm


def read_results(folders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads the results of comparisons by the names of their folders.

    Raises:
        ValueError: A folder holds no finished comparison.
    """
    results: dict[str, dict[str, Any]] = {}
    for folder in folders:
        file = Path(folder) / "comparison.json"
        if not file.is_file():
            raise ValueError(f"`join`: {folder} holds no finished comparison; run `hf-feedback compare` first.")
        name = Path(folder).resolve().name
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"`join`: {file} cannot be read ({error}).") from error
        if not isinstance(result, dict) or not {"differences", "metric", "margin"} <= result.keys():
            raise ValueError(f"`join`: {file} holds no comparison.")
        results[folder if name in results else name] = result
    for setting in ("metric", "margin"):
        if len(values := {result[setting] for result in results.values()}) > 1:
            raise ValueError(f"`join`: these comparisons have different {setting}s, {', '.join(map(str, values))}.")
    return results


def join_results(results: dict[str, dict[str, Any]]) -> str:
    """Returns one table for each pair of feedback and alternative that every comparison has.

    p-values are adjusted by Holm's method over the data sets; with too few seeds there are none.

    Args:
        results: contents of `comparison.json`, by data set.
    """
    pairs: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for data, result in results.items():
        for contrast in result["differences"]:
            pairs.setdefault((contrast["feedback"], contrast["other"]), {})[data] = contrast
    tables = []
    for (feedback, other), contrasts in pairs.items():
        if len(contrasts) < len(results):
            continue
        adjusted = _adjusted(list(contrasts.values()))
        rows = [
            (
                data, f"{(d := contrast['difference'])['mean']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]",
                str(len(d["by_seed"])), p_value, contrast["verdict"],
            )
            for (data, contrast), p_value in zip(contrasts.items(), adjusted, strict=True)
        ]  # fmt: skip
        head = (f"{feedback} minus {other}", "points", "seeds", "p (Holm)", "verdict")
        tables.append(markdown_table(head, rows))
    if not tables:
        raise ValueError("`join`: no feedback and alternative are in all of these comparisons.")
    return "\n\n".join(tables)


def _adjusted(contrasts: Sequence[dict[str, Any]]) -> list[str]:
    """Formats the adjusted p-values."""
    values = [contrast["difference"]["p_value"] for contrast in contrasts]
    least = [contrast["difference"]["least_p_value"] * len(contrasts) for contrast in contrasts]
    if any(value is None for value in values) or min(len(c["difference"]["by_seed"]) for c in contrasts) < MIN_SEEDS:
        return ["cannot tell"] * len(values)
    return [
        f"{p:.2g}" if lowest <= 0.05 else f"cannot tell (≥ {min(1.0, lowest):.2g})"
        for p, lowest in zip(holm(values), least, strict=True)
    ]
