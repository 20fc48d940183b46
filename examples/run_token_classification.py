"""Fine-tune a backbone with feedback to tag words: names, dates, places.

    python examples/run_token_classification.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/entities/train.jsonl --validation-file examples/data/entities/validation.jsonl

Files: JSON lines (or parquet) of {"tokens": ["my", "lamp"], "tags": ["O", "B-PRODUCT"]}. Tags are BIO (O, B-TYPE,
I-TYPE), or, if none of them is O or begins with B-, any other names, such as parts of speech. Works under `accelerate
launch` and `torchrun` too, with all options of `hf-feedback train`.
"""

import sys
from collections.abc import Sequence

from hf_feedback.training.commands.train import run_script
from hf_feedback.training.tasks import TokenClassification


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return run_script(TokenClassification, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
