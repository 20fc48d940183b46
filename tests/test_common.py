"""Properties that transformers' own common model tests check."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from builders import HEADED, NAMES, REPRESENTATIVE, answers, batch_for, first_head, headed, targets_for, task_model
from closeness import assert_exact, assert_half, in_float64
from families import randomize_messages, tiny_backbone, tiny_batch, tiny_config, to
from transformers import AutoModelForSequenceClassification

from hf_feedback import FeedbackConfig, FeedbackForSequenceClassification, FeedbackModel, add_feedback

LABELS = torch.tensor([0, 2])


def make(family="bert", cls=FeedbackForSequenceClassification, **options):
    options = {"feedback_rank": 8, "num_iterations": 3, **options}
    return randomize_messages(cls.from_backbone(tiny_backbone(family), **options))


def make_on_head(family="bert", **options):
    torch.manual_seed(0)
    tuned = AutoModelForSequenceClassification.from_config(tiny_config(family, num_labels=3)).eval()
    return randomize_messages(add_feedback(tuned, FeedbackConfig(feedback_rank=8, num_iterations=3, **options)))


@pytest.mark.parametrize("build", [make, make_on_head])
@pytest.mark.parametrize("layers", [None, [0, 1, 3]], ids=["all layers", "some layers"])
@in_float64(files=True)
def test_resized_embeddings(build, layers, tmp_path):
    model, batch = build(backbone_layers=layers), tiny_batch()
    expected = model(**batch).logits
    model.resize_token_embeddings(120)
    assert model.get_input_embeddings().num_embeddings == 120
    assert model.config.vocab_size == model.backbone.config.vocab_size == 120
    assert_exact(model(**batch).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().num_embeddings == 120
    assert_exact(loaded(**batch).logits, model(**batch).logits)


def test_input_embeddings_can_be_replaced():
    model = make()
    new = torch.nn.Embedding(99, 32)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    assert model.backbone.get_input_embeddings() is new


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision(family, dtype):
    model, batch = randomize_messages(make(family), scale=1.0), tiny_batch()
    full, plain = model(**batch).logits, model(**batch, num_iterations=1).logits
    model.to(dtype)
    found = model(**batch, labels=torch.tensor([0, 1]))
    assert found.logits.dtype == dtype
    assert_half(found.logits, full, plain, dtype)
    found.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    fresh = FeedbackModel.from_backbone(tiny_backbone(family).to(dtype), feedback_rank=8, num_iterations=4)
    assert fresh.check_equivalence(batch) == 0.0


def gradients(model, inputs, autocast=False, **options):
    """The loss's gradients by the parameter's name, of the same random numbers each time, and the output."""
    model.zero_grad()
    torch.manual_seed(0)
    np.random.seed(0)  # SpecAugment
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**inputs, **options)
    output.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, output


def assert_autocast_gradients(model, inputs):
    """All products are computed in bfloat16, and the gradients, of the feedback and in all, are those of float32."""
    full, plain = gradients(model, inputs)[0], gradients(model, inputs, num_iterations=1)[0]
    dtypes = set()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [one.register_forward_hook(lambda _, arguments, product: dtypes.add(product.dtype)) for one in linear]
    found, output = gradients(model, inputs, autocast=True)
    for hook in hooks:
        hook.remove()
    assert {value.dtype for value in answers(output).values()} == dtypes == {torch.bfloat16}
    assert output.loss.isfinite()
    assert found.keys() == full.keys()
    plain = {name: plain.get(name, torch.zeros_like(gradient)) for name, gradient in full.items()}
    assert_half(found, full, plain, torch.bfloat16)
    found, full, plain = ({n: g for n, g in one.items() if "feedback." in n} for one in (found, full, plain))
    assert_half(found, full, plain, torch.bfloat16)


@pytest.mark.parametrize("family", ["bert", "llama", "modernbert"])
def test_autocast(family):
    model, batch = randomize_messages(make(family), scale=1.0), tiny_batch()
    assert_autocast_gradients(model, {**batch, "labels": torch.tensor([0, 1])})
    with torch.autocast("cpu", torch.bfloat16):
        fresh = FeedbackModel.from_backbone(tiny_backbone(family), feedback_rank=8, num_iterations=3)
        assert fresh.check_equivalence(batch) == 0.0


@in_float64()
def test_feed_forward_chunking():
    model, batch = make(), tiny_batch()
    expected = model(**batch).logits
    for layer in model.layers:
        layer.chunk_size_feed_forward = 3
    assert_exact(model(**batch).logits, expected)


@in_float64(files=True)
def test_device_map(tmp_path):
    model, batch = make(), tiny_batch()
    model.save_pretrained(tmp_path)
    loaded = FeedbackForSequenceClassification.from_pretrained(tmp_path, device_map="auto")
    assert_exact(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("device_map", "warns"), [({"": "cpu"}, False), ({"a": 0, "b": "cpu"}, True), ({"": "disk"}, True)], ids=str
)
def test_offloaded_layers_are_warned_of(device_map, warns, caplog):
    backbone = tiny_backbone("bert")
    backbone.hf_device_map = device_map
    with caplog.at_level("WARNING", logger="hf_feedback"):
        FeedbackModel.from_backbone(backbone, feedback_rank=8)
    assert ("loaded anew in every iteration" in caplog.text) == warns


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "qwen3"])
@in_float64()
def test_one_by_one_equals_a_batch(family):
    model, batch = make(family), tiny_batch()
    together = model(**batch).logits
    for i in range(2):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        assert_exact(model(**one).logits, together[i : i + 1])


@in_float64()
def test_sdpa_equals_eager():
    model, batch = make(), tiny_batch()
    expected = model(**batch).logits
    model.set_attn_implementation("eager")
    assert model.backbone.config._attn_implementation == "eager"
    assert_exact(model(**batch).logits, expected)


def test_output_flags_of_the_config():
    model, batch = make(), tiny_batch()
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 5
    model.config.output_hidden_states = False
    assert model(**batch).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(**batch), tuple)


def test_initialization_is_what_it_says():
    """Also when a config alone makes the model, and on the meta device."""
    config = FeedbackConfig(backbone_config=tiny_config("bert"), feedback_rank=8, num_labels=3)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    source = model.feedback.sources["3"]
    assert source.up.weight.abs().max() == 0
    assert source.activation.beta.tolist() == [1.0] * 3
    assert source.down.weight.std().item() == pytest.approx(32**-0.5, rel=0.15)
    assert source.norm.weight.tolist() == [1.0] * 32
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.3)
    with torch.device("meta"):
        empty = FeedbackForSequenceClassification(copy.deepcopy(config))
    assert {p.device.type for p in empty.parameters()} == {"meta"}


def test_gradients_reach_every_parameter():
    """Nothing in a feedback model is idle, as distributed training demands."""
    model = make(feedback_topology="dense").train()
    model(**tiny_batch(), labels=LABELS % 2).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# Every head, new and the backbone's own


TEXT = [(name, head) for name, head in HEADED if REPRESENTATIVE.get(name) in (None, "gpt2")]
text_headed = pytest.mark.parametrize(("name", "head"), TEXT, ids=[f"{n}-{h}" for n, h in TEXT])


def made(name, head, **options):
    """A model with messages that are not zero, and a batch for it."""
    family = REPRESENTATIVE.get(name, "bert")
    return randomize_messages(task_model(name, head, **options)), batch_for(name, family)


def assert_same_bits(one, other):
    for key, value in answers(one).items():
        assert torch.equal(answers(other)[key], value), key


@headed
def test_tuples_are_the_same_as_dicts(name, head):
    model, batch = made(name, head)
    expected = model(**batch, **targets_for(name), output_hidden_states=True)
    found = model(**batch, **targets_for(name), output_hidden_states=True, return_dict=False)
    assert isinstance(found, tuple)
    assert len(found) == len([value for value in expected.values() if value is not None])
    assert torch.equal(found[0], expected.loss)
    assert torch.equal(found[1], next(iter(answers(expected).values())))


@headed
@in_float64()
def test_numbers_and_shapes_of_states_and_attentions(name, head):
    model, batch = made(name, head)
    model.set_attn_implementation("eager")
    found = model(**batch, output_hidden_states=True, output_attentions=True)
    assert len(found.hidden_states) == 5
    assert len(found.attentions) == 4
    rows, length, width = found.hidden_states[-1].shape
    assert width == 32
    assert {tuple(state.shape) for state in found.hidden_states} == {(rows, length, 32)}
    assert {tuple(weights.shape) for weights in found.attentions} == {(rows, 4, length, length)}
    for weights in found.attentions:
        assert_exact(weights.sum(-1), torch.ones(rows, 4, length))
    assert model(**batch).hidden_states is model(**batch).attentions is None


@headed
@pytest.mark.parametrize("reentrant", [False, True])
@in_float64()
def test_checkpointed_gradients(name, head, reentrant):
    """Dropout and all: what is computed again is what was computed before."""
    model, batch = made(name, head)
    inputs = {**batch, **targets_for(name)}
    plain, _ = gradients(model.train(), inputs)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed, _ = gradients(model, inputs)
    assert_exact(checkpointed, plain)


@headed
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_of_every_head(name, head, dtype):
    model, batch = made(name, head)
    randomize_messages(model, scale=1.0)
    full, plain = answers(model(**batch)), answers(model(**batch, num_iterations=1))
    model = model.half() if dtype == torch.float16 else model.bfloat16()
    found = answers(model(**to(batch, dtype)))
    assert found.keys() == full.keys()
    for key, value in found.items():
        assert value.dtype == dtype
        assert_half(value, full[key], plain[key], dtype)


@headed
def test_training_under_autocast(name, head):
    """Dropout and all."""
    model, batch = made(name, head)
    assert_autocast_gradients(randomize_messages(model, scale=1.0).train(), {**batch, **targets_for(name)})


@pytest.mark.parametrize("name", NAMES)
def test_compiled_equals_eager(name):
    torch._dynamo.reset()
    head = "backbone" if name in ("TokenClassification", "MaskedLM", "ImageClassification") else first_head(name)
    model, batch = made(name, head, num_iterations=2, backbone_layers=[0, 1])
    model, batch = model.double(), to(batch, torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_exact(answers(compiled(**batch)), answers(model(**batch)))


@headed
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(name, head, copied):
    # weight norm, which Wav2Vec2 has, cannot be pickled
    family = "whisper" if name == "AudioClassification" else REPRESENTATIVE.get(name, "bert")
    model, batch = randomize_messages(task_model(name, head, family)), batch_for(name, family)
    expected = model(**batch)
    twin = copied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same_bits(twin(**batch), expected)


@headed
@in_float64()
def test_attention_implementations(name, head):
    model, batch = made(name, head)
    expected = answers(model(**batch))
    model.set_attn_implementation("eager")
    assert_exact(answers(model(**batch)), expected)


@headed
@in_float64()
def test_a_batch_equals_its_rows(name, head):
    model, batch = made(name, head)
    together = answers(model(**batch))
    for row in range(2):
        alone = model(**{key: value[row : row + 1] for key, value in batch.items()})
        assert_exact(answers(alone), {key: value[row : row + 1] for key, value in together.items()})


@headed
def test_threads(name, head):
    model, batch = made(name, head)
    ks = [1, 2, 3, 4]
    with torch.no_grad():
        expected = [model(**batch, num_iterations=k) for k in ks]
    found = {}

    def ask(k):
        with torch.no_grad():
            found[k] = [model(**batch, num_iterations=k) for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(k,)) for k in ks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, right in zip(ks, expected, strict=True):
        for answer in found[k]:
            assert_same_bits(answer, right)


@text_headed
@in_float64(files=True)
def test_embeddings_of_every_head(name, head, tmp_path):
    model, batch = made(name, head)
    expected = answers(model(**batch))
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    ids = batch.pop("input_ids")
    assert_exact(answers(model(inputs_embeds=embeddings(ids), **batch)), expected)
    model.resize_token_embeddings(107)
    found = answers(model(input_ids=ids, **batch))
    assert_exact({key: value[..., : expected[key].shape[-1]] for key, value in found.items()}, expected)
    model.save_pretrained(tmp_path)
    loaded = NAMES[name].from_pretrained(tmp_path)
    assert loaded.config.vocab_size == loaded.get_input_embeddings().num_embeddings == 107
    assert_exact(answers(loaded(input_ids=ids, **batch)), found)


@text_headed
@in_float64()
def test_feed_forward_chunks(name, head):
    model, batch = made(name, head)
    expected = answers(model(**batch))
    for layer in model.layers:
        layer.chunk_size_feed_forward = 3
    assert_exact(answers(model(**batch)), expected)


@headed
@in_float64(files=True)
def test_dtypes_and_device_map_when_loading(name, head, tmp_path):
    model, batch = made(name, head)
    model.save_pretrained(tmp_path)
    placed = NAMES[name].from_pretrained(tmp_path, device_map="auto")
    assert_exact(answers(placed(**batch)), answers(model(**batch)))
    for dtype in (torch.bfloat16, torch.float16):
        loaded = NAMES[name].from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
