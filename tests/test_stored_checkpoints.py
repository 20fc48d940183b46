"""What users saved loads for ever: stored checkpoints, one for each head, operator and network, give the same numbers.

`tests/checkpoints/README.md` says what a folder holds. Everything is computed in float64, where another processor's
rounding is far below the tolerance and another equation is far above it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from closeness import in_float64
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

import hf_feedback
from hf_feedback import load_feedback
from hf_feedback.connections import CONNECTIONS

CHECKPOINTS = Path(__file__).parent / "checkpoints"
CASES = sorted(file.parent.name for file in CHECKPOINTS.glob("*/calls.safetensors"))
BACKBONE = CHECKPOINTS / "backbone"  # of the feedback-only checkpoints
TOLERANCE = 1e-10
# Of the largest gradient of a call: one whose terms cancel, such as that of a key's bias, is what rounding leaves.
ROUNDING = 100 * torch.finfo(torch.float64).eps

every_case = pytest.mark.parametrize("case", CASES)


def stored_config(case: str) -> dict[str, Any]:
    return json.loads((CHECKPOINTS / case / "config.json").read_text())


def stored_calls(case: str) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """The inputs, and the outputs of each call by its name, such as `"training, K=3"`."""
    calls: dict[str, dict[str, torch.Tensor]] = {}
    for path, tensor in load_file(CHECKPOINTS / case / "calls.safetensors").items():
        call, _, name = path.partition("/")
        calls.setdefault(call, {})[name] = tensor
    return calls.pop("input"), calls


def is_feedback_only(case: str) -> bool:
    return not (CHECKPOINTS / case / "model.safetensors").exists()


def load(model_class: Any, case: str) -> PreTrainedModel:
    """The stored model in float64, in evaluation mode."""
    folder = CHECKPOINTS / case
    if is_feedback_only(case):  # whose backbone is compared in the precision it was saved in
        return model_class.from_pretrained(folder, backbone=BACKBONE).double()
    if stored_config(case).get("backbone_config", {}).get("model_type") == "xlnet":  # makes its parameters in float32
        return model_class.from_pretrained(folder).double()
    with in_float64(files=True):
        return model_class.from_pretrained(folder, dtype=torch.float64)


def run_call(model: PreTrainedModel, call: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs of a call by name: in evaluation all that can be asked for (hidden states where K is 3), in training
    the loss and the gradients of all parameters but the backbone's."""
    mode, _, number = call.partition(", K=")
    num_iterations, training = int(number), mode == "training"
    model.train(training).zero_grad()
    if not training:
        options = {"output_iterations": True, "output_hidden_states": num_iterations == 3}
        with torch.no_grad():
            return dict(named_tensors(model(**inputs, **options, num_iterations=num_iterations)))
    loss = model(**inputs, num_iterations=num_iterations).loss
    loss.backward()
    parameters = [(name, p) for name, p in model.named_parameters() if not name.startswith("backbone.")]
    return {"loss": loss.detach(), **{f"gradient.{name}": p.grad for name, p in parameters if p.grad is not None}}


def named_tensors(output: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in output.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, tuple):
            yield from ((f"{name}.{i}", tensor) for i, tensor in enumerate(value))


@in_float64()
def assert_same_numbers(model: PreTrainedModel, case: str) -> None:
    inputs, calls = stored_calls(case)
    assert calls
    for call, expected in calls.items():
        found = run_call(model, call, inputs)
        assert found.keys() == expected.keys(), call
        gradients = [tensor.abs().max() for name, tensor in expected.items() if name.startswith("gradient.")]
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, f"{call}: {name}"
            assert found[name].shape == tensor.shape, f"{call}: {name}"
            bound = TOLERANCE * tensor.abs().max() if tensor.numel() else 0
            if name.startswith("gradient."):
                bound = bound + ROUNDING * max(gradients)
            assert (found[name] - tensor).abs().le(bound).all(), f"{call}: {name}"


@every_case
def test_the_class_loads_it(case):
    model_class = getattr(hf_feedback, stored_config(case)["architectures"][0])
    model = load(model_class, case)
    assert type(model) is model_class
    assert_same_numbers(model, case)


