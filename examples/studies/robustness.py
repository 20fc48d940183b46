r"""Noisy and adversarial texts: does feedback lose less on them than the same backbone without it?

    python examples/studies/robustness.py --model MINILM --data DIR/sst2 --work FOLDER \
        --adversarial DIR/advglue_sst2/test.csv

Plain fine-tuning and feedback are trained on the texts as they are, and again on texts of which a half is noisy; both
are tested on texts as they are and with noise of every kind at every strength (the share of words that are misspelt,
dropped, shuffled or cut off). Fixed before it is run: sizes, epochs, seeds, and the rates that both choose from on
validation.
"""

import argparse
from pathlib import Path

from datasets import Dataset
from study import add_backbone_layers, compare_files, comparison_parser, finish, kept_layers, smaller_copy

from hf_feedback.evaluation.comparison.contrasts import format_difference
from hf_feedback.evaluation.comparison.joined_results import read_results
from hf_feedback.evaluation.comparison.statistics import Difference
from hf_feedback.evaluation.markdown_tables import format_values, markdown_table
from hf_feedback.evaluation.noise import NOISES, add_noise
from hf_feedback.training.data.files import read_file

OPTIONS = (
    "--num-train-epochs 3 --per-device-train-batch-size 16 --weight-decay 0.01 --backbone-lr 1e-4 --learning-rate 1e-3 "
    "--rate-factors 0.5 1 2 --arms plain"
).split()
TRAININGS = ("clean", "noisy")


def write_noisy(file: Path, source: Path, kind: str, strength: float) -> str:
    """Writes a file with the texts of another one made noisy; returns its name."""
    data = read_file(str(source))
    data.map(lambda row, i: {"text": add_noise([row["text"]], kind, strength, seed=i)[0]}, with_indices=True).to_json(
        file
    )
    return str(file)


def write_half_noisy(file: Path, source: Path, strength: float) -> str:
    """Writes a file with every second text of another one made noisy, by all kinds in turn; returns its name."""
    rows, kinds = read_file(str(source)).to_list(), list(NOISES)
    for i, row in enumerate(rows):
        if i % 2:
            row["text"] = add_noise([row["text"]], kinds[i // 2 % len(kinds)], strength, seed=i)[0]
    Dataset.from_list(rows).to_json(file)
    return str(file)


def study(folder: Path, args: argparse.Namespace) -> list[int]:
    """Both trainings on one data set; returns their exit statuses."""
    work = args.work / folder.name
    files = smaller_copy(folder, work / "data", args)
    tests = [
        write_noisy(work / "data" / f"{kind}-{round(100 * strength)}.jsonl", Path(files["test"]), kind, strength)
        for kind in NOISES
        for strength in args.strengths
    ]
    for number, adversarial in enumerate(args.adversarial or []):  # which may be called test, as another one is
        file = work / "data" / f"adversarial-{number}.jsonl"
        read_file(adversarial).to_json(file)
        tests.append(str(file))
    noisy = write_half_noisy(work / "data" / "train-noisy.jsonl", Path(files["train"]), max(args.strengths))
    options = [*OPTIONS, *kept_layers(args.backbone_layers), "--also-test", *tests]
    trained = dict(zip(TRAININGS, (files["train"], noisy), strict=True))
    statuses = [compare_files({**files, "train": train}, work / name, args, options) for name, train in trained.items()]
    if not args.dry_run and not any(statuses):
        print(f"\n{summary(work)}")
    return statuses


def summary(work: Path) -> str:
    """Accuracies on all test files, and how much less feedback loses from the first one, by training.

    Args:
        work: folder of both comparisons.
    """
    results = read_results([str(work / name) for name in TRAININGS])
    head = [f"{name}: {part}" for name in TRAININGS for part in ("plain", "feedback", "loses less by")]
    rows: dict[str, list[str]] = {}
    for result in results.values():
        drops = {drop["test"]: Difference(**drop["difference"]) for drop in result["drops"]}
        arms = [result["arms"]["plain"], result["arms"][result["feedback"]]]
        for test in ("test", *arms[0]["also_test"]):
            values = [arm["test"] if test == "test" else arm["also_test"][test] for arm in arms]
            cells = [format_values([100 * value for value in of_arm]) for of_arm in values]
            less = format_difference(drops[test]) if test in drops else ""
            rows.setdefault(test, [test]).extend([*cells, less])
    return markdown_table(["accuracy (%)", *head], list(rows.values()))


def main() -> None:
    made = comparison_parser(__doc__)
    add_backbone_layers(made)
    made.add_argument("--strengths", type=float, nargs="+", default=[0.1, 0.2, 0.4], help="shares of the words")
    made.add_argument("--adversarial", nargs="+", help="further test files")
    args = made.parse_args()
    finish([status for folder in args.data for status in study(folder, args)])


if __name__ == "__main__":
    main()
