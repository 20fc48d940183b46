"""What tests of comparisons share: options of the command, and the comparison that it makes of them."""

from hf_feedback.evaluation.commands.compare import parse_comparison

FAST = "--num-train-epochs 1 --per-device-train-batch-size 8 --feedback-rank 4 --bf16 False --disable-tqdm True".split()


def compare_options(folder, output, *more, family="bert", ending="csv"):
    """Options of `hf-feedback compare` for the backbone and the files of a folder."""
    files = [
        part
        for split in ("train", "validation", "test")
        for part in (f"--{split}-file", str(folder / f"{split}.{ending}"))
    ]
    return ["--model", str(folder / family), *files, "--output-dir", str(output), *FAST, *more]


def comparison_of(folder, output, *more, **options):
    return parse_comparison(compare_options(folder, output, *more, **options))[0]
