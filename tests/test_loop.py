"""The sharp edges of record and replay."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from closeness import assert_rounding, in_float64
from families import randomize_messages, tiny_backbone, tiny_batch
from torch import nn
from transformers import AutoModel

from hf_feedback import FeedbackForSequenceClassification, FeedbackModel
from hf_feedback.layer_recorder import LayerHook
from hf_feedback.loop_record import LoopRecord

FAMILIES = ("bert", "deberta-v2", "modernbert", "qwen3")


def make(family="bert", seed=0, cls=FeedbackModel, **options):
    options = {"num_iterations": 3, "feedback_rank": 8, **options}
    return randomize_messages(cls.from_backbone(tiny_backbone(family, seed), **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_and_suffix_run_once(family):
    model = make(family, feedback_edges=[[2, 1]], num_iterations=5)
    calls = [0] * 4
    for index, layer in enumerate(model.layers):
        original = layer.forward

        def counted(*args, _index=index, _original=original, **kwargs):
            calls[_index] += 1
            return _original(*args, **kwargs)

        layer.forward = counted
    model(**tiny_batch())
    assert calls == [1, 5, 5, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_users_hooks_on_the_last_layer_fire_once_with_the_final_output(family):
    backbone, seen = tiny_backbone(family), []
    stack = "encoder.layer" if family in ("bert", "deberta-v2") else "layers"
    last = backbone.get_submodule(stack)[-1]
    last.register_forward_hook(lambda module, args, output: seen.append(output))  # before ours is there
    model = randomize_messages(FeedbackModel.from_backbone(backbone, num_iterations=3, feedback_rank=8))
    last.register_forward_hook(lambda module, args, output: seen.append(output))
    seen.clear()
    output = model(**tiny_batch(), output_hidden_states=True)
    assert len(seen) == 2
    hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert hidden is (seen[1][0] if isinstance(seen[1], tuple) else seen[1])
    if family in ("bert", "deberta-v2"):  # the others norm afterwards
        assert torch.equal(hidden, output.last_hidden_state)


def test_no_attentions_where_the_backbone_gives_none():
    model, batch = make(), tiny_batch()  # sdpa
    expected = tiny_backbone("bert")(**batch, output_attentions=True).attentions
    assert not expected
    for k in (1, 3):
        assert model(**batch, num_iterations=k, output_attentions=True).attentions == expected


def test_layouts_with_the_batch_second(tmp_path):
    """XLNet's layers see (tokens, batch, d)."""
    model, batch = make("xlnet"), tiny_batch()
    found = model(**batch, output_iterations=True, output_hidden_states=True)
    assert found.residuals.shape == (2, 2)
    assert all(state.shape == (2, 9, 32) for state in found.hidden_states)
    late = AutoModel.from_config(model.config).eval()  # built without weights of its own, loaded afterwards
    late.load_state_dict(model.state_dict())
    assert torch.equal(late(**batch, output_iterations=True).residuals, found.residuals)  # of copies: the same bits


def test_decoder_half_pools_its_last_token():
    from transformers import AutoConfig, BartModel

    torch.manual_seed(0)
    sizes = dict(vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=3, max_position_embeddings=64)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=37, decoder_ffn_dim=37)
    bart = BartModel(AutoConfig.for_model("bart", **sizes, **heads, pad_token_id=1)).eval()
    model = FeedbackForSequenceClassification.from_backbone(bart, backbone_part="decoder", feedback_rank=8)
    assert model.config.edges() == [(2, 0), (2, 1)]
    one, other = tiny_batch(0), tiny_batch(1)
    assert model.check_equivalence(one) == 0.0
    assert not torch.allclose(model(**one).logits, model(**other).logits)
    encoder = FeedbackForSequenceClassification.from_backbone(BartModel(bart.config), feedback_rank=8)
    assert encoder.config.edges() == [(1, 0)]


def test_forward_that_dies_leaves_nothing_behind():
    model, batch = make(), tiny_batch()
    expected = model(**batch).last_hidden_state
    layer = model.layers[1]
    original, calls = layer.forward, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    layer.forward = dies
    with pytest.raises(KeyboardInterrupt):
        model(**batch)
    del layer.forward
    assert torch.equal(model.backbone(**batch).last_hidden_state, model(**batch, num_iterations=1).last_hidden_state)
    assert torch.is_grad_enabled()
    assert torch.equal(model(**batch).last_hidden_state, expected)


def test_the_backbone_alone_is_untouched():
    backbone = tiny_backbone("bert")
    batch = tiny_batch()
    expected = backbone(**batch).last_hidden_state
    names = list(backbone.state_dict())
    model = randomize_messages(FeedbackModel.from_backbone(backbone, feedback_rank=8))
    assert not torch.equal(model(**batch).last_hidden_state, expected)
    assert torch.equal(backbone(**batch).last_hidden_state, expected)
    assert list(backbone.state_dict()) == [name for name in names if not name.startswith("pooler")]


def test_wrapping_twice_keeps_one_hook():
    backbone = tiny_backbone("bert")
    for _ in range(2):
        FeedbackModel.from_backbone(backbone, feedback_rank=8)
    hooks = [hook for layer in backbone.encoder.layer for hook in layer._forward_hooks.values()]
    assert sum(isinstance(hook, LayerHook) for hook in hooks) == 4


