"""Examples stop by themselves, leave the batch, and get what they would have got alone."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from builders import feedback_model
from closeness import PROBABILITY, assert_exact, in_float64
from families import randomize_messages, tiny_backbone, tiny_batch
from transformers import AutoTokenizer, BertForSequenceClassification, pipeline
from transformers.utils.logging import warning_once

from hf_feedback import (
    FeedbackConfig,
    FeedbackForMultipleChoice,
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
    FeedbackModel,
)
from hf_feedback.batch_rows import IndivisibleError, find_batch_axes, select_rows
from hf_feedback.evaluation.evaluation_run import EvaluationRun
from hf_feedback.halting import confidence_of
from hf_feedback.prediction.trained_model import TrainedModel

HALTS = dict(halting="convergence", num_iterations=12)


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
@in_float64()
def test_each_stops_as_if_it_were_alone(family, cls):
    batch = {key: torch.cat([value, value.flip(0).roll(1, 1)]) for key, value in tiny_batch(padding="none").items()}
    plain = feedback_model(cls, family, scale=0.03, num_iterations=12)
    model = feedback_model(cls, family, scale=0.03, halting_threshold=threshold_between(plain, batch), **HALTS)
    together = model(**batch, output_iterations=True, output_hidden_states=True)
    assert len(set(together.iterations.tolist())) > 1
    for row, k in enumerate(together.iterations.tolist()):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        halted = model(**alone, output_iterations=True, output_hidden_states=True)
        assert halted.iterations.item() == k
        fixed = plain(**alone, num_iterations=k, output_hidden_states=True)
        for mine, single, theirs in zip(together.hidden_states, halted.hidden_states, fixed.hidden_states, strict=True):
            assert_exact(mine[row], theirs[0])
            assert_exact(single, theirs)


def test_padding_decides_nothing():
    batch = tiny_batch()
    plain = feedback_model(scale=0.03, num_iterations=12)
    threshold = plain(**batch, output_iterations=True).residuals[1, 1].item() * 1.001
    model = feedback_model(scale=0.03, halting_threshold=threshold, **HALTS)
    short = {key: value[1:, :6] for key, value in batch.items()}
    padded, alone = (model(**b, output_iterations=True) for b in (batch, short))
    assert padded.iterations[1] == alone.iterations[0] == 3
    assert_exact(padded.last_hidden_state[1, :6], alone.last_hidden_state[0])
    assert torch.equal(model(**batch).last_hidden_state, padded.last_hidden_state)  # whether notes are taken or not


def test_the_least_number_of_iterations_and_training():
    batch = tiny_batch()
    fresh = feedback_model(scale=0, **HALTS)
    assert fresh(**batch, output_iterations=True).iterations.tolist() == [2, 2]  # nothing moved
    assert fresh.check_equivalence(batch) == 0.0
    later = feedback_model(scale=0, min_iterations=5, **HALTS)
    assert later(**batch, output_iterations=True).iterations.tolist() == [5, 5]
    assert fresh.train()(**batch, output_iterations=True).iterations.tolist() == [12, 12]


def test_saved_with_the_model(tmp_path):
    feedback_model(halting_threshold=0.2, **HALTS).save_pretrained(tmp_path)
    config = FeedbackModel.from_pretrained(tmp_path).config
    assert (config.halting, config.halting_threshold) == ("convergence", 0.2)


# Rules that read the answer

CLASSES = dict(num_labels=5, num_iterations=8)


def make_sure(scale=0.6, **options):
    """A classifier whose answers differ from text to text."""
    options = {**CLASSES, **options}
    model = feedback_model(FeedbackForSequenceClassification, scale=scale, **options)
    with torch.no_grad():
        model.classifier.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    return model


def some_texts(number=12, length=9):
    ids = torch.randint(5, 99, (number, length), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[::3, -3:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def first_stop(holds, least=2):
    """For each example, the first iteration from `least` on at which a rule holds; 8 where it never does."""
    k = holds.shape[0]
    return [next((i + 1 for i in range(least - 1, k) if holds[i, row]), k) for row in range(holds.shape[1])]


def by_hand(logits, rule, sure, least):
    """For each example, when a rule stops it, written out from the logits of all iterations, `(K, B, C)`."""
    p = logits.softmax(-1)
    top = p.sort(-1, descending=True).values
    same = [torch.zeros(p.shape[1], dtype=torch.bool)]
    same += [p[k].argmax(-1) == p[k - 1].argmax(-1) for k in range(1, len(p))]
    again = torch.stack(same)
    thrice = again & torch.cat([torch.zeros_like(again[:1]), again[:-1]])
    holds = {
        "probability": top[..., 0] >= sure,
        "margin": top[..., 0] - top[..., 1] >= sure,
        "patience": again,
        "patience 3": thrice,
        "both": (top[..., 0] >= sure) & again,
        "either": (top[..., 0] >= sure) | thrice,
    }[rule]
    return first_stop(holds, least)


RULES = {
    "probability": dict(halting="confidence"),
    "margin": dict(halting="confidence", halting_measure="margin"),
    "patience": dict(halting="patience"),
    "patience 3": dict(halting="patience", halting_patience=3),
    "both": dict(halting="confidence+patience"),
    "either": dict(halting="confidence|patience", halting_patience=3),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("least", [1, 2, 4])
@in_float64()
def test_rules_by_hand(rule, least):
    batch, plain = some_texts(), make_sure()
    logits = torch.stack(plain(**batch, output_iterations=True).iteration_logits)
    sure = confidence_of(logits[least - 1], RULES[rule].get("halting_measure", "probability"), False)
    sure = sure.sort().values[5:7].mean().item()  # half of the examples are, at the first iteration that counts
    model = make_sure(**RULES[rule], halting_confidence=sure, min_iterations=least)
    with torch.no_grad():
        found = model(**batch)
    expected = by_hand(logits, rule, sure, least)
    assert found.iterations.tolist() == expected
    assert len(set(expected)) > 1 or (rule in ("patience", "patience 3", "either") and least > 1)
    wanted = torch.stack([logits[k - 1, row] for row, k in enumerate(expected)])
    assert_exact(found.logits, wanted)


def rows_of_calls(model):
    """Takes down how many rows the segment's first layer reads in each of its calls."""
    seen = []
    model.layers[model.layout.looped_range[0]].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(
            (args[0] if args else kwargs["hidden_states"]).shape[model.layout.batch_dim]
        ),
        with_kwargs=True,
    )
    return seen


