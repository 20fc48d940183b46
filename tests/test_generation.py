"""Generation with a cache equals the whole text read at once: by family, operator, decoding method, kind of cache."""

import copy
import logging

import pytest
import torch
from closeness import assert_exact, in_float64
from families import EXPERTS, FAMILIES, GROUPED, SIZES, SLIDING, randomize_messages, tiny_config
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaModel,
    RobertaConfig,
    RobertaForCausalLM,
    StaticCache,
)

from hf_feedback import FeedbackConfig, FeedbackForCausalLM, FeedbackForSequenceClassification, add_feedback
from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments

# Decoders besides those of the table of families, whose tests of other things they would make long.
HEAD_DIM = {**GROUPED, "head_dim": 8}
GPT = dict(vocab_size=99, n_positions=64, n_embd=32, n_layer=4, n_head=4, pad_token_id=1)
MORE = {
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_bigcode": GPT,
    "falcon": SIZES,
    "gemma": HEAD_DIM,
    "granite": GROUPED,
    "cohere2": SLIDING,
    "starcoder2": GROUPED,
    "stablelm": GROUPED,
    "phi": SIZES,
    "glm4": HEAD_DIM,
    "qwen3_moe": {**GROUPED, **EXPERTS, "head_dim": 8, "num_experts": 4},
    "mamba": dict(vocab_size=99, hidden_size=32, num_hidden_layers=4, state_size=8, pad_token_id=1),
}
# The recurrent layers of the first keep their state themselves; the second has a cache of its own kind.
WITHOUT_SLOTS = {
    "recurrent_gemma": {**HEAD_DIM, "lru_width": 32, "attention_window_size": 4},
    "openai-gpt": GPT,
}
# Its upper two layers share keys and values, and read only the tokens whose logits are asked for.
SHARING = {
    **HEAD_DIM,
    **dict(num_kv_shared_layers=2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=99, sliding_window=4),
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
DECODERS = [name for name, family in FAMILIES.items() if family.decoder and name not in MORE] + list(MORE)
GREEDY = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=1)


def causal_lm(family):
    """A tiny random language model of the family."""
    torch.manual_seed(0)
    more = {**MORE, **WITHOUT_SLOTS, "gemma4_text": SHARING}
    config = AutoConfig.for_model(family, **more[family]) if family in more else tiny_config(family)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")  # others have no float64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.to(torch.get_default_dtype()).eval()


def feedback_lm(family="llama", **options):
    """The same with feedback, its messages not zero."""
    options = {"num_iterations": 3, "feedback_rank": 8, **options}
    return randomize_messages(FeedbackForCausalLM.from_backbone(causal_lm(family), **options))


def prompts(rows=2, length=7):
    return torch.randint(5, 99, (rows, length), generator=torch.Generator().manual_seed(1))


def padded_prompts():
    """Two prompts, the second with three padding tokens on the left."""
    ids = prompts()
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, batch=None, **options):
    """Token ids and logits of what was generated."""
    batch = {"input_ids": prompts()} if batch is None else batch
    found = model.generate(**batch, **{**GREEDY, **options}, output_logits=True, return_dict_in_generate=True)
    return found.sequences, torch.stack(found.logits, 1)


def assert_generates_the_whole_text(model, **options):
    """What was generated with a cache is what one call for the whole text, without a cache, predicts."""
    sequences, logits = generate(model, **options)
    whole = model(sequences, num_iterations=options.get("num_iterations")).logits[:, 6:-1]
    assert_exact(logits, whole)
    assert torch.equal(sequences[:, 7:], whole.argmax(-1))
    return logits


@pytest.mark.parametrize("family", DECODERS)
@in_float64()
def test_every_family(family):
    bare = causal_lm(family)
    expected = bare.generate(prompts(), **GREEDY)
    model = add_feedback(bare, FeedbackConfig(feedback_type="gated+attention", num_iterations=3, feedback_rank=8))
    assert type(model) is FeedbackForCausalLM
    assert torch.equal(model.generate(prompts(), **GREEDY), expected)
    randomize_messages(model)
    different = [assert_generates_the_whole_text(model, num_iterations=k) for k in (1, 2, 3)]
    assert not torch.allclose(different[0], different[1])
    assert not torch.allclose(different[1], different[2])
    whole = generate(model, num_beams=3, use_cache=False)[0]
    assert torch.equal(generate(model, num_beams=3)[0], whole)
    assert torch.equal(generate(model, num_beams=3, cache_implementation="static")[0], whole)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3", "qwen3_5"])
