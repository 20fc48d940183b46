"""The benchmark of a state that is carried from token to token: its labels, and the pass that it trains in."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from families import tiny_config
from transformers import AutoModelForCausalLM

from hf_feedback import FeedbackForCausalLM

FOLDER = Path(__file__).parent.parent / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("carried_state")
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("carried_state", None)


def test_parity(benchmark):
    tokens, states = benchmark.draw(benchmark.TASKS["parity"](), 5, 30, torch.Generator().manual_seed(0))
    assert set(tokens.unique().tolist()) == {0, 1}
    assert torch.equal(states, tokens.cumsum(1) % 2)


@pytest.mark.parametrize(("task", "swaps"), [("swaps", [(0, 1), (1, 2), (2, 3), (3, 4)]), ("all swaps", None)])
def test_swaps(benchmark, task, swaps):
    """Equal states exactly where the things stand in the same order, in every text."""
    swaps = swaps or [(i, j) for i in range(5) for j in range(i + 1, 5)]
    tokens, states = benchmark.draw(benchmark.TASKS[task](), 40, 30, torch.Generator().manual_seed(0))
    assert set(tokens.unique().tolist()) == set(range(len(swaps)))
    orders = {0: "abcde"}
    for text, its_states in zip(tokens.tolist(), states.tolist(), strict=True):
        things = list("abcde")
        for token, state in zip(text, its_states, strict=True):
            i, j = swaps[token]
            things[i], things[j] = things[j], things[i]
            assert orders.setdefault(state, "".join(things)) == "".join(things)
    assert len(set(orders.values())) == len(orders) > 100


@pytest.mark.parametrize(("family", "options"), [("llama", {}), ("mistral", {"sliding_window": 3})])
def test_one_pass_is_the_limit_of_many_iterations(family, options):
    """As many iterations as there are tokens, and one more, give the same answers and the same gradients."""
    torch.manual_seed(0)
    model = FeedbackForCausalLM.from_backbone(
        AutoModelForCausalLM.from_config(tiny_config(family, initializer_range=0.2, **options)),
        feedback_shift=1,
        feedback_type="gated",
        feedback_rank=None,
    ).double()
    for name, parameter in model.feedback.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(5, 60, (3, 9))
    gradients = []
    for way in (dict(use_cache=True), dict(num_iterations=10), dict(num_iterations=5)):
        logits = model(tokens, **way).logits
        model.zero_grad()
        logits.logsumexp(-1).mean().backward()
        gradients.append((logits, *(p.grad for p in model.parameters() if p.grad is not None)))
    one_pass, parallel, too_few = gradients
    assert len(one_pass) == len(parallel) > 20
    for mine, expected in zip(one_pass, parallel, strict=True):
        assert (mine - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (too_few[0] - parallel[0]).abs().max() > 1e-3 * parallel[0].abs().max()
