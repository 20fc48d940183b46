"""Targets of single iterations: the loss beside one written out, from columns of a file to the trained model."""

import pytest
import torch
from builders import batch_for, targets_for, task_model, tiny_tokenizer, without_dropout
from comparisons import comparison_of
from datasets import Dataset
from families import randomize_messages, tiny_backbone
from torch.nn.functional import cross_entropy
from training_runs import arguments, make, rows, tiny_data, train_command, write

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.cli import main
from hf_feedback.evaluation.comparison.arm_runs import ArmTrainer, Job
from hf_feedback.evaluation.comparison.arms import Budget
from hf_feedback.evaluation.comparison.plan import make_plan
from hf_feedback.training import SMART, FeedbackTrainer
from hf_feedback.training.starting_model.model_arguments import ModelArguments
from hf_feedback.training.tasks.text_classification import TextClassification, TextDataArguments

NEXT = {"late": "lost", "lost": "fine", "fine": "late"}
OPTIONS = "--iteration-loss uniform --num-iterations 2 --iteration-target-columns first".split()


def with_first(records):
    """The records with a column of what the first iteration is to answer."""
    return [{**record, "first": NEXT[record["label"]]} for record in records]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "train.csv", with_first(rows()))
    write(tmp_path, "validation.csv", rows(9, 1))
    return tmp_path


def targets_of(name, *shifts):
    """Targets of the first iterations: the labels with other numbers, `None` for none."""
    labels = targets_for(name)["labels"]
    others = [torch.full_like(labels, -100) if n is None else (labels + n) % 2 for n in shifts]
    return torch.stack(others, 1)


# The loss


@pytest.mark.parametrize(("rule", "weights"), [("uniform", (1, 1, 1, 1)), ("linear", (1, 2, 3, 4))])
@pytest.mark.parametrize("shifts", [(1,), (1, 0), (None, 1)], ids=str)
@pytest.mark.parametrize("name", ["SequenceClassification", "TokenClassification", "MultipleChoice", "MaskedLM"])
def test_each_iteration_has_the_loss_of_its_own_target(name, rule, weights, shifts):
    model = randomize_messages(task_model(name, num_iterations=4, iteration_loss=rule).double())
    batch, labels, targets = batch_for(name), targets_for(name)["labels"], targets_of(name, *shifts)
    with torch.no_grad():
        logits = model.eval()(**batch, output_iterations=True).iteration_logits
        found = without_dropout(model)(**batch, labels=labels, iteration_targets=targets).loss
        own = [*(one.contiguous() for one in targets.unbind(1)), labels, labels, labels][:4]
        counted = [(w, model.eval()._loss(z, y)) for w, z, y in zip(weights, logits, own, strict=True)]
    counted = [(w, loss) for w, loss in counted if not loss.isnan()]  # the mean over no target at all
    assert len(counted) == 4 - shifts.count(None)
    expected = sum(w * loss for w, loss in counted) / sum(w for w, _ in counted)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_examples_without_a_target_do_not_count():
    """One example has a target in iteration 1, the other has none: the gradient is that of the one."""
    model = without_dropout(
        randomize_messages(task_model("SequenceClassification", num_iterations=2, iteration_loss="uniform").double())
    )
    batch = batch_for("SequenceClassification")
    both, one = torch.tensor([[2], [-100]]), {name: value[:1] for name, value in batch.items()}
    labels = torch.tensor([0, 1])
    expected = model(**one, labels=torch.tensor([2]), num_iterations=1).loss / 2
    expected += model._loss(model(**batch).logits, labels) / 2
    torch.testing.assert_close(model(**batch, labels=labels, iteration_targets=both).loss, expected)


def test_a_call_without_any_target_has_no_loss():
    """As where K is drawn, and the first iterations have no target: nothing is trained, and nothing is lost."""
    model = without_dropout(
        randomize_messages(task_model("SequenceClassification", num_iterations=2, iteration_loss="uniform"))
    )
    batch = {**batch_for("SequenceClassification"), **targets_for("SequenceClassification")}
    loss = model(**batch, iteration_targets=torch.full((2, 3), -100)).loss
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_targets_of_tokens_without_any_label_are_trained_on():
    """The mean over no label is no number, and does not count."""
    model = without_dropout(
        randomize_messages(task_model("TokenClassification", num_iterations=3, iteration_loss="linear").double())
    )
    batch, labels = batch_for("TokenClassification"), targets_for("TokenClassification")["labels"]
    nothing, targets = torch.full_like(labels, -100), targets_of("TokenClassification", 1)
    loss = model(**batch, labels=nothing, iteration_targets=targets).loss
    expected = model(**batch, labels=targets[:, 0], num_iterations=1).loss
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_loss_compiles_in_one_graph():
    model = without_dropout(
        randomize_messages(task_model("SequenceClassification", num_iterations=2, iteration_loss="uniform"))
    )
    batch = {**batch_for("SequenceClassification"), **targets_for("SequenceClassification")}
    batch["iteration_targets"] = targets_of("SequenceClassification", None)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss)


