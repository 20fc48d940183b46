"""Message operators: silent at the start, equal to a plainly written reference, and told only what they may know."""

import copy
import re

import pytest
import torch
from builders import built_once
from closeness import assert_exact, in_float64
from families import randomize_messages, tiny_backbone, tiny_batch
from reference import OPERATORS, run_operators
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils.logging import warning_once

from hf_feedback import (
    FeedbackConfig,
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
    FeedbackModel,
)
from hf_feedback.connections import CONNECTIONS, MessageContext
from hf_feedback.model_connections import FeedbackConnections

CASES = {
    **{name: dict(feedback_type=name) for name in CONNECTIONS},
    "attention with one head": dict(feedback_type="attention", feedback_heads=1),
    "temporal with two sweeps": dict(feedback_type="temporal", feedback_sweeps=2),
    "temporal with tanh": dict(feedback_type="temporal", feedback_activation="tanh", feedback_sweeps=5),
    "additive and context": dict(feedback_type="additive+context"),
    "joint and attention": dict(feedback_type="joint+attention"),
    **{f"{name}, error": dict(feedback_type=name, feedback_signal="error") for name in CONNECTIONS},
    **{f"{name}, shared": dict(feedback_type=name, feedback_sharing="targets") for name in CONNECTIONS},
    "error, shared": dict(feedback_type="additive", feedback_signal="error", feedback_sharing="targets"),
}
EDGES = [[2, 0], [3, 0], [3, 2]]
every_case = pytest.mark.parametrize("case", CASES)
# What needs a head, too
LIVES = {**CASES, "classes": dict(feedback_type="context", feedback_context="classes", num_labels=3)}
every_life = pytest.mark.parametrize("case", LIVES)
# Other families with every operator; its signal and its weights, which know nothing of the layers, with the first.
IN_FAMILIES = [(case, "bert") for case in LIVES] + [
    (case, family) for family in ("modernbert", "gpt2", "xlnet") for case in LIVES if "," not in case
]
every_life_in_families = pytest.mark.parametrize(("case", "family"), IN_FAMILIES)
JOINED = {
    "all operators": dict(feedback_type="+".join(CONNECTIONS)),
    "their options": dict(
        feedback_type="attention+temporal+context", feedback_heads=1, feedback_sweeps=2, feedback_activation="tanh",
        feedback_context="classes", num_labels=3,
    ),
}  # fmt: skip


@built_once
def make(options, family="bert", cls=FeedbackModel, scale=0.3, dtype=None, **more):
    options = {"feedback_rank": 8, "num_iterations": 3, "feedback_edges": EDGES, **options, **more}
    model = cls.from_backbone(tiny_backbone(family).to(dtype or torch.get_default_dtype()), **options)
    return randomize_messages(model, scale=scale) if scale else model


def test_every_operator_is_in_the_reference():
    assert CONNECTIONS.keys() == OPERATORS.keys()


@every_life_in_families
def test_silent_at_the_start(case, family):
    model, batch = make(LIVES[case], family, FeedbackForSequenceClassification, scale=0), tiny_batch()
    for k in (1, 2, 4):
        model.set_num_iterations(k)
        assert model.check_equivalence(batch) == 0.0
    randomize_messages(model)
    assert model.check_equivalence(batch) > 1e-3
    with model.feedback_disabled():
        expected = model(**batch).logits
    model.set_num_iterations(1)
    assert torch.equal(model(**batch).logits, expected) != model.feedback.acts_in_first_iteration


@pytest.mark.parametrize("padding", ["right", "left"])
@every_case
def test_equals_the_reference(case, padding):
    """Outputs and all gradients, in float64."""
    options, batch = CASES[case], tiny_batch(padding=padding)
    model = make(options, dtype=torch.float64)
    bare = copy.deepcopy(model.backbone)
    feedback = {name: p.detach().clone().requires_grad_() for name, p in model.feedback.named_parameters()}
    found = model(**batch).last_hidden_state
    expected = run_operators(bare, "encoder.layer", feedback, EDGES, batch, 3, options)
    assert_exact(found, expected)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = weight * batch["attention_mask"][..., None]
    own = dict(model.feedback.named_parameters())
    layers = dict(bare.encoder.named_parameters())
    mine = torch.autograd.grad(
        (found * weight).sum(), [*own.values(), *(model.backbone.encoder.get_parameter(n) for n in layers)],
        allow_unused=True,
    )  # fmt: skip
    theirs = torch.autograd.grad((expected * weight).sum(), [*feedback.values(), *layers.values()], allow_unused=True)
    mine, theirs = (
        {name: gradient for name, gradient in zip([*own, *layers], side, strict=True) if gradient is not None}
        for side in (mine, theirs)
    )
    assert_exact(mine, theirs)


