"""Segment memory: messages, their answers joined, pairs of texts, and answers for tokens."""

import copy
import re

import pytest
import torch
from closeness import assert_exact, in_float64
from families import randomize_messages, tiny_backbone
from reference import Parts
from test_segments import LENGTHS, OPTIONS, alone, long_batch, windows
from transformers import AutoTokenizer, BertForSequenceClassification, RobertaTokenizer

from hf_feedback import (
    FeedbackForQuestionAnswering,
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
)
from hf_feedback.cutting import Cutting, special_tokens_of

MEMORY = {**OPTIONS, "feedback_type": "memory", "segment_summaries": 3, "feedback_heads": 2}


def make(family="bert", cls=FeedbackForSequenceClassification, scale=0.3, **more):
    options = {"num_iterations": 3, **MEMORY, **more}
    if cls is not FeedbackForQuestionAnswering:
        options["num_labels"] = 3
    model = cls.from_backbone(tiny_backbone(family).double(), **options)
    if not scale:
        return model
    generator = torch.Generator().manual_seed(3)
    for name, parameter in randomize_messages(model, scale=scale).named_parameters():
        if name.endswith(("distance.weight", "segment_pooling.query.weight")):
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


# Memory


def states_of(model, bare, ids, k, far=4, heads=2):
    """The last states of each segment of one text, `(n, d)` each: run one by one, and the equation written out."""
    rows = [torch.tensor([window]) for window in windows(ids)]
    parameters = dict(model.feedback.named_parameters())
    states = None
    for _ in range(k):
        new = []
        for t, row in enumerate(rows):
            hooks = []
            for target in range(3) if states is not None else ():
                p = Parts(parameters, "sources.3", target, "swish")
                summaries = []
                for state in states:
                    h = p.normed("norm", state)
                    summaries += [(scores.softmax(0) @ h) for scores in (h @ p["summaries.weight"].T).T]
                m = len(summaries) // len(states)
                distances = [max(-far, min(far, j - t)) + far for j in range(len(states)) for _ in range(m)]
                size = p.rank // heads

                def read(_, args, p=p, summaries=summaries, distances=distances, size=size, target=target):
                    messages = []
                    for x in args[0][0]:
                        query, z = p.linear("reader", p.normed("reader_norm", x)), []
                        for head in range(heads):
                            part = slice(head * size, (head + 1) * size)
                            bias = p["distance.weight"][target, head]
                            scores = [
                                query[part] @ p.linear("key", c)[part] / size**0.5 + bias[distance]
                                for c, distance in zip(summaries, distances, strict=True)
                            ]
                            values = torch.stack([p.linear("down", c)[part] for c in summaries])
                            z.append(torch.stack(scores).softmax(0) @ values)
                        messages.append(p.f(torch.cat(z)) @ p.up.T)
                    return (args[0] + torch.stack(messages), *args[1:])

                hooks.append(bare.encoder.layer[target].register_forward_pre_hook(read))
            new.append(bare(row).last_hidden_state[0])
            for hook in hooks:
                hook.remove()
        states = new
    return states


@pytest.mark.parametrize("padding", ["right", "left"])
def test_equals_the_reference(padding):
    model, batch = make(), long_batch(padding)
    bare = copy.deepcopy(model.backbone)
    with torch.no_grad():
        for k in (1, 2, 3):
            found = model(**batch, num_iterations=k).logits
            for row in range(len(LENGTHS)):
                states = states_of(model, bare, alone(batch, row)["input_ids"][0].tolist(), k)
                expected = torch.stack([model.classifier(state[0]) for state in states]).mean(0)
                assert_exact(found[row], expected)


