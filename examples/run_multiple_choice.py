"""Fine-tune a backbone with feedback to choose the best continuation of a text.

    python examples/run_multiple_choice.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/replies/train.jsonl --validation-file examples/data/replies/validation.jsonl

Files: JSON lines (or parquet) of {"context": "...", "choices": ["...", "...", "..."], "label": 2}; the label is the
number of the right choice, counted from 0, and all rows have the same number of choices. Works under
`accelerate launch` and `torchrun` too, with all options of `hf-feedback train`.
"""

import sys
from collections.abc import Sequence

from hf_feedback.training.commands.train import run_script
from hf_feedback.training.tasks import MultipleChoice


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return run_script(MultipleChoice, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
