"""Freezing, discriminative rates, and training runs against plain ones."""

import copy
import logging
import pickle
import re
from functools import partial

import pytest
import torch
from accelerate import DistributedDataParallelKwargs
from builders import task_model
from families import TEXT_FAMILIES, tiny_backbone, tiny_batch, tiny_config
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import IterableDataset
from training_runs import arguments, make, tiny_data
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    WhisperForAudioClassification,
    default_data_collator,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_feedback import FeedbackForImageClassification, FeedbackForSequenceClassification, FeedbackModel, add_feedback
from hf_feedback.training import (
    FeedbackTrainer,
    FeedbackTrainingArguments,
    freeze_parameters,
    parameter_groups,
    peft_options,
)
from hf_feedback.training.parameters.model_parts import parts_of
from hf_feedback.training.parameters.parameter_groups import format_groups
from hf_feedback.training.parameters.unused_parameters import skip_unused_search, unused_parameters
from hf_feedback.training.train_iterations import IterationRange, draw_iterations

# Parameter groups


@pytest.mark.parametrize("family", [name for name in TEXT_FAMILIES if not name.startswith("albert")])
def test_every_parameter_has_the_part_one_expects(family):
    model = make(family)
    parts = parts_of(model)
    assert set(parts.values()) <= {"embeddings", *(f"layer {i}" for i in range(4)), "backbone", "feedback", "head"}
    embedding = model.get_input_embeddings().weight
    assert next(parts[name] for name, p in model.named_parameters() if p is embedding) == "embeddings"
    for index, layer in enumerate(model.layers):
        inside = {id(p) for p in layer.parameters()}
        assert {parts[name] for name, p in model.named_parameters() if id(p) in inside} == {f"layer {index}"}
    assert {part for name, part in parts.items() if name.startswith("classifier")} == {"head"}
    assert {part for name, part in parts.items() if name.startswith("feedback")} == {"feedback"}
    if family in ("modernbert", "llama", "qwen3"):
        assert {
            part for name, part in parts.items() if name in ("backbone.norm.weight", "backbone.final_norm.weight")
        } == {"backbone"}


def bart():
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    return BartModel(BartConfig(vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, **heads))


@pytest.mark.parametrize(
    ("backbone", "below", "above"),
    [
        (bart, ["layernorm_embedding"], []),
        (partial(tiny_backbone, "deberta-v2"), ["rel_embeddings", "encoder.LayerNorm"], []),
        (partial(tiny_backbone, "opt"), ["embed_tokens"], ["decoder.final_layer_norm"]),
        (partial(tiny_backbone, "t5"), ["embed_tokens"], ["backbone.final_layer_norm"]),
        (partial(tiny_backbone, "vit"), ["embeddings"], ["backbone.layernorm"]),
    ],
)
def test_parts_follow_the_order_in_which_modules_run(backbone, below, above):
    """Whatever the order in which they are registered."""
    parts = parts_of(FeedbackModel.from_backbone(backbone()))
    for modules, part in ((below, "embeddings"), (above, "backbone")):
        for module in modules:
            assert {found for name, found in parts.items() if f"{module}." in name} == {part}, module


def test_head_of_a_task_model_that_names_no_model_inside_it():
    parts = parts_of(add_feedback(WhisperForAudioClassification(tiny_config("whisper"))))
    found = {name: part for name, part in parts.items() if "classifier" in name or "projector" in name}
    assert len(found) == 4
    assert set(found.values()) == {"head"}


@pytest.mark.parametrize("operator", ["gated", "joint", "attention", "temporal", "context"])
def test_biases_and_vectors_do_not_decay(operator):
    """Also those of several edges, which are one matrix."""
    decays = rates_by_name(make(feedback_type=operator, feedback_rank=8))
    for name, (_, decay) in decays.items():
        is_matrix = name.endswith("weight") and "norm" not in name.lower()
        assert decay == (0.1 if is_matrix or name.endswith("embeddings") else 0.0), name


def rates_by_name(model, **options):
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 1e-3, weight_decay=0.1, **options)
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_groups_have_exactly_the_rates_asked_for():
    model = make(feedback_topology="adjacent")
    found = rates_by_name(
        model,
        backbone_lr=1e-4,
        feedback_lr=5e-3,
        head_lr=2e-3,
        layer_lr_decay=0.5,
        learning_rate_mapping={r"attention\.self\.query": 7e-5},
    )
    assert set(found) == {name for name, _ in model.named_parameters()}
    rate = {name: lr for name, (lr, _) in found.items()}
    layers = "backbone.encoder.layer"
    assert rate["backbone.embeddings.word_embeddings.weight"] == pytest.approx(1e-4 * 0.5**4)
    for index in range(4):
        assert rate[f"{layers}.{index}.output.dense.weight"] == pytest.approx(1e-4 * 0.5 ** (3 - index))
        assert rate[f"{layers}.{index}.attention.self.query.weight"] == 7e-5
    assert rate["feedback.sources.2.up.weight"] == 5e-3
    assert rate["classifier.weight"] == 2e-3
    for name, (_, decay) in found.items():
        is_vector = name.endswith(("bias", "LayerNorm.weight", "norm.weight", "beta"))
        assert decay == (0.0 if is_vector else 0.1), name


