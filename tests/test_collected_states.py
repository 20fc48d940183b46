"""`hidden_states` and `attentions` of the last iteration are what the backbone itself collects in a whole K-th pass.

Families collect in different ways; some have their batch second (XLNet) or one layer for all (ALBERT).
"""

import copy
from functools import lru_cache

import pytest
import torch
from builders import REPRESENTATIVE, batch_for, headed, task_model
from closeness import assert_exact, in_float64
from families import FAMILIES, randomize_messages, tiny_backbone, tiny_batch, to
from reference import run_reference

from hf_feedback import FeedbackForMultipleChoice, FeedbackModel
from hf_feedback.backbone_layout import without_cache

COLLECTING = ["bert", "roberta", "albert", "albert, two groups", "xlnet", "t5", "mpnet", "deberta-v2", "modernbert"]
DECODERS = ["gpt2", "bloom", "llama", "gemma3"]
OTHERS = ["vit", "wav2vec2", "whisper"]
EDGES = {"all layers": [[3, 0], [3, 2]], "a segment in the middle": [[2, 1]], "one layer apart": [[1, 0], [3, 2]]}


def assert_collected(model, stack, passes, batch, k):
    """All states and attentions of the model are those of its backbone's own K-th pass; XLNet gives states alone.

    Args:
        model: in float64, with eager attention and messages that are not zero.
        stack: the name of the backbone's list of layers.
        passes: how many calls each of them gets in one pass.
        batch: the inputs.
        k: K.

    Returns:
        What was compared.
    """
    numbers = {"hidden_states": 5} | ({} if model.backbone.config.model_type == "xlnet" else {"attentions": 4})
    asked, batch = {f"output_{name}": True for name in numbers}, to(batch, torch.float64)
    found = model(**batch, **asked, num_iterations=k)
    backbone, feedback = copy.deepcopy(model.backbone), dict(model.feedback.named_parameters())
    if isinstance(model, FeedbackForMultipleChoice) and model.config.head == "new":  # each choice is a text
        batch = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
    inputs = {**batch, **asked, **without_cache(backbone)}
    expected, _ = run_reference(backbone, stack, passes, feedback, model.config.edges(), inputs, k)
    entry = backbone(**inputs).hidden_states[0]
    for name, number in numbers.items():
        assert len(found[name]) == len(expected[name]) == number
        for i in range(number):
            # the reference changes what enters the first layer before it is collected
            assert_exact(found[name][i], entry if (name, i) == ("hidden_states", 0) else expected[name][i])
    return found


@lru_cache(1)  # for all K
def collecting_model(family, edges):
    backbone = tiny_backbone(family, attn_implementation="eager")
    return randomize_messages(FeedbackModel.from_backbone(backbone, feedback_edges=EDGES[edges], feedback_rank=8))


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("family", [*COLLECTING, *DECODERS, *OTHERS])
@in_float64()
def test_every_way_of_collecting(family, edges, k):
    row, model, batch = FAMILIES[family], collecting_model(family, edges), tiny_batch(family=family)
    found = assert_collected(model, row.stack, row.passes, batch, k)
    first = model(**to(batch, torch.float64), output_hidden_states=True, num_iterations=1)
    assert torch.equal(found.hidden_states[3], first.hidden_states[3]) == (k == 1)  # iterations do differ


def test_attentions_that_layers_do_not_return_are_refused():
    model = FeedbackModel.from_backbone(tiny_backbone("xlnet"), num_iterations=2, feedback_rank=8)
    with pytest.raises(RuntimeError, match="call the model without `output_attentions`"):
        model(**tiny_batch(), output_attentions=True)


@pytest.mark.parametrize("k", [1, 2, 3])
@headed
@in_float64()
def test_every_head(name, head, k):
    family = REPRESENTATIVE.get(name, "bert")
    model = randomize_messages(task_model(name, head, feedback_edges=[[3, 0], [2, 1]]).double())
    model.set_attn_implementation("eager")
    prefix = f"{model.backbone.base_model_prefix}." if model.config.head == "backbone" else ""
    assert_collected(model, prefix + FAMILIES[family].stack, 1, batch_for(name, family), k)
