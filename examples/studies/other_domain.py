"""Training in one domain, testing in another: at once, and after feedback alone has been adapted to it.

    python examples/studies/other_domain.py --model MINILM --data DIR/amazon_books DIR/amazon_kitchen --work FOLDER

Both directions. Plain fine-tuning, LoRA and feedback are trained in one domain and tested in both; then the backbone of
a model that was trained in the first domain, with one seed, is kept frozen, and head, LoRA or feedback are trained in
the second. Fixed before it is run: sizes, epochs, seeds, and the rates that every arm chooses from on validation.
"""

import argparse
from pathlib import Path

from study import add_backbone_layers, compare_files, comparison_parser, finish, kept_layers, smaller_copy

from hf_feedback import cli

BATCHES = "--per-device-train-batch-size 16 --weight-decay 0.01".split()
FIRST = "--num-train-epochs 3 --backbone-lr 1e-4 --learning-rate 1e-3 --rate-factors 0.5 1 2 --arms plain lora".split()
SECOND = (
    "--freeze backbone --num-train-epochs 5 --learning-rate 1e-3 --rate-factors 0.3 1 3 --arms head-only lora".split()
)


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


def main() -> None:
    made = comparison_parser(__doc__)
    add_backbone_layers(made)
    args = made.parse_args()
    source, target = args.data
    finish([status for pair in ((source, target), (target, source)) for status in study(*pair, args)])


if __name__ == "__main__":
    main()
