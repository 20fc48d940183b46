"""Activations by name."""

import pytest
import torch
from closeness import assert_exact, in_float64
from transformers.activations import ACT2FN

from hf_feedback.activations import ACTIVATIONS, Swish, make_activation

X = torch.tensor([-2.0, 0.0, 2.0])
VALUES = {
    "swish": [-0.2384, 0.0, 1.7616],
    "sigmoid": [0.1192, 0.5, 0.8808],
    "tanh": [-0.9640, 0.0, 0.9640],
    "relu": [0.0, 0.0, 2.0],
    "gelu": [-0.0455, 0.0, 1.9545],
    "mish": [-0.2525, 0.0, 1.9440],
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    found = make_activation(name, 1)(X[None])[0]
    torch.testing.assert_close(found, torch.tensor(VALUES[name]), atol=1e-4, rtol=0)


def test_every_name_of_transformers_works():
    for name in ACT2FN:
        assert make_activation(name, 2)(torch.randn(3, 2, 4)).shape == (3, 2, 4), name


@in_float64()
def test_swish_learns_one_beta_an_edge():
    swish = Swish(2)
    assert swish.beta.tolist() == [1.0, 1.0]
    with torch.no_grad():
        swish.beta.copy_(torch.tensor([0.0, 3.0]))
    X = torch.tensor([-2.0, 0.0, 2.0])
    found = swish(torch.stack([X, X]))
    assert_exact(found[0], X / 2)
    assert_exact(found[1], X * torch.sigmoid(3 * X))
    assert torch.autograd.gradcheck(Swish(2).double(), torch.randn(3, 2, 4, dtype=torch.double, requires_grad=True))


def test_ours_come_before_those_of_transformers():
    assert isinstance(make_activation("swish", 1), ACTIVATIONS["swish"])
