"""Adversarial training: each method beside its paper's algorithm written out text by text, on any backbone and head."""

import copy

import pytest
import torch
from builders import (
    NAMES,
    REPRESENTATIVE,
    batch_for,
    feedback_model,
    fnn_model,
    targets_for,
    task_model,
    without_dropout,
)
from families import tiny_batch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from training_runs import arguments, make, rows, tiny_data, train_command, write
from transformers import TrainerCallback

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.cli import main
from hf_feedback.evaluation.commands.compare import parse_comparison
from hf_feedback.evaluation.comparison.arms import Budget
from hf_feedback.training import FGM, PGD, SMART, FeedbackTrainer, FreeLB, peft_options
from hf_feedback.training.starting_model.model_arguments import ModelArguments
from hf_feedback.training.tasks.text_classification import TextClassification, TextDataArguments
from hf_feedback.training.techniques.perturbation import WordPerturbation

BATCH = tiny_batch()
LABELLED = {**BATCH, "labels": torch.tensor([0, 2])}
SHAPE = (*BATCH["input_ids"].shape, 32)


def classifier(**options):
    return without_dropout(feedback_model(FeedbackForSequenceClassification, num_iterations=3, **options))


def parameter_gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(model, method, batch=LABELLED):
    """The loss of a method and its gradients."""
    model.zero_grad()
    result = method.compute_loss(model, batch)
    result.loss.backward()
    return result, parameter_gradients(model)


# The algorithms of the papers, one text after the other


def noise(scale):
    drawn = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 0.5
    return drawn * BATCH["attention_mask"][..., None] * scale


def outputs_at(model, r):
    embedded = model.get_input_embeddings()(BATCH["input_ids"]) + r
    return model(inputs_embeds=embedded, attention_mask=BATCH["attention_mask"], labels=LABELLED["labels"])


def loss_at(model, r):
    return outputs_at(model, r).loss


def gradient_at(function, r):
    r = r.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(r), r)
    return gradient * BATCH["attention_mask"][..., None]


def of_length(x, length):
    return torch.stack([text / text.square().sum().sqrt() * length for text in x])


def in_ball(x, radius):
    return torch.stack([text * min(1.0, radius / text.square().sum().sqrt().item()) for text in x])


def fgm(model, epsilon, weight):
    zero = torch.zeros(SHAPE, dtype=torch.float64)
    r = of_length(gradient_at(lambda r: loss_at(model, r), zero), epsilon)
    return [r], loss_at(model, zero) + weight * loss_at(model, r)


def pgd(model, epsilon, alpha, k, weight, clean_weight):
    r, path = torch.zeros(SHAPE, dtype=torch.float64), []
    for _ in range(k):
        r = in_ball(r + of_length(gradient_at(lambda r: loss_at(model, r), r), alpha), epsilon)
        path.append(r)
    return path, clean_weight * loss_at(model, torch.zeros_like(r)) + weight * loss_at(model, r)


def freelb(model, epsilon, alpha, k, start):
    r, path, total = start, [], 0.0
    for t in range(k):
        total = total + loss_at(model, r) / k
        if t < k - 1:
            r = in_ball(r + of_length(gradient_at(lambda r: loss_at(model, r), r), alpha), epsilon)
            path.append(r)
    return path, total


def smart(model, epsilon, alpha, k, weight, start):
    def divergence(p, q):
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        both = (
            F.kl_div(p, q, log_target=True, reduction="batchmean"),
            F.kl_div(q, p, log_target=True, reduction="batchmean"),
        )
        return sum(both)

    clean = outputs_at(model, torch.zeros(SHAPE, dtype=torch.float64))
    r, path = start, []
    for _ in range(k):
        gradient = gradient_at(lambda r: divergence(clean.logits.detach(), outputs_at(model, r).logits), r)
        r = in_ball(r + of_length(gradient, alpha), epsilon)
        path.append(r)
    return path, clean.loss + weight * divergence(clean.logits, outputs_at(model, r).logits)


