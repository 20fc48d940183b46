"""Shows some predictions and the right answers.

python examples/show_predictions.py PREDICTIONS.jsonl LABELLED.csv [COUNT]
"""

import csv
import json
import sys

from hf_feedback.training.data.label_names import label_name


def main(predictions: str, labelled: str, count: str = "8") -> None:
    with open(predictions, encoding="utf-8") as stream:
        answers = [json.loads(line) for line in stream]
    with open(labelled, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    step = max(1, len(answers) // int(count))
    for answer, row in list(zip(answers, rows, strict=True))[::step][: int(count)]:
        mark = "✓" if label_name(answer["label"]) == label_name(row["label"]) else f"✗ (is {row['label']})"
        print(f"{answer['score']:.2f}  {answer['label']:<20} {mark}\n      {answer['text']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
