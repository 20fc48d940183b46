"""`import hf_feedback` is light, and the Auto classes know its models by whatever way they are reached.

All runs in fresh processes, where neither the package nor an Auto class of models has been imported yet.
"""

import ast
import multiprocessing
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import pytest
from fresh_processes import SLOW, run_python

import hf_feedback
from hf_feedback import configuration_feedback, modeling_feedback

CHECKPOINTS = Path(__file__).parent / "checkpoints"


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Runs each task in a process of its own that has imported the slow part of transformers and nothing of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*SLOW, "transformers.modeling_utils"])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as executor:
        yield executor


FRESH = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
assert not {"hf_feedback", "transformers.models.auto.modeling_auto"} & sys.modules.keys()
"""
LOAD = f"""
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

folder = {str(CHECKPOINTS / "operator_gated")!r}
config, model = AutoConfig.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
network = AutoModel.from_pretrained({str(CHECKPOINTS / "fnn_model")!r})
found = [type(config).__name__, type(model).__name__, type(network).__name__]
assert found == ["FeedbackConfig", "FeedbackForSequenceClassification", "FNNModel"], found
assert [type(config)._auto_class, type(model)._auto_class] == ["AutoConfig", "AutoModelForSequenceClassification"]
"""

# Which imports come first; some of them import the Auto classes on the way, at different places.
ORDERS = {
    "Auto classes first": "import transformers.models.auto.modeling_auto, hf_feedback",
    "Auto classes later": "import hf_feedback",
    "a model of transformers": "import hf_feedback; from transformers import BertModel",
    "tokenizers": "import hf_feedback; from transformers import AutoTokenizer",
    "the Trainer": "import hf_feedback; from transformers import Trainer",
    "all names of ours": "from hf_feedback import *",
    "a config's module": "import hf_feedback.configuration_fnn",
    "a module that models need": "import hf_feedback.loading",
    "training": "import hf_feedback.training",
    "two threads": "import hf_feedback; from concurrent.futures import ThreadPoolExecutor as Threads\n"
    "names = ['AutoModel', 'FeedbackModel'] * 4\n"
    "get = lambda name: getattr(hf_feedback if name in hf_feedback.__all__ else __import__('transformers'), name)\n"
    "with Threads(8) as threads: models = [*threads.map(get, names)]\n"
    "from hf_feedback import FeedbackConfig; assert models[0]._model_mapping[FeedbackConfig] is models[1]",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_auto_classes_know_the_models(order, processes):
    processes.submit(exec, FRESH + ORDERS[order] + LOAD, {}).result()


@pytest.mark.parametrize("module", ["modeling_utils", "generation", "pipelines"])
def test_modules_of_transformers_that_import_auto_classes_on_their_way(module):
    """Our models need some of them complete."""
    done = run_python("-c", f"{FRESH}import hf_feedback, transformers.{module}\n{LOAD}")
    assert done.returncode == 0, done.stderr


def test_a_pipeline_of_a_folder(tmp_path, processes):
    code = f"""
import hf_feedback
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

words = Tokenizer(models.WordLevel({{"[UNK]": 0, "[PAD]": 1, "well": 5, "done": 6}}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained({str(tmp_path)!r})
model = AutoModelForSequenceClassification.from_pretrained({str(CHECKPOINTS / "operator_gated")!r})
model.save_pretrained({str(tmp_path)!r})
(answer,) = pipeline("text-classification", {str(tmp_path)!r})("well done")
assert 0 < answer["score"] < 1
"""
    processes.submit(exec, FRESH + code, {}).result()


def test_pickles_load_by_themselves(processes):
    config = hf_feedback.FNNConfig(vocab_size=9, hidden_size=4)
    code = f"""
import pickle
import re

model_class, config = pickle.loads({pickle.dumps((hf_feedback.FNNModel, config))!r})
assert model_class(config).config.vocab_size == 9
"""
    processes.submit(exec, FRESH + code, {}).result()


def test_it_imports_neither_torch_nor_transformers():
    code = "import sys, hf_feedback; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", FRESH + code + LOAD], check=True)


def test_names():
    """The names at run time are those that type checkers read, and nothing else."""
    stub = ast.parse(Path(hf_feedback.__file__).with_suffix(".pyi").read_text())
    names = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert len(names) > 10
    assert names | {"__version__"} == set(hf_feedback.__all__)
    assert names <= set(dir(hf_feedback))
    assert all(getattr(hf_feedback, name).__name__ == name for name in names)
    with pytest.raises(AttributeError, match="no_such_name"):
        hf_feedback.no_such_name()


def test_every_head_is_registered():
    """With the public names, with `add_feedback`, and with the Auto classes."""
    heads = {head.__name__ for head in modeling_feedback.HEADS}
    assert {name for name in hf_feedback.__all__ if name.startswith("FeedbackFor")} == heads
    assert {name for name in vars(modeling_feedback) if name.startswith("FeedbackFor")} == heads
    assert {
        "AutoConfig": "configuration_feedback.FeedbackConfig",
        "AutoModel": "modeling_feedback.FeedbackModel",
        **{head.traits.auto_class.__name__: f"modeling_feedback.{head.__name__}" for head in modeling_feedback.HEADS},
    } == configuration_feedback.AUTO_MAP


@pytest.mark.parametrize("name", ["AutoTokenizer", "AutoImageProcessor", "EncoderDecoderConfig"])
def test_a_class_of_transformers_may_be_the_first_import_after_ours(name):
    """In a process into which nothing of transformers was imported before."""
    code = f"import hf_feedback; from transformers import {name}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_names_all_its_modules():
    named = set(re.findall(r"`(\w+)`", hf_feedback.__doc__))
    modules = {file.stem for file in Path(hf_feedback.__file__).parent.glob("*.py")} - {"__init__"}
    assert named >= modules
