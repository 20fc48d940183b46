"""Objectives beside the loss of the task: each beside its paper's formula written out, and in the Trainer's logs."""

import logging

import pytest
import torch
from builders import (
    NAMES,
    REPRESENTATIVE,
    batch_for,
    feedback_model,
    first_head,
    fnn_model,
    targets_for,
    task_model,
    tiny_tokenizer,
    without_dropout,
)
from datasets import Dataset
from families import randomize_messages, tiny_batch
from test_adversarial import LABELLED, Logged, alone, classifier, parameter_gradients  # noqa: F401
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from training_runs import arguments, make, tiny_data
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.training import (
    SMART,
    ClassLoss,
    DropoutAgreement,
    FeedbackTrainer,
    IterationAgreement,
    MaskedWords,
    Objectives,
    balanced_class_weights,
)
from hf_feedback.training.techniques import class_loss_setup
from hf_feedback.training.techniques.divergence import symmetric_divergence


def both_ways(p, q):
    """½ (KL(p‖q) + KL(q‖p)), by torch's own function, the mean over rows."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    options = dict(log_target=True, reduction="batchmean")
    return (F.kl_div(q, p, **options) + F.kl_div(p, q, **options)) / 2


def backward(model, loss):
    model.zero_grad()
    loss.backward()
    return parameter_gradients(model)


def assert_same(model, objective, expected):
    """The loss and its gradients are those of a formula, for the same random numbers."""
    torch.manual_seed(4)
    result = Objectives([objective]).compute_loss(model, LABELLED)
    found = backward(model, result.loss)
    torch.manual_seed(4)
    loss = expected(model)
    torch.testing.assert_close(result.loss, loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, backward(model, loss), rtol=1e-9, atol=1e-12)
    name = f"loss_{objective.name}"
    torch.testing.assert_close(result.loss.detach(), result.parts["loss_task"] + objective.weight * result.parts[name])


# The formulas


@pytest.mark.parametrize("teacher", ["last", "none"])
@pytest.mark.parametrize("rule", ["last", "uniform"])
def test_iterations_agree(teacher, rule):
    def expected(model):
        output = model(**LABELLED, output_iterations=True)
        first, second, last = output.iteration_logits
        target = last.detach() if teacher == "last" else last
        return output.loss + 0.7 * (both_ways(first, target) + both_ways(second, target)) / 2

    assert_same(classifier(iteration_loss=rule), IterationAgreement(0.7, teacher), expected)


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_dropout_masks_agree(num_iterations):
    def expected(model):
        one, other = model(**LABELLED), model(**LABELLED)
        assert not torch.equal(one.logits, other.logits)
        return (one.loss + other.loss) / 2 + 0.7 * both_ways(one.logits, other.logits)

    model = feedback_model(FeedbackForSequenceClassification, num_iterations=num_iterations).train()
    assert_same(model, DropoutAgreement(0.7), expected)


MASK = MaskedWords(0.7, mask_token_id=4, special_token_ids=[1, 2, 3], probability=0.5)


def test_masked_words_are_predicted():
    def expected(model):
        masked, chosen = MASK.mask(LABELLED["input_ids"], LABELLED["attention_mask"], 99)
        embedded = model.backbone(masked, attention_mask=LABELLED["attention_mask"]).last_hidden_state
        logits = embedded @ model.get_input_embeddings().weight.T
        losses = [F.cross_entropy(logits[b, t], LABELLED["input_ids"][b, t]) for b, t in chosen.nonzero().tolist()]
        return model(**LABELLED).loss + 0.7 * sum(losses) / len(losses)

    model = without_dropout(feedback_model(FeedbackForSequenceClassification, num_iterations=1))
    assert_same(model, MASK, expected)


def test_masks_are_those_of_bert():
    torch.manual_seed(0)
    input_ids = torch.randint(5, 99, (40, 500))
    input_ids[:, 0] = 2
    mask = torch.ones_like(input_ids)
    mask[:, 400:] = 0
    masked, chosen = MaskedWords(1.0, 4, [2]).mask(input_ids, mask, 99)
    assert not chosen[:, 0].any()
    assert not chosen[:, 400:].any()
    assert torch.equal(masked[~chosen], input_ids[~chosen])
    assert chosen[:, 1:400].float().mean().item() == pytest.approx(0.15, abs=0.01)
    became = masked[chosen]
    kept = became == input_ids[chosen]
    assert (became == 4).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_the_divergence_of_every_problem():
    p, q = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    single = symmetric_divergence(p, q, "single_label_classification")
    torch.testing.assert_close(single.mean() / 2, both_ways(p, q))
    yes_or_no = [torch.stack((x, torch.zeros_like(x)), -1).flatten(0, 1) for x in (p, q)]
    several = symmetric_divergence(p, q, "multi_label_classification")
    torch.testing.assert_close(several.sum() / 15 / 2, both_ways(*yes_or_no))
    torch.testing.assert_close(symmetric_divergence(p, q, "regression"), ((p - q) ** 2).sum(-1))


LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLASSES = torch.tensor([0, 1, 1, 3, -100, 2])
WEIGHTS = [0.5, 2.0, 1.0, 3.0]


def test_class_weights_focal_loss_and_smoothing_equal_their_formulas():
    real = [i for i in range(6) if CLASSES[i] != -100]
    p = LOGITS.softmax(-1)
    focal = -sum(WEIGHTS[CLASSES[i]] * (1 - p[i, CLASSES[i]]) ** 2 * p[i, CLASSES[i]].log() for i in real) / 5
    torch.testing.assert_close(ClassLoss(WEIGHTS, focal_gamma=2.0)(LOGITS, CLASSES), focal)
    options = dict(weight=torch.tensor(WEIGHTS).double(), label_smoothing=0.1, reduction="sum")
    both = ClassLoss(WEIGHTS, label_smoothing=0.1)(LOGITS, CLASSES)
    torch.testing.assert_close(both, F.cross_entropy(LOGITS, CLASSES, **options) / 5)
    torch.testing.assert_close(ClassLoss()(LOGITS, CLASSES), F.cross_entropy(LOGITS, CLASSES))
    smooth = LabelSmoother(0.1)({"logits": LOGITS}, CLASSES.clone())
    torch.testing.assert_close(ClassLoss(label_smoothing=0.1)(LOGITS, CLASSES), smooth.double(), rtol=1e-6, atol=0)


def test_a_certain_answer_has_a_finite_focal_gradient():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    ClassLoss(focal_gamma=0.5)(logits, torch.tensor([0])).backward()
    assert logits.grad.isfinite().all()


def test_balanced_weights():
    labels = [0] * 6 + [1] * 3 + [3] + [-100]
    weights = balanced_class_weights(labels, 4)
    assert weights == pytest.approx([10 / 18, 10 / 9, 1.0, 10 / 3])
    assert sum(weights[label] for label in labels[:-1]) == pytest.approx(10)


# Every head


@pytest.mark.parametrize("name", NAMES)
def test_every_head(name):
    model = task_model(name, first_head(name)).train()
    family = REPRESENTATIVE.get(name, "bert")
    batch = {**batch_for(name, family), **targets_for(name)}
    objectives = [IterationAgreement(0.5), DropoutAgreement(0.5)]
    if family == "bert" and name != "MaskedLM":
        objectives.append(MASK)
    for objective in objectives:
        objective.check_model(model)
    result = Objectives(objectives).compute_loss(model, batch)
    gradients = backward(model, result.loss)
    assert {"loss_task", *(f"loss_{one.name}" for one in objectives)} == result.parts.keys()
    assert all(value.isfinite() for value in result.parts.values())
    assert all(value >= 0 for value in result.parts.values())
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_padding_and_unlabelled_tokens_do_not_count():
    model = without_dropout(task_model("TokenClassification"))
    batch = {**tiny_batch(), **targets_for("TokenClassification")}
    longer = {name: F.pad(value, (0, 3), value=-100 if name == "labels" else 0) for name, value in batch.items()}
    randomize_messages(model)
    found = [Objectives([IterationAgreement(1.0)]).compute_loss(model, one).parts for one in (batch, longer)]
    assert found[0]["loss_agreement"] > 0
    torch.testing.assert_close(*found)


def test_a_network_from_scratch():
    model = fnn_model(head=True, num_iterations=3).train()
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
    result = Objectives([IterationAgreement(0.5), DropoutAgreement(0.5)]).compute_loss(model, batch)
    assert result.parts["loss_agreement"] > 0


def test_gradients_are_reduced_once_a_step(alone):  # noqa: F811
    model = classifier()
    objectives = Objectives([IterationAgreement(0.5), DropoutAgreement(0.5), MASK])
    torch.manual_seed(3)
    expected = backward(model, objectives.compute_loss(model, LABELLED).loss)
    wrapped, reduced = DistributedDataParallel(model), []

    def reduce(state, bucket):
        reduced.append(bucket.index())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(None, reduce)
    for steps in (1, 2):
        torch.manual_seed(3)
        found = backward(wrapped, objectives.compute_loss(wrapped, LABELLED).loss)
        torch.testing.assert_close({name.removeprefix("module."): g for name, g in found.items()}, expected)
        assert reduced.count(0) == steps


# In the Trainer


def run(folder, model, data=None, **options):
    logged = Logged()
    trainer = FeedbackTrainer(
        model=model, args=arguments(folder, **options), train_dataset=data or tiny_data(), callbacks=[logged],
        processing_class=masking_tokenizer(),
    )  # fmt: skip
    trainer.train()
    return trainer, logged.logs


def masking_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return tokenizer


def test_logs_hold_every_part(tmp_path):
    """The parts add up to the loss: logs have the means of a step's batches."""
    weights = dict(agreement_weight=0.5, dropout_agreement_weight=0.3, masked_lm_weight=0.2)
    _, logs = run(tmp_path, make(num_iterations=3), max_steps=2, gradient_accumulation_steps=2, **weights)
    for log in logs:
        parts = sum(weight * log[f"loss_{name.removesuffix('_weight')}"] for name, weight in weights.items())
        assert log["loss"] == pytest.approx(log["loss_task"] + parts, rel=1e-3)


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.found = parameter_gradients(model)


