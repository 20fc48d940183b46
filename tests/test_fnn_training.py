"""Feedback networks from scratch under the trainer and behind the commands."""

import json

import pytest
import torch
from builders import NETWORKS, fnn_model, tiny_tokenizer
from huggingface_hub import ModelCard
from training_runs import arguments, rows, tiny_data, write
from transformers import pipeline

from hf_feedback import FNNForSequenceClassification
from hf_feedback.cli import main
from hf_feedback.training import FeedbackTrainer, freeze_parameters, parameter_groups, peft_options
from hf_feedback.training.parameters.model_parts import parts_of


def small(kind, **options):
    return fnn_model(kind, head=True, dtype=torch.float32, vocab_size=99, **options)


@pytest.mark.parametrize("kind", NETWORKS)
def test_parts(kind):
    parts = parts_of(small(kind, activation="swish"))
    layers = {"layer 0", "layer 1", "layer 2"} if kind == "layered" else {"layer 0"}
    assert set(parts.values()) == {"embeddings", *layers, "feedback", "head"}
    letter = "U" if kind == "layered" else "V"
    assert {name.split(".")[-2] for name, part in parts.items() if part == "feedback"} == {letter}
    assert parts["fnn.embeddings.weight"] == "embeddings"
    assert parts["fnn.layers.0.W.weight"] == parts["fnn.layers.0.activation.beta"] == "layer 0"
    assert parts["classifier.bias"] == "head"
    base = parts_of(small(kind).fnn)
    assert set(base.values()) == {"embeddings", *layers, "feedback"}


def test_rates():
    model = small("layered")
    groups = parameter_groups(model, 1e-3, backbone_lr=1e-4, feedback_lr=5e-3, head_lr=2e-3, layer_lr_decay=0.5)
    assert {group["name"]: group["lr"] for group in groups} == pytest.approx(
        {"embeddings": 1.25e-5, "layer 0": 2.5e-5, "layer 1": 5e-5, "layer 2": 1e-4, "feedback": 5e-3, "head": 2e-3}
    )


@pytest.mark.parametrize("freeze", [["embeddings"], ["feedback"], ["backbone"], ["head", "layers:0"]], ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_frozen_tensors_are_bit_identical_after_training(kind, freeze, tmp_path):
    model = small(kind)
    frozen = set(freeze_parameters(small(kind), freeze))
    before = {name: p.clone() for name, p in model.named_parameters()}
    FeedbackTrainer(model=model, args=arguments(tmp_path, freeze=freeze), train_dataset=tiny_data()).train()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == frozen


@pytest.mark.parametrize("kind", NETWORKS)
def test_feedback_rests_at_k1(kind, tmp_path):
    model = small(kind, num_iterations=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    FeedbackTrainer(model=model, args=arguments(tmp_path, weight_decay=0.1), train_dataset=tiny_data()).train()
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert same == {name for name, part in parts_of(model).items() if part == "feedback"}
    assert all(p.requires_grad for p in model.parameters())


def test_there_is_no_backbone_for_peft():
    with pytest.raises(ValueError, match="FNNForSequenceClassification has no backbone"):
        peft_options(small("layered"))


# The commands


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def train_command(folder, *more):
    fast = "--num-train-epochs 4 --per-device-train-batch-size 8 --disable-tqdm True --bf16 False --learning-rate 1e-2"
    files = ["--train-file", "train.csv", "--validation-file", "new.csv", "--output-dir", folder]
    return ["train", *files, *fast.split(), *more]


@pytest.mark.parametrize(
    "options",
    [
        "--fnn temporal --sweep parallel --num-iterations 3",
        "--fnn layered --hidden-size 24 --num-layers 2 --activation swish",
        "--fnn=temporal --gradient implicit --tolerance 1e-4 --num-iterations 40 --feedback-lr 1e-3",
    ],
)
def test_from_text_to_predictions(options, tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "train.csv", rows(48))
    write(tmp_path, "new.csv", rows(12, seed=1))
    assert main(train_command("out", *options.split(), "--tokenizer", tokenizer, "--test-file", "new.csv")) == 0
    printed = capsys.readouterr().out
    assert "Trained from scratch" in printed
    assert "feedback network" in printed
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["test_accuracy"] == results["eval_accuracy"] > 0.9
    assert main(["evaluate", "--model", "out", "--file", "new.csv"]) == 0
    assert f"{results['test_accuracy']:.4f}" in capsys.readouterr().out
    assert main(["predict", "--model", "out", "--file", "new.csv", "--num-iterations", "2"]) == 0
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 12
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "trained from scratch" in card.text
    assert card.data.base_model is None
    assert pipeline("text-classification", "out")("where is my parcel")[0]["label"] in ("late", "lost", "fine")
    # and further
    assert main(train_command("more", "--model", "out", "--num-iterations", "30")) == 0
    again = FNNForSequenceClassification.from_pretrained("more")
    assert again.config.num_iterations == 30
    assert again.config.fnn_type == options.replace("=", " ").split()[1]


REFUSED = {
    "--fnn spatial": "invalid choice: 'spatial'",
    "--fnn temporal --num-layers 2": "`num_layers` must be 1 for the temporal network",
    "--fnn layered --sweep parallel": "`sweep` is an option of the temporal network",
    "--fnn layered --feedback-rank 4": "--feedback-rank",
    "--fnn layered --gradient truncated": "`gradient_iterations` must be an integer",
    "--fnn layered --tokenizer nowhere": "`tokenizer`: nowhere is not a folder",
}


@pytest.mark.parametrize("options", REFUSED)
def test_wrong_options_end_in_one_line(options, tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "train.csv", rows(12))
    write(tmp_path, "new.csv", rows(12))
    given = options.split() if "--tokenizer" in options else [*options.split(), "--tokenizer", tokenizer]
    try:
        status = main(train_command("out", *given))
    except SystemExit as stopped:  # by argparse
        status = stopped.code
    assert status == 2
    assert REFUSED[options] in capsys.readouterr().err


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "train.csv", rows(12))
    write(tmp_path, "new.csv", rows(12))
    unpadded = tiny_tokenizer()
    unpadded.pad_token = unpadded.eos_token = None
    unpadded.save_pretrained("unpadded")
    assert main(train_command("out", "--fnn", "layered", "--tokenizer", "unpadded")) == 2
    assert "no `pad_token` and no `eos_token` to pad with" in capsys.readouterr().err


def test_a_trained_network_keeps_its_options_and_labels(tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "train.csv", rows(12))
    write(tmp_path, "new.csv", rows(12))
    model = small("layered")
    model.save_pretrained("saved")
    tiny_tokenizer().save_pretrained("saved")
    assert main(train_command("out", "--model", "saved", "--feedback-rank", "4")) == 2
    assert "`feedback_rank`: saved is a trained feedback network" in capsys.readouterr().err
    write(tmp_path, "train.csv", [{"text": "where", "label": "x"}, {"text": "is", "label": "y"}])
    assert main(train_command("out", "--model", "saved")) == 2
    assert "was trained for the labels late, lost, fine" in capsys.readouterr().err
