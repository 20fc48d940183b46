"""Shows some predictions and the right answers.

python examples/show_predictions.py PREDICTIONS.jsonl LABELLED.csv [COUNT]
"""

import csv
import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from hf_feedback.training.commands.errors import run_command
from hf_feedback.training.data.label_names import label_name
from hf_feedback.validation import check_integer


def show(predictions: str, labelled: str, count: int) -> None:
    """Prints `count` predictions for the texts of a labelled file, evenly spaced."""
    check_integer("count", count, 1, "predictions to show")
    with open(predictions, encoding="utf-8") as stream:
        answers = [json.loads(line) for line in stream]
    with open(labelled, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if len(answers) != len(rows):
        raise ValueError(f"{predictions} has {len(answers)} predictions, and {labelled} {len(rows)} rows.")
    for file, content, columns in (
        (predictions, answers, ("label", "score", "text")),
        (labelled, rows, ("label",)),
    ):
        if missing := [name for name in columns if content and name not in content[0]]:
            raise ValueError(f"{file} has no {missing[0]!r}; classes are shown, of texts in the column 'text'.")
    step = max(1, len(answers) // count)
    for answer, row in list(zip(answers, rows, strict=True))[::step][:count]:
        mark = "✓" if label_name(answer["label"]) == label_name(row["label"]) else f"✗ (is {row['label']})"
        print(f"{answer['score']:.2f}  {answer['label']:<20} {mark}\n      {answer['text']}")


def main(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(description="Shows some predictions and the right answers.")
    parser.add_argument("predictions", help="Output of `hf-feedback predict`, JSON lines.")
    parser.add_argument("labelled", help="The CSV file that was predicted, with its column `label`.")
    parser.add_argument("count", nargs="?", type=int, default=8, help="Number of predictions (default: 8).")
    show(**vars(parser.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