def partly_labelled(name):
    """A model, and 8 rows of which most have few labels or none."""
    torch.manual_seed(0)
    data = tiny_data(8)
    if name == "SequenceClassification":
        labels = [row["labels"] if i in (0, 3, 5) else -100 for i, row in enumerate(data)]
    elif name == "QuestionAnswering":  # most answers lie beyond the text
        rows = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in data]
        for i, row in enumerate(rows):
            row["start_positions"] = row["end_positions"] = i if i in (0, 3, 5) else 50
        return randomize_messages(without_dropout(task_model(name, first_head(name))).double()), rows
    else:
        labels = [torch.where(torch.arange(9) < max(0, i - 2), torch.arange(9) % 3, -100) for i in range(8)]
    return randomize_messages(without_dropout(task_model(name, first_head(name))).double()), [
        {**row, "labels": label} for row, label in zip(data, labels, strict=True)
    ]


@pytest.mark.parametrize("options", [dict(agreement_weight=5.0, adversarial="fgm"), dict(adversarial="smart")], ids=str)
@pytest.mark.parametrize("name", ["SequenceClassification", "TokenClassification", "CausalLM", "QuestionAnswering"])
def test_accumulated_batches_are_one_batch(name, options, tmp_path, monkeypatch):
    """Also with uneven classes, and where batches have few labels; `smart` counts texts and tokens without labels."""
    ramp = torch.linspace(-0.01, 0.01, 32)  # noise is drawn for each batch anew
    monkeypatch.setattr(SMART, "_start", lambda self, zeros, real, generator: zeros + real * ramp)
    if name in ("SequenceClassification", "TokenClassification"):
        options = {**options, "class_weights": [1.0, 2.0, 0.5]}
    logs, gradients = [], []
    for size, steps in ((8, 1), (4, 2)):
        model, data = partly_labelled(name)
        batches = dict(per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=1, seed=1)
        callbacks = [Logged(), Gradients()]
        args = arguments(tmp_path, max_grad_norm=1e9, **batches, **options)
        FeedbackTrainer(model=model, args=args, train_dataset=data, callbacks=callbacks).train()
        logs.append({key: value for key, value in callbacks[0].logs[0].items() if "loss" in key})
        gradients.append(callbacks[1].found)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)
    assert {"loss", "loss_adversarial"} <= logs[0].keys()


