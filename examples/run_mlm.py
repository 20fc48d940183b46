"""Train a backbone with feedback further on plain texts: words are masked, the model fills them in.

    python examples/run_mlm.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/support_messages/train.csv \\
        --validation-file examples/data/support_messages/validation.csv

Files: CSV, TSV, JSON lines or parquet with a column of texts, or a .txt file with one text per line. Training masks
other words in every epoch, evaluation always the same ones. The result can be the start of any other task: `hf-feedback
train --model out` keeps its layers and its feedback. Works under `accelerate launch` and `torchrun` too, with all
options of `hf-feedback train`.
"""

import sys
from collections.abc import Sequence

from hf_feedback.training.commands.train import run_script
from hf_feedback.training.tasks import MaskedLM


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return run_script(MaskedLM, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
