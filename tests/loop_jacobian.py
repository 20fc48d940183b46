"""The Jacobian of one iteration as a whole matrix, of models small enough for it."""

from unittest import mock

import torch

from hf_feedback.feedback_loop import run_iterations


def at_the_loop(model, batch, do):
    """What `do(loop, h)` finds, h the states of the last iteration."""
    found = []

    def run(loop, num_iterations, *args):
        h = loop.initial_states()
        with torch.no_grad():
            for _ in range(num_iterations - 1):
                h = loop.feedback.damp(h, loop.step(h))
        with torch.enable_grad():
            found.append(do(loop, h))
        return run_iterations(loop, num_iterations, *args)

    with torch.no_grad(), mock.patch("hf_feedback.loop_runner.run_iterations", run):
        model(**batch, output_iterations=True)  # which takes the loop's way with K = 1 too
    return found[0]


def jacobian(loop, h):
    """∂h^(k+1)/∂h^(k) of the whole batch as one matrix; there is one source."""
    shape = loop.pack(h)[0].shape

    def step(flat):
        before = loop.unpack((flat.view(shape),))
        return loop.pack(loop.feedback.damp(before, loop.step(before)))[0].flatten()

    return torch.autograd.functional.jacobian(step, loop.pack(h)[0].flatten())


def jacobian_radius(model, batch):
    """The largest modulus of its eigenvalues, by which iterations contract or expand."""
    return torch.linalg.eigvals(at_the_loop(model, batch, jacobian)).abs().max().item()