OWN_LOSSES = {  # options of the model, of training: what is lost in the Trainer of transformers
    "losses of iterations": (
        dict(iteration_loss="uniform"),
        {},
        "`iteration_loss`='uniform' is part of the model's own",
    ),
    "a penalty": (dict(jacobian_penalty=0.5), {}, "`jacobian_penalty`=0.5 is part of"),
    "both": (dict(iteration_loss="linear", jacobian_penalty=0.5), {}, "'linear' and `jacobian_penalty`=0.5 are parts"),
    "with labels": (dict(iteration_loss="uniform"), dict(label_smoothing_factor=0.0), None),
    "one iteration": (dict(iteration_loss="uniform", num_iterations=1), {}, None),
    "the last iteration alone": ({}, {}, None),
}


@pytest.mark.parametrize("case", OWN_LOSSES)
def test_what_another_trainer_leaves_out_is_said(case, tmp_path, caplog):
    """The Trainer of transformers takes the labels out of the batch to smooth them."""
    logging.Logger.warning_once.cache_clear()
    options, training, words = OWN_LOSSES[case]
    args = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no",
        **{"label_smoothing_factor": 0.1, **training},
    )  # fmt: skip
    with caplog.at_level("WARNING", logger="hf_feedback"):
        trainer = Trainer(make(**options), args, train_dataset=tiny_data(), eval_dataset=tiny_data())
        trainer.evaluate()
        assert caplog.text == ""
        trainer.train()
    messages = [record.getMessage() for record in caplog.records if "without labels" in record.getMessage()]
    assert len(messages) == (words is not None)
    assert words is None or (words in messages[0] and "use `FeedbackTrainer`, which smooths" in messages[0])