class FixedFreeLB(FreeLB):
    def _start(self, zeros, real, generator):
        return noise(0.05)


class FixedSMART(SMART):
    def _start(self, zeros, real, generator):
        return noise(0.02)


METHODS = {
    "fgm": (FGM(0.7, 0.5), lambda model: fgm(model, 0.7, 0.5)),
    "pgd": (PGD(0.7, 0.3, 4, 0.5), lambda model: pgd(model, 0.7, 0.3, 4, 0.5, 1.0)),
    "pgd, perturbed alone": (PGD(0.7, 0.3, 2, clean_weight=0.0), lambda model: pgd(model, 0.7, 0.3, 2, 1.0, 0.0)),
    "freelb": (FixedFreeLB(0.4, 0.3, 3), lambda model: freelb(model, 0.4, 0.3, 3, noise(0.05))),
    "freelb, one step": (FixedFreeLB(0.4, 0.3, 1), lambda model: freelb(model, 0.4, 0.3, 1, noise(0.05))),
    "smart": (FixedSMART(0.7, 0.5, 2, 3.0), lambda model: smart(model, 0.7, 0.5, 2, 3.0, noise(0.02))),
}


@pytest.mark.parametrize("case", METHODS)
def test_methods_equal_their_papers(case, monkeypatch):
    method, paper = METHODS[case]
    model, path, move = classifier(), [], WordPerturbation.move

    def move_and_note(perturbation, change):
        move(perturbation, change)
        path.append(perturbation.vectors.detach())

    monkeypatch.setattr(WordPerturbation, "move", move_and_note)
    result, gradients = trained(model, method)
    model.zero_grad()
    expected_path, expected = paper(model)
    expected.backward()
    assert len(path) == len(expected_path)
    for r, expected_r in zip(path, expected_path, strict=True):
        torch.testing.assert_close(r, expected_r, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, parameter_gradients(model), rtol=1e-9, atol=1e-12)


def test_pgd_of_one_step_is_fgm():
    model = classifier()
    found = [trained(model, method)[1] for method in (FGM(0.5), PGD(0.5, step_size=0.5, steps=1))]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("method", [FreeLB(0.5), SMART(0.5, noise=0.01)], ids=["freelb", "smart"])
