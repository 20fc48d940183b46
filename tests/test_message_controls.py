"""Messages of the controls of a comparison: of their own layer, of another text, and none."""

import pytest
import torch
from builders import feedback_model
from families import tiny_batch
from peft import LoraConfig, get_peft_model

from hf_feedback.connections import MessageContext
from hf_feedback.evaluation.comparison.message_controls import (
    SilentConnections,
    SwappedConnections,
    _rows_of_previous_example,
    other_messages,
    read_bottom_up,
)
from hf_feedback.segments import Segments


@pytest.mark.parametrize("operator", ["additive", "gated", "attention", "temporal", "context"])
def test_bottom_up_messages_read_their_own_layer(operator):
    model, batch = feedback_model(feedback_type=operator).eval(), tiny_batch()
    mask = batch["attention_mask"].bool()
    expected = []
    for layer, connection_edges in model.feedback.incoming.items():

        def hook(module, args, kwargs, edges=connection_edges):
            x, context = args[0], MessageContext(mask=mask)
            for source, edge in edges:
                connection = model.feedback.connection(source)
                x = x + connection.message(connection(args[0], context), edge, args[0], context)
            return (x, *args[1:]), kwargs

        expected.append(model.layers[layer].register_forward_pre_hook(hook, with_kwargs=True))
    with torch.no_grad():
        oracle = model(**batch, num_iterations=1).last_hidden_state
        [handle.remove() for handle in expected]
        plain = model(**batch, num_iterations=1).last_hidden_state
        read_bottom_up(model)
        found = model(**batch, num_iterations=1).last_hidden_state
    torch.testing.assert_close(found[mask], oracle[mask], atol=1e-12, rtol=0)
    assert not torch.allclose(found[mask], plain[mask], atol=1e-6)


@pytest.mark.parametrize("operator", ["additive", "attention", "context"])
def test_swapped_messages_are_those_of_the_example_before(operator):
    """Of two equal examples they change nothing; of others they do; padding of the other one is not read."""
    model, batch = feedback_model(feedback_type=operator).eval(), tiny_batch()
    twins = {name: value[:1].repeat(2, *[1] * (value.dim() - 1)) for name, value in batch.items()}
    with torch.no_grad():
        own, own_of_twins = model(**batch).last_hidden_state, model(**twins).last_hidden_state
        with other_messages(model, SwappedConnections):
            swapped, swapped_twins = model(**batch).last_hidden_state, model(**twins).last_hidden_state
            padded = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 5)}
            again = model(**padded).last_hidden_state
        restored = model(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(swapped_twins, own_of_twins, atol=1e-12, rtol=0)
    torch.testing.assert_close(again[real], swapped[real], atol=1e-12, rtol=0)
    assert not torch.allclose(swapped[real], own[real], atol=1e-6)
    torch.testing.assert_close(restored, own, atol=0, rtol=0)


def test_swapped_segments_are_those_of_another_text():
    """A row reads the segment at its place in the text before, counted from the start again where that is shorter."""
    context = MessageContext(segments=Segments(torch.tensor([0, 0, 0, 1, 2, 2]), 3))
    assert _rows_of_previous_example(context, 6).tolist() == [4, 5, 4, 0, 3, 3]
    assert _rows_of_previous_example(MessageContext(), 3).tolist() == [2, 0, 1]


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "PEFT"])
def test_silent_messages_leave_the_backbone(wrapped):
    model, batch = feedback_model().eval(), tiny_batch()
    if wrapped:
        get_peft_model(model, LoraConfig(target_modules=["query"], modules_to_save=["feedback"]))
    with torch.no_grad(), other_messages(model, SilentConnections):
        silent = model(**batch).last_hidden_state
    with torch.no_grad(), model.feedback_disabled():
        torch.testing.assert_close(silent, model(**batch).last_hidden_state, atol=1e-12, rtol=0)
    with torch.no_grad():
        assert not torch.allclose(silent, model(**batch).last_hidden_state)
