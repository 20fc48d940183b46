"""No code of a folder runs unless whoever loads it says so: every way to load one, each in a process of its own, on
folders whose config says what an attacker would want."""

import json
import os
import pickle
import shutil

import pytest
from builders import tiny_tokenizer
from families import randomize_messages, tiny_backbone
from fresh_processes import LOADED, run_python

from hf_feedback import FeedbackForSequenceClassification

MAP = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")}
PLACE = {"trust_remote_code": True, "code_revision": "main", "use_safetensors": False, "weights_only": False}


class Payload:
    """Pickled, it runs code when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def everything(config, evil):
    """Every key of a config, as an attacker would set it."""
    config["backbone_source"] = {**config["backbone_source"], **PLACE, "name_or_path": str(evil)}
    config["backbone_config"] = {**config["backbone_config"], **switches(evil)}
    config.update(switches(evil), architectures=["evil.EvilModel", "EvilModel"], name_or_path=str(evil))


def switches(evil):
    return {
        "auto_map": {**MAP, "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
        "attn_implementation": "evil/kernels",
        "_attn_implementation": "evil/kernels",
        "experts_implementation": "evil/kernels",
        "transformers_weights": f"../{evil.name}/pytorch_model.bin",
        "trust_remote_code": True,
        "_name_or_path": str(evil),
    }


def aliased(config, evil):
    """transformers takes the names in `attribute_map` for others."""
    config.update(attribute_map={"foo": "_attn_implementation"}, foo="evil/kernels")


EDITS = {
    "aliases": aliased,
    "backbone's aliases": lambda config, evil: aliased(config["backbone_config"], evil),
    "place": lambda config, evil: config["backbone_source"].update(PLACE, name_or_path=str(evil)),
    "place alone": lambda config, evil: config["backbone_source"].update(name_or_path=str(evil)),
    "backbone": lambda config, evil: config["backbone_config"].update(switches(evil)),
    "model": lambda config, evil: config.update(switches(evil)),
    "class": lambda config, evil: config.update(architectures=["evil.EvilModel"], auto_map=MAP),
    "type": lambda config, evil: config.update(model_type="evil", auto_map=MAP),
    "backbone type": lambda config, evil: config["backbone_config"].update(model_type="evil", auto_map=MAP),
    "everything": everything,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Feedback-only checkpoints and whole models, one of each for every edit, beside a backbone with code; and the
    marker that the code would make."""
    root = tmp_path_factory.mktemp("hostile")
    marker, evil = root / "code ran", root / "evil"
    tokenizer = tiny_tokenizer()
    tiny_backbone("bert").save_pretrained(evil)
    tokenizer.save_pretrained(evil)
    model = randomize_messages(FeedbackForSequenceClassification.from_backbone(str(evil), feedback_rank=8))
    model.save_pretrained(root / "whole")
    model.save_feedback(root / "feedback")
    poison(evil, marker)
    for kind in ("whole", "feedback"):
        tokenizer.save_pretrained(root / kind)
        for name, edit in EDITS.items():
            folder = root / "folders" / f"{kind}, {name}"
            shutil.copytree(root / kind, folder)
            config = json.loads((folder / "config.json").read_text())
            config.setdefault("backbone_source", {})
            edit(config, evil)
            (folder / "config.json").write_text(json.dumps(config))
            poison(folder, marker, keep_config=True)
    (root / "texts.csv").write_text("text,label\n" + "w1 w2,LABEL_0\nw3 w4,LABEL_1\n" * 4)
    return root, marker