PASSES_WITHOUT_TARGETS = {
    "smoothing": dict(label_smoothing_factor=0.1),
    "divergence of perturbed texts": dict(adversarial="smart"),
    "words and masks": dict(masked_lm_weight=0.5, dropout_agreement_weight=0.5, agreement_weight=0.5),
}


@pytest.mark.parametrize("case", PASSES_WITHOUT_TARGETS)
def test_own_passes_without_targets_lose_nothing(case, tmp_path, caplog):
    logging.Logger.warning_once.cache_clear()
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    data = tiny_data()
    for row in data[:8]:
        row["labels"] = -100 if case.startswith("divergence") else row["labels"]
    args = arguments(tmp_path, train_sampling_strategy="sequential", **PASSES_WITHOUT_TARGETS[case])
    model = make(iteration_loss="uniform", jacobian_penalty=0.1)
    with caplog.at_level("WARNING", logger="hf_feedback"):
        FeedbackTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer).train()
    assert "without labels" not in caplog.text


@pytest.mark.parametrize("size", [1, 4])
def test_a_loss_function_of_a_classifier_keeps_the_weights(size, tmp_path):
    """Its labels are not shifted: losses and gradients are those without `compute_loss_func`."""

    def mean_loss(outputs, labels, num_items_in_batch):
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    found = []
    for function in (None, mean_loss):
        torch.manual_seed(0)
        callbacks, batches = [Logged(), Gradients()], dict(per_device_train_batch_size=size, max_steps=1, seed=1)
        trainer = FeedbackTrainer(
            model=randomize_messages(without_dropout(make(num_iterations=3))),
            args=arguments(tmp_path, agreement_weight=5.0, gradient_accumulation_steps=2, max_grad_norm=1e9, **batches),
            train_dataset=tiny_data(), compute_loss_func=function, callbacks=callbacks,
        )  # fmt: skip
        trainer.train()
        losses = {name: value for name, value in callbacks[0].logs[0].items() if "loss" in name}
        found.append((losses, callbacks[1].found))
    assert found[0][0]["loss_agreement"] > 0
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_the_jacobian_penalty_is_logged_by_its_name(tmp_path):
    model = classifier(jacobian_penalty=0.1)
    output = model(**LABELLED)
    assert output.jacobian_penalty > 0
    assert model.eval()(**LABELLED).jacobian_penalty is None
    _, logs = run(tmp_path, randomize_messages(make(jacobian_penalty=0.1)), max_steps=1)
    assert logs[0]["loss_jacobian"] > 0
    assert logs[0]["loss"] > 0.1 * logs[0]["loss_jacobian"]


