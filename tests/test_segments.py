"""Long texts as segments: cut as a tokenizer cuts them, fed back as the equation says, answered for together."""

import copy

import pytest
import torch
from closeness import PROBABILITY, assert_exact, in_float64
from families import randomize_messages, tiny_backbone
from loop_jacobian import jacobian_radius
from reference import Parts
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    FNetConfig,
    FNetModel,
    GPT2ForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
    pipeline,
)

from hf_feedback import (
    FeedbackConfig,
    FeedbackForMultipleChoice,
    FeedbackForSequenceClassification,
    FeedbackModel,
    UnsupportedBackboneError,
    add_feedback,
)
from hf_feedback.cutting import Cutting, special_tokens_of
from hf_feedback.segments import Segments

OPTIONS = dict(
    feedback_span="segment", segment_length=8, segment_overlap=2, segment_special_tokens=[1, 1], feedback_rank=8
)
LENGTHS = [21, 5, 8, 13]  # 5, 1, 1 and 3 segments


def make(family="bert", scale=0.3, dtype=torch.float64, **more):
    options = {"num_labels": 3, "num_iterations": 3, "pooling": "mean", **OPTIONS, **more}
    model = FeedbackForSequenceClassification.from_backbone(tiny_backbone(family).to(dtype), **options)
    return randomize_messages(model, scale=scale) if scale else model


