"""The real backbone: exactness, and one real fine-tuning run end to end."""

import json

import pytest
import torch
from families import speak
from reference import run_reference
from transformers import AutoModel, AutoTokenizer

from hf_feedback import FeedbackForSequenceClassification, FeedbackModel

TEXTS = [
    "Where is my parcel? It should have come on Monday.",
    "refund pls",
    "I do not want my money back, I just want the right colour of the lamp that I ordered in March.",
]


@pytest.fixture(scope="module")
def batch(minilm):
    return AutoTokenizer.from_pretrained(minilm)(TEXTS, padding=True, return_tensors="pt")


@pytest.mark.parametrize("topology", ["adjacent", "top", "dense"])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "gelu", "swish", "mish"])
def test_fresh_model_is_minilm(minilm, batch, topology, activation):
    model = FeedbackForSequenceClassification.from_backbone(
        minilm, num_labels=6, feedback_topology=topology, feedback_activation=activation, feedback_rank=32
    )
    for k in (1, 2, 4):
        model.set_num_iterations(k)
        assert model.check_equivalence(batch) == 0.0
    assert model.config.pooling == "mean"


@pytest.mark.parametrize("rank", [32, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_messages_match_the_reference_on_minilm(minilm, batch, rank, dtype):
    bare = AutoModel.from_pretrained(minilm, dtype=dtype)
    model = FeedbackModel.from_backbone(
        minilm, num_iterations=3, feedback_topology="dense", feedback_rank=rank, backbone_kwargs={"dtype": dtype}
    )
    speak(model, scale=0.02)
    parameters = {name: p.detach().requires_grad_() for name, p in model.feedback.named_parameters()}
    expected, _ = run_reference(bare, "encoder.layer", 1, parameters, model.config.edges(), batch, 3)
    found = model(**batch).last_hidden_state
    assert (found - model(**batch, num_iterations=1).last_hidden_state).abs().max() > 0.05
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    assert (found - expected).abs().max() <= 10 * tolerance * expected.abs().max()
    names = {name: p for name, p in bare.named_parameters() if not name.startswith("pooler.")}
    mine = torch.autograd.grad(found.square().sum(), [model.backbone.get_parameter(name) for name in names])
    theirs = torch.autograd.grad(expected.square().sum(), list(names.values()))
    largest = max(g.abs().max() for g in theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).abs().max() <= tolerance * largest


@pytest.mark.slow
def test_it_learns(minilm, tmp_path):
    """A hundred support messages of four classes, the head and the feedback alone: far above chance."""
    from pathlib import Path

    from datasets import load_dataset

    from hf_feedback.cli import main

    files = Path(__file__).parent.parent / "examples" / "data" / "support_messages"
    classes = ["late_delivery", "promo_code", "account_login", "staff_feedback"]
    for split in ("train", "test"):
        rows = load_dataset("csv", data_files=str(files / f"{split}.csv"), split="train")
        rows.filter(lambda row: row["label"] in classes).to_csv(tmp_path / f"{split}.csv", index=False)
    command = ["train", "--model", minilm, "--train-file", str(tmp_path / "train.csv")]
    command += ["--test-file", str(tmp_path / "test.csv"), "--output-dir", str(tmp_path / "out"), "--bf16", "False"]
    command += ["--freeze", "backbone", "--learning-rate", "5e-3", "--num-train-epochs", "5", "--disable-tqdm", "True"]
    assert main(command) == 0
    found = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert found["test_accuracy"] > 0.7
    model = FeedbackForSequenceClassification.from_pretrained(tmp_path / "out")
    bare = AutoModel.from_pretrained(minilm)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, bare.state_dict()[name]), name
    assert model.feedback.sources["5"].up.weight.abs().max() > 0