def test_starts_are_noise_within_the_ball_and_none_at_padding(method):
    real = BATCH["attention_mask"].bool()[..., None]
    zeros = torch.zeros(SHAPE, dtype=torch.float64)
    start, again = (method._start(zeros.clone(), real, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(start, again)
    assert (start[1, -3:] == 0).all()
    assert (start[real[..., 0]] != 0).all()
    if isinstance(method, FreeLB):  # 1/√N · U(−ε, ε), N = 9 · 32 and 6 · 32
        assert 0.45 < start[0].abs().max() * (9 * 32) ** 0.5 <= 0.5
        assert 0.45 < start[1].abs().max() * (6 * 32) ** 0.5 <= 0.5
    else:
        assert start[0].std().item() == pytest.approx(0.01, rel=0.2)


def test_padding_changes_nothing():
    """A text's part of the gradient is that of the text alone: norms are its own, and padding has no perturbation."""
    model = classifier()
    whole = trained(model, FGM(0.7))[1]
    alone = [
        {"input_ids": BATCH["input_ids"][i : i + 1, :length], "labels": LABELLED["labels"][i : i + 1]}
        for i, length in enumerate((9, 6))
    ]
    parts = [trained(model, FGM(0.7), one)[1] for one in alone]
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, (parts[0][name] + parts[1][name]) / 2, rtol=1e-9, atol=1e-12)


# Any backbone, any head


def edited(model, input_ids, r):
    """The model with r added to the rows of its embedding table, which some families scale when they read it."""
    other = copy.deepcopy(model)
    words, rows = other.get_input_embeddings(), input_ids.flatten()
    with torch.no_grad():
        scale = words(rows)[0, 0] / words.weight[rows[0], 0]
        words.weight[rows] += r.flatten(0, 1) / scale
    return other


# One of each way to embed: positions from ids, factors, another width, scaling, the batch second, relative positions.
FAMILIES = "roberta distilbert electra albert modernbert xlnet t5 deberta-v2 gpt2 opt gemma3 qwen3_5".split()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_the_perturbed_words(family):
    """Each token has an id of its own, so that adding to its embedding is adding to the table; positions, scales and
    masks that a family derives from ids stay."""
    model = feedback_model(FeedbackForSequenceClassification, family, num_iterations=2, num_labels=2, pooling="mean")
    input_ids = torch.arange(10, 28).view(2, 9)
    width = model.get_input_embeddings()(input_ids).shape[-1]
    r = torch.randn((2, 9, width), generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.1
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    perturbation = WordPerturbation(model, batch, lambda zeros, real: r)
    with perturbation.added():
        found = model(**batch).logits
    assert not torch.allclose(found, model(**batch).logits, atol=1e-5)
    torch.testing.assert_close(found, edited(model, input_ids, r)(**batch).logits, rtol=1e-6, atol=1e-9)


TEXT_HEADS = [name for name in NAMES if REPRESENTATIVE.get(name, "bert") in ("bert", "gpt2")]


@pytest.mark.parametrize("head", ["new", "backbone"])
@pytest.mark.parametrize("name", TEXT_HEADS)
def test_every_head(name, head):
    if (name, head) == ("CausalLM", "new"):
        head = "backbone"
    model = without_dropout(task_model(name, head))
    batch = {**batch_for(name, REPRESENTATIVE.get(name, "bert")), **targets_for(name)}
    clean = model(**batch).loss.item()
    for method in (FGM(0.5), SMART(0.5)):
        result, gradients = trained(model, method, batch)
        assert result.parts["loss_adversarial"] > (clean if isinstance(method, FGM) else 0)
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert any(name.startswith("feedback") for name in gradients)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (dict(num_labels=1, problem_type="regression"), torch.tensor([0.3, -1.0])),
        (dict(problem_type="multi_label_classification"), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
    ],
    ids=["values", "several labels"],
)
def test_values_and_several_labels(options, labels):
    model, batch = classifier(**options), {**BATCH, "labels": labels}
    assert trained(model, FGM(0.5), batch)[0].parts["loss_adversarial"] > model(**batch).loss
    assert trained(model, SMART(0.5), batch)[0].parts["loss_adversarial"] > 0


def test_a_network_from_scratch():
    model, batch = without_dropout(fnn_model(head=True)), {"input_ids": torch.tensor([[5, 6, 7]])}
    batch["labels"] = torch.tensor([1])
    assert trained(model, FGM(0.1), batch)[0].parts["loss_adversarial"] > model(**batch).loss


def test_texts_without_labels_train_by_the_divergence_alone():
    model, method = classifier(), FixedSMART(0.7)
    labelled = trained(model, method)[0]
    for batch in (BATCH, {**BATCH, "labels": torch.tensor([-100, -100])}):
        result, gradients = trained(model, method, batch)
        torch.testing.assert_close(result.loss, labelled.parts["loss_adversarial"])
        assert gradients["classifier.weight"].abs().sum() > 0


SEGMENTS = dict(feedback_span="segment", segment_length=8, segment_overlap=2, segment_special_tokens=[1, 1])


def test_a_token_has_one_perturbation_in_all_segments():
    """The text of 12 tokens makes 2 segments, which share two tokens and the one at either end."""
    options = dict(feedback_type="memory", feedback_edges=[[3, 0]], **SEGMENTS)
    model = feedback_model(FeedbackForSequenceClassification, num_iterations=2, **options)
    batch = {"input_ids": torch.arange(10, 34).view(2, 12), "attention_mask": torch.ones(2, 12).long()}
    batch["attention_mask"][1, 9:] = 0
    r = torch.randn((2, 12, 32), generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.1
    r = r * batch["attention_mask"][..., None]
    with WordPerturbation(model, batch, lambda zeros, real: r).added():
        found = model(**batch).logits
    torch.testing.assert_close(found, edited(model, batch["input_ids"], r)(**batch).logits)
    labelled = {**batch, "labels": torch.tensor([0, 1])}
    assert trained(without_dropout(model), FGM(0.5), labelled)[0].parts["loss_adversarial"] > model(**labelled).loss


def test_adapters_train_under_perturbation():
    base = feedback_model(FeedbackForSequenceClassification, num_iterations=2)
    model = without_dropout(get_peft_model(base, LoraConfig(r=2, **peft_options(base))))
    result, gradients = trained(model, PGD(0.5))
    assert result.parts["loss_adversarial"] > model(**LABELLED).loss
    assert gradients
    assert all("lora" in name or "modules_to_save" in name for name in gradients)


@pytest.mark.parametrize("method", [PGD(0.5), FixedFreeLB(0.5), FixedSMART(0.5)], ids=lambda one: type(one).__name__)
def test_checkpointed_activations_change_nothing(method):
    model = classifier()
    expected = trained(model, method)
    model.activation_checkpointing_enable()
    found = trained(model, method)
    torch.testing.assert_close(found[0].loss, expected[0].loss)
    torch.testing.assert_close(found[1], expected[1])


def test_frozen_layers_let_the_gradient_through():
    model = classifier()
    expected = trained(model, FGM(0.5))[0].loss
    model.backbone.requires_grad_(False)
    torch.testing.assert_close(trained(model, FGM(0.5))[0].loss, expected)


# Dropout, precision, processes


def test_all_passes_have_the_same_dropout():
    model = feedback_model(FeedbackForSequenceClassification, num_iterations=2, classifier_dropout=0.5).train()
    torch.manual_seed(4)
    result = FGM(1e-9).compute_loss(model, LABELLED)
    after = torch.rand(())
    torch.testing.assert_close(result.parts["loss_adversarial"] * 2, result.loss.detach())
    torch.manual_seed(4)
    torch.randint(2**62, ())
    torch.testing.assert_close(model(**LABELLED).loss, result.parts["loss_adversarial"])
    assert torch.rand(()) == after  # what follows is as without perturbation, but for that one number


def test_a_scaled_loss_changes_no_perturbation():
    """As in half precision, whose backward passes are those of a loss that is multiplied."""
    model = classifier()
    expected = trained(model, PGD(0.5))[0].loss

    def backward(loss, **kwargs):
        (loss * 2.0**16).backward(**kwargs)

    torch.testing.assert_close(PGD(0.5).compute_loss(model, LABELLED, backward=backward).loss, expected)


def test_autocast():
    model = without_dropout(feedback_model(FeedbackForSequenceClassification, dtype=torch.float32, num_iterations=2))
    with torch.autocast("cpu", torch.bfloat16):
        result = FreeLB(0.5).compute_loss(model, LABELLED)
    result.loss.backward()
    assert result.loss.isfinite()


@pytest.fixture
def alone(tmp_path):
    init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.parametrize("method", [PGD(0.5), FixedFreeLB(0.5), FixedSMART(0.5)], ids=lambda one: type(one).__name__)
def test_gradients_are_reduced_once_a_step(method, alone):
    model = classifier()
    expected = trained(model, method)[1]
    wrapped, reduced = DistributedDataParallel(model), []

    def reduce(state, bucket):
        reduced.append(bucket.index())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(None, reduce)
    for steps in (1, 2):
        found = trained(wrapped, method)[1]
        torch.testing.assert_close({name.removeprefix("module."): g for name, g in found.items()}, expected)
        assert reduced.count(0) == steps


# In the Trainer


class Logged(TrainerCallback):
    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.logs.append(logs)


def run(folder, model, **options):
    logged = Logged()
    trainer = FeedbackTrainer(
        model=model, args=arguments(folder, **options), train_dataset=tiny_data(), callbacks=[logged]
    )
    trainer.train()
    return logged.logs


@pytest.mark.parametrize("method", ["pgd", "freelb"])
def test_accumulated_batches_are_one_batch(method, tmp_path, monkeypatch):
    """For the other methods see the tests of objectives."""
    ramp = torch.linspace(-0.01, 0.01, 32)  # noise is drawn for each batch anew
    monkeypatch.setattr(FreeLB, "_start", lambda self, zeros, real, generator: zeros + real * ramp)
    found = []
    for size, steps in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=1, seed=1)
        found.append(run(tmp_path, without_dropout(make()), adversarial=method, **options))
    for one, other in zip(*found, strict=True):
        for name in ("loss", "loss_adversarial", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-3)


def test_all_passes_of_a_batch_have_one_k(tmp_path):
    model, drawn = make(num_iterations=4), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: drawn.append(kwargs["num_iterations"]), with_kwargs=True
    )
    run(tmp_path, model, adversarial="fgm", train_iterations="uniform", min_train_iterations=1, max_steps=3)
    assert len(drawn) == 3 * 2
    assert drawn[::2] == drawn[1::2]
    assert len({*drawn}) > 1