OF_THE_LOOP = {
    **{name: dict(feedback_type=name) for name in ("additive", "attention", "temporal", "joint")},
    "damped": dict(feedback_damping=0.6),
    "carried": dict(feedback_state="carry"),
    "carried and damped": dict(feedback_state="carry", feedback_damping=0.6, learn_damping=True),
}


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "modernbert", "t5", "bloom", "deberta-v2", "xlnet"])
@pytest.mark.parametrize("case", OF_THE_LOOP)
@in_float64()
def test_stopped_examples_leave_the_batch(family, case):
    batch, options = some_texts(), dict(family=family, **OF_THE_LOOP[case])
    logits = torch.stack(make_sure(**options)(**batch, output_iterations=True).iteration_logits)
    sure = logits.softmax(-1).amax(-1)[1].sort().values[5:7].mean().item()  # half stop after the second
    model = make_sure(**options, halting="confidence", halting_confidence=sure)
    model(**batch)
    seen = rows_of_calls(model)
    with torch.no_grad():
        found = model(**batch)
        assert seen == [12, 12, *(int((found.iterations > k).sum()) for k in range(2, int(found.iterations.max())))]
        assert seen[2] == 6
        for row, k in enumerate(found.iterations.tolist()):
            assert_exact(found.logits[row], logits[k - 1, row])
            single = model(**{name: value[row : row + 1] for name, value in batch.items()})
            assert single.iterations.item() == k
            assert_exact(found.logits[row], single.logits[0])