def long_batch(padding="right", lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 99, (len(lengths), max(lengths)), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    if padding == "left":
        mask = mask.flip(1)
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def alone(batch, row):
    real = batch["attention_mask"][row] != 0
    return {name: value[row : row + 1, real] for name, value in batch.items()}


def windows(ids, length=8, overlap=2, front=1, back=1):
    """The segments of one text, written out: a list of lists of token ids."""
    inner, room = ids[front : len(ids) - back], length - front - back
    cut, start = [], 0
    while True:
        cut.append([*ids[:front], *inner[start : start + room], *ids[len(ids) - back :]])
        if start + room >= len(inner):
            return cut
        start += room - overlap


# Cutting


@pytest.mark.parametrize(("length", "overlap"), [(16, 0), (16, 5), (12, 9)])
def test_cut_as_the_tokenizer_cuts(minilm, length, overlap):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    words = "where is the parcel that I ordered in March and why does nobody answer my letters about it"
    texts = [" ".join(words.split()[:n]) for n in (18, 1, 11, 13, 16)]
    whole = tokenizer(texts, padding=True, return_tensors="pt")
    cutting = Cutting(length, overlap, tuple(special_tokens_of(tokenizer)), 64, tokenizer.pad_token_id)
    assert cutting.special_tokens == (1, 1)
    cut, segments = cutting.cut(dict(whole))
    expected = tokenizer(
        texts, max_length=length, stride=overlap, truncation=True, return_overflowing_tokens=True,
        padding="max_length", return_tensors="pt",
    )  # fmt: skip
    assert segments.text.tolist() == expected["overflow_to_sample_mapping"].tolist()
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(cut[name], expected[name])


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize(("front", "back"), [(1, 1), (0, 0), (1, 0), (0, 2)])
def test_every_window(padding, front, back):
    batch = long_batch(padding)
    cut, _ = Cutting(8, 2, (front, back), 9, 1).cut(batch)
    found = [ids[mask != 0].tolist() for ids, mask in zip(cut["input_ids"], cut["attention_mask"], strict=True)]
    texts = [alone(batch, row)["input_ids"][0].tolist() for row in range(len(LENGTHS))]
    assert found == [window for ids in texts for window in windows(ids, 8, 2, front, back)]
    assert cut["input_ids"][cut["attention_mask"] == 0].eq(1).all()
    embeds = torch.randn(*batch["input_ids"].shape, 4)
    again, _ = Cutting(8, 2, (front, back), 9, 1).cut(
        {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
    )
    lookup = {tuple(row.tolist()) for row in embeds.flatten(0, 1)} | {(0.0,) * 4}
    assert again["inputs_embeds"].shape == (len(found), 8, 4)
    assert all(tuple(row.tolist()) in lookup for row in again["inputs_embeds"].flatten(0, 1))


def test_an_empty_text_and_one_without_special_tokens():
    batch = long_batch(lengths=[20, 0, 1])
    cut, segments = Cutting(8, 2, (1, 1), 9, 1).cut(batch)
    assert segments.text.tolist() == [0, 0, 0, 0, 1, 2]
    assert cut["attention_mask"].sum(1).tolist()[-2:] == [0, 1]


def test_holes_in_the_mask():
    """Tokens that are masked in the middle of a text are left out, and no other."""
    batch = long_batch(lengths=[20, 17])
    batch["attention_mask"][0, 5:9] = 0
    cut, _ = Cutting(8, 2, (1, 1), 9, 1).cut(batch)
    found = [ids[mask != 0].tolist() for ids, mask in zip(cut["input_ids"], cut["attention_mask"], strict=True)]
    assert found == [w for row in range(2) for w in windows(alone(batch, row)["input_ids"][0].tolist())]


def test_neighbours():
    segments = Segments(torch.tensor([0, 0, 0, 1, 2, 2]), 3)
    x = torch.arange(1.0, 7)[:, None]
    assert segments.shift_right(x)[:, 0].tolist() == [0, 1, 2, 0, 0, 5]
    assert segments.shift_left(x)[:, 0].tolist() == [2, 3, 0, 0, 6, 0]
    assert segments.mean(x)[:, 0].tolist() == [2, 4, 5.5]
    some = segments.select_rows(torch.tensor([0, 1, 2, 4, 5]))
    assert some.shift_left(x[[0, 1, 2, 4, 5]])[:, 0].tolist() == [2, 3, 0, 6, 0]
    assert Segments(torch.tensor([0]), 1).shift_right(torch.ones(1, 2)).tolist() == [[0, 0]]


# The model


def reference(model, bare, ids, k):
    """Logits of one text, `(1, C)`: windows run one by one, and the equation written out."""
    rows = [torch.tensor([window]) for window in windows(ids)]
    layers = bare.encoder.layer
    parameters = dict(model.feedback.named_parameters())
    states = None
    for _ in range(k):
        new = []
        for t, row in enumerate(rows):
            hooks = []
            if states is not None:
                for target in range(3):  # the topology is "top": from the last layer to the others
                    p = Parts(parameters, "sources.3", target, "swish")
                    h = [p.normed("norm", state[0]).mean(0) for state in states]
                    zero = torch.zeros_like(h[0])
                    left, right = (h[t - 1] if t else zero), (h[t + 1] if t + 1 < len(h) else zero)
                    z = p.linear("down", h[t])
                    z = z + p["W.weight"][p.rows] @ left + p["V.weight"][p.rows] @ right
                    said = p.f(z) @ p.up.T
                    hooks.append(
                        layers[target].register_forward_pre_hook(lambda _, args, said=said: (args[0] + said, *args[1:]))
                    )
            new.append(bare(row).last_hidden_state)
            for hook in hooks:
                hook.remove()
        states = new
    return torch.stack([model.classifier(state.mean(1)) for state in states]).mean(0)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_equals_the_reference(padding):
    model, batch = make(), long_batch(padding)
    bare = copy.deepcopy(model.backbone)
    for k in (1, 2, 3):
        found = model(**batch, num_iterations=k).logits
        for row in range(len(LENGTHS)):
            expected = reference(model, bare, alone(batch, row)["input_ids"][0].tolist(), k)
            assert_exact(found[row : row + 1], expected)


def test_gradients_equal_those_of_the_reference():
    model, batch = make(), long_batch(lengths=[14, 9])
    bare = copy.deepcopy(model.backbone)
    names, parameters = zip(*model.feedback.named_parameters(), strict=True)
    weights = torch.randn(2, 3, dtype=torch.float64)
    found = torch.autograd.grad((model(**batch).logits * weights).sum(), parameters)
    texts = [reference(model, bare, alone(batch, row)["input_ids"][0].tolist(), 3) for row in range(2)]
    expected = torch.autograd.grad((torch.cat(texts) * weights).sum(), parameters)
    assert_exact(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)))


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "xlnet", "modernbert", "t5"])
def test_silent_at_the_start_and_windows_with_one_iteration(family):
    batch = long_batch()
    fresh = make(family, scale=0, dtype=torch.float32)
    for k in (1, 2, 4):
        fresh.set_num_iterations(k)
        assert fresh.check_equivalence(batch) == 0.0
    model = make(family)
    assert model.check_equivalence(batch) > 1e-4
    plain = FeedbackForSequenceClassification.from_backbone(
        copy.deepcopy(model.backbone), num_labels=3, num_iterations=1, pooling="mean"
    )
    plain.classifier.load_state_dict(model.classifier.state_dict())
    with torch.no_grad(), in_float64():
        found = model(**batch, num_iterations=1).logits
        for row in range(len(LENGTHS)):
            cut = windows(alone(batch, row)["input_ids"][0].tolist())
            each = torch.cat([plain(input_ids=torch.tensor([window])).logits for window in cut])
            assert_exact(found[row], each.mean(0))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("padding", ["right", "left"])
