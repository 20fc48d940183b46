"""Models whose weights are sharded over two processes (`distributed_config`), beside the same models in one."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from families import randomize_messages, tiny_backbone, tiny_config
from fresh_processes import run_ranks

from hf_feedback import FeedbackForMaskedLM, FeedbackForSequenceClassification

TESTS = Path(__file__).parent
# Folder → class, family, and whose head answers.
MODELS = {
    "bert": (FeedbackForSequenceClassification, "bert", "new"),
    "llama": (FeedbackForSequenceClassification, "llama", "new"),
    "llama, masked-LM": (FeedbackForMaskedLM, "llama", "new"),
    "eurobert, masked-LM": (FeedbackForMaskedLM, "eurobert", "backbone"),
}
SIZES = {name: ["fsdp_size"] if row[1] == "bert" else ["fsdp_size", "tp_size"] for name, row in MODELS.items()}
CASES = [(name, size) for name, sizes in SIZES.items() for size in sizes]


def make(name):
    cls, family, head = MODELS[name]
    torch.manual_seed(0)
    backbone = tiny_backbone(family) if head == "new" else cls.traits.auto_class.from_config(tiny_config(family))
    return randomize_messages(cls.from_backbone(backbone.eval(), head=head, num_iterations=3, feedback_rank=8))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One run of `sharded.py` for all cases."""
    folder = tmp_path_factory.mktemp("sharded")
    for name in MODELS:
        make(name).save_pretrained(folder / name)
    plain = tiny_backbone("bert")
    plain.save_pretrained(folder / "plain")
    FeedbackForSequenceClassification.from_backbone(folder / "plain").save_feedback(folder / "bert-feedback")
    (folder / "cases.json").write_text(json.dumps([(name, MODELS[name][0].__name__, size) for name, size in CASES]))
    env = {**os.environ, "TRANSFORMERS_VERBOSITY": "warning"}
    found = run_ranks(str(TESTS / "sharded.py"), str(folder), env=env)
    assert found.returncode == 0, found.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text())
    assert results["world_size"] == 2
    return {**results, "folder": folder, "log": found.stderr}


@pytest.mark.parametrize(("name", "size"), CASES)
def test_sharded_equals_whole(results, name, size):
    """Logits and gradients. Exact in float64; families that cast to float32 inside round there, a few times in each of
    twelve layer calls."""
    found = results[f"{name}, {size}"]
    bound = 1e-12 if MODELS[name][1] == "bert" else 64 * torch.finfo(torch.float32).eps
    assert found["output"] <= bound
    assert found["gradients"]
    assert found["gradient"] <= bound
    assert found["messages"] > 1e-2  # else nothing of feedback was compared


@pytest.mark.parametrize(("name", "size"), CASES)
def test_what_is_sharded(results, name, size):
    sharded, model = results[f"{name}, {size}"]["sharded"], make(name)
    if size == "fsdp_size":  # everything, the layers one by one
        assert sharded == [parameter for parameter, _ in model.named_parameters()]
        assert results[f"{name}, {size}"]["layer"].startswith("FSDP")
    else:
        assert any("q_proj" in parameter for parameter in sharded)
        assert not any(parameter.startswith("feedback.") for parameter in sharded)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_saved_as_one(results, name, size):
    saved = MODELS[name][0].from_pretrained(results["folder"] / f"{name}-{size}", dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in make(name).state_dict().items())


def test_no_rule_of_a_plan_names_nothing(results):
    assert "match nothing in Feedback" not in results["log"]


REFUSED = {
    "from_backbone": r"`distributed_config`: .* cannot be given feedback.*`save_pretrained`.*`from_pretrained\(",
    "load_feedback": "`distributed_config`: .* cannot be given feedback",
    "a model": "`distributed_config`: .* cannot be given feedback",
    "save_feedback": "`save_feedback`: the model is sharded over processes; save it whole with `save_pretrained`",
    "estimate_contraction": "`estimate_contraction` cannot run .*FSDP; load it without `fsdp_size`",
    "jacobian_penalty": "`jacobian_penalty`=0.1 differentiates twice.*set it to 0",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(results, case):
    assert re.search(REFUSED[case], results["refusals"][case]), results["refusals"][case]