@pytest.mark.parametrize("future", [False, True])
@pytest.mark.parametrize("name", ["additive", "gated", "attention", "temporal", "joint"])
def test_decoders_equal_the_reference(name, future):
    options, batch = dict(feedback_type=name), tiny_batch()
    model = make(options, "gpt2", dtype=torch.float64, feedback_future=future)
    bare, feedback = copy.deepcopy(model.backbone), dict(model.feedback.named_parameters())
    inputs = {**batch, "use_cache": False}
    expected = run_operators(bare, "h", feedback, EDGES, inputs, 3, options, causal=not future)
    assert_exact(model(**batch).last_hidden_state, expected)


@every_case
def test_gradcheck(case):
    config = FeedbackConfig(feedback_rank=4, num_labels=3, feedback_edges=[[2, 0], [2, 1]], **CASES[case])
    feedback = randomize_messages(FeedbackConnectionsHolder(config)).feedback.double()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    context = MessageContext(mask, class_probabilities=torch.rand(2, 3, dtype=torch.float64).softmax(-1))

    def messages(h, x):
        return feedback.add_messages(x, 1, feedback({2: h}, context), context)

    h, x = (torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(messages, (h, x))


class FeedbackConnectionsHolder(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.feedback = FeedbackConnections(config, config.edges(3), 6)
        for _, parameter in self.feedback.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5)


# Who is told what


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["additive", "gated", "attention", "temporal", "joint", "joint+attention"])
def test_causal_stays_causal(name, family):
    """A later token cannot change an earlier position."""
    model = make(dict(feedback_type=name), family)
    ids = tiny_batch(padding="none")["input_ids"]
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % 90 + 5
    one, other = model(input_ids=ids).last_hidden_state, model(input_ids=changed).last_hidden_state
    assert torch.equal(one[:, :5], other[:, :5])
    assert not torch.equal(one[:, 5:], other[:, 5:])


@pytest.mark.parametrize("name", ["attention", "temporal", "context", "additive+context"])
def test_the_future_is_told_where_it_may_be(name):
    model = make(dict(feedback_type=name), "gpt2", FeedbackForSequenceClassification)
    ids = tiny_batch(padding="none")["input_ids"]
    changed = ids.clone()
    changed[:, -1] = 7

    def first_token(ids, k):
        return model(input_ids=ids, num_iterations=k, output_hidden_states=True).hidden_states[-1][:, 0]

    assert torch.equal(first_token(ids, 1), first_token(changed, 1))
    told = name != "temporal"  # whose news travels two tokens an iteration
    assert torch.equal(first_token(ids, 3), first_token(changed, 3)) != told


@in_float64(files=True)
def test_the_future_is_settled_when_the_model_is_made(tmp_path):
    options = dict(feedback_type="temporal")
    model = make(options, "gpt2", FeedbackForSequenceClassification)
    assert model.config.feedback_future is True
    model.save_pretrained(tmp_path)
    base, batch = FeedbackModel.from_pretrained(tmp_path), tiny_batch()
    expected = model(**batch, output_hidden_states=True).hidden_states[-1]
    assert_exact(base(**batch).last_hidden_state, expected)
    assert make(options, "gpt2").config.feedback_future is False
    assert make(options, "gpt2").feedback.sources["3"].V is None
    told = make(options, "gpt2", FeedbackForSequenceClassification, feedback_future=False)
    assert told.layout.causal
    assert make(options).config.feedback_future is True  # all tokens see each other


CLIP = dict(vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)


def test_who_reads_causally_is_found_out():
    """CLIP's text tower masks later tokens and its config does not say so; XLNet is among the models that predict the
    next token and reads both ways."""
    torch.manual_seed(0)
    tower = CLIPTextModel(CLIPTextConfig(**CLIP, projection_dim=32))
    options = dict(feedback_type="attention", feedback_rank=8, feedback_edges=EDGES)
    model = randomize_messages(FeedbackModel.from_backbone(tower, **options))
    ids = tiny_batch()["input_ids"]
    changed = ids.clone()
    changed[:, -1] = 7
    one, other = (model(input_ids=i, num_iterations=3).last_hidden_state[:, :-1] for i in (ids, changed))
    assert torch.equal(one, other)
    assert make(options, "xlnet").config.feedback_future is True
    assert make(dict(feedback_type="context"), "xlnet").check_equivalence(tiny_batch()) > 0


def test_no_v_without_a_future_is_said(caplog):
    warning_once.cache_clear()
    with caplog.at_level("WARNING", logger="hf_feedback.building"):
        make(dict(feedback_type="additive+temporal"), "gpt2")
    assert "'additive+temporal' goes without V" in caplog.text


def test_context_on_a_causal_model_is_refused():
    with pytest.raises(ValueError, match="allow that with `feedback_future=True`"):
        make(dict(feedback_type="context"), "gpt2")
    assert make(dict(feedback_type="context"), "gpt2", feedback_future=True).check_equivalence(tiny_batch()) > 0