def test_a_drawn_k_of_one_has_nothing_to_agree_on(tmp_path):
    model = make(num_iterations=2)
    result = Objectives([IterationAgreement(0.5)]).compute_loss(model.train(), {**LABELLED, "num_iterations": 1})
    assert result.parts["loss_agreement"] == 0
    run(tmp_path, model, max_steps=4, agreement_weight=0.5, train_iterations="uniform", min_train_iterations=1)


@pytest.mark.parametrize("rule", ["last", "linear"])
def test_the_loss_of_classes_counts_at_every_iteration(rule, tmp_path):
    """Smoothing, weights and the focal loss, in training as in evaluation; the model's own loss is as it was after."""
    torch.manual_seed(0)
    model, data = without_dropout(make(num_iterations=2, iteration_loss=rule)), tiny_data(8)
    randomize_messages(model)
    options = dict(class_weights=[1.0, 2.0, 0.5], focal_gamma=1.5, label_smoothing_factor=0.1, max_steps=1)
    batch = {name: torch.stack([torch.as_tensor(row[name]) for row in data]) for name in data[0]}
    args = arguments(tmp_path, per_device_train_batch_size=8, **options)
    logged = Logged()
    trainer = FeedbackTrainer(model=model, args=args, train_dataset=data, eval_dataset=data, callbacks=[logged])
    first, last = (
        ClassLoss([1.0, 2.0, 0.5], 1.5, 0.1)(logits, batch["labels"])
        for logits in model(**batch, output_iterations=True).iteration_logits
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(last.item(), rel=1e-5)
    trainer.train()
    expected = last if rule == "last" else (first + 2 * last) / 3
    assert logged.logs[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)
    output = model.eval()(**batch)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, batch["labels"]))


@pytest.mark.parametrize("form", ["lists", "torch", "rows"])
@pytest.mark.parametrize("tokens", [False, True])
def test_balanced_weights_are_counted_in_the_training_data(tokens, form, tmp_path):
    if tokens:
        model, labels = task_model("TokenClassification"), [[-100, 0, 0, 1, 2], [0, 0, 1, -100, -100]]
    else:
        model, labels = make(), [0] * 4 + [1] * 2 + [2]
    data = Dataset.from_dict({"input_ids": [[5, 6, 7, 8, 9]] * len(labels), "labels": labels})
    if form != "lists":
        data = data.with_format("torch")
    if form == "rows":
        data = list(data)
    args = arguments(tmp_path, class_weights=["balanced"])
    trainer = FeedbackTrainer(model=model, args=args, train_dataset=data)
    assert trainer.techniques.record == {"weights of the classes": pytest.approx([7 / 12, 7 / 6, 7 / 3])}
    assert args.class_weights == ["balanced"]


