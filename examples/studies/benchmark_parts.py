"""What studies share with the benchmarks, whose folder is not that of a study."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from common import Finished, add_arms, add_device, fit, interval, measure, read_files, runs_of_arms, take_step

__all__ = [
    "Finished",
    "add_arms",
    "add_device",
    "fit",
    "interval",
    "measure",
    "read_files",
    "runs_of_arms",
    "take_step",
]
