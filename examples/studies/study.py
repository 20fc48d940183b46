"""Shared parts of the studies: smaller copies of data sets, and comparisons on several of them."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from hf_feedback import cli
from hf_feedback.training.data.files import read_file
from hf_feedback.training.data.splits import SPLITS

Files: TypeAlias = dict[str, str]  # by split


def comparison_parser(description: str | None, **defaults: object) -> argparse.ArgumentParser:
    """The options of a study that compares ways to train on several data sets.

    Args:
        description: docstring of the study.
        **defaults: other defaults than these.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", required=True, help="hub id or folder of a backbone")
    made.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders with train, validation and test files"
    )
    made.add_argument("--work", type=Path, required=True, help="folder of the results")
    made.add_argument("--train", type=int, default=1000, help="training examples at most")
    made.add_argument("--validation", type=int, default=300, help="validation examples at most")
    made.add_argument("--test", type=int, default=1000, help="test examples at most")
    made.add_argument(
        "--test-from",
        choices=["test", "train"],
        default="test",
        help="split that test examples come from; train: training examples that nothing is trained on",
    )
    made.add_argument("--max-length", type=int, default=128, help="texts are cut at so many tokens")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    made.add_argument("--dry-run", action="store_true", help="print the plans with their costs alone")
    made.add_argument("--processes", type=int, default=1, help="runs at a time")
    made.set_defaults(**defaults)
    return made


def add_backbone_layers(made: argparse.ArgumentParser) -> None:
    """Adds the option that keeps some layers of the backbone."""
    made.add_argument("--backbone-layers", nargs="+", default=[], help="layers of the backbone to keep; default: all")


def kept_layers(layers: Iterable[object]) -> list[str]:
    """The option of `hf-feedback` that keeps these layers of the backbone; nothing where none is given."""
    numbers = list(map(str, layers))
    return ["--backbone-layers", *numbers] if numbers else []


def smaller_copy(folder: Path, work: Path, args: argparse.Namespace) -> Files:
    """Writes as many examples of each split as the options allow, drawn the same way every time; returns the files.

    No class is without an example in training.

    Args:
        folder: of the data set.
        work: where the copy goes.
        args: options of `comparison_parser`.
    """
    files = {}
    work.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        source = args.test_from if split == "test" else split
        data = read_file(str(next(file for file in sorted(folder.glob(f"{source}.*")))))
        data = data.shuffle(seed=0)
        order = list(range(len(data)))
        if source == "train" and "label" in data.column_names:
            firsts = set({label: i for i, label in reversed(list(enumerate(data["label"])))}.values())
            order.sort(key=lambda i: i not in firsts)
        first = 0 if source == split else args.train
        data = data.select(sorted(order[first : first + getattr(args, split)]))
        if not len(data) and source != split:
            raise ValueError(f"--test-from {source}: --train {args.train} leaves no example of {folder} to test on.")
        files[split] = str(work / f"{split}.jsonl")
        data.to_json(files[split])
    return files


def compare_files(
    files: Files, output: Path, args: argparse.Namespace, options: Sequence[str], model: str | None = None
) -> int:
    """Runs `hf-feedback compare` on one data set; returns the exit status.

    Args:
        files: by split.
        output: folder of the comparison.
        args: options of `comparison_parser`.
        options: those of `hf-feedback compare`, but for model, files, seeds and folder.
        model: another one than that of the options.
    """
    print(f"\n{output}", flush=True)
    named = [part for split, file in files.items() for part in (f"--{split}-file", file)]
    # in float32 on any machine, so that kept results can be gone on with; options may say otherwise
    command = ["compare", "--model", model or args.model, *named, "--output-dir", str(output), "--bf16", "False"]
    command += options
    command += ["--max-length", str(args.max_length), "--processes", str(args.processes)]
    command += ["--dry-run"] if args.dry_run else []
    return cli.main([*command, "--seeds", *map(str, args.seeds)])


def compare_all(
    name: str,
    args: argparse.Namespace,
    options: Sequence[str],
    prepare: Callable[[Files, Path], Files] = lambda files, _: files,
) -> int:
    """Runs `hf-feedback compare` on every data set, and shows all of them side by side; returns the exit status.

    Args:
        name: of the comparison.
        args: options of `comparison_parser`.
        options: as in `compare_files`.
        prepare: takes the files of a data set and a folder for others, and returns those to compare on.
    """
    outputs = [args.work / name / folder.name for folder in args.data]
    for folder, output in zip(args.data, outputs, strict=True):
        copies = args.work / "data" / folder.name
        files = prepare(smaller_copy(folder, copies, args), copies)
        if status := compare_files(files, output, args, options):
            return status
    return 0 if args.dry_run else cli.main(["compare", "--join", *map(str, outputs)])


def finish(statuses: Sequence[int]) -> None:
    """Ends the program; its exit status is not 0 if that of a part is not."""
    sys.exit(max(statuses))