@in_float64()
def test_padding_on_the_left(family):
    """A padded prompt goes on as it does alone."""
    model = feedback_lm(family, feedback_type="attention+temporal")
    sequences, logits = generate(model, padded_prompts())
    alone, expected = generate(model, {"input_ids": padded_prompts()["input_ids"][1:, 3:]})
    assert torch.equal(sequences[1:, 3:], alone)
    assert_exact(logits[1:], expected)


@in_float64()
def test_padding_on_the_left_in_one_pass():
    model, batch = feedback_lm(feedback_shift=1), padded_prompts()
    alone = model(batch["input_ids"][1:, 3:], use_cache=True).logits
    assert_exact(model(**batch, use_cache=True).logits[1:, 3:], alone)


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2"])
@in_float64()
def test_padding_on_the_left_in_one_pass_is_refused_where_layers_carry_a_state(family):
    """The state would read the padding, one token at a time; a text without padding is read as without a mask."""
    model, batch = feedback_lm(family, feedback_shift=1), padded_prompts()
    with pytest.raises(ValueError, match="would read the padding before a text"):
        model(**batch, use_cache=True)
    unpadded = {name: value[:1] for name, value in batch.items()}
    assert_exact(model(**unpadded, use_cache=True).logits, model(unpadded["input_ids"], use_cache=True).logits)


