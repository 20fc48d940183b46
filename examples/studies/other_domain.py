"""Training in one domain, testing in another: at once, and after feedback alone has been adapted to it.

    python examples/studies/other_domain.py --model MINILM --data DIR/amazon_books DIR/amazon_kitchen --work FOLDER

Both directions; but a second folder that has a test file alone, such as sentences that were changed to mislead models,
is divided into sentences to adapt to, to validate and to test on, versions of one sentence together, and there is one
direction. Plain fine-tuning, LoRA and feedback are trained in one domain and tested in both; then the backbone of a
model that was trained in the first domain, with one seed, is kept frozen, and head, LoRA or feedback are trained in the
second. Fixed before it is run: sizes, epochs, seeds, and the rates that every arm chooses from on validation.
"""

import argparse
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

from study import add_backbone_layers, compare_files, comparison_parser, finish, kept_layers, smaller_copy

from hf_feedback import cli
from hf_feedback.training.data.files import read_file

BATCHES = "--per-device-train-batch-size 16 --weight-decay 0.01".split()
FIRST = "--num-train-epochs 3 --backbone-lr 1e-4 --learning-rate 1e-3 --rate-factors 0.5 1 2 --arms plain lora".split()
SECOND = (
    "--freeze backbone --num-train-epochs 5 --learning-rate 1e-3 --rate-factors 0.3 1 3 --arms head-only lora".split()
)

SHARES = {"train": 2, "validation": 1, "test": 2}  # of a test file alone
ALIKE = 0.6  # share of their letters that versions of a sentence have in common


def study(source: Path, target: Path, args: argparse.Namespace) -> list[int]:
    """One direction; returns the exit statuses."""
    work = args.work / f"{source.name} to {target.name}"
    here, there = (smaller_copy(folder, args.work / "data" / folder.name, args) for folder in (source, target))
    other = work / f"{target.name}.jsonl"
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(Path(there["test"]).read_bytes())
    layers = kept_layers(args.backbone_layers)
    statuses = [compare_files(here, work / "at once", args, [*BATCHES, *FIRST, *layers, "--also-test", str(other)])]
    if args.dry_run or statuses[0]:
        return statuses
    trained = work / "trained"
    if not (trained / "config.json").is_file():
        training = "--num-iterations 1 --num-train-epochs 3 --backbone-lr 1e-4 --learning-rate 1e-3 --seed 0".split()
        files = ["--train-file", here["train"], "--validation-file", here["validation"]]
        files += ["--output-dir", str(trained), "--max-length", str(args.max_length)]
        if status := cli.main(["train", "--model", args.model, *files, *BATCHES, *training, *layers]):
            return [*statuses, status]
    return [*statuses, compare_files(there, work / "adapted", args, [*BATCHES, *SECOND], model=backbone_of(trained))]


def backbone_of(folder: Path) -> str:
    """Writes the backbone of a trained feedback model beside it, with its tokenizer; returns the folder."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    backbone = folder.parent / "backbone"
    if not (backbone / "config.json").is_file():
        AutoTokenizer.from_pretrained(folder).save_pretrained(backbone)
        AutoModelForSequenceClassification.from_pretrained(folder).backbone.save_pretrained(backbone)
    return str(backbone)


def divided(folder: Path, work: Path) -> Path:
    """A folder with all splits; one that has a test file alone is written with its rows divided among them. Sentences
    that are versions of one another are in the same split.

    Args:
        folder: of a data set.
        work: where the divided one goes.
    """
    if any(folder.glob("train.*")):
        return folder
    data = read_file(str(next(folder.glob("test.*")))).shuffle(seed=0)
    made, groups = work / folder.name, versions(data["text"][:])
    made.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for group in groups:
        split = min(rows, key=lambda name: len(rows[name]) / SHARES[name])
        rows[split] += group
    for split, numbers in rows.items():
        data.select(numbers).to_json(str(made / f"{split}.jsonl"))
    return made


def versions(texts: Sequence[str]) -> list[list[int]]:
    """Numbers of the texts, those together that are versions of one another."""
    groups: list[list[int]] = []
    for number, text in enumerate(texts):
        alike = [g for g in groups if any(SequenceMatcher(None, texts[i], text).ratio() > ALIKE for i in g)]
        groups = [g for g in groups if g not in alike] + [[*(i for g in alike for i in g), number]]
    return groups


def main() -> None:
    made = comparison_parser(__doc__)
    add_backbone_layers(made)
    args = made.parse_args()
    source, second = args.data
    target = divided(second, args.work / "divided")
    pairs = [(source, target), (target, source)] if target == second else [(source, target)]
    finish([status for pair in pairs for status in study(*pair, args)])


if __name__ == "__main__":
    main()