@in_float64()
def test_a_text_does_not_notice_the_others(family, padding):
    model, batch = make(family), long_batch(padding)
    with torch.no_grad():
        together = model(**batch, output_iterations=True)
        for row in range(len(LENGTHS)):
            single = model(**alone(batch, row), output_iterations=True)
            assert_exact(together.logits[row], single.logits[0])
            assert_exact(together.residuals[row], single.residuals[0])
    assert together.residuals.shape == (4, 2)
    assert together.iterations.tolist() == [3] * 4
    assert len(together.iteration_logits) == 3


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_short_text_is_read_alike_beside_short_and_long_ones(family):
    model = make(family)
    long, short = long_batch("left"), long_batch("left", lengths=[6, 8])
    with torch.no_grad():
        expected = model(**alone(short, 0)).logits[0]
        assert_exact(model(**short).logits[0], expected)
        both = {name: torch.cat((long[name], F.pad(short[name], (13, 0), value=fill))) for name, fill in
                (("input_ids", 1), ("attention_mask", 0))}  # fmt: skip
        assert_exact(model(**both).logits[4], expected)


def test_news_travels_one_segment_an_iteration():
    model, batch = make(num_iterations=6), long_batch(lengths=[38])
    changed = {name: value.clone() for name, value in batch.items()}
    changed["input_ids"][0, -2] = 7  # in the last segment alone
    firsts = []
    for k in range(1, 7):
        one, other = (
            model(**b, num_iterations=k, output_hidden_states=True).hidden_states[-1] for b in (batch, changed)
        )
        moved = [i for i in range(len(one)) if not torch.equal(one[i], other[i])]
        assert moved == list(range(moved[0], len(one)))
        firsts.append(moved[0])
    assert len(one) == 9
    assert firsts == [8, 7, 6, 5, 4, 3]