def test_gradients_equal_those_of_the_reference():
    model, batch = make(), long_batch(lengths=[14, 9])
    bare = copy.deepcopy(model.backbone)
    names, parameters = zip(*model.feedback.named_parameters(), strict=True)
    weights = torch.randn(2, 3, dtype=torch.float64)
    found = torch.autograd.grad((model(**batch).logits * weights).sum(), parameters)
    texts = [states_of(model, bare, alone(batch, row)["input_ids"][0].tolist(), 3) for row in range(2)]
    logits = [torch.stack([model.classifier(state[0]) for state in states]).mean(0) for states in texts]
    expected = torch.autograd.grad((torch.stack(logits) * weights).sum(), parameters)
    assert_exact(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)))


VARIANTS = {
    "memory": {},
    "with the segments beside it": dict(feedback_type="additive+memory"),
    "error": dict(feedback_signal="error"),
    "shared weights": dict(feedback_sharing="targets"),
    "adjacent layers": dict(feedback_topology="adjacent"),
    "answers weighted": dict(segment_pooling="attention"),
}


@pytest.mark.parametrize("family", ["bert", "gpt2", "xlnet", "modernbert"])
@in_float64()
def test_a_text_does_not_notice_the_others(family):
    model, batch = make(family), long_batch("left")
    with torch.no_grad():
        together = model(**batch).logits
        for row in range(len(LENGTHS)):
            assert_exact(together[row], model(**alone(batch, row)).logits[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant):
    """Nothing at the start, then each text by itself, and every part is trained."""
    batch = long_batch()
    fresh = make(scale=0, **VARIANTS[variant])
    assert fresh.check_equivalence(batch) == 0.0
    model = make(**VARIANTS[variant])
    assert model.check_equivalence(batch) > 1e-4
    with torch.no_grad():
        together = model(**batch).logits
        for row in range(len(LENGTHS)):
            assert_exact(together[row], model(**alone(batch, row)).logits[0])
    model.train()(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    for name, parameter in model.feedback.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_one_iteration_reaches_every_segment():
    model, batch = make(), long_batch(lengths=[38])
    changed = {name: value.clone() for name, value in batch.items()}
    changed["input_ids"][0, -2] = 7  # in the last segment alone
    one, other = (model(**b, num_iterations=2, output_hidden_states=True).hidden_states[-1] for b in (batch, changed))
    assert len(one) == 9
    assert all(not torch.equal(one[i], other[i]) for i in range(9))


def test_with_autocast():
    model, batch = make().float(), long_batch()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(**batch).logits.isfinite().all()


def test_saved_and_loaded(tmp_path):
    model, batch = make(segment_pooling="attention", segment_pair="every"), long_batch(lengths=[5, 8])
    model.save_pretrained(tmp_path)
    again = FeedbackForSequenceClassification.from_pretrained(tmp_path)
    assert (again.config.feedback_type, again.config.segment_summaries) == ("memory", 3)
    assert (again.config.segment_pooling, again.config.segment_pair) == ("attention", "every")
    assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_cost():
    model = make()
    source, edge = model.feedback.connection(3).flops(8, num_segments=5)
    d, r, m = 32, 8, 3
    assert source == 2 * (2 * d * m) // 3 + 2 * (2 * d * r) * m // 8  # one set of summaries for three edges
    assert edge == 2 * (2 * d * r) + 2 * (2 * 5 * m * r)
    assert model.feedback_summary(8) != model.feedback_summary(100)


# The answers of the segments


@in_float64()
def test_answers_weighted_by_attention():
    model, batch = make(segment_pooling="attention", pooling="mean"), long_batch()
    mean = copy.deepcopy(model)
    mean.config.segment_pooling = "mean"
    bare = copy.deepcopy(model.backbone)
    with torch.no_grad():
        found = model(**batch).logits
        for row in range(len(LENGTHS)):
            states = states_of(model, bare, alone(batch, row)["input_ids"][0].tolist(), 3)
            v = torch.stack([state.mean(0) for state in states])
            weights = (v @ model.segment_pooling.query.weight[0, 0]).softmax(0)
            assert_exact(found[row], weights @ model.classifier(v))
        fresh = make(segment_pooling="attention", scale=0)
        assert torch.equal(fresh.segment_pooling.query.weight, torch.zeros(1, 1, 32))
        weighted = fresh(**batch).logits
        fresh._built_options.built_in["segment_pooling"] = fresh.config.segment_pooling = "mean"
        assert torch.equal(weighted, fresh(**batch).logits)


# Pairs


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("with_types", [True, False])
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_first_text_in_every_segment_as_the_tokenizer_cuts(minilm, name, with_types, padding_side):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    if name == "roberta":  # <s> a </s></s> b </s>, without types
        vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghij"])}
        tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[])
    first = ["where", "who is that", "a"] if name == "bert" else ["ab", "c", "abcd"]
    second = [
        "where is the parcel that I ordered in March and why does nobody answer my letters about it",
        "nobody",
        "my letters about it and nobody else knows where the parcel is now",
    ]
    second = second if name == "bert" else ["abcdefghijabcdefghij", "j", "hgfedcbahgfedcba"]
    whole = tokenizer(first, second, padding=True, padding_side=padding_side, return_tensors="pt")
    if not with_types:
        whole.pop("token_type_ids", None)
    cutting = Cutting(12, 2, tuple(special_tokens_of(tokenizer)), 64, tokenizer.pad_token_id, "every")
    cut, segments = cutting.cut(dict(whole))
    expected = tokenizer(
        first, second, max_length=12, stride=2, truncation="only_second", return_overflowing_tokens=True,
        padding="max_length", return_tensors="pt",
    )  # fmt: skip
    assert segments.text.tolist() == expected["overflow_to_sample_mapping"].tolist()
    assert len(segments.text) > 4
    for key in whole:
        assert torch.equal(cut[key], expected[key])


def pairs(*lengths, seed=0):
    """[2] a [3] b [3], with the types of a and b, for lengths of (a, b)."""
    generator = torch.Generator().manual_seed(seed)
    size = max(a + b + 3 for a, b in lengths)
    batch = {name: torch.zeros(len(lengths), size, dtype=torch.long) for name in
             ("input_ids", "attention_mask", "token_type_ids")}  # fmt: skip
    for row, (a, b) in enumerate(lengths):
        words = torch.randint(5, 99, (a + b,), generator=generator).tolist()
        ids = [2, *words[:a], 3, *words[a:], 3]
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][row, : len(ids)] = 1
        batch["token_type_ids"][row, a + 2 : len(ids)] = 1
    return batch


