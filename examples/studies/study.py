"""What the studies share: smaller copies of data sets, and comparisons on several of them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_feedback import cli
from hf_feedback.training.data.files import read_file

SPLITS = ("train", "validation", "test")


def parser(description: str | None, **defaults: object) -> argparse.ArgumentParser:
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
    made.add_argument("--max-length", type=int, default=128, help="texts are cut at so many tokens")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    made.add_argument("--processes", type=int, default=1, help="runs at a time")
    made.set_defaults(**defaults)
    return made


def smaller_copy(folder: Path, work: Path, sizes: dict[str, int]) -> list[str]:
    """Writes as many examples of each split as asked for, drawn the same way every time; returns the file options.

    Args:
        folder: of the data set.
        work: where the copy goes.
        sizes: examples at most, by split.
    """
    options: list[str] = []
    work.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        source = next(file for file in sorted(folder.glob(f"{split}.*")))
        data = read_file(str(source))
        file = work / f"{split}.jsonl"
        data.shuffle(seed=0).select(range(min(len(data), sizes[split]))).to_json(str(file))
        options += [f"--{split}-file", str(file)]
    return options


def compare_all(name: str, args: argparse.Namespace, options: Sequence[str]) -> int:
    """Runs `hf-feedback compare` on every data set, and shows all of them side by side; returns the exit status.

    Args:
        name: of the comparison.
        args: options of `parser`.
        options: those of `hf-feedback compare`, but for model, files, seeds and folder.
    """
    sizes = {split: getattr(args, split) for split in SPLITS}
    finished = []
    for folder in args.data:
        files = smaller_copy(folder, args.work / "data" / folder.name, sizes)
        output = args.work / name / folder.name
        command = ["compare", "--model", args.model, *files, "--output-dir", str(output), *options]
        command += ["--max-length", str(args.max_length), "--seeds", *map(str, args.seeds)]
        print(f"\n{name}, {folder.name}", flush=True)
        if status := cli.main([*command, "--processes", str(args.processes)]):
            return status
        finished.append(str(output))
    print(f"\n{name}, all of them", flush=True)
    return cli.main(["compare", "--join", *finished])


def finish(statuses: Sequence[int]) -> None:
    """Ends the program; its exit status is not 0 if that of a part is not."""
    sys.exit(max(statuses))