def test_evaluation_and_what_follows_training_are_not_perturbed(tmp_path):
    model = make()
    args = arguments(tmp_path, adversarial="fgm", max_steps=1)
    trainer = FeedbackTrainer(model=model, args=args, train_dataset=tiny_data(), eval_dataset=tiny_data(8))
    plain = FeedbackTrainer(model=model, args=arguments(tmp_path), eval_dataset=tiny_data(8))
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])
    assert trainer.techniques._adversarial is None


WRONG = {
    "method": (dict(adversarial="fgsm"), "`adversarial` must be one of 'none', 'fgm', 'pgd', 'freelb', 'smart', got"),
    "no method": (dict(adversarial_epsilon=1.0), "`adversarial_epsilon` belongs to a method of adversarial training"),
    "epsilon": (dict(adversarial="fgm", adversarial_epsilon=0.0), "`adversarial_epsilon` must be a number above 0"),
    "steps": (dict(adversarial="pgd", adversarial_steps=0), "`adversarial_steps` must be an integer of at least 1"),
    "half a step": (dict(adversarial="pgd", adversarial_steps=0.5), "`adversarial_steps` must be an integer"),
    "not its option": (
        dict(adversarial="fgm", adversarial_steps=3), "`adversarial_steps` is not an option of `adversarial`='fgm'"
    ),
    "weight": (dict(adversarial="freelb", adversarial_weight=2.0), "`adversarial_weight` is not an option of"),
    "compiled": (dict(adversarial="fgm", torch_compile=True), "cannot be used with `torch_compile`"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(case, tmp_path):
    options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        arguments(tmp_path, **options)


def test_models_and_batches_without_words_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="FeedbackForImageClassification reads `pixel_values`; use `adversarial`='none'"
    ):
        FeedbackTrainer(model=task_model("ImageClassification"), args=arguments(tmp_path, adversarial="fgm"))
    model = classifier()
    embedded = {"inputs_embeds": torch.zeros(1, 3, 32, dtype=torch.float64), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match="perturbs the embeddings of `input_ids`; the batch has none"):
        FGM().compute_loss(model, embedded)
    with pytest.raises(ValueError, match="needs an `attention_mask` of the shape of `input_ids`"):
        FGM().compute_loss(model, {**LABELLED, "attention_mask": torch.ones(2, 1, 9, 9)})


def test_words_that_are_not_read_are_noticed():
    model = classifier()
    model.get_input_embeddings = lambda: nn.Embedding(99, 32)
    with pytest.raises(RuntimeError, match="The perturbation was not read"):
        FGM().compute_loss(model, LABELLED)


def test_the_command_trains_on_texts_without_labels(backbone, tmp_path, capsys):
    """They change the weights: two files of as many words, and so of the same random numbers, train two models."""
    train, weights = write(tmp_path, "train.csv", rows(6)), []
    for word in ("parcel", "refund"):
        more = write(tmp_path, "more.csv", [{"text": f"the {word}"}] * 3)
        options = [
            "--max-steps",
            "2",
            "--class-weights",
            "balanced",
            "--learning-rate",
            "0.1",
            "--unlabelled-file",
            more,
        ]
        command = train_command(backbone, tmp_path / word, *options, train=train, validation=None)
        assert main([*command, "--adversarial", "smart"]) == 0
        weights.append(FeedbackForSequenceClassification.from_pretrained(tmp_path / word).classifier.weight)
    assert not torch.equal(*weights)
    assert "9 texts from train.csv and more.csv" in (tmp_path / "refund" / "README.md").read_text()
    assert main(command) == 2
    assert (
        "`adversarial`='none' trains on labels, which the rows of `unlabelled_file` do not" in capsys.readouterr().err
    )


def prepared(backbone, train, more, **options):
    data_args = TextDataArguments(train_file=train, unlabelled_file=more, **options)
    return TextClassification(ModelArguments(model=backbone), data_args).prepare()


def test_texts_without_labels_are_a_split_of_the_training_data(backbone, tmp_path, capsys):
    labelled = rows(6)
    train = write(tmp_path, "train.csv", labelled)
    more = write(tmp_path, "more.csv", [{"text": "the parcel"}] * 2 + [{"text": labelled[0]["text"]}])
    validation = write(tmp_path, "validation.csv", [{"text": "the parcel", "label": labelled[0]["label"]}])
    split = prepared(backbone, train, more, validation_file=validation, max_train_samples=5).splits["train"]
    assert split.data["labels"][5:] == [-100] * 3
    assert min(split.data["labels"][:5]) == 0
    assert split.data[5]["input_ids"] == split.data[6]["input_ids"]
    assert [count for _, count in split.parts] == [5, 3]
    printed = capsys.readouterr().out
    for line in (
        f"unlabelled: 3 rows from {more}\n",
        "1 text of validation is in unlabelled too",
        "unlabelled: tokens:",
    ):
        assert line in printed


WRONG_TEXTS = {
    "no file": ("gone.csv", None, "there is no such file"),
    "another column": ("more.csv", [{"words": "the parcel", "id": 1}], "there is no column 'text'"),
    "a cell that is no text": ("more.jsonl", [{"text": ["the parcel"]}], "row 1"),
}


@pytest.mark.parametrize("case", WRONG_TEXTS)
def test_texts_without_labels_are_checked_before_the_model_is_loaded(case, tmp_path):
    name, texts, words = WRONG_TEXTS[case]
    more = tmp_path / name if texts is None else write(tmp_path, name, texts)
    with pytest.raises(ValueError, match=words):
        prepared("no/model", write(tmp_path, "train.csv", rows(6)), str(more))


def test_texts_without_labels_are_for_classes(tmp_path):
    train = write(tmp_path, "train.csv", [{"text": "the parcel", "label": 0.5}, {"text": "the refund", "label": 1.5}])
    with pytest.raises(ValueError, match="for texts of one class each, and the labels are regression"):
        prepared("no/model", train, train)


def test_a_comparison_trains_on_labels(tmp_path):
    train = write(tmp_path, "train.csv", rows(6))
    options = ["--model", "no/model", "--train-file", train, "--unlabelled-file", train, "--use-cpu", "true"]
    comparison = parse_comparison([*options, "--output-dir", str(tmp_path / "out")])[0]
    with pytest.raises(ValueError, match="`adversarial`='none' trains on labels"):
        comparison.prepare(next(iter(comparison.arms.values())), 0, Budget(0))