@every_life_in_families
@in_float64()
def test_padding_leaks_nothing(case, family):
    model = make(LIVES[case], family, FeedbackForSequenceClassification, pooling="mean")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 99, (1, 6), generator=generator)
    alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    for side in ("right", "left"):
        if side == "left" and family != "bert":
            continue  # positions would differ
        filler = torch.randint(5, 99, (1, 3), generator=generator)
        parts = [ids, filler] if side == "right" else [filler, ids]
        masks = [torch.ones(1, 6).long(), torch.zeros(1, 3).long()]
        mask = torch.cat(masks if side == "right" else masks[::-1], 1)
        positions = {} if side == "right" else {"position_ids": torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4, 5]])}
        padded = model(input_ids=torch.cat(parts, 1), attention_mask=mask, **positions).logits
        assert_exact(padded, alone)


@in_float64()
def test_class_context():
    """The message is the class probabilities of the answer before, through an embedding."""
    options = dict(feedback_type="context", feedback_context="classes", num_labels=3)
    model, batch = make(options, cls=FeedbackForSequenceClassification), tiny_batch()
    assert model.feedback.sources["3"].down.in_features == 3
    seen = []
    model.feedback.register_forward_pre_hook(lambda _, args: seen.append(args[1].class_probabilities))
    output = model(**batch, output_iterations=True)
    assert len(seen) == 2
    for k in range(2):
        assert_exact(seen[k], output.iteration_logits[k].softmax(-1))
    fresh = make(options, cls=FeedbackForSequenceClassification, scale=0)
    assert fresh.check_equivalence(batch) == 0.0
    for cls in (FeedbackModel, FeedbackForTokenClassification):
        with pytest.raises(ValueError, match=f"{cls.__name__} gives none"):
            make(options, cls=cls)


# The rest of a model's life


@every_life
def test_saved(case, tmp_path):
    model, batch = make(LIVES[case], cls=FeedbackForSequenceClassification, dtype=torch.float64), tiny_batch()
    model.save_pretrained(tmp_path)
    loaded = FeedbackForSequenceClassification.from_pretrained(tmp_path)
    assert_exact(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("case", JOINED)
def test_compiled(case):
    torch._dynamo.reset()
    options = dict(cls=FeedbackForSequenceClassification, num_iterations=2, dtype=torch.float64)
    options |= dict(backbone_layers=[0, 1, 2], feedback_edges=[[1, 0], [2, 0], [2, 1]])  # fewer are compiled sooner
    model, batch = make(JOINED[case], **options), tiny_batch()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_exact(compiled(**batch).logits, model(**batch).logits)


@every_life
def test_nothing_is_idle(case):
    model = make(LIVES[case], cls=FeedbackForSequenceClassification).train()
    model(**tiny_batch(), labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@every_life
def test_flops_are_those_of_the_matrix_products(case):
    """What the summary says of one iteration's messages, against torch's counter."""
    model = make(LIVES[case], cls=FeedbackForSequenceClassification)
    length = 64
    h = {source: torch.randn(1, length, 32) for source in (2, 3)}
    context = MessageContext(class_probabilities=torch.rand(1, 3))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        source_messages = model.feedback(h, context)
        for target in (0, 2):
            model.feedback.add_messages(h[2], target, source_messages, context)
    claimed = int(re.search(r"messages, ([\d,]+) \(64 tokens\)", model.feedback_summary(length))[1].replace(",", ""))
    slack = 6 * length if "context" in LIVES[case]["feedback_type"] else 0  # rounded to a token
    assert abs(counter.get_total_flops() - claimed * length) <= slack


def test_sharing_means_one_set_of_weights():
    own, shared = (make({}, feedback_sharing=name, scale=0).feedback for name in ("edge", "targets"))
    assert own.sources["3"].up.weight.shape == (2, 32, 8)
    assert shared.sources["3"].up.weight.shape == (1, 32, 8)


WRONG = {
    "unknown": (dict(feedback_type="addition"), "`feedback_type` must be one of 'additive', 'gated'"),
    "twice": (dict(feedback_type="gated+gated"), "names an operator twice"),
    "no text": (dict(feedback_type=3), "`feedback_type` must be a text, got 3"),
    "heads": (dict(feedback_type="attention", feedback_heads=3), "must divide the rank of the messages, 8, got 3"),
    "sweeps": (dict(feedback_sweeps=1), "`feedback_sweeps` must be an integer of at least 2"),
    "signal": (dict(feedback_signal="difference"), "`feedback_signal` must be one of 'state', 'error'"),
    "sharing": (dict(feedback_sharing="all"), "`feedback_sharing` must be one of"),
    "context": (dict(feedback_context="pool"), "`feedback_context` must be one of"),
    "future": (dict(feedback_future="yes"), "`feedback_future` must be 'auto' or True or False"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(case):
    options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        FeedbackConfig(**{"feedback_rank": 8, **options})


def test_a_mask_of_another_shape_is_refused():
    model = make(dict(feedback_type="attention"))
    batch = tiny_batch()
    with pytest.raises(ValueError, match="needs an `attention_mask` of shape"):
        model(input_ids=batch["input_ids"], attention_mask=torch.ones(2, 1, 9, 9))