@in_float64()
def test_where_rows_cannot_be_told(caplog):
    batch = some_texts()
    model = make_sure(halting="patience")
    expected = model(**batch)
    model.layout = replace(model.layout, batch_axes=None)  # as where a layer gets what is not made of rows
    seen = rows_of_calls(model)
    warning_once.cache_clear()
    with caplog.at_level("WARNING", logger="hf_feedback"):
        found = model(**batch)
    assert set(seen) == {12}
    assert "Stopped examples cannot leave the batch" in caplog.text
    assert torch.equal(found.iterations, expected.iterations)
    assert_exact(found.logits, expected.logits)


@pytest.mark.parametrize(
    ("two", "three", "places"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4), (0, 1)),
        (torch.zeros(4, 2, 5), torch.zeros(4, 3, 5), (1, 1)),
        (torch.zeros(8, 4), torch.zeros(12, 4), (0, 4)),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), (1, 4, 4)),
        (None, None, None),
        (True, True, None),
        ((torch.zeros(2, 4), None), (torch.zeros(3, 4), None), [(0, 1), None]),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, {"a": (0, 1)}),
        (object(), object(), IndivisibleError),
        (torch.zeros(2, 2), torch.zeros(3, 3), IndivisibleError),
        (torch.zeros(5), torch.zeros(6), IndivisibleError),
        (2, 3, IndivisibleError),
        ((None,), (None, None), IndivisibleError),
    ],
)
def test_where_arguments_hold_rows(two, three, places):
    if places is IndivisibleError:
        with pytest.raises(IndivisibleError):
            find_batch_axes(two, three)
    else:
        assert find_batch_axes(two, three) == places


def test_rows_of_arguments():
    rows, whole = torch.tensor([0, 3]), torch.arange(16.0).view(4, 4)
    assert torch.equal(select_rows(whole, (0, 1), rows, 4), whole[[0, 3]])
    assert torch.equal(select_rows(whole, (1, 1), rows, 4), whole[:, [0, 3]])
    assert torch.equal(select_rows(whole.view(-1), (0, 4), rows, 4), whole[[0, 3]].view(-1))
    assert select_rows(whole[:1], (0, 1), rows, 4).shape == (1, 4)  # the same for all
    assert select_rows(whole, torch.Size([4, 4]), rows, 4) is whole
    assert select_rows({"a": (None, True)}, {"a": [None, None]}, rows, 4) == {"a": (None, True)}
    for place in (None, (0, 2), torch.Size([1, 4]), torch.Size([4])):
        with pytest.raises(IndivisibleError):
            select_rows(whole, place, rows, 4)


@in_float64()
def test_positions_of_every_text_are_not_mistaken():
    """The probe sees positions that all texts share; a call with positions of their own is masked, not cut wrongly."""
    batch = {**some_texts(), "position_ids": torch.stack([torch.arange(9).roll(i % 3) for i in range(12)])}
    model = make_sure(family="llama", halting="patience")
    plain = make_sure(family="llama")
    found, logits = model(**batch), torch.stack(plain(**batch, output_iterations=True).iteration_logits)
    for row, k in enumerate(found.iterations.tolist()):
        assert_exact(found.logits[row], logits[k - 1, row])


def test_options_set_afterwards_are_checked():
    model, batch = make_sure(), some_texts()
    for name, value, words in (
        ("halting", "confident", "`halting` must be one of"),
        ("halting_confidence", 7, r"`halting_confidence` must be in \(0, 1\]"),
    ):
        model.config.halting = "confidence"
        setattr(model.config, name, value)
        with pytest.raises(ValueError, match=words):
            model(**batch)


@in_float64()
def test_anytime_answers():
    model, batch = make_sure(halting="patience"), some_texts()
    found = model(**batch, output_iterations=True)
    plain = torch.stack(make_sure()(**batch, output_iterations=True).iteration_logits)
    assert len(found.iteration_logits) == found.iterations.max()
    for k, logits in enumerate(found.iteration_logits):
        for row, last in enumerate(found.iterations.tolist()):
            assert_exact(logits[row], plain[min(k + 1, last) - 1, row])