def test_labels_are_counted_once(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(class_loss_setup, "_labels_of", lambda data: reads.append(data) or [0, 1, 2])
    run(tmp_path, make(), max_steps=1, class_weights=["balanced"])
    assert len(reads) == 1


def test_smoothing_of_choices_and_masked_words():
    for name in ("MultipleChoice", "MaskedLM"):
        model = without_dropout(task_model(name))
        batch = {**batch_for(name), **targets_for(name)}
        trainer = FeedbackTrainer(model=model, args=arguments("unused", label_smoothing_factor=0.1))
        output = model(**batch)
        flat = F.cross_entropy(output.logits.flatten(0, -2), batch["labels"].flatten(), label_smoothing=0.1)
        torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), flat)


@pytest.mark.parametrize(
    "option", [dict(class_weights=[1, 2, 3]), dict(focal_gamma=1.0), dict(label_smoothing_factor=0.1)], ids=str
)
def test_a_loss_in_place_of_the_models_is_refused(option, tmp_path):
    with pytest.raises(ValueError, match=f"`{min(option)}` changes the model's own loss, which `compute_loss_func`"):
        FeedbackTrainer(model=make(), args=arguments(tmp_path, **option), compute_loss_func=lambda *_, **__: None)


class OwnLoss(FeedbackTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        return F.cross_entropy(model(**inputs).logits, labels)


class LabelledLoss(FeedbackTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return model(**inputs).loss


class CallsSuper(FeedbackTrainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


APPLIED_IN_THE_TRAINER = [
    dict(adversarial="fgm"), dict(agreement_weight=0.5), dict(dropout_agreement_weight=0.5), dict(masked_lm_weight=0.2),
    dict(class_weights=[1, 2, 3]), dict(focal_gamma=1.0), dict(label_smoothing_factor=0.1),
    dict(train_iterations="uniform"),
]  # fmt: skip


@pytest.mark.parametrize("options", APPLIED_IN_THE_TRAINER, ids=str)
def test_a_loss_of_a_subclass_that_leaves_options_out_is_refused(options, tmp_path):
    """In its first step; a subclass that calls `super().compute_loss` trains."""
    option, args = min(options), arguments(tmp_path, max_steps=2, gradient_accumulation_steps=2, **options)
    given = dict(args=args, train_dataset=tiny_data(), processing_class=masking_tokenizer())
    model = make(num_iterations=3)
    before = [p.detach().clone() for p in model.parameters()]
    refusal = rf"`{option}`=.* which `OwnLoss.compute_loss` replaces without calling it; call `super\(\).compute_loss"
    with pytest.raises(ValueError, match=refusal):
        OwnLoss(model=model, **given).train()
    assert all(map(torch.equal, before, model.parameters()))
    trainer = CallsSuper(model=make(num_iterations=3), **given)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_loss_of_a_subclass_without_labels_has_no_loss_of_iterations(tmp_path):
    given = dict(args=arguments(tmp_path, max_steps=2), train_dataset=tiny_data())
    refusal = r"`iteration_loss`='uniform' is part of .* `OwnLoss.compute_loss` calls the model without labels"
    with pytest.raises(ValueError, match=refusal):
        OwnLoss(model=make(iteration_loss="uniform"), **given).train()
    for trainer_class, rule in ((OwnLoss, "last"), (LabelledLoss, "uniform"), (CallsSuper, "uniform")):
        model = make(iteration_loss=rule)
        trainer_class(model=model, **given).train()
        assert not model._forward_pre_hooks


VALUES = dict(num_labels=1, problem_type="regression")
SEVERAL = dict(problem_type="multi_label_classification")
# Model, options, words of the message.
WRONG = {
    "weights of values": (
        lambda: make(**VALUES), dict(class_weights=[1.0]), "weights classes, and the model predicts values"
    ),
    "focal loss of values": (lambda: make(**VALUES), dict(focal_gamma=2.0), r"`focal_gamma`=2.0 weights classes, and"),
    "several labels": (lambda: make(**SEVERAL), dict(focal_gamma=2.0), "the model predicts several labels at once"),
    "smoothed labels": (lambda: make(**SEVERAL), dict(label_smoothing_factor=0.1), "the model predicts several labels"),
    "questions": (
        lambda: task_model("QuestionAnswering"),
        dict(label_smoothing_factor=0.1),
        "where answers start and end",
    ),
    "choices": (lambda: task_model("MultipleChoice"), dict(class_weights=["balanced"]), "the model predicts choices"),
    "tokens": (lambda: task_model("CausalLM"), dict(focal_gamma=1.0), "the model predicts tokens"),
    "words": (lambda: task_model("MaskedLM"), dict(focal_gamma=1.0), "the model predicts words"),
    "number of weights": (make, dict(class_weights=[1.0, 2.0]), "`class_weights` must be 3 numbers, one per class"),
    "no data": (make, dict(class_weights=["balanced"]), "counts the labels of `train_dataset`.*got NoneType"),
    "gradient": (
        lambda: make(gradient="one_step"), dict(agreement_weight=0.5),
        r"`agreement_weight`=0.5 needs a gradient of every iteration, and `gradient`='one_step'",
    ),
    "one iteration": (
        lambda: make(num_iterations=1), dict(agreement_weight=0.5),
        r"`agreement_weight`=0.5 compares the answers of iterations, `num_iterations`=1 gives only one",
    ),
    "no tokenizer": (
        make, dict(masked_lm_weight=0.5), "needs a tokenizer with a mask token as `processing_class`, got NoneType"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_suit_the_model_is_refused(case, tmp_path):
    model, options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        FeedbackTrainer(model=model(), args=arguments(tmp_path, **options))


NO_MASKS = {
    "images": (lambda: task_model("ImageClassification"), "has no word embeddings of a backbone"),
    "network": (lambda: fnn_model(head=True), "FNNForSequenceClassification has no word embeddings of a backbone"),
    "decoder": (lambda: make("gpt2"), "reads from left to right"),
    "width": (lambda: make("electra"), "the word embeddings of FeedbackForSequenceClassification are 16 wide"),
    "masked already": (lambda: task_model("MaskedLM"), "the task of FeedbackForMaskedLM already"),
}


@pytest.mark.parametrize("case", NO_MASKS)
def test_models_without_masked_words_are_refused(case):
    model, words = NO_MASKS[case]
    with pytest.raises(ValueError, match=f"`masked_lm_weight`=0.7: .*{words}"):
        MASK.check_model(model())


WRONG_OPTIONS = {
    "weight": (dict(agreement_weight=-1.0), "`agreement_weight` must be a number of at least 0, got -1.0"),
    "teacher": (dict(agreement_teacher="first"), "`agreement_teacher` must be one of 'last', 'none', got 'first'"),
    "gamma": (dict(focal_gamma=-1.0), "`focal_gamma` must be a number of at least 0"),
    "classes": (dict(class_weights=["equal"]), "must be numbers of at least 0, one a class, or 'balanced'"),
    "negative": (dict(class_weights=["1", "-2"]), "`class_weights` must be numbers of at least 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options(case, tmp_path):
    options, words = WRONG_OPTIONS[case]
    with pytest.raises(ValueError, match=words):
        arguments(tmp_path, **options)


def test_class_weights_are_read_in_every_spelling(tmp_path):
    assert arguments(tmp_path, class_weights=["1", "2.5"]).read_class_weights() == [1.0, 2.5]
    assert arguments(tmp_path, class_weights="balanced").read_class_weights() == "balanced"
