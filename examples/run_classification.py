"""Fine-tune a backbone with feedback on labelled texts.

The same as `hf-feedback train`, as a script for `accelerate launch` and `torchrun`:

    accelerate launch examples/run_classification.py --model BACKBONE --train-file t.csv --validation-file v.csv \\
        --output-dir out --num-iterations 2 --num-train-epochs 3
"""

import sys

from hf_feedback.training.commands.errors import run_command
from hf_feedback.training.commands.train import run

if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
