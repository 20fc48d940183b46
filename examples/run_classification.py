"""Fine-tune a backbone with feedback on labelled texts.

The same as `hf-feedback train`, as a script for `accelerate launch` and `torchrun`:

    accelerate launch examples/run_classification.py --model BACKBONE --train-file t.csv --validation-file v.csv \\
        --output-dir out --num-iterations 2 --num-train-epochs 3
"""

import sys

from hf_feedback.cli import guarded, run_train

if __name__ == "__main__":
    sys.exit(guarded(run_train, sys.argv[1:]))