def poison(folder, marker, keep_config=False):
    """Adds code and pickles that leave the marker behind when they are run or read."""
    (folder / "evil.py").write_text(f"import os\nos.makedirs({str(marker)!r}, exist_ok=True)\n")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "feedback.bin"):
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    files = ["tokenizer_config.json"] if keep_config else ["config.json", "tokenizer_config.json"]
    for name in files:
        values = json.loads((folder / name).read_text())
        values.update({**switches(folder), "transformers_weights": None} if name == "config.json" else {})
        values["auto_map"] = {**MAP, "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
        (folder / name).write_text(json.dumps(values))


CLASS = "hf_feedback.FeedbackForSequenceClassification"
COMMAND = "from hf_feedback.cli import main; status = main([{}]); assert status in (0, 2), status"
WAYS = {
    # how a folder is loaded; `folder`, `texts` and `out` are there
    "from_pretrained": f"{CLASS}.from_pretrained(folder)",
    "from_pretrained without trust": f"{CLASS}.from_pretrained(folder, trust_remote_code=False)",
    "another head": "hf_feedback.FeedbackModel.from_pretrained(folder, trust_remote_code=False)",
    "load_feedback": "hf_feedback.load_feedback(folder)",
    "AutoConfig": "transformers.AutoConfig.from_pretrained(folder)",
    "AutoModel": "transformers.AutoModel.from_pretrained(folder)",
    "AutoModelFor": "transformers.AutoModelForSequenceClassification.from_pretrained(folder)",
    "pipeline": "transformers.pipeline('text-classification', folder)('w1')",
    "from_backbone": f"{CLASS}.from_backbone(evil)",
    "from_pretrained of a backbone": f"{CLASS}.from_pretrained(evil, head='backbone')",
    "train a backbone": COMMAND.format(
        "'train', '--model', evil, '--train-file', texts, '--max-steps', '1', '--output-dir', out"
    ),
    "evaluate": COMMAND.format("'evaluate', '--model', folder, '--file', texts"),
    "predict": COMMAND.format("'predict', '--model', folder, '--file', texts, '--output', out + '.jsonl'"),
    "train": COMMAND.format(
        "'train', '--model', folder, '--train-file', texts, '--max-steps', '1', '--output-dir', out"
    ),
    "save_feedback": f"""
model = {CLASS}.from_backbone(evil, feedback_rank=8)
model.config.backbone_source = json.load(open(folder + "/config.json"))["backbone_source"]
model.config.backbone_source["name_or_path"] = evil
model.save_feedback(out)""",
}

PROGRAM = """
import json, os, sys, transformers, hf_feedback
from transformers import modeling_utils
root, marker, *folders = sys.argv[1:]
modeling_utils.lazy_import_flash_attention = lambda *_, **__: os.makedirs(marker, exist_ok=True)  # of the Hub
modeling_utils.is_kernels_available = lambda *_, **__: True
evil, texts = f"{root}/evil", f"{root}/texts.csv"
for name in folders:
    folder, out = f"{root}/folders/{name}", f"{root}/out/WAY/{name}"
    os.makedirs(out, exist_ok=True)
    try:
CODE
        outcome = "loaded"
    except (ValueError, OSError, KeyError, RuntimeError) as error:  # KeyError: a type that transformers does not know
        outcome = type(error).__name__
    print(f"{name}: {outcome}", "CODE RAN" * os.path.exists(marker))
"""


def run(program, *arguments):
    return run_python("-c", program, *map(str, arguments), modules=LOADED)


@pytest.mark.parametrize("way", WAYS)
def test_no_code_of_a_folder_runs(way, folders):
    root, marker = folders
    names = sorted(os.listdir(root / "folders")) if "folder" in WAYS[way] else ["the backbone alone"]
    code = "\n".join(f"        {line}" for line in WAYS[way].strip().splitlines())
    program = PROGRAM.replace("CODE\n", f"{code}\n", 1).replace("WAY", way)
    found = run(program, root, marker, *names)
    ran = marker.exists()
    shutil.rmtree(marker, ignore_errors=True)
    assert found.returncode == 0, found.stderr[-3000:]
    assert not ran, found.stdout
    assert found.stdout.count("\n") >= len(names), found.stdout
    assert ": loaded" in found.stdout  # what has no hostile place, at least


def test_the_code_would_run_if_it_were_trusted(folders):
    """The folders are hostile indeed: with the caller's trust, the backbone's own code runs."""
    root, marker = folders
    program = (
        "import sys, transformers\n"
        "try:\n    transformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "except Exception: pass\n"
    )
    assert run(program, root / "evil").returncode == 0
    assert marker.exists()
    shutil.rmtree(marker)