def test_evaluation_asks_for_the_label_after_the_last_iteration():
    model = task_model("SequenceClassification", iteration_loss="uniform").eval()
    batch = batch_for("SequenceClassification")
    labels = targets_for("SequenceClassification")
    targets = targets_of("SequenceClassification", 1)
    assert model(**batch, **labels, iteration_targets=targets).loss == model(**batch, **labels).loss


@pytest.mark.parametrize(
    ("options", "given", "error"),
    [
        (dict(iteration_loss="last"), dict(iteration_targets=torch.tensor([[0], [1]])), "`iteration_loss` is 'last'"),
        ({}, dict(iteration_targets=torch.tensor([0, 1])), r"shape of `labels`, \(2,\).*got \(2,\)"),
        ({}, dict(iteration_targets=torch.tensor([[0, 1]])), r"got \(1, 2\)"),
        ({}, dict(iteration_targets=torch.tensor([[0], [1]]), labels=None), "need `labels` too"),
        ({}, dict(iteration_targets=torch.tensor([[0.5], [1.5]])), "must be class numbers"),
        (dict(num_labels=1), dict(iteration_targets=torch.tensor([[0], [1]])), "and the model predicts values"),
        (
            dict(problem_type="multi_label_classification"),
            dict(labels=torch.tensor([[0, 1, 1]] * 2), iteration_targets=torch.tensor([[[0, 1, 1]]] * 2)),
            "and the model predicts several labels at once",
        ),
        (
            {},
            dict(iteration_targets=torch.tensor([[0], [1]]), labels=torch.tensor([0.5, 1.5])),
            "must be class numbers",
        ),
    ],
    ids=[
        "last",
        "no dimension",
        "another batch",
        "no labels",
        "floats",
        "values",
        "several labels",
        "floats as labels",
    ],
)
def test_targets_that_cannot_be_trained_on_are_refused(options, given, error):
    model = task_model("SequenceClassification", **{"iteration_loss": "uniform", **options}).train()
    with pytest.raises(ValueError, match=error):
        model(**{**batch_for("SequenceClassification"), **targets_for("SequenceClassification"), **given})


@pytest.mark.parametrize("name", ["SequenceClassification", "QuestionAnswering"])
def test_checks_of_a_model_read_a_batch_with_its_targets(name):
    """A batch of training, as it is: the checks leave its targets out."""
    model, batch = randomize_messages(task_model(name, num_iterations=2)), batch_for(name)
    targets = targets_for(name) | ({} if name == "QuestionAnswering" else {"iteration_targets": torch.zeros(2, 1)})
    assert model.check_equivalence({**batch, **targets}) == model.check_equivalence(batch)
    torch.manual_seed(0)
    expected = model.estimate_contraction(batch)
    torch.manual_seed(0)
    torch.testing.assert_close(model.estimate_contraction({**batch, **targets}), expected, atol=0, rtol=0)


# Training


def test_a_trained_model_answers_each_iterations_target(files, backbone):
    """From the columns of a file: the first iteration learns one answer, the last another one."""
    options = [*OPTIONS, *"--num-train-epochs 30 --learning-rate 1e-2 --backbone-lr 1e-2 --feedback-rank 16".split()]
    assert main(train_command(backbone, files / "out", *options)) == 0
    model = FeedbackForSequenceClassification.from_pretrained(files / "out").eval()
    data_args = TextDataArguments(train_file="train.csv", iteration_target_columns=["first"])
    task = TextClassification(ModelArguments(model=str(files / "out")), data_args).prepare()
    data = task.splits["train"].data
    batch = {name: torch.as_tensor(value) for name, value in task.collator(data.to_list()).items()}
    with torch.no_grad():
        first, last = model(
            **{name: value for name, value in batch.items() if name in ("input_ids", "attention_mask")},
            output_iterations=True,
        ).iteration_logits
    assert torch.equal(first.argmax(-1), batch["iteration_targets"][:, 0])
    assert torch.equal(last.argmax(-1), batch["labels"])
    assert not (batch["iteration_targets"][:, 0] == batch["labels"]).any()