def test_parts_without_a_rate_take_the_common_one():
    assert {lr for lr, _ in rates_by_name(make()).values()} == {1e-3}


def test_head_of_the_backbone_is_the_head():
    from families import tiny_config

    tuned = AutoModelForSequenceClassification.from_config(tiny_config("bert", num_labels=3))
    parts = parts_of(add_feedback(tuned))
    assert {name for name, part in parts.items() if part == "head"} == {
        "backbone.classifier.weight",
        "backbone.classifier.bias",
    }
    assert parts["backbone.bert.encoder.layer.2.output.dense.weight"] == "layer 2"
    assert parts["backbone.bert.embeddings.LayerNorm.weight"] == "embeddings"
    assert parts["backbone.bert.pooler.dense.weight"] == "backbone"


def test_table_shows_every_group():
    model = make()
    groups = parameter_groups(model, 1e-3, backbone_lr=2e-5, layer_lr_decay=0.5, weight_decay=0.01)
    table = format_groups(groups).splitlines()
    assert table[0].split() == ["parameters", "tensors", "numbers", "rate", "decay"]
    assert len(table) == len(groups) + 1
    counted = sum(int(line.split()[-3].replace(",", "")) for line in table[1:])
    assert counted == sum(p.numel() for p in model.parameters())
    assert any(
        line.split() == ["layer", "3", "6", f"{6 * 32 * 32 - 2 * 32 * 32 + 2 * 37 * 32:,}", "2e-05", "0.01"]
        for line in table
    )


FROZEN = {
    "backbone": lambda part: part not in ("feedback", "head"),
    "embeddings": lambda part: part == "embeddings",
    "feedback": lambda part: part == "feedback",
    "head": lambda part: part == "head",
    "layers:0-2": lambda part: part in ("layer 0", "layer 1", "layer 2"),
    "layers:3": lambda part: part == "layer 3",
}


@pytest.mark.parametrize("item", FROZEN)
def test_freezing(item):
    model = make("llama")
    frozen = freeze_parameters(model, item)
    parts = parts_of(model)
    assert set(frozen) == {name for name, part in parts.items() if FROZEN[item](part)}
    assert frozen
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in frozen)


def test_freezing_wins_over_a_regular_expression_and_that_over_a_named_rate():
    model = make()
    freeze_parameters(model, ["layers:0-1", r"LayerNorm\.bias$"])
    found = rates_by_name(model, backbone_lr=1e-4, learning_rate_mapping={r"layer\.[12]\.": 3e-4})
    assert not any(".layer.0." in name or ".layer.1." in name or name.endswith("LayerNorm.bias") for name in found)
    assert found["backbone.encoder.layer.2.output.dense.weight"][0] == 3e-4
    assert found["backbone.encoder.layer.3.output.dense.weight"][0] == 1e-4


