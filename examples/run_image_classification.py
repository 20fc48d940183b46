"""Fine-tune a vision backbone with feedback to classify images.

    python examples/run_image_classification.py --model BACKBONE --output-dir out --num-train-epochs 3 \\
        --train-file examples/data/shapes/train.parquet --validation-file examples/data/shapes/validation.parquet

Files: parquet with a column of images (PNG or JPEG bytes) and one of labels, or a folder with one folder of images per
class. Images are prepared by the model's own image processor, without augmentation. Works under `accelerate launch` and
`torchrun` too, with all options of `hf-feedback train`. Needs Pillow (the extra `vision`).
"""

import sys
from collections.abc import Sequence

from hf_feedback.training.commands.train import run_script
from hf_feedback.training.tasks import ImageClassification


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    return run_script(ImageClassification, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