@pytest.mark.parametrize("edges", [None, [[2, 0], [2, 1]]])
@pytest.mark.parametrize("head", ["new", "backbone"])
@in_float64()
def test_answers_from_below_and_of_the_own_head(edges, head):
    """Where more than a norm follows the segment, the answer of an iteration is read through all of that."""
    batch, more = some_texts(), dict(head=head, feedback_edges=edges)
    bare = BertForSequenceClassification(tiny_backbone("bert").config) if head == "backbone" else None
    models = []
    for halting in ("none", "patience"):
        torch.manual_seed(0)
        options = {**CLASSES, **more}
        if bare is not None:
            del options["num_labels"]
        backbone = tiny_backbone("bert") if bare is None else copy.deepcopy(bare)
        model = FeedbackForSequenceClassification.from_backbone(backbone, halting=halting, feedback_rank=8, **options)
        models.append(randomize_messages(model, scale=0.6))
    plain, model = models
    logits = torch.stack(plain(**batch, output_iterations=True).iteration_logits)
    found = model(**batch)
    for row, k in enumerate(found.iterations.tolist()):
        assert_exact(found.logits[row], logits[k - 1, row])


@in_float64()
def test_several_labels_and_one_value():
    several = make_sure(problem_type="multi_label_classification", halting="confidence", min_iterations=1)
    logits = torch.tensor([[3.0, -3.0], [3.0, 0.1], [0.0, 0.0]])
    sure = torch.sigmoid(torch.tensor([3.0, 0.1, 0.0]))
    assert_exact(confidence_of(logits, "probability", True), sure)
    assert_exact(confidence_of(logits, "margin", True), 2 * sure - 1)
    assert several(**some_texts()).iterations.shape == (12,)
    patient = make_sure(problem_type="multi_label_classification", halting="patience")
    plain = make_sure(problem_type="multi_label_classification")
    yes = torch.stack(plain(**some_texts(), output_iterations=True).iteration_logits) > 0
    again = torch.cat([torch.zeros_like(yes[:1, :, 0]), (yes[1:] == yes[:-1]).all(-1)])
    assert patient(**some_texts()).iterations.tolist() == first_stop(again)
    assert int(again.int().argmax(0).max()) >= 3
    with pytest.raises(ValueError, match="needs classes"):
        make_sure(num_labels=1, halting="confidence")
    yes_or_no = make_sure(num_labels=1, problem_type="multi_label_classification", halting="confidence")
    assert yes_or_no(**some_texts()).iterations.shape == (12,)
    for cls in (FeedbackModel, FeedbackForTokenClassification):
        with pytest.raises(ValueError, match="`halting`='patience' needs a model with classes, one answer for each"):
            feedback_model(cls, halting="patience", num_iterations=3)
        model = feedback_model(cls, num_iterations=3)
        model.config.halting = "patience"
        with pytest.raises(ValueError, match="`halting='patience'` needs a model with classes, one answer for each"):
            model(**tiny_batch())
    choices = {name: value[None] for name, value in tiny_batch().items()}
    with pytest.raises(ValueError, match="FeedbackForMultipleChoice gives none"):
        feedback_model(FeedbackForMultipleChoice, halting="patience", num_iterations=3)(**choices)


@pytest.mark.parametrize("halting", ["convergence", "patience"])
def test_texts_in_segments_stop_as_a_whole(halting):
    options = dict(segment_length=6, segment_overlap=1, segment_special_tokens=[1, 1], feedback_edges=None)
    options, batch = {"feedback_span": "segment", **options}, some_texts(4, 15)
    plain = make_sure(0.2, num_iterations=12, **options)
    notes = plain(**batch, output_iterations=True)
    more = dict(halting=halting, halting_threshold=notes.residuals[:, 2].median().item())
    model = make_sure(0.2, num_iterations=12, **options, **more)
    with torch.no_grad():
        found = model(**batch)
    assert found.iterations.shape == (4,)
    if halting == "convergence":
        assert len(set(found.iterations.tolist())) > 1
    for row, k in enumerate(found.iterations.tolist()):
        assert_exact(found.logits[row], notes.iteration_logits[k - 1][row])