def test_saved_loaded_and_in_a_pipeline(minilm, tmp_path):
    options = {name: value for name, value in OPTIONS.items() if name != "segment_special_tokens"}
    options["backbone_kwargs"] = {"dtype": torch.float64}
    model = FeedbackForSequenceClassification.from_backbone(minilm, num_labels=2, **options)
    assert model.config.segment_special_tokens == [1, 1]
    randomize_messages(model, scale=0.1).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    tokenizer.save_pretrained(tmp_path)
    again = FeedbackForSequenceClassification.from_pretrained(tmp_path)
    texts = ["where is the parcel that I ordered in March " * 3, "refund please"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits
        assert_exact(again(**batch).logits, expected)
    for size in (1, 2):
        answers = pipeline("text-classification", str(tmp_path), batch_size=size)(texts, top_k=None)
        found = [[next(a["score"] for a in row if a["label"] == f"LABEL_{i}") for i in range(2)] for row in answers]
        assert (torch.tensor(found) - expected.softmax(-1)).abs().max() <= PROBABILITY


@pytest.mark.parametrize(
    "options", [dict(iteration_loss="linear"), dict(gradient="truncated", gradient_iterations=2)], ids=str
)
def test_trains(options):
    model, batch = make(**options).train(), long_batch()
    output = model(**batch, labels=torch.tensor([0, 1, 2, 0]))
    output.loss.backward()
    assert output.logits.shape == (4, 3)
    for name in ("W", "V", "down"):
        assert getattr(model.feedback.sources["3"], name).weight.grad.abs().max() > 0


@pytest.mark.parametrize(("padding", "lengths"), [("right", LENGTHS), ("left", [5, 3, 8])])
def test_compiled(padding, lengths):
    torch._dynamo.reset()
    layers = dict(num_iterations=2, backbone_layers=[0, 1])  # fewer are compiled sooner
    model, batch = make(**layers), long_batch(padding, lengths)
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        assert_exact(compiled(**batch).logits, model(**batch).logits)
        model.config.max_segments = 4
        with pytest.raises(ValueError, match="more than `max_segments`=4"):
            compiled(**long_batch())


def test_neighbours_decide_nothing():
    """Padding that only its token tells, and holes in the mask."""
    decoder = make("gpt2", pooling="last", segment_special_tokens=[0, 0])
    decoder.config.pad_token_id = 1
    ids = long_batch(lengths=[20, 6])["input_ids"]
    for expected in (decoder(ids[1:, :6]).logits, decoder(ids[1:, :8]).logits):
        assert_exact(decoder(ids).logits[1:], expected)
    model, batch = make(), long_batch(lengths=[20, 7])
    batch["attention_mask"][1, 3] = 0
    short = {name: value[1:, :7] for name, value in batch.items()}
    assert_exact(model(**batch).logits[1:], model(**short).logits)


def test_the_summary_counts_by_segment():
    model = make()
    assert model.feedback_summary() == model.feedback_summary(8) != model.feedback_summary(4)


@in_float64()
def test_own_head():
    tuned = BertForSequenceClassification(tiny_backbone("bert").config).eval()
    model, batch = add_feedback(tuned, FeedbackConfig(**OPTIONS)), long_batch()
    ids = alone(batch, 0)["input_ids"][0].tolist()
    each = torch.cat([tuned(torch.tensor([window])).logits for window in windows(ids)])
    assert_exact(model(**batch).logits[0], each.mean(0))


def test_contraction_is_that_of_whole_texts():
    """The segments of a text are one state: their estimate is the spectral radius of all of them together."""
    model, batch = make(scale=0.05, feedback_topology="top"), long_batch(lengths=[12])
    found = model.estimate_contraction(batch, steps=60)
    assert found.shape == (1,)
    assert found.item() == pytest.approx(jacobian_radius(model, batch), rel=0.1)


# Refusals

WRONG = {
    "too many": (
        dict(max_segments=2),
        "A text of 21 tokens makes 5 segments of 8, more than `max_segments`=2; raise that, or cut texts at 12 tokens",
    ),
    "no room": (dict(segment_length=5, segment_overlap=3), "`segment_length` must be an integer of at least 6"),
    "special": (dict(segment_special_tokens=None), "`segment_special_tokens` is not known and must be given"),
    "pair": (dict(segment_special_tokens=[1]), "must be how many tokens stand at the start and at the end"),
    "operator": (dict(feedback_type="gated"), "has messages of its own, additive, memory"),
    "span": (dict(feedback_span="text"), "`feedback_span` must be one of"),
    "too long": (dict(segment_length=65), "`segment_length` must be at most 64, what the backbone reads, got 65"),
    "cap without segments": (
        {**dict.fromkeys(OPTIONS), "feedback_span": "token", "feedback_rank": 8, "max_segments": 9},
        "`max_segments` is for `feedback_span='segment'`",
    ),
    "no segments": (dict(feedback_span="token"), "`segment_length` is for `feedback_span='segment'`"),
    "classes": (dict(feedback_context="classes"), "leave out `feedback_context`"),
    "causal": (dict(feedback_future=False), "informs the early tokens of a decoder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals(case):
    options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        make("gpt2" if case == "causal" else "bert", scale=0, **options)(**long_batch())


def test_what_cannot_be_cut():
    model, batch = make(), long_batch()
    with pytest.raises(ValueError, match="`position_ids` cannot be cut into segments"):
        model(**batch, position_ids=torch.arange(21).expand(4, -1))
    with pytest.raises(ValueError, match="`attention_mask` must have shape"):
        model(batch["input_ids"], attention_mask=torch.ones(4, 1, 21, 21))
    for name in ("attention_mask", "token_type_ids"):
        other = torch.ones(1, batch["input_ids"].shape[1], dtype=torch.long)
        with pytest.raises(ValueError, match=rf"`{name}` must have shape \(batch, tokens\), \(4, 21\)"):
            model(**{**batch, name: other})
    xlnet = XLNetConfig(vocab_size=99, d_model=32, n_layer=2, n_head=2, d_inner=48, pad_token_id=0, num_labels=3)
    with pytest.raises(UnsupportedBackboneError, match="its own head reads padding after a text"):
        add_feedback(XLNetForSequenceClassification(xlnet).eval(), FeedbackConfig(**OPTIONS))
    tiny = FNetConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, intermediate_size=37)
    with pytest.raises(ValueError, match="FNetModel does not, and would read the padding"):
        FeedbackForSequenceClassification.from_backbone(FNetModel(tiny), **OPTIONS)
    tuned = GPT2ForSequenceClassification(tiny_backbone("gpt2").config).eval()
    own = add_feedback(tuned, FeedbackConfig(**OPTIONS, max_segments=9))
    assert own(**batch).logits.shape == (4, 2)
    embeds = own.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="`input_ids` is needed where a decoder's own head reads segments"):
        own(inputs_embeds=embeds, attention_mask=batch["attention_mask"])
    own.config.pad_token_id = None
    with pytest.raises(ValueError, match="`pad_token_id` is needed"):
        own(**batch)
    for cls in (FeedbackModel, FeedbackForMultipleChoice):
        with pytest.raises(ValueError, match="is for FeedbackForSequenceClassification, "):
            cls.from_backbone(tiny_backbone("bert"), **OPTIONS)