OPTIONS = {
    "additive": {},
    "gated": dict(feedback_type="gated"),
    "joint": dict(feedback_type="joint"),
    "attention": dict(feedback_type="attention"),
    "temporal": dict(feedback_type="temporal"),
    "sum": dict(feedback_type="gated+attention+temporal"),
    "error": dict(feedback_type="attention+temporal", feedback_signal="error"),
    "shared": dict(feedback_type="attention", feedback_sharing="targets"),
    "shared error": dict(feedback_type="attention", feedback_sharing="targets", feedback_signal="error"),
    "every edge": dict(feedback_type="attention", feedback_topology="dense"),
    "a segment in the middle": dict(feedback_type="attention", feedback_edges=[[2, 1]]),
    "damped": dict(feedback_damping=0.5, feedback_type="attention"),
    "carried": dict(feedback_state="carry", feedback_type="attention"),
    "implicit": dict(gradient="implicit"),
    "fewer layers": dict(backbone_layers=[0, 1, 3], feedback_type="attention"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@in_float64()
def test_every_operator(family, options):
    assert_generates_the_whole_text(feedback_lm(family, **options))


METHODS = {
    "in chunks": dict(prefill_chunk_size=3),
    "static": dict(cache_implementation="static"),
    "static in chunks": dict(cache_implementation="static", prefill_chunk_size=3),
    "dynamic": dict(cache_implementation="dynamic"),
    "prompt lookup": dict(prompt_lookup_num_tokens=2),
    "assisted": dict(assistant_model="llama"),
    "without a cache": dict(use_cache=False),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@in_float64()
def test_every_way_to_the_same_tokens(family, method):
    model = feedback_lm(family, feedback_type="attention+temporal")
    prompt = {"input_ids": prompts(rows=1)}
    expected = generate(model, prompt, max_new_tokens=12)[0]
    if "assistant_model" in method:
        method = {"assistant_model": causal_lm(family)}
    assert torch.equal(generate(model, prompt, max_new_tokens=12, **method)[0], expected)


@pytest.mark.parametrize("options", [dict(num_beams=4, num_return_sequences=3), dict(do_sample=True, top_k=5)])
@in_float64()
def test_beams_and_samples(options):
    model, found = feedback_lm(feedback_type="attention"), []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(generate(model, padded_prompts(), use_cache=use_cache, **options)[0])
    assert torch.equal(*found)


@in_float64()
def test_scores_and_states():
    model = feedback_lm()
    asked = dict(output_scores=True, output_hidden_states=True, output_attentions=True, return_dict_in_generate=True)
    model.set_attn_implementation("eager")
    found = model.generate(prompts(), **GREEDY, **asked)
    whole = model(found.sequences, output_hidden_states=True, output_attentions=True)
    assert_exact(torch.stack(found.scores, 1), whole.logits[:, 6:-1])
    for layer in range(5):
        steps = [step[layer] for step in found.hidden_states]
        assert_exact(torch.cat(steps, 1), whole.hidden_states[layer][:, :-1])
    for layer in range(4):
        assert_exact(found.attentions[2][layer][:, :, 0], whole.attentions[layer][:, :, 8, :9])


@torch.no_grad()
@in_float64()
def test_a_conversation_goes_on_with_its_cache():
    """The user's own cache is filled in place, copied and cut; its slots are those of all iterations."""
    model, cache, text = feedback_lm(feedback_type="attention"), DynamicCache(), prompts(length=12)
    first = model(text[:, :5], past_key_values=cache)
    assert first.past_key_values is cache
    assert len(cache.layers) == 4 + 2 * (4 + 1)  # the segment again and one slot of messages, for iterations 2 and 3
    prefix = copy.deepcopy(cache)
    model(text[:, 5:9], past_key_values=cache)
    cache.crop(-2)
    found = model(text[:, 7:], past_key_values=cache).logits
    expected = model(text).logits[:, 7:]
    assert_exact(found, expected)
    assert_exact(model(text[:, 5:], past_key_values=prefix).logits[:, 2:], expected)
    cache.reset()
    assert_exact(model(text, past_key_values=cache, num_iterations=2).logits, model(text, num_iterations=2).logits)


@pytest.mark.parametrize("kind", ["additive", "attention"])
@in_float64()
def test_embeddings_as_a_prompt(kind):
    model = feedback_lm(feedback_type=kind)
    embedded = model.get_input_embeddings()(prompts())
    found = model.generate(inputs_embeds=embedded, **GREEDY)
    assert torch.equal(found, model.generate(prompts(), **GREEDY)[:, 7:])


@pytest.mark.parametrize("family", WITHOUT_SLOTS)
@in_float64()
def test_families_whose_state_iterations_would_share(family):
    """They read the whole text for every token, and say so."""
    model = feedback_lm(family, feedback_type="attention")
    assert model.layout.cache_argument is None
    assert_generates_the_whole_text(model)
    with pytest.raises(ValueError, match=r"has a cache of its own kind.*use `use_cache=False`"):
        model(prompts(), use_cache=True)
    model.config.halting = "convergence"
    with pytest.raises(ValueError, match=r"has a cache of its own kind.*use `halting='none'`"):
        model(prompts())


@pytest.mark.parametrize("kind", ["gated", "attention"])
@in_float64()
def test_layers_that_read_the_last_tokens_alone(kind):
    model = feedback_lm("gemma4_text", feedback_type=kind, feedback_edges=[[3, 2]])
    assert_generates_the_whole_text(model)
    whole, last = (model(prompts(), output_iterations=True, logits_to_keep=n) for n in (0, 2))
    assert_exact(last.logits, whole.logits[:, -2:])
    for logits, of_all in zip(last.iteration_logits, whole.iteration_logits, strict=True):
        assert_exact(logits, of_all[:, -2:])


def test_recurrent_layers_are_not_rolled_back():
    """As transformers refuses for the plain model."""
    for model in (causal_lm("qwen3_5"), feedback_lm("qwen3_5")):
        with pytest.raises(ValueError, match="not supported with stateful models"):
            model.generate(prompts(rows=1), prompt_lookup_num_tokens=2, **GREEDY)


@in_float64()
def test_logits_of_the_last_tokens_alone():
    model = feedback_lm()
    assert_exact(model(prompts(), logits_to_keep=2).logits, model(prompts()).logits[:, -2:])


# A state that is carried from token to token

SHIFTED = {
    "gated": dict(feedback_type="gated"),
    "additive": {},
    "joint": dict(feedback_type="joint"),
    "error": dict(feedback_signal="error"),
    "two edges": dict(feedback_edges=[[3, 1], [2, 0]]),
}


@pytest.mark.parametrize("options", SHIFTED.values(), ids=SHIFTED)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@in_float64()
def test_one_pass_a_token_is_the_limit_of_iterations(family, options):
    model = feedback_lm(family, feedback_shift=1, num_iterations=2, **options)
    sequences, logits = generate(model, padded_prompts())
    mask = torch.cat([padded_prompts()["attention_mask"], torch.ones(2, 6, dtype=torch.long)], 1)
    inputs = dict(attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    limit = model(sequences, **inputs, num_iterations=14).logits
    assert_exact(logits, limit[:, 6:-1])
    assert_exact(model(sequences, **inputs, use_cache=True).logits[1, 3:], limit[1, 3:])
    assert not torch.allclose(model(sequences, **inputs, num_iterations=3).logits[:, 6:-1], logits)
    assert_exact(generate(model, padded_prompts(), prefill_chunk_size=3)[1], logits)


@in_float64()
def test_gradients_of_one_pass_a_token():
    """Back-propagation through time is that of as many iterations as there are tokens."""
    model, found = feedback_lm(feedback_shift=1, feedback_type="gated").train(), []
    for options in (dict(use_cache=True), dict(num_iterations=8)):
        model.zero_grad()
        model(prompts(), labels=prompts(), **options).loss.backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert_exact(*found)


@in_float64()
def test_each_token_gets_the_messages_of_the_one_before():
    """In iteration 2 a change of one token's state of iteration 1 shows at the next token, and not at itself."""
    model = feedback_lm(feedback_shift=1, feedback_edges=[[3, 3 - 1]])
    text, other = prompts(rows=1), prompts(rows=1)
    other[0, -2] = (other[0, -2] + 1) % 90 + 5
    changed = [(model(text, num_iterations=k).logits - model(other, num_iterations=k).logits).abs() for k in (1, 2)]
    assert changed[1][0, :-2].max() == 0
    assert changed[1][0, -1].max() > 0


# Halting of single tokens

HALTING = {
    "convergence": dict(halting="convergence", halting_threshold=1.02),
    "confidence": dict(halting="confidence", halting_confidence=0.02),
    "patience": dict(halting="patience"),
    "both": dict(halting="patience+convergence", halting_threshold=1.4),
    "from the first": dict(halting="confidence", halting_confidence=0.02, min_iterations=1),
}
KINDS = {
    "additive": {},
    "attention": dict(feedback_type="attention+temporal"),
    "damped": dict(feedback_damping=0.7, feedback_type="attention"),
    "carried": dict(feedback_state="carry"),
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("rule", HALTING.values(), ids=HALTING)
@in_float64()
def test_tokens_stop_by_themselves(rule, options):
    model = feedback_lm(num_iterations=6, **options, **rule)
    sequences, logits = generate(model)
    whole = model(sequences)
    assert_exact(logits, whole.logits[:, 6:-1])
    assert whole.iterations.shape == sequences.shape
    alone = [model(sequences[:1, : t + 1]).iterations[0, -1] for t in range(sequences.shape[1])]
    assert whole.iterations[0].tolist() == [int(k) for k in alone]  # later tokens do not matter


@in_float64()
def test_some_tokens_stop_and_others_do_not():
    """The cases above are not idle: there are tokens that stop early, and they are not all alike."""
    counts = {
        name: set(feedback_lm(num_iterations=6, **rule)(prompts(length=13)).iterations.flatten().tolist())
        for name, rule in HALTING.items()
    }
    assert all(min(found) < 6 for found in counts.values()), counts
    assert all(len(found) > 1 for found in counts.values()), counts


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@in_float64()
def test_rules_that_never_hold_are_all_iterations(options):
    model = feedback_lm(num_iterations=4, **options)
    expected = generate(model)[1]
    model.config.halting, model.config.halting_threshold = "convergence", 0.0
    assert_exact(generate(model)[1], expected)
    assert_exact(model(prompts()).logits, feedback_lm(num_iterations=4, **options)(prompts()).logits)


def test_the_mean_over_tokens_leaves_padding_out(tmp_path):
    model = feedback_lm(halting="convergence", halting_threshold=1.02, num_iterations=6)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}, {"input_ids": [9, 5, 7], "labels": [9, 5, 7]}]
    data = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    padded = [
        {name: value + [{"labels": -100}.get(name, 0)] * (6 - len(value)) for name, value in row.items()}
        for row in data
    ]
    found = []
    for some in (data, padded, [padded[0], data[1]]):
        args = FeedbackTrainingArguments(str(tmp_path), per_device_eval_batch_size=1, report_to=[], use_cpu=True)
        found.append(FeedbackTrainer(model=model, args=args).evaluate(some)["eval_mean_iterations"])
    assert 1 < found[0] < 6
    assert found == pytest.approx([found[0]] * 3)


def test_halting_with_one_iteration_and_with_estimates():
    model = feedback_lm(halting="confidence", min_iterations=1)
    assert torch.equal(model(prompts(), num_iterations=1).logits, model.backbone(prompts(), use_cache=False).logits)
    assert model.generate(prompts(), num_iterations=1, **GREEDY).shape == (2, 13)
    expected = feedback_lm().estimate_contraction({"input_ids": prompts()})
    assert torch.equal(model.estimate_contraction({"input_ids": prompts()}), expected)


@in_float64()
def test_what_a_stopped_token_leaves_in_the_cache():
    """The keys, values and states of its last iteration, in the slots of all that it does not take."""
    model = feedback_lm(num_iterations=4, halting="convergence", halting_threshold=1e9, min_iterations=2)
    cache = model(prompts(), use_cache=True).past_key_values
    model.config.halting = "none"
    two = model(prompts(), use_cache=True, num_iterations=2).past_key_values
    for k in (2, 3, 4):
        for layer in range(4):
            assert_exact(cache.layers[4 * (k - 1) + layer].keys, two.layers[4 + layer].keys)


def test_layers_are_not_run_where_all_tokens_have_stopped():
    model, calls = feedback_lm(num_iterations=6, halting="convergence", halting_threshold=1e9), []
    model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    model.generate(prompts(), **GREEDY)
    assert len(calls) == 6 * 2  # two iterations for the prompt and for each new token but the last


# Language modelling


@in_float64()
def test_the_loss_is_that_of_the_backbone():
    bare, text = causal_lm("llama"), prompts()
    labels = text.masked_fill(torch.rand(text.shape, generator=torch.Generator().manual_seed(0)) < 0.3, -100)
    for items in (None, 40):
        expected = bare(text, labels=labels, num_items_in_batch=items).loss
        model = FeedbackForCausalLM.from_backbone(causal_lm("llama"), feedback_rank=8)
        assert_exact(model(text, labels=labels, num_items_in_batch=items).loss, expected)


@in_float64()
def test_the_loss_has_that_of_the_router():
    """With `output_router_logits`, experts are kept equally busy, in all iterations."""
    bare, text = causal_lm("mixtral"), prompts()
    bare.config.output_router_logits = True
    expected, plain = bare(text, labels=text).loss, bare(text, labels=text, output_router_logits=False).loss
    assert (expected - plain).abs() > 1e-3
    model = FeedbackForCausalLM.from_backbone(bare, feedback_rank=8)
    assert_exact(model(text, labels=text, num_iterations=1).loss, expected)
    assert_exact(model(text, labels=text, num_iterations=3).loss, expected)


def test_a_router_without_a_weight_for_its_loss(monkeypatch):
    monkeypatch.setattr("hf_feedback.extra_losses.BALANCE_WEIGHTS", ("router_weight",))
    bare, text = causal_lm("mixtral"), prompts()
    bare.config.output_router_logits = True
    with pytest.raises(ValueError, match=r"`output_router_logits`: .* no weight .*\(one of router_weight\)"):
        FeedbackForCausalLM.from_backbone(bare)(text, labels=text)


@in_float64()
def test_losses_of_parts_add_up_to_that_of_the_batch():
    model = feedback_lm(iteration_loss="linear", jacobian_penalty=0.0).train()
    text, labels = prompts(rows=4), prompts(rows=4)
    labels[0, :4] = -100
    items = int((labels[:, 1:] != -100).sum())
    whole = model(text, labels=labels).loss
    parts = [model(text[i : i + 2], labels=labels[i : i + 2], num_items_in_batch=items).loss for i in (0, 2)]
    assert_exact(sum(parts), whole)


def test_messages_do_not_tell_of_later_tokens():
    for kind in ("additive", "attention", "temporal", "attention+temporal"):
        model = feedback_lm(feedback_type=kind)
        assert model.config.feedback_future is False
        text = prompts().requires_grad_(False)
        embedded = model.get_input_embeddings()(text).detach().requires_grad_()
        model(inputs_embeds=embedded).logits[:, 3].sum().backward()
        assert embedded.grad[:, 4:].abs().max() == 0
        assert embedded.grad[:, :4].abs().min() > 0


def test_saving_keeps_tied_embeddings_and_how_to_generate(tmp_path):
    bare = LlamaForCausalLM(tiny_config("llama", tie_word_embeddings=True)).eval()
    bare.generation_config.max_new_tokens = 3
    model = randomize_messages(FeedbackForCausalLM.from_backbone(bare, feedback_rank=8))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is FeedbackForCausalLM
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert loaded.generation_config.max_new_tokens == 3
    assert torch.equal(loaded.generate(prompts(), do_sample=False), model.generate(prompts(), do_sample=False))


# Bad input


def cache_of(model, **options):
    """The cache of the prompts."""
    return model(prompts(), use_cache=True, **options).past_key_values


def offloading_cache():
    cache = DynamicCache()
    cache.offloading = True
    return cache


def go_on_without_feedback(model, ids):
    cache = cache_of(model, num_iterations=2)
    with model.feedback_disabled():
        model(ids[:, :1], past_key_values=cache)


def batch_continuously(model, ids):
    with model.continuous_batching_context_manager():
        pass


OTHER_CACHE = "another number of iterations than this call has, 3"
CONTINUOUS = "`generate_batch`: continuous batching has one cache .*FeedbackForCausalLM cannot use it; call `generate`"
SHORT_MASK = r"must show the tokens in the cache too, \(batch, 8\), got \(2, 1\)"
GUIDED = "`num_iterations`=2 would not go to the calls without a prompt"
GUIDED_CONFIG = GenerationConfig(guidance_scale=3.0)
EARLY = "`assistant_early_exit`=2 drafts tokens with the first layers alone"
EARLY_CONFIG = GenerationConfig(assistant_early_exit=2)
# options of the model, what is called with the model and token ids, words of the error
REFUSED = {
    "empty prompt": ({}, lambda model, ids: model.generate(ids[:, :0]), "the prompt is empty"),
    "no token": ({}, lambda model, ids: model(ids[:, :0]), "no token to read"),
    "cache of another K": (
        {},
        lambda model, ids: model(ids[:, :1], past_key_values=cache_of(model, num_iterations=2)),
        OTHER_CACHE,
    ),
    "cache of another K, generated": (
        {},
        lambda model, ids: model.generate(
            torch.cat([ids, ids], 1), past_key_values=cache_of(model, num_iterations=2), **GREEDY
        ),
        OTHER_CACHE,
    ),
    "cache of the backbone": (
        {},
        lambda model, ids: model(ids[:, :1], past_key_values=cache_of(model.backbone)),
        OTHER_CACHE,
    ),
    "cache with feedback, then without": ({}, go_on_without_feedback, "Inside `feedback_disabled\\(\\)` it is 1"),
    "cache of the backbone, one pass": (
        dict(feedback_shift=1),
        lambda model, ids: model(ids[:, :1], past_key_values=cache_of(model.backbone)),
        "than this call has, one pass a token",
    ),
    "cache that offloads": (
        {},
        lambda model, ids: model(ids, past_key_values=offloading_cache()),
        "loads one layer ahead",
    ),
    "continuous batches": ({}, lambda model, ids: model.generate_batch(ids.tolist(), max_new_tokens=2), CONTINUOUS),
    "continuous batches, begun": ({}, lambda model, ids: model.init_continuous_batching(), CONTINUOUS),
    "continuous batches, entered": ({}, batch_continuously, CONTINUOUS),
    "short mask, attention": (
        dict(feedback_type="attention"),
        lambda model, ids: model(ids[:, :1], attention_mask=torch.ones(2, 1), past_key_values=cache_of(model)),
        SHORT_MASK,
    ),
    "short mask, one pass": (
        dict(feedback_shift=1),
        lambda model, ids: model(ids[:, :1], attention_mask=torch.ones(2, 1), past_key_values=cache_of(model)),
        SHORT_MASK,
    ),
    "mask of pairs, one pass": (
        dict(feedback_shift=1),
        lambda model, ids: model(ids, attention_mask=torch.ones(2, 1, 7, 7, dtype=torch.bool).tril(), use_cache=True),
        r"`attention_mask` must be \(batch, tokens\) in one pass .*, got \(2, 1, 7, 7\)",
    ),
    "K for the assistant": (
        {},
        lambda model, ids: model.generate(ids[:1], assistant_model=causal_lm("llama"), num_iterations=2, **GREEDY),
        "`num_iterations`=2 would go to the assistant too",
    ),
    "K with guidance": ({}, lambda model, ids: model.generate(ids, num_iterations=2, guidance_scale=3.0), GUIDED),
    "K with guidance of a config": (
        {},
        lambda model, ids: model.generate(ids, num_iterations=2, generation_config=GUIDED_CONFIG),
        GUIDED,
    ),
    "early exit": ({}, lambda model, ids: model.generate(ids[:1], assistant_early_exit=2), EARLY),
    "early exit of a config": ({}, lambda model, ids: model.generate(ids[:1], generation_config=EARLY_CONFIG), EARLY),
    "early exit, by position": ({}, lambda model, ids: model.generate(ids[:1], EARLY_CONFIG), EARLY),
    "iterations of generation": (
        {},
        lambda model, ids: model.generate(ids, output_iterations=True),
        "`output_iterations=True` is for `forward`",
    ),
    "iterations with a cache": (
        {},
        lambda model, ids: model(ids, use_cache=True, output_iterations=True),
        "have but one; call with `use_cache=False`",
    ),
    "iterations with halting": (
        dict(halting="patience"),
        lambda model, ids: model(ids, output_iterations=True),
        "have but one; call with `halting='none'`",
    ),
    "loss of iterations with a cache": (
        dict(iteration_loss="uniform"),
        lambda model, ids: model.train()(ids, labels=ids, use_cache=True),
        "a loss of every iteration",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_generation_refuses(case):
    options, call, words = REFUSED[case]
    model = feedback_lm(**options)
    with pytest.raises(ValueError, match=words):
        call(model, prompts())


NO_CACHES = {
    "pairs": lambda: ((1, 2),),
    "of encoder and decoder": lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()),
}


@pytest.mark.parametrize("kind", NO_CACHES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # the second numbers its positions
def test_what_is_no_cache_with_layers_is_refused(family, kind):
    with pytest.raises(TypeError, match="must be a Cache of transformers with layers"):
        feedback_lm(family)(prompts(), past_key_values=NO_CACHES[kind]())


def test_a_classifier_does_not_generate():
    classifier = FeedbackForSequenceClassification.from_backbone(LlamaModel(tiny_config("llama")))
    with pytest.raises(AttributeError, match="generate"):
        classifier.generate(prompts())


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (dict(gradient="implicit"), "`gradient`='implicit'"),
        (dict(jacobian_penalty=0.1), "`jacobian_penalty`=0.1"),
        (dict(), "activation checkpointing"),
        (dict(feedback_shift=1), "activation checkpointing"),
    ],
)
def test_training_that_would_fill_a_cache_twice(options, cause):
    model = feedback_lm(**options).train()
    if cause == "activation checkpointing":
        model.activation_checkpointing_enable()
    model(prompts(), labels=prompts()).loss.backward()
    with pytest.raises(ValueError, match=f"{cause} runs iterations again"):
        model(prompts(), use_cache=True)


def test_caches_that_are_too_small():
    model, config = feedback_lm(), tiny_config("llama")
    with pytest.raises(ValueError, match="room for 8 tokens, and prompt and new tokens are up to 12"):
        model.generate(prompts(), past_key_values=StaticCache(config=config, max_cache_len=8), **GREEDY)
    cache = StaticCache(config=config, max_cache_len=16)
    cache.early_initialization(batch_size=2, num_heads=2, head_dim=8, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="room for 2 rows, and there are 6, beams included"):
        model.generate(prompts(), past_key_values=cache, num_beams=3, **GREEDY)


def test_prompts_that_are_too_long():
    bare = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_positions=8, n_embd=32, n_layer=4, n_head=4)).eval()
    model = FeedbackForCausalLM.from_backbone(bare, feedback_rank=8)
    with pytest.raises(ValueError, match="9 tokens, and GPT2LMHeadModel has learned 8 positions"):
        model(prompts(length=9))
    with pytest.raises(ValueError, match="9 tokens, and GPT2LMHeadModel has learned 8 positions"):
        model.generate(prompts(), **GREEDY)
    sizes = {**SIZES, "max_position_embeddings": 18}
    counts_from_padding = RobertaForCausalLM(RobertaConfig(**sizes, is_decoder=True)).eval()
    model = FeedbackForCausalLM.from_backbone(counts_from_padding, feedback_rank=8)
    assert model(prompts(length=16)).logits.shape == (2, 16, 99)
    with pytest.raises(ValueError, match="17 tokens, and RobertaForCausalLM has learned 16 positions"):
        model(prompts(length=17))


LONG_MASKS = {
    "of one token": dict(feedback_type="gated"),
    "of earlier tokens": dict(feedback_type="attention"),
    "of the token before": dict(feedback_shift=1),
    "with tokens that stop": dict(halting="convergence", halting_threshold=1.0, num_iterations=5),
}


@pytest.mark.parametrize("kind", LONG_MASKS)
@pytest.mark.parametrize("use_cache", [False, True])
def test_a_mask_may_be_made_for_tokens_to_come(kind, use_cache):
    batch, model = padded_prompts(), feedback_lm(**LONG_MASKS[kind])
    mask, more = batch["attention_mask"], torch.zeros(2, 6, dtype=torch.long)
    batch |= {"position_ids": (mask.cumsum(1) - 1).clamp(min=0), "use_cache": use_cache}
    expected = model(**batch).logits[mask.bool()]
    found = model(**{**batch, "attention_mask": torch.cat([mask, more], 1)}).logits[mask.bool()]
    assert torch.equal(found, expected)


def test_one_pass_a_token_needs_a_cache(caplog):
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level("WARNING", logger="hf_feedback"):
        feedback_lm(feedback_shift=1).generate(prompts(), use_cache=False, **GREEDY)
    assert "`feedback_shift`=1 without a cache: the whole text is read 3 times for every token" in caplog.text


def test_padding_that_no_mask_shows():
    model, batch = feedback_lm(), padded_prompts()
    ambiguous = {**GREEDY, "pad_token_id": 1, "eos_token_id": 1}
    with pytest.raises(ValueError, match="`attention_mask` is missing"):
        model.generate(batch["input_ids"], **ambiguous)
    shown = model.generate(**batch, **ambiguous)
    assert torch.equal(model.generate(batch["input_ids"], **{**ambiguous, "eos_token_id": None}), shown)


def test_what_language_models_refuse():
    bare = causal_lm("llama")
    with pytest.raises(ValueError, match="LlamaModel has none; pass LlamaForCausalLM"):
        FeedbackForCausalLM.from_backbone(bare.model)
    with pytest.raises(ValueError, match="`feedback_future=True` informs tokens about later ones"):
        FeedbackForCausalLM.from_backbone(bare, feedback_future=True)
    with pytest.raises(ValueError, match="sends messages from the whole text"):
        FeedbackForCausalLM.from_backbone(bare, feedback_type="context")
    with pytest.raises(ValueError, match="reads later tokens too"):
        FeedbackForCausalLM.from_backbone(BertLMHeadModel(BertConfig(**SIZES)))
    decoder = BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)).eval()
    assert FeedbackForCausalLM.from_backbone(decoder, feedback_rank=8).generate(prompts(), **GREEDY).shape == (2, 13)