def test_compiled():
    """In a compiled graph, whose shapes are fixed, all iterations are run, and the answers are those of halting."""
    torch._dynamo.reset()
    layers = dict(backbone_layers=[0, 1], feedback_edges=[[1, 0]])  # fewer are compiled sooner
    model, batch = make_sure(num_iterations=4, halting="confidence|patience", **layers), some_texts()
    with torch.no_grad():
        expected = model(**batch)
        found = torch.compile(model, backend="aot_eager")(**batch)
    assert torch.equal(found.iterations, expected.iterations)
    assert_exact(found.logits, expected.logits)


def test_in_a_pipeline_and_in_evaluation(minilm, tmp_path):
    options = dict(num_iterations=4, halting="patience", backbone_kwargs={"dtype": torch.float64})
    model = randomize_messages(FeedbackForSequenceClassification.from_backbone(minilm, **options), scale=0.1)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["where is my parcel?", "refund", "the lamp is green and I wanted a red one"]
    answers = pipeline("text-classification", str(tmp_path), batch_size=3)(texts, top_k=None)
    with torch.no_grad():
        found = model(**tokenizer(texts, padding=True, return_tensors="pt"))
    for row, scores in zip(found.logits.softmax(-1), answers, strict=True):
        assert {a["label"]: pytest.approx(a["score"], abs=PROBABILITY) for a in scores} == {
            f"LABEL_{i}": row[i].item() for i in range(2)
        }
    file = tmp_path / "data.csv"
    file.write_text("text,label\n" + "".join(f"{text},LABEL_{i % 2}\n" for i, text in enumerate(texts)))
    values = EvaluationRun.load(TrainedModel(str(tmp_path)), str(file)).predict().metrics
    assert values["eval_mean_iterations"] == pytest.approx(found.iterations.float().mean().item())


WRONG = {
    "joined": (dict(halting="none+patience"), "'none' cannot be joined"),
    "empty": (dict(halting="patience|"), "`halting` must be one of"),
    "type": (dict(halting=None), "`halting` must be a text, got None"),
    "measure": (dict(halting_measure="entropy"), "`halting_measure` must be one of 'probability', 'margin'"),
    "confidence": (dict(halting_confidence=0), r"`halting_confidence` must be in \(0, 1\]"),
    "patience": (dict(halting_patience=0), "`halting_patience` must be an integer of at least 1"),
    "rule": (dict(halting="never"), "`halting` must be one of 'none', 'convergence'"),
    "threshold": (dict(halting_threshold=-1.0), "`halting_threshold` must be a number of at least 0"),
    "least": (dict(min_iterations=0), "`min_iterations` must be an integer of at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(case):
    options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        FeedbackConfig(**options)


def test_attentions_are_refused():
    model = feedback_model(FeedbackForSequenceClassification, halting="patience")
    with pytest.raises(ValueError, match="`output_attentions` cannot be had with `halting`='patience'"):
        model(**tiny_batch(), output_attentions=True)
    model.config.halting = "none"
    model(**tiny_batch(), output_attentions=True)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_layers_that_are_compiled_one_by_one(family):
    """The loop stays outside, so that examples stop and leave."""
    torch._dynamo.reset()
    model, batch = (
        feedback_model(FeedbackForSequenceClassification, family, scale=0.03, **HALTS),
        tiny_batch(padding="none"),
    )
    model.config.halting_threshold = threshold_between(feedback_model(model.__class__, family, 0.03), batch)
    expected = model(**batch)
    for layer in model.layers:
        layer.compile(backend="eager")
    found = model(**batch)
    assert_exact(found.logits, expected.logits)
    assert torch.equal(found.iterations, expected.iterations)
    with model.feedback_disabled():
        model(**batch)