def test_threads_do_not_meet():
    model = make(feedback_topology="dense")
    batches = [tiny_batch(seed) for seed in range(8)]
    options = [dict(num_iterations=1 + seed % 4) for seed in range(8)]
    expected = [model(**batch, **o).last_hidden_state for batch, o in zip(batches, options, strict=True)]
    found, disabled = [None] * 8, [None] * 8

    def work(i):
        for _ in range(5):
            found[i] = model(**batches[i], **options[i]).last_hidden_state
            with model.feedback_disabled():
                disabled[i] = model(**batches[i], **options[i]).last_hidden_state

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        assert torch.equal(found[i], expected[i])
        assert torch.equal(disabled[i], model(**batches[i], num_iterations=1).last_hidden_state)


def test_disabling_one_model_leaves_another():
    one, other, batch = make(), make(seed=5), tiny_batch()
    expected = other(**batch).last_hidden_state
    with one.feedback_disabled():
        assert torch.equal(other(**batch).last_hidden_state, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(copied):
    model, batch = make(), tiny_batch()
    expected = model(**batch).last_hidden_state
    twin = copied(model)
    randomize_messages(model, seed=9)
    assert torch.equal(twin(**batch).last_hidden_state, expected)
    assert not torch.equal(model(**batch).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("family", "reentrant"),
    [*((family, False) for family in FAMILIES), ("bert", True), ("modernbert", True), ("qwen3", True)],
)  # the bare DeBERTa-v2 dies with reentrant checkpointing by itself
def test_activation_checkpointing_gives_equal_gradients(family, reentrant):
    model = make(family, feedback_topology="dense").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def gradients():
        model.zero_grad()
        model(**tiny_batch()).last_hidden_state.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = gradients()
    model.activation_checkpointing_disable()
    with in_float64():
        model.double()
        assert_rounding(checkpointed, plain, gradients())


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_compiled_without_breaks_equals_eager(family):
    torch._dynamo.reset()
    options = dict(backbone_layers=[0, 2], num_iterations=2)  # fewer, since tracing them takes long
    model, batch = make(family, **options), tiny_batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    @torch.no_grad()
    def answers(model, disabled=model.feedback_disabled):
        before = model(**batch).last_hidden_state
        with disabled():
            bare = model(**batch).last_hidden_state
        return {"before": before, "bare": bare, "after": model(**batch).last_hidden_state}

    found, other = answers(compiled), answers(model)
    with in_float64():
        exact = answers(model.double())
    assert_rounding(found, other, exact)


def test_replaced_connections_give_the_messages():
    """What wraps or swaps `model.feedback` (PEFT does) takes effect at the next call."""
    model, batch = make(), tiny_batch()
    before = model(**batch).last_hidden_state
    model.feedback = randomize_messages(make(seed=3), seed=8).feedback
    assert not torch.equal(model(**batch).last_hidden_state, before)


def test_replaced_layers_are_noticed():
    model = make()
    model.backbone.encoder.layer = copy.deepcopy(model.backbone.encoder.layer)
    model(**tiny_batch())  # copies bring their hooks along
    for layer in model.backbone.encoder.layer:
        layer._forward_hooks.clear()
    with pytest.raises(RuntimeError, match="replaced after the model was built"):
        model(**tiny_batch())


def test_data_parallel_is_refused():
    model = make()
    model._is_replica = True
    with pytest.raises(RuntimeError, match="torchrun"):
        model(**tiny_batch())


def test_a_cache_is_refused():
    with pytest.raises(ValueError, match="prefix-tuning"):
        make("llama")(**tiny_batch(), past_key_values=object())


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_wrong_k_for_one_call(value):
    with pytest.raises(ValueError, match="num_iterations"):
        make()(**tiny_batch(), num_iterations=value)


def test_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="did you mean `num_iterations`"):
        make()(**tiny_batch(), num_iteration=3)
    with pytest.raises(TypeError, match=r"`iteration_targets`: FeedbackModel\.forward takes none"):
        make()(**tiny_batch(), iteration_targets=torch.zeros(2, 1))


def test_set_num_iterations():
    model, batch = make(), tiny_batch()
    expected = model(**batch, num_iterations=5).last_hidden_state
    model.set_num_iterations(5)
    assert torch.equal(model(**batch).last_hidden_state, expected)
    with pytest.raises(ValueError, match="num_iterations"):
        model.set_num_iterations(0)
    assert model.config.num_iterations == 5


@pytest.mark.parametrize(
    "options", [{}, {"halting": "convergence"}, {"gradient": "implicit"}, {"gradient": "one_step"}]
)
def test_nothing_recorded_outlives_its_call(options, monkeypatch):
    model, batch = make(**options), tiny_batch()
    original, records = LoopRecord.__init__, []

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        records.append(weakref.ref(self))

    monkeypatch.setattr(LoopRecord, "__init__", init)
    gc.collect()
    gc.disable()  # what is left in a cycle would stay
    try:
        for training in (False, True):
            model.train(training)
            output = model(**batch, output_iterations=True, output_hidden_states=True)
            assert output.last_hidden_state.requires_grad
            assert records
            assert [record() for record in records if record() is not None] == []
    finally:
        gc.enable()