NEVER_STOPS = {
    "layers above": (dict(feedback_edges=[[2, 1]], halting="confidence"), "layers above those that loop"),
    "a state": (dict(family="lfm2", halting="convergence"), "a LinearAttentionLayer caches something else"),
    "the error": (
        dict(feedback_type="attention", feedback_signal="error", halting="convergence"),
        "`feedback_signal='error'`",
    ),
}


@pytest.mark.parametrize("case", NEVER_STOPS)
def test_halting_is_refused_where_tokens_cannot_stop(case):
    """With one iteration there is nothing to stop."""
    options, message = NEVER_STOPS[case]
    model = feedback_lm(**options)
    with pytest.raises(ValueError, match=message):
        model.generate(prompts(), **GREEDY)
    expected = model.backbone.generate(prompts(), **GREEDY)
    assert torch.equal(model.generate(prompts(), num_iterations=1, **GREEDY), expected)
    with model.feedback_disabled():
        assert torch.equal(model.generate(prompts(), **GREEDY), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(feedback_shift=2), "must be at most 1"),
        (dict(feedback_shift=1, feedback_type="attention"), "is for messages of single tokens"),
        (dict(feedback_shift=1, halting="convergence"), "excludes `halting`"),
        (dict(feedback_shift=1, feedback_damping=0.5), "excludes `feedback_damping`"),
        (dict(feedback_shift=1, feedback_state="carry"), "excludes `feedback_state`"),
    ],
)
def test_what_a_shift_excludes(options, message):
    with pytest.raises(ValueError, match=message):
        FeedbackConfig(**options)
