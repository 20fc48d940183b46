"""Fine-tune an audio backbone with feedback to classify recordings.

    python examples/run_audio_classification.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/tones/train.parquet --validation-file examples/data/tones/validation.parquet

Files: parquet with a column of recordings (the bytes of WAV files) and one of labels, or a folder with one folder of
WAV files per class. Recordings are converted to one channel and the sampling rate of the model. Works under `accelerate
launch` and `torchrun` too, with all options of `hf-feedback train`.
"""

import sys
from collections.abc import Sequence

from hf_feedback.training.commands.train import run_script
from hf_feedback.training.tasks import AudioClassification


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return run_script(AudioClassification, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