@in_float64()
def test_pairs_do_not_notice_each_other():
    model, batch = make(segment_pair="every"), pairs((2, 19), (1, 3), (1, 8))
    with torch.no_grad():
        together = model(**batch).logits
        for row in range(3):
            assert_exact(together[row], model(**alone(batch, row)).logits[0])
        model.config.segment_pair = "first"  # may be changed while training
        assert not torch.equal(together, model(**batch).logits)


def test_the_length_that_is_advised_for_pairs_fits():
    model, batch = make(segment_pair="every", max_segments=4), pairs((2, 19), (1, 3))
    with pytest.raises(
        ValueError, match="makes 17 segments of 8, more than `max_segments`=4; raise that, or cut"
    ) as error:
        model(**batch)
    advised = int(re.findall(r"cut texts at (\d+) tokens", str(error.value))[0])
    model(**{name: value[:, :advised] for name, value in batch.items()})
    with pytest.raises(ValueError, match="makes 5 segments"):
        model(**{name: value[:, : advised + 1] for name, value in batch.items()})


def test_pairs_that_cannot_be_cut():
    model, batch = make(segment_pair="every"), pairs((2, 19), (1, 3))
    with pytest.raises(ValueError, match="first text of 7 tokens leaves no room in a segment of 8"):
        model(**pairs((5, 19)))
    one_text = {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    one_text["input_ids"][0, 3] = 7  # no separator
    with pytest.raises(ValueError, match="where the first text ends in row 0 of the batch is not known"):
        model(**one_text)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="is not known; give pairs with `token_type_ids`"):
        model(inputs_embeds=embeds, attention_mask=batch["attention_mask"])
    found = model(inputs_embeds=embeds, **{key: batch[key] for key in ("attention_mask", "token_type_ids")})
    assert found.logits.shape == (2, 3)


