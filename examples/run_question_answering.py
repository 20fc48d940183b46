"""Fine-tune a backbone with feedback to find the answer to a question in a text.

    python examples/run_question_answering.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/questions/train.jsonl --validation-file examples/data/questions/validation.jsonl

Files: JSON lines (or parquet) as in SQuAD: {"question": "...", "context": "...", "answers": {"text": ["..."],
"answer_start": [17]}}. A context that is too long is read in several windows. If some training questions have no answer
(empty lists), the model learns to give none. Works under `accelerate launch` and `torchrun` too, with all options of
`hf-feedback train`.
"""

import sys
from collections.abc import Sequence

from hf_feedback.training.commands.train import run_script
from hf_feedback.training.tasks import QuestionAnswering


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return run_script(QuestionAnswering, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
