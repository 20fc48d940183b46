"""The machine and the versions of packages that results come from."""

import platform

import torch
import transformers

from ..version import HF_FEEDBACK_VERSION


def machine_and_versions() -> dict[str, str]:
    """Describes the processor and the versions of the packages that train."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_feedback": HF_FEEDBACK_VERSION,
    }
