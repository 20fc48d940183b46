"""`hf-feedback report`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch

from ...prediction.example_arguments import LabelledColumnArguments
from ...training.commands.options import OptionParser, options_with_model
from ...training.data.text_files import TextFormatArguments
from ...training.output_folder import check_writable
from ...validation import check_integer, option
from ..report.building import make_report
from ..report.labelled_examples import load_examples
from ..report.report import write_report

DESCRIPTION = "Write an HTML page that shows the effect of every iteration of a trained model on labelled examples."
FILES = ("report.html", "report.json")


@dataclass
class ReportArguments:
    """Model, examples and output."""

    model: str = field(metadata={"help": "Folder or hub id of a trained model; also as the first argument."})
    file: str = field(metadata={"help": "File of labelled examples; a folder of images or recordings."})
    output: str = option("report", "Folder for report.html and report.json.")
    revision: str | None = option(None, "Branch, tag or commit of the hub repository.")
    batch_size: int = option(32, "Number of examples per batch.")
    num_iterations: int | None = option(
        None, "K, number of iterations (default: the model's own); the report also shows two more."
    )
    pictures: int = option(8, "Number of examples whose tokens are drawn at every iteration; 0: none.")
    force: bool = option(False, "Overwrite an existing report.")

    def check(self) -> None:
        """Raises `ValueError` where an option has a value that is not allowed, or a report would be overwritten."""
        check_integer("batch_size", self.batch_size, 1, "examples per batch")
        check_integer("pictures", self.pictures, 0, "0 leaves them out")
        check_writable(self.output, "output")
        for name in FILES:
            if (Path(self.output) / name).exists() and not self.force:
                raise ValueError(
                    f"`output`: {self.output} holds {name} already; name another, or overwrite it (`--force`)."
                )


def make_parser(arguments: Sequence[str] = ()) -> OptionParser:
    """Returns the parser of the command."""
    return OptionParser(
        (ReportArguments, LabelledColumnArguments, TextFormatArguments), "hf-feedback report", DESCRIPTION
    )


def run(arguments: Sequence[str]) -> int:
    """Runs `hf-feedback report` and returns the exit status.

    Args:
        arguments: those after the name of the command; the first may be the model, or a file of options.
    """
    args, columns, file_format = make_parser().parse(options_with_model(arguments))
    args.check()
    examples = load_examples(args.model, args.file, args.revision, {**asdict(columns), **asdict(file_format)})
    if args.num_iterations is not None:
        examples.model.set_num_iterations(args.num_iterations)
    if torch.accelerator.is_available():
        cast(torch.nn.Module, examples.model).to(torch.accelerator.current_accelerator())
    report = make_report(examples, args.model, args.file, args.batch_size, args.pictures)
    write_report(report, Path(args.output))
    print(f"{report.verdict}\nThe report is in {Path(args.output) / FILES[0]}, its numbers in {FILES[1]}")
    return 0
