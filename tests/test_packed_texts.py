"""Several texts in one row, told by positions that start anew: what messages read stays within a text."""

import pytest
import torch
from closeness import assert_exact, in_float64
from families import randomize_messages, tiny_backbone, tiny_config
from transformers import LlamaForCausalLM
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextConfig, Qwen2VLTextModel

from hf_feedback import FeedbackForCausalLM, FeedbackForTokenClassification

LENGTHS = (5, 7, 3)
OPERATORS = {
    "additive": {},
    "attention": dict(feedback_type="attention"),
    "gated+attention": dict(feedback_type="gated+attention"),
    "error": dict(feedback_type="attention", feedback_signal="error"),
    "temporal": dict(feedback_type="temporal"),
    "shift": dict(feedback_type="gated", feedback_shift=1),
}


def texts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 90, (2, length), generator=generator) for length in LENGTHS]


def positions(rows):
    return torch.cat([torch.arange(length) for length in LENGTHS])[None].expand(rows, -1)


def decoder(**options):
    torch.manual_seed(0)
    backbone = LlamaForCausalLM(tiny_config("llama", eos_token_id=None, pad_token_id=None))
    return randomize_messages(
        FeedbackForCausalLM.from_backbone(backbone, num_iterations=3, feedback_rank=8, **options)
    ).eval()


@in_float64()
@pytest.mark.parametrize("rows", [1, 2])  # positions of each row, or one for all
@pytest.mark.parametrize("case", OPERATORS)
def test_packed_texts_are_answered_as_if_alone(case, rows):
    model = decoder(**OPERATORS[case])
    packed = model(torch.cat(texts(), 1), position_ids=positions(rows), use_cache=False).logits
    assert_exact(packed, torch.cat([model(text, use_cache=False).logits for text in texts()], 1))


@in_float64()
@pytest.mark.parametrize("case", ["attention", "temporal"])
def test_packed_texts_whose_tokens_know_of_later_ones(case):
    """The same where messages inform tokens about later ones, and where some rows stop before others."""
    model = FeedbackForTokenClassification.from_backbone(
        tiny_backbone("qwen3"), num_labels=3, num_iterations=4, feedback_rank=8, feedback_future=True, **OPERATORS[case]
    )
    model = randomize_messages(model).eval()
    packed = torch.cat(texts(), 1)
    assert_exact(
        model(packed, position_ids=positions(2)).logits, torch.cat([model(text).logits for text in texts()], 1)
    )
    residuals = model(packed, position_ids=positions(2), output_iterations=True).residuals
    model.config.set_checked(halting="convergence", halting_threshold=float(residuals[:, :-1].mean()))
    both = model(packed, position_ids=positions(2))
    alone = [model(packed[i : i + 1], position_ids=positions(1)) for i in range(2)]
    assert_exact(both.logits, torch.cat([one.logits for one in alone]))


def test_positions_do_not_divide_what_the_backbone_reads_as_one_text():
    """With a mask transformers' decoders read the row as one text; so do messages."""
    model, packed = decoder(feedback_type="attention"), torch.cat(texts(), 1)
    inputs = dict(position_ids=positions(2), attention_mask=torch.ones_like(packed), use_cache=False)
    first = model(packed, **inputs).logits
    other = packed.clone()
    other[:, 0] = (other[:, 0] + 1) % 90
    assert (model(other, **inputs).logits[:, -1] - first[:, -1]).abs().max() > 1e-6


@in_float64()
@pytest.mark.parametrize("family", ["bert", "modernbert", "bloom", "opt", "xlnet"])
@pytest.mark.parametrize("operator", ["attention", "temporal", "context"])
def test_positions_do_not_divide_what_the_backbone_does_not_keep_apart(family, operator):
    """Encoders, and decoders whose masks do not read positions: messages do as the backbone, and none is refused."""
    model = FeedbackForTokenClassification.from_backbone(
        tiny_backbone(family), num_labels=3, num_iterations=3, feedback_rank=8, feedback_type=operator
    )
    model, packed = randomize_messages(model).eval(), torch.cat(texts(), 1)
    found = model(packed, position_ids=positions(2)).logits
    assert_exact(found, model(packed, position_ids=positions(2), attention_mask=torch.ones_like(packed)).logits)


@in_float64()
def test_positions_with_several_coordinates():
    """Text models that also place pictures read the number of the token from the first of four coordinates."""
    heads = dict(num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
    sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=37, num_hidden_layers=3, **heads)
    sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    torch.manual_seed(0)
    backbone = Qwen2VLTextModel(Qwen2VLTextConfig(**sizes)).eval()
    options = dict(num_labels=3, num_iterations=3, feedback_rank=8, feedback_type="attention")
    model = randomize_messages(FeedbackForTokenClassification.from_backbone(backbone, **options)).eval()
    assert model.layout.packing_positions == 3
    found = model(torch.cat(texts(), 1), position_ids=positions(2).expand(4, 2, -1)).logits
    assert_exact(found, torch.cat([model(text).logits for text in texts()], 1))


def test_operators_that_cannot_keep_them_apart_are_refused():
    model = FeedbackForTokenClassification.from_backbone(tiny_backbone("qwen3"), num_labels=3, feedback_type="context")
    with pytest.raises(ValueError, match="`position_ids` put several texts into one row"):
        model(torch.cat(texts(), 1), position_ids=positions(2))


def test_halting_that_cannot_keep_them_apart_is_refused():
    """Without a cache tokens that stop need one, in which transformers sees no texts."""
    model = decoder(halting="convergence", halting_threshold=1e-9)
    with pytest.raises(ValueError, match="`halting`='convergence' does not keep apart the texts"):
        model(torch.cat(texts(), 1), position_ids=positions(2))
    row = texts()[0]
    assert torch.equal(model(row, position_ids=torch.arange(5)[None]).logits, model(row).logits)
