"""The machine and the versions of packages that results come from."""

import platform
from pathlib import Path

import torch
import transformers

from ..version import HF_FEEDBACK_VERSION


def processor_name() -> str:
    """The name of the processor; where the system does not tell it, its architecture."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_and_versions() -> dict[str, str]:
    """Describes the processor and the versions of the packages that train."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_feedback": HF_FEEDBACK_VERSION,
    }
