"""Train a decoder with feedback further on plain texts, as a language model.

    python examples/run_causal_lm.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/support_messages/train.csv \\
        --validation-file examples/data/support_messages/validation.csv

Files: CSV, TSV, JSON lines or parquet with a column of texts, or a .txt file with one text per line. Texts are joined,
with an end-of-text token after each, into blocks of `--max-length` tokens, in which a token may read the texts before
its own; `--packing false` keeps each text in a row. `--streaming` reads a large training file during training, in its
order (give `--max-steps`). The perplexity is that of all tokens together. `--prompt-file` names prompts that the
trained model continues. `examples/data/get_smollm2.py` writes a small pretrained decoder. Works under `accelerate
launch` and `torchrun` too, with all options of `hf-feedback train`.
"""

import sys
from collections.abc import Sequence

from hf_feedback.training.commands.train import run_script
from hf_feedback.training.tasks import CausalLM


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return run_script(CausalLM, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