def test_an_iteration_may_have_no_target(files, backbone):
    data_args = TextDataArguments(train_file="train.csv", iteration_target_columns=["none", "first"])
    model_args = ModelArguments(model=backbone, num_iterations=3, iteration_loss="uniform")
    data = TextClassification(model_args, data_args).prepare().splits["train"].data
    names = sorted(NEXT)
    expected = [[-100, names.index(NEXT[record["label"]])] for record in rows()]
    assert data["iteration_targets"][:] == expected


WRONG = {
    "no such column": (["gone"], {}, "`iteration_target_columns`: there is no column 'gone'"),
    "other classes": (
        ["text"],
        {},
        r"`iteration_target_columns`, 'text': .* is not among the training labels.*Targets are classes of the label",
    ),
    "an empty cell": (
        ["empty"],
        {},
        r"`iteration_target_columns`, 'empty': .* the label is missing.*give the label where there is nothing",
    ),
    "a column called none": (["none"], {}, "'none' says that an iteration has no target, and train.csv has a column"),
    "values": (["first"], {"problem_type": "regression"}, "one class for every text, and the labels are regression"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_columns_are_refused_before_anything_is_loaded(name, files, backbone, monkeypatch):
    columns, options, error = WRONG[name]
    records = [{**record, "empty": ""} for record in with_first(rows())]
    if options:
        records = [{**record, "label": i} for i, record in enumerate(records)]
    if columns == ["none"]:
        records = [{**record, "none": "late"} for record in records]
    write(files, "train.csv", records)
    monkeypatch.delattr(TextClassification, "load")
    data_args = TextDataArguments(train_file="train.csv", iteration_target_columns=columns, **options)
    with pytest.raises(ValueError, match=error):
        TextClassification(ModelArguments(model=backbone), data_args).prepare()


def test_texts_without_labels_have_no_targets(files, backbone, capsys):
    more = ["--adversarial", "smart", "--unlabelled-file", "validation.csv"]
    assert main(train_command(backbone, files / "out", *OPTIONS, *more)) == 2
    assert "those of `unlabelled_file` have none; leave one out" in capsys.readouterr().err


UNSUITABLE = {
    "last": (dict(iteration_loss="last"), {}, [[0]] * 4, "give the model `iteration_loss`"),
    "too many": ({}, {}, [[0, 1]] * 4, "of the first 2 iterations, and with 2 iterations in training the labels"),
    "too many for the draw": (
        dict(num_iterations=4), dict(train_iterations="uniform", min_train_iterations=1, max_train_iterations=2),
        [[0, 1]] * 4, "of the first 2 iterations, and with 2 iterations in training",
    ),
    "none in a step": (
        dict(num_iterations=3), dict(train_iterations="uniform", min_train_iterations=1), [[-100, 1]] * 4,
        "draws 1 iterations for some steps",
    ),
    "rows that differ": (dict(num_iterations=3), {}, [[0, 1], [0, 1], [-100, 1], [0, 1]], r"row 3 \[-100, 1\]"),
    "agreement": ({}, dict(agreement_weight=1.0), [[0]] * 4, "`agreement_weight`=1.0 makes earlier iterations answer"),
    "halting": (
        dict(halting="confidence", min_iterations=1), {}, [[0]] * 4,
        "`halting`='confidence' could stop at the answer to one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("targets", [None, 0, [0, None], [0, 1]], ids=str)
def test_a_row_without_a_list_of_targets_is_named(targets, tmp_path):
    data = [{**row, "iteration_targets": [0]} for row in tiny_data(4)]
    data[2]["iteration_targets"] = targets
    model = make(iteration_loss="uniform", num_iterations=3)
    with pytest.raises(ValueError, match=r"every row needs a list of as many class numbers.*row 3"):
        FeedbackTrainer(model=model, args=arguments(tmp_path), train_dataset=data)


@pytest.mark.parametrize("as_list", [False, True], ids=["Dataset", "list"])
@pytest.mark.parametrize("case", UNSUITABLE)
def test_the_trainer_refuses_targets_that_do_not_suit(case, as_list, tmp_path):
    model_options, training_options, targets, error = UNSUITABLE[case]
    data = [{**row, "iteration_targets": one} for row, one in zip(tiny_data(4), targets, strict=True)]
    model = make(**{"iteration_loss": "uniform", "num_iterations": 2, **model_options})
    with pytest.raises(ValueError, match=error):
        FeedbackTrainer(
            model=model,
            args=arguments(tmp_path, **training_options),
            train_dataset=data if as_list else Dataset.from_list(data),
        )


OF_TOKENS = {
    "no label": (-100, [[0] * 6, [-100] * 6], {}, "row 3 has targets and no label"),
    "none in a step": (
        0, [[-100] * 6, [0] * 6], dict(train_iterations="uniform", min_train_iterations=1),
        "draws 1 iterations for some steps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_TOKENS)
def test_targets_of_tokens_that_do_not_suit_are_refused(case, tmp_path):
    label, targets, options, error = OF_TOKENS[case]
    texts = [dict(input_ids=[5] * 6, labels=[0] * 6, iteration_targets=targets) for _ in range(4)]
    texts[2]["labels"] = [label] * 6
    model = task_model("TokenClassification", num_iterations=3, iteration_loss="uniform")
    with pytest.raises(ValueError, match=error):
        FeedbackTrainer(model=model, args=arguments(tmp_path, **options), train_dataset=Dataset.from_list(texts))


@pytest.mark.parametrize("name", ["QuestionAnswering", "CausalLM"])
def test_models_with_one_target_refuse_those_of_iterations(name, tmp_path):
    """transformers would drop the column."""
    data = [{**row, "iteration_targets": [0]} for row in tiny_data(4)]
    model = task_model(name, num_iterations=2, iteration_loss="uniform")
    with pytest.raises(ValueError, match=f"are not for FeedbackFor{name}, which has one target for all iterations"):
        FeedbackTrainer(model=model, args=arguments(tmp_path), train_dataset=data)


@pytest.mark.parametrize(
    "options", [dict(halting="confidence", min_iterations=2), dict(halting="convergence")], ids=str
)
def test_halting_after_the_targets_is_allowed(options, tmp_path):
    """A training step reads the target in iteration 1, and runs all iterations."""
    data = [{**row, "iteration_targets": [(row["labels"] + 1) % 3]} for row in tiny_data(4)]
    model = randomize_messages(make(iteration_loss="uniform", num_iterations=3, **options).double())
    trainer = FeedbackTrainer(model=model, args=arguments(tmp_path), train_dataset=data)
    inputs = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(without_dropout(model), dict(inputs)).item()
    targets, labels = inputs.pop("iteration_targets"), inputs.pop("labels")
    assert torch.equal(targets, (labels[:, None] + 1) % 3)
    logits = model(**inputs, output_iterations=True).iteration_logits
    expected = [cross_entropy(z, y).item() for z, y in zip(logits, [targets[:, 0], labels, labels], strict=True)]
    assert loss == pytest.approx(sum(expected) / 3, rel=1e-12)


def test_networks_from_scratch_have_no_targets_of_iterations(files, backbone, capsys):
    command = ["train", "--fnn", "temporal", "--tokenizer", backbone, "--train-file", "train.csv", *OPTIONS[4:]]
    assert main([*command, "--output-dir", "out"]) == 2
    assert "are for backbones with feedback, and this network has none" in capsys.readouterr().err


def test_a_later_run_has_the_classes_of_the_trained_model(files, backbone):
    """A second file, in which a class is a target and no label, is trained on all the same."""
    assert main(train_command(backbone, files / "first", *OPTIONS, "--max-steps", "1")) == 0
    some = [record for record in with_first(rows()) if record["label"] != "fine"]
    assert {record["first"] for record in some} == {"lost", "fine"}
    write(files, "train.csv", some)
    more = [*OPTIONS, "--max-steps", "1"]
    assert main(train_command(str(files / "first"), files / "second", *more, validation=None)) == 0


def test_adversarial_passes_without_labels_have_no_targets():
    model = randomize_messages(task_model("SequenceClassification", iteration_loss="uniform").double())
    batch = {**batch_for("SequenceClassification"), **targets_for("SequenceClassification")}
    loss = SMART().compute_loss(model.train(), {**batch, "iteration_targets": torch.tensor([[1], [0]])}).loss
    assert loss.isfinite()


def test_arms_that_answer_once_have_the_label_as_their_target(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    tiny_backbone("bert").save_pretrained(folder / "bert")
    tiny_tokenizer().save_pretrained(folder / "bert")
    for seed, split in enumerate(("train", "validation", "test")):
        write(folder, f"{split}.csv", with_first(rows(24, seed)))
    variants = ["--variants", '{"all": {}, "last": {"iteration_loss": "last"}}']
    comparison = comparison_of(folder, tmp_path, *OPTIONS, *variants, "--arms", "plain", "loop-only", "bottom-up")
    columns = {
        name: ArmTrainer(comparison, Job(name, 0, 1.0), Budget(9)).trainer.train_dataset.column_names
        for name in comparison.arms
    }
    assert {name for name, found in columns.items() if "iteration_targets" in found} == {"all", "loop-only"}
    with pytest.raises(ValueError, match="`iteration_target_columns` are read where every iteration has a loss"):
        make_plan(comparison_of(folder, tmp_path, *OPTIONS[2:], "--arms", "plain"))
