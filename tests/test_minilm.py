"""The real backbone: exactness, and one real fine-tuning run end to end."""

import json

import pytest
import torch
from closeness import assert_exact, assert_rounding
from families import randomize_messages
from reference import run_reference
from transformers import AutoModel, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput

from hf_feedback import FeedbackForSequenceClassification, FeedbackModel

TEXTS = [
    "Where is my parcel? It should have come on Monday.",
    "refund pls",
    "I do not want my money back, I just want the right colour of the lamp that I ordered in March.",
]


@pytest.fixture(scope="module")
def batch(minilm):
    return AutoTokenizer.from_pretrained(minilm)(TEXTS, padding=True, return_tensors="pt")


# Each twice and each once: where no message is sent, neither can depend on the other.
@pytest.mark.parametrize(
    ("topology", "activation"),
    zip(["adjacent", "top", "dense"] * 2, ["sigmoid", "tanh", "relu", "gelu", "swish", "mish"], strict=True),
)
def test_fresh_model_is_minilm(minilm, batch, topology, activation):
    model = FeedbackForSequenceClassification.from_backbone(
        minilm, num_labels=6, feedback_topology=topology, feedback_activation=activation, feedback_rank=32
    )
    for k in (1, 2, 4):
        model.set_num_iterations(k)
        assert model.check_equivalence(batch) == 0.0
    assert model.config.pooling == "mean"


@pytest.mark.parametrize("rank", [32, None])
def test_messages_match_the_reference_on_minilm(minilm, batch, rank):
    bare = AutoModel.from_pretrained(minilm, dtype=torch.float32)
    model = FeedbackModel.from_backbone(minilm, num_iterations=3, feedback_topology="dense", feedback_rank=rank)
    randomize_messages(model, scale=0.02)
    moved = model(**batch).last_hidden_state - model(**batch, num_iterations=1).last_hidden_state
    assert moved.abs().max() > 0.05
    found, other = results_of(model, model.backbone, batch), results_of(plainly(model, bare), bare, batch)
    exact = results_of(plainly(model.double(), bare.double()), bare, batch)
    for name, expected in exact.items():
        assert_rounding(found[name], other[name], expected)
    for name, mine in results_of(model, model.backbone, batch).items():
        assert_exact(mine, exact[name])


def plainly(model, bare):
    """The reference, with the parameters of the model's feedback."""
    parameters = {name: p.detach() for name, p in model.feedback.named_parameters()}

    def run(**batch):
        output, _ = run_reference(bare, "encoder.layer", 1, parameters, model.config.edges(), batch, 3)
        return BaseModelOutput(output.last_hidden_state)

    return run


def results_of(run, backbone, batch):
    """The output, and the gradients of the backbone."""
    output = run(**batch).last_hidden_state
    names, parameters = zip(*((n, p) for n, p in backbone.named_parameters() if "pooler" not in n), strict=True)
    gradients = torch.autograd.grad(output.square().sum(), parameters)
    return {"output": output, "gradients": dict(zip(names, gradients, strict=True))}


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
    command += ["--freeze", "backbone", "--learning-rate", "5e-3", "--num-train-epochs", "3", "--disable-tqdm", "True"]
    command += ["--feedback-edges", "[[5, 4]]"]  # nothing is trained below, so that no gradient is computed there
    assert main(command) == 0
    found = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert found["test_accuracy"] > 0.7
    model = FeedbackForSequenceClassification.from_pretrained(tmp_path / "out")
    bare = AutoModel.from_pretrained(minilm)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, bare.state_dict()[name]), name
    assert model.feedback.sources["5"].up.weight.abs().max() > 0