@every_case
def test_the_auto_class_loads_it(case):
    config = stored_config(case)
    (class_name,) = config["architectures"]
    (auto_name,) = [auto for auto, name in config["auto_map"].items() if name.endswith(f".{class_name}")]
    model = load(getattr(transformers, auto_name), case)
    assert type(model).__name__ == class_name
    assert_same_numbers(model, case)


@pytest.mark.parametrize("case", [case for case in CASES if is_feedback_only(case)])
def test_load_feedback_loads_it(case):
    model = load_feedback(CHECKPOINTS / case, BACKBONE).double()
    assert_same_numbers(model, case)


@every_case
def test_names_stay(case, tmp_path):
    """Of the parameters, in the model and in the file, and of the options with their values."""
    (class_name,) = stored_config(case)["architectures"]
    model_class = getattr(hf_feedback, class_name)
    options = {"backbone": BACKBONE} if is_feedback_only(case) else {}
    model = model_class.from_pretrained(CHECKPOINTS / case, **options)
    with safe_open(CHECKPOINTS / case / "calls.safetensors", "pt") as file:
        assert [*model.state_dict()] == json.loads(file.metadata()["state_dict"])
    model.requires_grad_(False)
    save = model.save_feedback if is_feedback_only(case) else model.save_pretrained
    save(tmp_path)
    (weights,) = [file.name for file in tmp_path.glob("*.safetensors")]
    stored, saved = load_file(CHECKPOINTS / case / weights), load_file(tmp_path / weights)
    assert stored
    assert {name: tensor.tolist() for name, tensor in saved.items()} == {n: t.tolist() for n, t in stored.items()}
    before, now = stored_config(case), json.loads((tmp_path / "config.json").read_text())
    assert_still_there(before, now)


def assert_still_there(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Every option with its value, that is all but versions, and what a backbone was loaded from and in."""
    assert before
    for name in before.keys() - {"transformers_version", "hf_feedback_version"}:
        if name == "backbone_config":
            options = {key: before[name][key] for key in before[name].keys() - {"_name_or_path", "dtype"}}
            assert_still_there(options, now[name])
        elif name == "auto_map" and "AutoModel" in before[name]:
            later = {"AutoModelForCausalLM": "modeling_feedback.FeedbackForCausalLM"}
            assert now[name] == before[name] | (later if "AutoModelForMaskedLM" in before[name] else {})
        else:
            assert now[name] == before[name], name


# What is stored


def test_every_model_and_operator_is_stored():
    configs = [stored_config(case) for case in CASES]
    models = [getattr(hf_feedback, name) for name in hf_feedback.__all__]
    names = {model.__name__ for model in models if isinstance(model, type) and issubclass(model, PreTrainedModel)}
    names.remove("FeedbackForCausalLM")  # which came later
    assert names == {config["architectures"][0] for config in configs}
    offered = {name.rpartition(".")[2] for config in configs for name in config["auto_map"].values()}
    assert names <= offered
    operators = {name for config in configs for name in config.get("feedback_type", "").split("+")} - {""}
    assert operators == CONNECTIONS.keys()
    assert any(is_feedback_only(case) for case in CASES)


@pytest.mark.parametrize(
    ("option", "values"),
    {
        "feedback_context": ["state", "classes"],
        "feedback_signal": ["state", "error"],
        "feedback_sharing": ["edge", "targets"],
        "feedback_span": ["token", "segment"],
        "feedback_state": ["reentry", "carry"],
        "learn_damping": [False, True],
        "head": ["new", "backbone"],
        "backbone_part": ["auto", "decoder"],
        "gradient": ["full", "truncated", "one_step", "implicit"],
        "halting": ["none", "convergence", "confidence", "patience"],
        "fnn_type": ["temporal", "layered"],
        "sweep": ["sequential", "parallel", None],
    }.items(),
)
def test_every_choice_that_shapes_a_model_is_stored(option, values):
    found = [config[option] for config in map(stored_config, CASES) if option in config]
    if option == "halting":
        found = [rule for rules in found for rule in re.split(r"[|+]", rules)]
    assert {value for value in values if value not in found} == set()