WRONG = {
    "nothing by that name": (lambda m: freeze_parameters(m, "bakbone"), "'bakbone' matches no parameter"),
    "layers out of range": (
        lambda m: freeze_parameters(m, "layers:7-9"),
        "'layers:7-9' names layers up to 9; this model has 0 to 3, such as 'layers:0-1'",
    ),
    "one layer beyond the last": (
        lambda m: freeze_parameters(m, "layers:2-4"),
        "layers up to 4; this model has 0 to 3",
    ),
    "layers in no order": (
        lambda m: freeze_parameters(m, "layers:3-1"),
        "'layers:3-1' matches no parameter.*'layers:0-1', or a regular",
    ),
    "broken expression": (lambda m: freeze_parameters(m, "("), "is not a regular expression"),
    "rate for nothing": (
        lambda m: parameter_groups(m, 1e-3, learning_rate_mapping={"xyz": 1e-3}),
        "'xyz' matches no parameter",
    ),
    "negative rate": (lambda m: parameter_groups(m, 1e-3, head_lr=-1.0), "`head_lr` must be a finite number"),
    "decay of zero": (lambda m: parameter_groups(m, 1e-3, layer_lr_decay=0.0), r"`layer_lr_decay` must be in \(0, 1\]"),
    "all frozen": (
        lambda m: (freeze_parameters(m, ["backbone", "feedback", "head"]), parameter_groups(m, 1e-3)),
        "nothing is left to train",
    ),
    "no feedback model": (lambda m: parameter_groups(nn.Linear(2, 2), 1e-3), "no feedback model in this Linear"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rates_and_freezes(case):
    action, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        action(make())


def test_weight_decay_of_the_article():
    """θ − η·g/√v̂ − λθ, the article's form, is AdamW with weight_decay = λ/η: 1 − 0.001 − 0.01 = 0.989."""
    theta = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = torch.optim.AdamW([theta], lr=0.001, weight_decay=0.01 / 0.001, eps=1e-12)
    theta.grad = torch.tensor([0.5], dtype=torch.float64)
    optimizer.step()
    assert theta.item() == pytest.approx(0.989, abs=1e-9)


# Training runs


@pytest.mark.parametrize("freeze", [["backbone"], ["embeddings", "layers:0-2"], ["feedback", "head"]], ids=str)
def test_frozen_tensors_are_bit_identical_after_training(freeze, tmp_path):
    model = make()
    before = copy.deepcopy(model.state_dict())
    trainer = FeedbackTrainer(
        model=model, args=arguments(tmp_path, freeze=freeze, weight_decay=0.1), train_dataset=tiny_data()
    )
    trainer.train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert frozen
    assert not moved & frozen
    # With a frozen feedback the up-projections stay zero; whatever is free has moved.
    assert moved == set(before) - frozen


def test_messages_are_not_zero_after_training(tmp_path):
    model = make(num_iterations=3)
    FeedbackTrainer(model=model, args=arguments(tmp_path), train_dataset=tiny_data()).train()
    assert model.check_equivalence(tiny_batch()) > 0
    assert all(connection.up.weight.abs().max() > 0 for connection in model.feedback.sources.values())


@pytest.mark.parametrize(
    ("rates", "warns"),
    [({}, True), ({"learning_rate": 1e-3, "backbone_lr": 5e-5}, False), ({"feedback_lr": 1e-3}, False)],
)
def test_a_rate_at_which_new_feedback_hardly_moves(rates, warns, tmp_path, caplog):
    logging.Logger.warning_once.cache_clear()
    model = make()
    args = FeedbackTrainingArguments(str(tmp_path), use_cpu=True, **rates)
    with caplog.at_level("WARNING", logger="hf_feedback"):
        FeedbackTrainer(model=model, args=args, train_dataset=tiny_data())
    assert ("`learning_rate`=5e-05 is a rate for pretrained weights" in caplog.text) == warns
    for connection in model.feedback.sources.values():  # trained feedback may go on at any rate
        torch.nn.init.ones_(connection.up.weight)
    logging.Logger.warning_once.cache_clear()
    caplog.clear()
    FeedbackTrainer(model=model, args=args, train_dataset=tiny_data())
    assert "rate for pretrained weights" not in caplog.text


# Evaluation is the same in all batches, and changes nothing


def labelled_rows(name, count=11):
    """Rows with different numbers of labels; two of them have none."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        ids = torch.randint(5, 90, (9,), generator=generator)
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if name == "QuestionAnswering":
            row |= {"start_positions": 50 if i % 3 == 0 else i % 8, "end_positions": 50 if i % 3 == 0 else 8}
        else:
            labels = ids % 3
            labels[i % 6 * 2 : 9] = -100
            row["labels"] = labels
        found.append(row)
    return found


@pytest.mark.parametrize("name", ["TokenClassification", "MaskedLM", "CausalLM", "QuestionAnswering"])
def test_the_loss_of_an_evaluation_does_not_depend_on_the_batches(name, tmp_path):
    """It is the mean over all labels: that of one batch."""
    model, data = task_model(name).eval(), labelled_rows(name)
    with torch.no_grad():
        expected = model(**default_data_collator(data)).loss.item()
    for size in (1, 4, 11):
        args = arguments(tmp_path, per_device_eval_batch_size=size)
        trainer = FeedbackTrainer(model=model, args=args, train_dataset=data, eval_dataset=data)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.predict(data).metrics["test_loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("option", ["bf16_full_eval", "fp16_full_eval"])
def test_weights_are_what_they_were_after_evaluation_in_half_precision(tmp_path, option):
    model = make()
    model.register_buffer("counts", torch.rand(5))
    parameters = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    counts = model.counts.clone()
    trainer = FeedbackTrainer(model=model, args=arguments(tmp_path, **{option: True}), eval_dataset=tiny_data(4))
    seen = []
    model.register_forward_hook(lambda *_: seen.append(next(model.parameters()).dtype))
    trainer.evaluate()
    trainer.predict(tiny_data(4))
    assert set(seen) == {torch.bfloat16 if option == "bf16_full_eval" else torch.float16}
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name][0]
        assert torch.equal(parameter, parameters[name][1]), name
    assert torch.equal(model.counts, counts)
    trainer.save_model(str(tmp_path / "saved"))
    assert FeedbackForSequenceClassification.from_pretrained(tmp_path / "saved").dtype == torch.float32


EVALUATIONS = {
    "none": {},
    "every second step": dict(eval_strategy="steps", eval_steps=2),
    "another batch size": dict(eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=3),
    "at the start": dict(eval_strategy="steps", eval_steps=3, eval_on_start=True),
    "in half precision": dict(eval_strategy="steps", eval_steps=2, bf16_full_eval=True),
}


def test_training_is_the_same_however_it_is_evaluated(tmp_path):
    """Same kernels on the same shapes: bits."""
    trained = {}
    for name, options in EVALUATIONS.items():
        torch.manual_seed(0)
        model = make(classifier_dropout=0.5)
        trainer = FeedbackTrainer(
            model=model, args=arguments(tmp_path, **options), train_dataset=tiny_data(), eval_dataset=tiny_data(4)
        )
        trainer.train()
        trained[name] = model.state_dict()
    for name, state in trained.items():
        assert all(torch.equal(tensor, trained["none"][key]) for key, tensor in state.items()), name


class Plain(nn.Module):
    """A plain classifier: the backbone, mean pooling, dropout, a linear layer."""

    def __init__(self, backbone, weight, bias, dropout):
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.classifier.weight.copy_(weight)
            self.classifier.bias.copy_(bias)

    def forward(self, input_ids, attention_mask, labels):
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).float()
        logits = self.classifier(self.dropout((hidden * weights).sum(1) / weights.sum(1)))
        return SequenceClassifierOutput(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


class Losses(TrainerCallback):
    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.values.append(logs["loss"])


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_k1_follows_a_plain_run(family, tmp_path):
    """Same pooling, initial weights and data order, dropout on: the losses are equal at every step."""
    model = make(family, num_iterations=1, pooling="mean", classifier_dropout=0.1)
    plain = Plain(copy.deepcopy(model.backbone), model.classifier.weight, model.classifier.bias, 0.1)
    one, other = Losses(), Losses()
    options = dict(weight_decay=0.01, warmup_steps=2, lr_scheduler_type="cosine", max_steps=10, seed=3)
    feedback_args = arguments(tmp_path / "feedback", **options)
    plain_args = TrainingArguments(
        **{k: v for k, v in arguments(tmp_path / "plain", **options).to_dict().items() if k in PLAIN_OPTIONS}
    )
    FeedbackTrainer(model=model, args=feedback_args, train_dataset=tiny_data(), callbacks=[one]).train()
    Trainer(model=plain, args=plain_args, train_dataset=tiny_data(), callbacks=[other]).train()
    assert len(one.values) == 10
    assert one.values == pytest.approx(other.values, abs=1e-6)
    assert len(set(one.values)) > 5


@pytest.mark.parametrize(("steps", "rates"), [(1, [0.01]), (2, [0.0, 0.01])])
def test_a_share_of_warm_up_leaves_a_step_to_train(steps, rates, tmp_path):
    """A tenth of one step, rounded up as in transformers, would be that step."""
    args = arguments(tmp_path, warmup_steps=0.1, max_steps=steps, learning_rate=0.01, logging_steps=1)
    trainer = FeedbackTrainer(model=make(), args=args, train_dataset=tiny_data())
    trainer.train()
    assert [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log] == rates
    assert args.warmup_steps == 0.1


PLAIN_OPTIONS = (
    "output_dir max_steps per_device_train_batch_size learning_rate report_to use_cpu disable_tqdm logging_steps "
    "save_strategy weight_decay warmup_steps lr_scheduler_type seed"
).split()


PLATEAUS = {
    "what should rise": (dict(metric_for_best_model="accuracy"), "max"),
    "what should fall": (dict(metric_for_best_model="mean_error", greater_is_better=False), "min"),
    "the loss": ({}, "min"),
    "a mode that is given": (dict(metric_for_best_model="accuracy", lr_scheduler_kwargs={"mode": "min"}), "min"),
}


@pytest.mark.parametrize("case", PLATEAUS)
def test_a_rate_waits_for_a_plateau_on_the_right_side(case, tmp_path):
    options, mode = PLATEAUS[case]
    args = arguments(tmp_path, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch", **options)
    before = copy.copy(args.lr_scheduler_kwargs)
    trainer = FeedbackTrainer(model=make(), args=args, train_dataset=tiny_data(), eval_dataset=tiny_data())
    trainer.create_optimizer_and_scheduler(10)
    assert trainer.lr_scheduler.mode == mode
    assert args.lr_scheduler_kwargs == before


def test_accumulated_batches_give_the_loss_of_one(tmp_path):
    """`forward(**kwargs)` must not make the Trainer believe that the model averages over the accumulated batches."""
    logged = []
    for size, steps in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        model, losses = make(), Losses()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        args = arguments(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=3, seed=1
        )
        FeedbackTrainer(model=model, args=args, train_dataset=tiny_data(), callbacks=[losses]).train()
        logged.append(losses.values)
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)


def test_groups_serve_the_plain_trainer(tmp_path):
    """A step of AdamW moves a weight by at most the rate of its group, and some weight by about that."""
    model = make()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, backbone_lr=1e-4, head_lr=1e-2))
    before = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    options = dict(max_steps=2, lr_scheduler_type="constant", report_to=[], use_cpu=True, save_strategy="no")
    args = TrainingArguments(output_dir=str(tmp_path), **options)
    Trainer(model=model, args=args, train_dataset=tiny_data(), optimizers=(optimizer, None)).train()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    of_backbone = ["embeddings", *(f"layer {i}" for i in range(4))]
    assert rates == {**dict.fromkeys(of_backbone, 1e-4), "feedback": 1e-3, "head": 1e-2}
    for group in optimizer.param_groups:
        moved = max((parameter - before[parameter]).abs().max().item() for parameter in group["params"])
        assert 0.5 * group["lr"] < moved < 2.1 * group["lr"], group["name"]


def test_trainer_prints_its_groups_and_keeps_their_rates(tmp_path, capsys):
    model = make()
    args = arguments(tmp_path, backbone_lr=1e-4, layer_lr_decay=0.5, optim="adamw_torch_fused")
    trainer = FeedbackTrainer(model=model, args=args, train_dataset=tiny_data())
    optimizer = trainer.create_optimizer()
    assert "layer 2" in capsys.readouterr().out
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["fused"]
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["layer 2"] == pytest.approx(5e-5)
    assert rates["feedback"] == 1e-3


def test_optimizers_with_groups_of_their_own_are_refused(tmp_path):
    trainer = FeedbackTrainer(model=make(), args=arguments(tmp_path, optim="lomo"), train_dataset=tiny_data())
    trainer.get_optimizer_cls_and_kwargs = lambda args, model: (object, {"params": []})
    with pytest.raises(ValueError, match="makes its own parameter groups"):
        trainer.create_optimizer()


def test_feedback_left_alone_at_k1_trains_at_a_larger_k(tmp_path):
    model = make(num_iterations=1)
    before = copy.deepcopy(model.feedback.state_dict())
    trainer = FeedbackTrainer(model=model, args=arguments(tmp_path), train_dataset=tiny_data())
    trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.feedback.state_dict().items())
    assert all(p.requires_grad for p in model.feedback.parameters())
    model.set_num_iterations(2)
    FeedbackTrainer(model=model, args=arguments(tmp_path), train_dataset=tiny_data()).train()
    assert model.feedback.sources["3"].up.weight.abs().max() > 0
    FeedbackTrainer(model=model, args=arguments(tmp_path, freeze=["feedback"]), train_dataset=tiny_data())
    assert not any(p.requires_grad for p in model.feedback.parameters())


def test_model_init_is_frozen_too(tmp_path):
    trainer = FeedbackTrainer(
        model_init=lambda: make(), args=arguments(tmp_path, freeze=["backbone"]), train_dataset=tiny_data()
    )
    trainer.train()
    assert not any(p.requires_grad for p in trainer.model.backbone.parameters())
    assert trainer.model.classifier.weight.requires_grad


def test_another_optimizer(tmp_path):
    trainer = FeedbackTrainer(
        model=make(),
        args=arguments(tmp_path, backbone_lr=1e-4),
        train_dataset=tiny_data(),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"momentum": 0.9}),
    )
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 1e-4}


def test_pattern_named_like_a_part_changes_nothing_else():
    model = make()
    model.register_parameter("header", nn.Parameter(torch.zeros(3)))
    found = rates_by_name(model, head_lr=1e-4, learning_rate_mapping={"head": 5e-3})
    assert found["header"][0] == 5e-3
    assert found["classifier.weight"][0] == 1e-4
    assert found["classifier.bias"][0] == 1e-4


def test_only_logits_are_predicted(tmp_path):
    trainer = FeedbackTrainer(model=make(), args=arguments(tmp_path), train_dataset=tiny_data())
    trainer.model.config.output_hidden_states = True
    assert trainer.predict(tiny_data(4)).predictions.shape == (4, 3)


WRONG_OPTIONS = {
    "no accumulation": (dict(gradient_accumulation_steps=0), "`gradient_accumulation_steps` must be an integer of at"),
    "no batch": (dict(per_device_train_batch_size=0), "`per_device_train_batch_size` must be an integer of at least 1"),
    "no batch to evaluate": (dict(per_device_eval_batch_size=-1), "`per_device_eval_batch_size` must be an integer"),
    "one process of several": (dict(ddp_backend="gloo"), "is for several processes.* torchrun or accelerate launch"),
    "negative epochs": (dict(num_train_epochs=-1), "`num_train_epochs` must be at least 0"),
    "options of the optimizer": (dict(optim_args="x"), "`optim_args` must have the form a=1"),
    "half a JSON": (dict(learning_rate_mapping='{"a":'), "`learning_rate_mapping` must be JSON"),
    "half a JSON of transformers": (dict(lr_scheduler_kwargs='{"a":'), "`lr_scheduler_kwargs` must be JSON"),
    "deep JSON": (dict(learning_rate_mapping='{"a":' * 100_000), "`learning_rate_mapping` must be JSON"),
    "what a schedule does not take": (dict(lr_scheduler_kwargs={"x": 1}), "`lr_scheduler_kwargs`={'x': 1}: .*'x'"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options_are_named(case, tmp_path):
    options, words = WRONG_OPTIONS[case]
    with pytest.raises(ValueError, match=words):
        FeedbackTrainer(model=make(), args=arguments(tmp_path, **options), train_dataset=tiny_data()).train()


def test_values_are_not_smoothed(tmp_path):
    with pytest.raises(ValueError, match=r"`label_smoothing_factor`=0\.1 smooths classes"):
        FeedbackTrainer(
            model=make(num_labels=1, problem_type="regression"), args=arguments(tmp_path, label_smoothing_factor=0.1)
        )


def test_parameters_that_no_loss_depends_on_are_found(tmp_path):
    model = make(num_iterations=3, classifier_dropout=0.5)
    model.train(False)
    before = copy.deepcopy(model.state_dict())
    trainer = FeedbackTrainer(model=model, args=arguments(tmp_path), train_dataset=tiny_data())
    state = torch.random.get_rng_state()
    assert unused_parameters(trainer) == []
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.spare = nn.Linear(2, 2)
    assert unused_parameters(trainer) == ["spare.weight", "spare.bias"]


def test_data_that_can_be_read_only_once_is_left_to_training(tmp_path):
    class Stream(IterableDataset):
        def __init__(self):
            self.rows = iter([dict(row) for row in tiny_data()])

        def __iter__(self):
            return self.rows

    stream = Stream()
    trainer = FeedbackTrainer(model=make(), args=arguments(tmp_path, max_steps=1), train_dataset=stream)
    handler = trainer.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    skip_unused_search(trainer)
    assert handler.find_unused_parameters
    assert len(list(stream.rows)) == len(tiny_data())


def test_resuming_from_the_newest_complete_checkpoint(tmp_path):
    def trainer():
        torch.manual_seed(0)
        args = arguments(tmp_path, save_strategy="steps", save_steps=2)
        return FeedbackTrainer(model=make(), args=args, train_dataset=tiny_data())

    first = trainer()
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        first.train(resume_from_checkpoint=True)
    first.train()
    (tmp_path / "checkpoint-6" / "optimizer.pt").unlink()
    again = trainer()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert all(torch.equal(p, q) for p, q in zip(first.model.parameters(), again.model.parameters(), strict=True))


def new_run(family, folder, **options):
    """A trainer of three steps with a checkpoint after each, on tokens or images."""
    if family == "vit":
        model = FeedbackForImageClassification.from_backbone(tiny_backbone(family), feedback_rank=8, num_labels=3)
        rows = [{"pixel_values": tiny_batch(i, family="vit")["pixel_values"][0], "labels": i % 3} for i in range(12)]
    else:
        model, rows = make(family), tiny_data()
    args = arguments(folder, max_steps=3, learning_rate=0.05, save_strategy="steps", save_steps=1, **options)
    return FeedbackTrainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize("family", ["vit", "nomic_bert", "mixtral"])
def test_checkpoints_are_read_by_the_names_that_they_were_written_with(family, tmp_path):
    """transformers saves these families by other names than they have in memory."""
    whole = new_run(family, tmp_path)
    whole.train()
    resumed = new_run(family, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = whole.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    best = new_run(
        family, tmp_path / "best", eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    best.train()
    losses = {log["step"]: log["eval_loss"] for log in best.state.log_history if "eval_loss" in log}
    assert best.evaluate()["eval_loss"] == pytest.approx(max(losses.values()), abs=1e-6)
    loaded = type(best.model).from_pretrained(best.state.best_model_checkpoint)
    for name, tensor in best.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    file = tmp_path / "checkpoint-2" / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if name.startswith("backbone.layers.1."))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"does not hold 1 of the tensors of the model, such as {re.escape(lost)}"):
        new_run(family, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def checkpoint_of(folder, model, **options):
    """The checkpoint of one step of training."""
    args = arguments(folder, max_steps=1, save_strategy="steps", save_steps=1, **options)
    FeedbackTrainer(model=model, args=args, train_dataset=tiny_data()).train()
    return str(folder / "checkpoint-1")


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "sgd"])
def test_the_optimizer_of_other_parameters_is_refused(optimizer, tmp_path):
    """Parameters of RoBERTa have the names and sizes of BERT's, in another order: of its averages those of one would be
    written into the memory of another."""
    options = dict(optim=optimizer, optim_args="momentum=0.9" if optimizer == "sgd" else None)
    checkpoint = checkpoint_of(tmp_path, make(), **options)
    more = arguments(tmp_path, max_steps=2, **options)
    with pytest.raises(ValueError, match=r"of other parameters.* has the shape"):
        FeedbackTrainer(model=make("roberta"), args=more, train_dataset=tiny_data()).train(checkpoint)


def test_the_optimizer_of_other_layers_is_refused(tmp_path):
    checkpoint = checkpoint_of(tmp_path, make(), freeze=["embeddings", "layers:0-1"])
    for freeze, message in {
        "layers:2-3": "there the group of 'layer 0' is of 'layer 2'",
        "layers:0-2": "different number of parameter groups",
    }.items():
        args = arguments(tmp_path, max_steps=2, freeze=["embeddings", freeze])
        with pytest.raises(ValueError, match=f"of other parameters.*{message}"):
            FeedbackTrainer(model=make(), args=args, train_dataset=tiny_data()).train(checkpoint)


def test_what_is_no_checkpoint_of_the_model_is_named(tmp_path):
    adapted = get_peft_model(make(), LoraConfig(r=4, **peft_options(make())))
    checkpoint = checkpoint_of(tmp_path, adapted)
    make().save_feedback(tmp_path / "feedback")
    for folder, message in {checkpoint: "PEFT adapters", tmp_path / "feedback": "feedback alone"}.items():
        trainer = FeedbackTrainer(model=make(), args=arguments(tmp_path), train_dataset=tiny_data())
        with pytest.raises(ValueError, match=f"`resume_from_checkpoint`: .* holds {message}"):
            trainer.train(str(folder))


def test_wrong_arguments_class(tmp_path):
    with pytest.raises(TypeError, match="FeedbackTrainingArguments"):
        FeedbackTrainer(model=make(), args=TrainingArguments(output_dir=str(tmp_path)))


def test_rates_as_json():
    args = FeedbackTrainingArguments(output_dir="x", learning_rate_mapping='{"LayerNorm": 1e-5}', use_cpu=True)
    assert args.learning_rate_mapping == {"LayerNorm": 1e-5}


def test_the_hubs_token_is_copied_but_not_written(tmp_path):
    args = FeedbackTrainingArguments(output_dir=str(tmp_path), hub_token="hf_secret", freeze=["embeddings"])
    assert b"hf_secret" not in pickle.dumps(args)
    assert pickle.loads(pickle.dumps(args)).freeze == ["embeddings"]
    twin = copy.deepcopy(args)
    assert twin.hub_token == args.hub_token == "hf_secret"
    assert twin.freeze is not args.freeze


def test_drawn_iterations():
    def draw(kind, steps=400, least=2, mean=4, most=16, seed=3):
        limits = IterationRange(least, mean, most)
        return [draw_iterations(kind, limits, seed, step, step / steps) for step in range(steps)]

    assert set(draw("fixed")) == {4}
    assert set(draw("uniform", most=5)) == {2, 3, 4, 5}
    poisson = draw("poisson", steps=4000)
    assert min(poisson) == 2
    assert max(poisson) > 8
    assert sum(poisson) / len(poisson) == pytest.approx(4, rel=0.05)
    rising = draw("curriculum", most=4)
    assert rising == sorted(rising)
    assert [rising.count(k) for k in (2, 3, 4)] == pytest.approx([133, 133, 134], abs=1)
    assert draw("poisson") == draw("poisson")  # the same on every process
    assert draw("poisson") != draw("poisson", seed=4)


@pytest.mark.parametrize("kind", ["uniform", "poisson", "curriculum"])
def test_iterations_are_drawn_in_training_and_not_in_evaluation(kind, tmp_path):
    model = make(num_iterations=4)
    drawn, evaluated = [], []

    def collect(module, args, kwargs):
        (drawn if module.training else evaluated).append(kwargs.get("num_iterations"))

    model.register_forward_pre_hook(collect, with_kwargs=True)
    args = FeedbackTrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, train_iterations=kind,
        min_train_iterations=1 if kind == "uniform" else 2,
    )  # fmt: skip
    rows = [{"input_ids": tiny_batch(seed)["input_ids"][0], "labels": seed % 3} for seed in range(16)]
    trainer = FeedbackTrainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert len(drawn) == 24
    assert drawn[::2] == drawn[1::2]  # one draw for every optimizer step
    assert len(set(drawn)) > 1
    trainer.evaluate()
    assert set(evaluated) == {None}  # the model's own


def test_a_least_k_above_the_models_is_refused(tmp_path):
    args = FeedbackTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, train_iterations="uniform",
        min_train_iterations=5,
    )  # fmt: skip
    rows = [{"input_ids": tiny_batch()["input_ids"][0], "labels": 0}] * 8
    with pytest.raises(ValueError, match=r"`min_train_iterations` must be between 1 and the model's K \(2\)"):
        FeedbackTrainer(model=make(num_iterations=2), args=args, train_dataset=rows).train()


def moved(model, folder, **options):
    """Whether training moves the feedback."""
    before = [p.detach().clone() for p in model.feedback.parameters()]
    options = {"max_steps": 6, **options}
    FeedbackTrainer(model=model, args=arguments(folder, **options), train_dataset=tiny_data()).train()
    return any(not torch.equal(p, q) for p, q in zip(model.feedback.parameters(), before, strict=True))


def test_feedback_with_messages_trains_whatever_the_models_k(tmp_path):
    assert not moved(make(num_iterations=1), tmp_path)
    assert moved(make(num_iterations=1, feedback_type="joint"), tmp_path)
    drawn = dict(train_iterations="uniform", min_train_iterations=1, max_train_iterations=4)
    assert moved(make(num_iterations=1), tmp_path, **drawn)


WRONG_DRAWS = {
    "kind": (dict(train_iterations="curiculum"), "`train_iterations` must be one of"),
    "least": (dict(min_train_iterations=0), "`min_train_iterations` must be an integer of at least 1"),
    "most": (dict(max_train_iterations=0), "`max_train_iterations` must be an integer of at least 1"),
    "most of nothing drawn": (dict(max_train_iterations=3), "has no effect with `train_iterations`='fixed'"),
    "nothing to draw": (dict(train_iterations="uniform"), "has nothing to draw from 2 to 2 with the model's K = 2"),
    "nothing to draw around": (dict(train_iterations="poisson"), "has nothing to draw from 2 to 8"),
}


@pytest.mark.parametrize("case", WRONG_DRAWS)
def test_wrong_draws(case, tmp_path):
    options, words = WRONG_DRAWS[case]
    with pytest.raises(ValueError, match=words):
        FeedbackTrainer(model=make(), args=arguments(tmp_path, **options), train_dataset=tiny_data()).train()


def test_groups_of_similar_length_are_ordered_by_the_seed_of_the_data(tmp_path):
    orders = []
    for seeds in (dict(seed=1, data_seed=7), dict(seed=2, data_seed=7), dict(seed=2)):
        args = arguments(tmp_path, train_sampling_strategy="group_by_length", **seeds)
        trainer = FeedbackTrainer(model=make(), args=args, train_dataset=tiny_data())
        orders.append(list(trainer._get_train_sampler()))
    assert orders[0] == orders[1] != orders[2]


def test_answers_are_in_the_order_of_the_rows(tmp_path):
    args = arguments(tmp_path, train_sampling_strategy="group_by_length", per_device_eval_batch_size=1)
    data = [
        {name: value if name == "labels" else value[: 3 + i % 5] for name, value in row.items()}
        for i, row in enumerate(tiny_data())
    ]
    answers = FeedbackTrainer(model=make(), args=args).predict(data)
    assert answers.label_ids.tolist() == [row["labels"] for row in data]


@pytest.mark.parametrize("option", [dict(iteration_loss="uniform"), dict(jacobian_penalty=0.1)], ids=str)
def test_a_loss_in_place_of_the_models_is_refused(option, tmp_path):
    with pytest.raises(ValueError, match="which `compute_loss_func` replaces"):
        FeedbackTrainer(model=make(**option), args=arguments(tmp_path), compute_loss_func=lambda *_, **__: None)
    FeedbackTrainer(model=make(**option), args=arguments(tmp_path, label_smoothing_factor=0.1))


def test_smaller_batches_begin_as_the_first_ones(tmp_path):
    """Memory that is used up in the third step: the run is that of the smaller batch from its beginning, to the bit."""

    class SmallMemory(FeedbackTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            sizes.append(len(inputs["input_ids"]))
            if self.args.auto_find_batch_size and sizes[-1] > 2 and self.state.global_step == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return super().compute_loss(model, inputs, *args, **kwargs)

    found = []
    for options in (dict(auto_find_batch_size=True), dict(per_device_train_batch_size=2)):
        drawn, sizes = [], []
        torch.manual_seed(0)
        model = make(num_iterations=3)
        model.register_forward_pre_hook(lambda _, args, given: drawn.append(given["num_iterations"]), with_kwargs=True)  # noqa: B023
        args = arguments(tmp_path, train_iterations="uniform", layer_lr_decay=0.5, head_lr=1e-2, **options)
        trainer = SmallMemory(model=model, args=args, train_dataset=tiny_data())
        torch.manual_seed(1)
        trainer.train()
        rates = [group["initial_lr"] for group in trainer.optimizer.param_groups]
        found.append((drawn[-6:], sizes[-6:], rates, [p.detach().clone() for p in model.parameters()]))
        if trainer.args.auto_find_batch_size:
            assert sizes[:2] == [4, 4]
    (*restarted, weights), (*small, expected) = found
    assert restarted == small
    assert small[1] == [2] * 6
    assert all(torch.equal(p, q) for p, q in zip(weights, expected, strict=True))


def test_only_training_drops_the_last_batch(tmp_path):
    options = dict(per_device_train_batch_size=4, per_device_eval_batch_size=4, dataloader_drop_last=True)
    trainer = FeedbackTrainer(
        make(), arguments(tmp_path, max_steps=-1, num_train_epochs=1, **options),
        train_dataset=tiny_data(6), eval_dataset=tiny_data(6),
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 1
    assert len(trainer.predict(tiny_data(6)).predictions) == 6
    assert trainer.args.dataloader_drop_last
    with pytest.raises(ValueError, match="6 training examples do not fill one of 8: nothing would be trained"):
        FeedbackTrainer(
            make(), arguments(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=8),
            train_dataset=tiny_data(6),
        )  # fmt: skip