# Tokens


def copies(ids, states):
    """The state of each token of a text, from the copy with the most tokens on both sides: a loop."""
    front, back, overlap, room = 1, 1, 2, 6
    best = {}
    for t, state in enumerate(states):
        for j in range(len(state)):
            if j < front:
                position = j
            elif j >= len(state) - back:
                position = len(ids) - (len(state) - j)
            else:
                position = t * (room - overlap) + j
            context = min(j, len(state) - 1 - j)
            if position not in best or context > best[position][0]:
                best[position] = (context, state[j])
    return torch.stack([best[position][1] for position in range(len(ids))])


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("cls", [FeedbackForTokenClassification, FeedbackForQuestionAnswering])
def test_answers_for_tokens(cls, padding):
    model, batch = make(cls=cls), long_batch(padding)
    head = model.classifier if cls is FeedbackForTokenClassification else model.qa_outputs
    bare = copy.deepcopy(model.backbone)
    with torch.no_grad():
        output = model(**batch, output_iterations=True)
        found = output.get("logits")
        if found is None:
            found = torch.stack((output.start_logits, output.end_logits), -1)
        assert found.shape[:2] == batch["input_ids"].shape
        for row in range(len(LENGTHS)):
            ids, real = alone(batch, row)["input_ids"][0].tolist(), batch["attention_mask"][row] != 0
            states = states_of(model, bare, ids, 3)
            assert_exact(found[row, real], head(copies(ids, states)))
            padded = found[row, ~real]
            assert (padded == (0 if cls is FeedbackForTokenClassification else torch.finfo(padded.dtype).min)).all()
    assert len(output.iteration_logits) == 3
    assert torch.equal(output.iteration_logits[-1], found)


def test_losses_of_tokens_are_those_of_whole_texts():
    tagger, batch = make(cls=FeedbackForTokenClassification), long_batch()
    labels = torch.where(batch["attention_mask"] != 0, batch["input_ids"] % 3, -100)
    output = tagger(**batch, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    assert output.loss.item() == pytest.approx(expected.item())
    reader = make(cls=FeedbackForQuestionAnswering)
    starts, ends = torch.tensor([17, 2, 0, 9]), torch.tensor([19, 3, 0, 11])
    loss = reader(**batch, start_positions=starts, end_positions=ends).loss
    each = [
        reader(**alone(batch, row), start_positions=starts[row : row + 1], end_positions=ends[row : row + 1]).loss
        for row in range(len(LENGTHS))
    ]
    assert loss.item() == pytest.approx(sum(one.item() for one in each) / len(LENGTHS), rel=1e-9)


# Refusals

WRONG = {
    "token": (
        {**dict.fromkeys(MEMORY), "feedback_span": "token", "feedback_type": "memory", "feedback_heads": 4,
         "feedback_rank": 8, "segment_summaries": 4},
        "`feedback_type`='memory' is for `feedback_span='segment'`",
    ),
    "heads": (dict(feedback_heads=3), "`feedback_heads` must divide the rank of the messages, 8, got 3"),
    "summaries": (dict(segment_summaries=0), "`segment_summaries` must be an integer of at least 1"),
    "pair": (dict(segment_pair="second"), "`segment_pair` must be one of"),
    "pooling": (dict(segment_pooling="max"), "`segment_pooling` must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_refusals(case):
    options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        make(scale=0, **options)


def test_where_answers_cannot_be_weighted():
    words = "`segment_pooling`='attention' weights the segments' answers"
    with pytest.raises(ValueError, match=words):
        make(cls=FeedbackForTokenClassification, segment_pooling="attention")
    tuned = BertForSequenceClassification(tiny_backbone("bert").config)
    with pytest.raises(ValueError, match=words):
        FeedbackForSequenceClassification.from_backbone(tuned, head="backbone", segment_pooling="attention", **MEMORY)
