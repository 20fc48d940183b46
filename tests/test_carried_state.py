"""The states that the study of carried states asks for."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples" / "studies"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("carried_state")
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("carried_state", None)


def test_parity(study):
    tokens, states = study.draw(study.TASKS["parity"](), 5, 30, torch.Generator().manual_seed(0))
    assert set(tokens.unique().tolist()) == {0, 1}
    assert torch.equal(states, tokens.cumsum(1) % 2)


@pytest.mark.parametrize(("task", "swaps"), [("swaps", [(0, 1), (1, 2), (2, 3), (3, 4)]), ("all swaps", None)])
def test_swaps(study, task, swaps):
    """Equal states exactly where the things stand in the same order, in every text."""
    swaps = swaps or [(i, j) for i in range(5) for j in range(i + 1, 5)]
    tokens, states = study.draw(study.TASKS[task](), 40, 30, torch.Generator().manual_seed(0))
    assert set(tokens.unique().tolist()) == set(range(len(swaps)))
    orders = {0: "abcde"}
    for text, its_states in zip(tokens.tolist(), states.tolist(), strict=True):
        things = list("abcde")
        for token, state in zip(text, its_states, strict=True):
            i, j = swaps[token]
            things[i], things[j] = things[j], things[i]
            assert orders.setdefault(state, "".join(things)) == "".join(things)
    assert len(set(orders.values())) == len(orders) > 100
