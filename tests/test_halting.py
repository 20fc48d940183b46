"""Examples stop by themselves when their states have settled."""

from itertools import pairwise

import pytest
import torch
from families import tiny_batch
from test_dynamics import make

from hf_feedback import FeedbackConfig, FeedbackForSequenceClassification, FeedbackModel

HALTS = dict(halting="convergence", num_iterations=12, dtype=torch.float32)


def threshold_between(model, batch):
    """A residual, well apart from all that occur, at which the examples stop at different iterations."""
    residuals = model(**batch, output_iterations=True).residuals  # (B, K - 1)
    ordered = residuals.flatten().sort(descending=True).values.tolist()
    for high, low in pairwise(ordered):
        value = (high * low) ** 0.5
        stops = [(row <= value).nonzero() for row in residuals]
        if low < 0.98 * high and all(map(len, stops)) and len({stop[0].item() for stop in stops}) > 1:
            return value
    raise AssertionError("all stop together")


@pytest.mark.parametrize("family", ["bert", "gpt2", "xlnet", "modernbert"])
@pytest.mark.parametrize("cls", [FeedbackModel, FeedbackForSequenceClassification])
def test_each_stops_as_if_it_were_alone(family, cls):
    batch = {key: torch.cat([value, value.flip(0).roll(1, 1)]) for key, value in tiny_batch(padding="none").items()}
    plain = make(cls, family, scale=0.03, num_iterations=12, dtype=torch.float32)
    model = make(cls, family, scale=0.03, halting_threshold=threshold_between(plain, batch), **HALTS)
    together = model(**batch, output_iterations=True, output_hidden_states=True)
    assert len(set(together.iterations.tolist())) > 1
    for row, k in enumerate(together.iterations.tolist()):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        halted = model(**alone, output_iterations=True, output_hidden_states=True)
        assert halted.iterations.item() == k
        fixed = plain(**alone, num_iterations=k, output_hidden_states=True)
        for mine, single, theirs in zip(together.hidden_states, halted.hidden_states, fixed.hidden_states, strict=True):
            torch.testing.assert_close(mine[row], theirs[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(single, theirs, rtol=1e-4, atol=1e-5)


def test_padding_decides_nothing():
    batch = tiny_batch()
    plain = make(scale=0.03, num_iterations=12, dtype=torch.float32)
    threshold = plain(**batch, output_iterations=True).residuals[1, 1].item() * 1.001
    model = make(scale=0.03, halting_threshold=threshold, **HALTS)
    short = {key: value[1:, :6] for key, value in batch.items()}
    padded, alone = (model(**b, output_iterations=True) for b in (batch, short))
    assert padded.iterations[1] == alone.iterations[0] == 3
    torch.testing.assert_close(padded.last_hidden_state[1, :6], alone.last_hidden_state[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(model(**batch).last_hidden_state, padded.last_hidden_state)  # whether notes are taken or not


def test_the_least_number_of_iterations_and_training():
    batch = tiny_batch()
    fresh = make(scale=0, **HALTS)
    assert fresh(**batch, output_iterations=True).iterations.tolist() == [2, 2]  # nothing moved
    assert fresh.check_equivalence(batch) == 0.0
    later = make(scale=0, min_iterations=5, **HALTS)
    assert later(**batch, output_iterations=True).iterations.tolist() == [5, 5]
    assert fresh.train()(**batch, output_iterations=True).iterations.tolist() == [12, 12]


def test_saved_with_the_model(tmp_path):
    make(halting_threshold=0.2, **HALTS).save_pretrained(tmp_path)
    config = FeedbackModel.from_pretrained(tmp_path).config
    assert (config.halting, config.halting_threshold) == ("convergence", 0.2)


WRONG = {
    "rule": (dict(halting="never"), "`halting` must be one of 'none', 'convergence'"),
    "threshold": (dict(halting_threshold=-1.0), "`halting_threshold` must be a number of at least 0"),
    "least": (dict(min_iterations=0), "`min_iterations` must be an integer of at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(case):
    options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        FeedbackConfig(**options)
