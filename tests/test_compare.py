"""`hf-feedback compare`: each alternative is what its name says, all see the same, and nothing is run twice."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch
from builders import LABELS, tiny_tokenizer
from comparisons import compare_options, comparison_of
from families import randomize_messages, tiny_backbone, tiny_batch, tiny_config
from huggingface_hub import ModelCard, ModelCardData
from training_runs import rows, write
from transformers import AutoTokenizer, BertForSequenceClassification

from hf_feedback import FeedbackForSequenceClassification, cli
from hf_feedback.evaluation.commands.compare import read_variants
from hf_feedback.evaluation.comparison import arm_runs, arms
from hf_feedback.evaluation.comparison import compare as compare_module
from hf_feedback.evaluation.comparison.arm_registry import ARMS
from hf_feedback.evaluation.comparison.arm_runs import ArmRun, ArmTrainer, Job
from hf_feedback.evaluation.comparison.arms import Budget, Duplicated
from hf_feedback.evaluation.comparison.compare import JobRunner, run_job
from hf_feedback.evaluation.comparison.plan import make_plan
from hf_feedback.training.data.answers import answer_f1
from hf_feedback.training.train_iterations import draw_iterations, iteration_range


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An encoder and a decoder with their tokenizers, and files of texts and tags."""
    folder = tmp_path_factory.mktemp("compared")
    for family in ("bert", "llama"):
        tiny_backbone(family).save_pretrained(folder / family)
        tiny_tokenizer().save_pretrained(folder / family)
    other = tiny_backbone("bert")
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    other.save_pretrained(folder / "other")
    tiny_tokenizer().save_pretrained(folder / "other")
    for seed, split in enumerate(("train", "validation", "test")):
        write(folder, f"{split}.csv", rows(24, seed))
        tagged = [
            {"tokens": row["text"].split(), "tags": ["B-X" if w == "parcel" else "O" for w in row["text"].split()]}
            for row in rows(24, seed)
        ]
        write(folder, f"{split}.jsonl", tagged)
    return folder


def trained_parameters(trainer):
    return {name: p.numel() for name, p in trainer.model.named_parameters() if p.requires_grad}


# Arms


def test_all_arms_of_a_seed_start_with_the_same_head_and_see_the_same_batches(folders, tmp_path):
    comparison = comparison_of(folders, tmp_path, family="llama")
    budget, heads, batches = Budget(500, 2.0), {}, {}
    for name in ("plain", "head-only", "lora", "bottom-up", "duplicated", "loop-only", "unmasked", "feedback"):
        trainer = ArmTrainer(comparison, Job(name, 3, 1.0), budget).trainer
        heads[name] = {
            n.split("classifier.")[-1].replace("modules_to_save.default.", ""): p.clone()
            for n, p in trainer.model.named_parameters()
            if "classifier" in n and "original_module" not in n
        }
        torch.manual_seed(3)
        batches[name] = next(iter(trainer.get_train_dataloader()))["input_ids"]
    other = ArmTrainer(comparison, Job("plain", 4, 1.0), budget).trainer.model.classifier.weight
    for name in heads:
        torch.testing.assert_close(heads[name], heads["plain"], atol=0, rtol=0)
        torch.testing.assert_close(batches[name], batches["plain"], atol=0, rtol=0)
    assert not torch.equal(other, heads["plain"]["weight"])


def test_what_each_arm_trains(folders, tmp_path):
    comparison = comparison_of(folders, tmp_path, "--freeze", "embeddings")
    plan = make_plan(comparison)
    trained = {
        name: trained_parameters(ArmTrainer(comparison, Job(name, 0, 1.0), plan.budget).trainer) for name in plan.costs
    }
    assert {name.split(".")[0] for name in trained["head-only"]} == {"classifier"}
    assert not any("embeddings" in name or name.startswith("feedback") for name in trained["plain"])
    assert trained["plain-longer"] == trained["plain"] == trained["loop-only"]
    assert trained["bottom-up"] == trained["feedback"]
    lora = sum(trained["lora"].values()) - sum(trained["head-only"].values())
    assert all("lora_" in name or "classifier" in name for name in trained["lora"])
    assert abs(lora - plan.budget.parameters) < 0.6 * plan.budget.parameters  # ranks are whole numbers
    assert {name: cost.parameters for name, cost in plan.costs.items()} == {
        n: sum(t.values()) for n, t in trained.items()
    }


@pytest.mark.parametrize(("most", "expected"), [(None, (-1, -1)), (40, (3, 6)), (2, (2, 4))])
def test_longer_training_takes_as_many_steps_as_its_cost_allows(most, expected, folders, tmp_path):
    """24 texts in batches of 8 are three steps, whether they limit the training or not."""
    comparison = dataclasses.replace(comparison_of(folders, tmp_path), most_steps=most)
    args = [
        ArmTrainer(comparison, Job(name, 0, 1.0), Budget(9, 2.0)).trainer.args for name in ("plain", "plain-longer")
    ]
    assert tuple(one.max_steps for one in args) == expected
    assert [one.num_train_epochs for one in args] == [1, 2]


def test_what_each_arm_costs(folders, tmp_path):
    plan = make_plan(comparison_of(folders, tmp_path))
    flops = {name: cost.total / plan.costs["plain"].total for name, cost in plan.costs.items()}
    assert flops["plain-longer"] == pytest.approx(flops["feedback"], rel=1e-6)
    assert flops["duplicated"] == pytest.approx(flops["loop-only"], rel=0.01)
    assert flops["loop-only"] < flops["feedback"] < flops["loop-only"] + 0.3
    assert 1 < flops["bottom-up"] < 1.3
    assert flops["head-only"] < 0.5
    assert set(plan.left_out) == {"repeated", "unmasked", "truncated", "windows", "tobert", "whole"}


def test_any_arm_can_train_with_the_compute_of_feedback(folders, tmp_path):
    """Its factor is that of its own cost, whether the plain model is compared or not."""
    arms = ["lora", "lora+plain-longer", "bottom-up+plain-longer"]
    comparison = comparison_of(folders, tmp_path, "--num-train-epochs", "2", "--arms", *arms)
    plan = make_plan(comparison)
    flops = {name: cost.total / plan.costs["feedback"].total for name, cost in plan.costs.items()}
    assert [flops["lora+plain-longer"], flops["bottom-up+plain-longer"]] == pytest.approx([1.0, 1.0])
    epochs = {
        name: ArmTrainer(comparison, Job(name, 0, 1.0), plan.budget_of(name)).trainer.args.num_train_epochs
        for name in plan.costs
    }
    assert (epochs["lora"], epochs["feedback"]) == (2, 2)
    assert epochs["lora+plain-longer"] == pytest.approx(2 / flops["lora"])


def test_one_long_text_is_not_taken_for_the_length_of_all(folders, tmp_path):
    """Where texts of similar length are grouped, the longest come first."""
    short, costs = (folders / "train.csv").read_text(encoding="utf-8"), []
    row = short.splitlines()[1]
    for name, long in (("short", row), ("long", row.replace(row.split(",")[0], "a word " * 50, 1))):
        file = tmp_path / f"{name}.csv"
        file.write_text(f"{short}{long}\n", encoding="utf-8")
        options = f"--train-file {file} --train-sampling-strategy group_by_length --arms plain"
        options = [*options.split(), "--per-device-train-batch-size", "1"]
        costs.append(make_plan(comparison_of(folders, tmp_path / name, *options)).costs["plain"].flops)
    assert costs[1] < 1.5 * costs[0]


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_every_epoch_has_the_same_order_whatever_a_model_draws(folders, tmp_path, sampling):
    options = f"--train-sampling-strategy {sampling} --num-train-epochs 3".split()
    comparison = comparison_of(folders, tmp_path, *options)
    seen = {}
    for name in ("plain", "feedback"):
        trainer = ArmTrainer(comparison, Job(name, 0, 1.0), Budget(500)).trainer
        collate, rows_ = trainer.data_collator, []
        trainer.data_collator = lambda batch, rows_=rows_, collate=collate: (
            rows_.append([row["input_ids"] for row in batch]) or collate(batch)
        )
        trainer.train()
        seen[name] = rows_
    assert len(seen["plain"]) == 9
    assert seen["feedback"] == seen["plain"]


def test_the_budget_is_that_of_plain_training(folders, tmp_path):
    """Whatever other arms there are, and the K of the variant that comes first."""
    variants = ["--variants", '{"deep": {"num_iterations": 4}}', "--arms"]
    plans = [
        make_plan(comparison_of(folders, tmp_path, *variants, *arms))
        for arms in (["head-only", "plain-longer"], ["plain", "plain-longer", "duplicated", "loop-only"])
    ]
    assert plans[0].budget == plans[1].budget
    costs = {name: cost.total / plans[1].costs["plain"].total for name, cost in plans[1].costs.items()}
    assert costs["duplicated"] == pytest.approx(costs["loop-only"], rel=0.02)
    assert costs["deep"] == pytest.approx(costs["loop-only"], rel=0.1)


def test_the_same_k_in_every_step_where_k_is_one(folders, tmp_path):
    options = "--num-iterations 4 --train-iterations uniform".split()
    comparison = comparison_of(folders, tmp_path, *options, "--arms", "plain")
    rules = {
        name: ArmTrainer(comparison, Job(name, 0, 1.0), Budget(9)).trainer.args.train_iterations
        for name in comparison.arms
    }
    assert rules == {"plain": "fixed", "feedback": "uniform"}


@pytest.mark.parametrize("rule", ["curriculum", "poisson"])
def test_the_compute_of_feedback_is_that_of_the_mean_k_that_is_drawn(folders, tmp_path, rule):
    options = "--num-iterations 4 --min-train-iterations 1 --num-train-epochs 7 --arms plain".split()
    drawn = make_plan(comparison_of(folders, tmp_path, *options, "--train-iterations", rule))
    args = comparison_of(folders, tmp_path, *options, "--train-iterations", rule).args
    limits = iteration_range(rule, 1, 4, args.max_train_iterations)
    mean = np.mean([draw_iterations(rule, limits, 0, step, step / 21) for step in range(21)])  # 7 epochs of 3 batches
    assert mean != draw_iterations(rule, limits, 0, 0, 0.0)
    costs = {}
    for k in (2, 4):
        fixed = ["--variants", json.dumps({"feedback": {"num_iterations": k}})]
        costs[k] = make_plan(comparison_of(folders, tmp_path, *options, *fixed)).budget.flops
    slope = (costs[4] - costs[2]) / 2
    assert drawn.budget.flops == pytest.approx(costs[2] + (mean - 2) * slope, rel=0.02)


def test_answers_of_iterations_agree_where_there_are_several(folders, tmp_path):
    comparison = comparison_of(folders, tmp_path, "--agreement-weight", "1", "--arms", "plain")
    weights = {
        name: ArmTrainer(comparison, Job(name, 0, 1.0), Budget(9)).trainer.args.agreement_weight
        for name in comparison.arms
    }
    assert weights == {"plain": 0.0, "feedback": 1.0}


def test_a_quick_comparison_takes_no_more_steps_than_its_epochs(folders, tmp_path):
    comparison = comparison_of(folders, tmp_path, "--quick")
    assert ArmTrainer(comparison, Job("plain", 0, 1.0), Budget(9)).trainer.args.max_steps == 3


def test_a_variant_that_there_cannot_be_is_refused(folders, tmp_path, capsys):
    variants = ["--variants", '{"a": {}, "a+plain": {}}', "--freeze", "backbone"]
    assert cli.main(["compare", *compare_options(folders, tmp_path, *variants)]) == 2
    assert "`variants`: there can be no a+plain, since the backbone is frozen" in capsys.readouterr().err


def test_a_decoder_has_the_arms_of_decoders(folders, tmp_path):
    comparison = comparison_of(folders, tmp_path, "--arms", "plain", "repeated", "unmasked", family="llama")
    plan = make_plan(comparison)
    assert not plan.left_out
    assert plan.costs["repeated"].flops > 1.7 * plan.costs["plain"].flops
    assert plan.costs["unmasked"].flops == pytest.approx(plan.costs["plain"].flops, rel=0.01)


def test_duplicated_layers_are_a_deeper_stack_with_weights_of_its_own():
    model = FeedbackForSequenceClassification.from_backbone(
        tiny_backbone("bert"), feedback_edges=[[2, 1]], num_iterations=1, num_labels=3
    ).eval()
    layers, ids = list(model.layers), tiny_batch()
    with torch.no_grad():
        states = model(**ids, output_hidden_states=True).hidden_states
        deep = Duplicated().adapt_model(model, Budget(0, num_iterations=3)).eval()
        deep_states = deep(**ids, output_hidden_states=True).hidden_states
    assert len(deep.layers) == len(layers) + 4 == len({id(layer) for layer in deep.layers})
    torch.testing.assert_close(deep_states[:4], states[:4])
    weights = [layer.attention.self.query.weight for layer in deep.layers]
    for copy, original in ((3, 1), (4, 2), (5, 1), (6, 2)):
        torch.testing.assert_close(weights[copy], weights[original])
    torch.testing.assert_close(weights[-1], layers[-1].attention.self.query.weight)


def test_arms_of_decoders_are_told_what_comes_later(folders, tmp_path):
    comparison = comparison_of(folders, tmp_path, "--task", "token-classification", family="llama", ending="jsonl")
    budget = Budget(500)
    repeated = ArmTrainer(comparison, Job("repeated", 0, 1.0), budget).trainer.train_dataset[0]
    once = ArmTrainer(comparison, Job("plain", 0, 1.0), budget).trainer.train_dataset[0]
    length = len(once["input_ids"])
    assert repeated["input_ids"] == once["input_ids"] * 2
    assert repeated["labels"] == [-100] * length + once["labels"]
    ids = torch.tensor([once["input_ids"]])
    changed = ids.clone()
    changed[0, -1] = 7
    for name, sees in {"plain": False, "unmasked": True}.items():
        model = ArmTrainer(comparison, Job(name, 0, 1.0), budget).trainer.model.eval()
        with torch.no_grad():
            first = [model(input_ids=one, attention_mask=torch.ones_like(ids)).logits[0, 0] for one in (ids, changed)]
        assert torch.equal(*first) is not sees


def test_no_text_is_repeated_beyond_the_positions_of_the_model(folders, tmp_path):
    words = (folders / "test.jsonl").read_text(encoding="utf-8")
    long = json.dumps({"tokens": ["a"] * 40, "tags": ["O"] * 40})
    (tmp_path / "test.jsonl").write_text(f"{words}{long}\n", encoding="utf-8")
    options = "--task token-classification --arms plain repeated --max-length 64".split()
    options += ["--test-file", str(tmp_path / "test.jsonl")]
    plan = make_plan(comparison_of(folders, tmp_path / "out", *options, family="llama", ending="jsonl"))
    assert plan.left_out == {"repeated": "the backbone does not read texts twice as long; lower `max_length`"}


def test_arms_together(folders, tmp_path):
    """LoRA in a backbone with its mask lifted, and beside feedback: each part trains, and nothing else."""
    options = ["--variants", '{"full+lora": {"num_iterations": 3}}', "--arms"]
    options += ["lora", "lora-double", "lora+unmasked", "repeated+lora"]
    comparison = comparison_of(folders, tmp_path, *options, family="llama")
    budget = Budget(500)
    trainers = {name: ArmTrainer(comparison, Job(name, 0, 1.0), budget).trainer for name in comparison.arms}
    trained = {name: trained_parameters(trainer) for name, trainer in trainers.items()}
    assert trained["lora+unmasked"] == trained["lora"] == trained["repeated+lora"]
    more = {name for name in trained["full+lora"] if name not in trained["lora"]}
    assert more
    assert all(".feedback.modules_to_save." in name for name in more)
    assert comparison.arms["full+lora"].is_feedback
    assert trainers["full+lora"].model.base_model.model.config.num_iterations == 3
    assert trainers["lora+unmasked"].model.base_model.model.backbone._forward_pre_hooks
    lengths = [len(trainers[name].train_dataset[0]["input_ids"]) for name in ("lora", "repeated+lora")]
    assert lengths[1] == 2 * lengths[0]
    rank = trainers["lora"].model.peft_config["default"].r
    assert trainers["full+lora"].model.peft_config["default"].r == rank
    assert abs(trainers["lora-double"].model.peft_config["default"].r - 2 * rank) <= 1
    with pytest.raises(ValueError, match=r"no lora: .*; no lora.unmasked: "):  # PEFT would train the head
        make_plan(
            comparison_of(folders, tmp_path, "--arms", "lora", "lora+unmasked", "--freeze", "head", family="llama")
        )


def test_r_drop_joins_what_it_is_named_with(folders, tmp_path):
    options = ["--variants", '{"full": {}, "full+r-drop": {}}', "--arms", "plain", "r-drop"]
    comparison = comparison_of(folders, tmp_path, *options)
    trainers = {name: ArmTrainer(comparison, Job(name, 0, 1.0), Budget(500)).trainer for name in comparison.arms}
    weights = {name: trainer.args.dropout_agreement_weight for name, trainer in trainers.items()}
    assert weights == {"plain": 0.0, "r-drop": 1.0, "full": 0.0, "full+r-drop": 1.0}
    trained = {name: trained_parameters(trainer) for name, trainer in trainers.items()}
    assert trained["r-drop"] == trained["plain"]
    assert trained["full+r-drop"] == trained["full"]
    assert "r-drop" not in comparison_of(folders, tmp_path).arms
    assert "r-drop" in comparison_of(folders, tmp_path, "--agreement-weight", "0.5").arms
    assert "r-drop" not in comparison_of(folders, tmp_path, "--dropout-agreement-weight", "0.5").arms  # plain has it


def test_feedback_is_trained_in_whatever_it_is_joined_with(folders, tmp_path):
    names = ["a+unmasked", "a+repeated", "bottom-up+unmasked"]
    variants = '{"a": {}, "a+unmasked": {}, "a+repeated": {}}'
    options = ["--variants", variants, "--arms", "plain", "bottom-up+unmasked"]
    comparison = comparison_of(folders, tmp_path, *options, family="llama")
    for name in names:
        trainer = ArmTrainer(comparison, Job(name, 0, 1.0), Budget(500)).trainer
        assert any(parameter.startswith("feedback") for parameter in trained_parameters(trainer)), name
    frozen = comparison_of(folders, tmp_path, *options, "--freeze", "feedback", family="llama")
    trainer = ArmTrainer(frozen, Job("a+unmasked", 0, 1.0), Budget(500)).trainer
    assert not any(parameter.startswith("feedback") for parameter in trained_parameters(trainer))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_mask_that_is_lifted_still_hides_padding(folders, tmp_path, attention):
    comparison = comparison_of(folders, tmp_path, family="llama")
    model = ArmTrainer(comparison, Job("unmasked", 0, 1.0), Budget(500)).trainer.model.eval()
    model.backbone.set_attn_implementation(attention)
    ids = torch.tensor([[5, 6, 7, 8]])
    padded = torch.cat((ids, torch.full((1, 3), model.config.pad_token_id)), 1)
    mask = (torch.arange(7) < 4).long()[None]
    with torch.no_grad():
        alone = model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
        torch.testing.assert_close(model.backbone(input_ids=padded, attention_mask=mask)[0][:, :4], alone)


@pytest.mark.parametrize(
    "how", [["--feedback-span", "segment"], ["--recipe", "segment-memory", "--feedback-rank", "none"]]
)
def test_texts_in_segments_have_arms_of_their_own(how, folders, tmp_path):
    """Also where a recipe cuts the texts, whose options the arms that read whole texts do not have."""
    options = [*how, *"--segment-length 5 --segment-overlap 0 --max-segments 4".split()]
    comparison = comparison_of(folders, tmp_path, *options)
    plan = make_plan(comparison)
    assert {"windows", "truncated", "tobert", "whole"} <= plan.costs.keys()
    longest = {
        name: max(map(len, ArmTrainer(comparison, Job(name, 0, 1.0), plan.budget).trainer.train_dataset["input_ids"]))
        for name in ("windows", "truncated", "whole", "feedback")
    }
    assert longest["truncated"] == 5 < longest["whole"] == longest["windows"] == longest["feedback"]


def test_a_transformer_over_the_windows_reads_all_windows_of_its_text_alone(folders, tmp_path):
    options = "--feedback-span segment --segment-length 5 --segment-overlap 0 --max-segments 4".split()
    comparison = comparison_of(folders, tmp_path, *options)
    model = ArmTrainer(comparison, Job("tobert", 0, 1.0), Budget(500)).trainer.model.eval()
    long, short = [2, *range(5, 13), 3], [2, 6, 7, 3]
    batch = torch.tensor([long, short + [0] * 6, [*long[:5], 11, *long[6:]]])
    mask = torch.tensor([[1] * 10, [1] * 4 + [0] * 6, [1] * 10])
    with torch.no_grad():
        together = model(input_ids=batch, attention_mask=mask).logits
        alone = [
            model(input_ids=row[m == 1][None], attention_mask=m[m == 1][None]).logits[0]
            for row, m in zip(batch, mask, strict=True)
        ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[2], atol=1e-4)


def test_without_peft_lora_is_left_out(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(arms, "is_peft_available", lambda: False)
    plan = make_plan(comparison_of(folders, tmp_path))
    assert plan.left_out["lora"] == "PEFT is not installed (`pip install peft`)"
    assert {"plain", "feedback"} <= set(plan.costs)


def test_the_frozen_backbone_stays_and_new_parts_have_the_new_rate(folders, tmp_path):
    comparison = comparison_of(
        folders, tmp_path, "--freeze", "backbone", "--learning-rate", "2e-3", "--backbone-lr", "1e-5"
    )
    plan = make_plan(comparison)
    assert "the backbone is frozen" in plan.left_out["plain"]
    trainer = ArmTrainer(comparison, Job("lora", 0, 3.0), plan.budget).trainer
    assert [group["lr"] for group in trainer.create_optimizer().param_groups] == pytest.approx([6e-3] * 5)


# The whole command


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
    """A small comparison: its folder and what it printed."""
    output, printed = tmp_path_factory.mktemp("comparison"), io.StringIO()
    write(folders, "noisy.csv", rows(12, 7))
    options = f"--arms plain lora --seeds 0 1 2 --rate-factors 1 10 --also-test {folders / 'noisy.csv'}".split()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["compare", *compare_options(folders, output, *options)]) == 0
    return output, printed.getvalue(), options


def test_a_comparison_end_to_end(finished):
    output, printed, _ = finished
    found = json.loads((output / "comparison.json").read_text())
    assert set(found["arms"]) == {"plain", "lora", "feedback"}
    assert len(list((output / "runs").glob("*.json"))) == 3 * (2 + 2)
    assert "12 runs: 3 arms" in printed
    assert found["verdict"] in printed
    assert found["verdict"] in (output / "comparison.md").read_text()
    for contrast in found["differences"]:
        by_seed = np.array(found["arms"]["feedback"]["test"]) - np.array(found["arms"][contrast["other"]]["test"])
        assert contrast["difference"]["mean"] == pytest.approx(100 * by_seed.mean())
        assert contrast["difference"]["low"] <= contrast["difference"]["mean"] <= contrast["difference"]["high"]
    assert [contrast["other"] for contrast in found["controls"]] == ["silent", "swapped"]
    noisy = {name: np.array(arm["also_test"]["noisy"]) for name, arm in found["arms"].items()}
    for contrast in found["further_differences"]:
        by_seed = noisy["feedback"] - noisy[contrast["other"]]
        assert (contrast["test"], contrast["difference"]["by_seed"]) == ("noisy", pytest.approx(list(100 * by_seed)))
    assert "On noisy:" in (output / "comparison.md").read_text()
    assert len(found["arms"]["feedback"]["runs"][0]["by_iteration"]) == 3
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_rates_are_chosen_on_validation_alone(finished):
    found = json.loads((finished[0] / "comparison.json").read_text())
    for name, arm in found["arms"].items():
        tried = {one["factor"]: one["validation"] for one in found["choosing"] if one["arm"] == name}
        assert set(tried) == {1.0, 10.0}
        assert tried[arm["rates"]] == max(tried.values())


def test_rates_that_are_worse_on_validation_are_not_tested(folders, tmp_path):
    comparison = comparison_of(folders, tmp_path, *"--rate-factors 1 10 --arms plain".split())
    assert ArmRun(Job("plain", 0, 1.0), np.nan, {}, {"metric": "perplexity"}).gain == -np.inf
    better, other = Job("plain", 0, 1.0), Job("plain", 0, 10.0)
    ArmRun(better, 2.0, {"own": np.ones((3, 1))}, {"metric": "accuracy"}).save(tmp_path / "runs")
    for is_chosen in (False, True):  # as it is when the better ones are taken out
        run_job(comparison, other, Budget(500), is_chosen)
        found = ArmRun.load(tmp_path / "runs", other)
        assert 0 <= found.validation <= 1
        assert set(found.examples) == ({"own"} if is_chosen else set())
    runner = JobRunner(comparison, make_plan(comparison))
    ArmRun(other, 1.0, {}, {"metric": "accuracy"}).save(tmp_path / "runs")
    for are_chosen in (False, True):
        first, second = runner.run([better, other], are_chosen)
        assert first.validation == 2.0
        assert bool(second.examples) is are_chosen


def test_rates_that_diverge_are_not_chosen(folders, tmp_path, capsys):
    options = "--arms plain --seeds 0 1 --rate-factors 1 1e30".split()
    assert cli.main(["compare", *compare_options(folders, tmp_path, *options)]) == 0
    assert "plain.seed0.rates1e+30: diverged" in capsys.readouterr().out
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [arm["rates"] for arm in found["arms"].values()] == [1.0, 1.0]
    tried = {(one["arm"], one["factor"]): one for one in found["choosing"]}
    assert tried["plain", 1e30]["validation"] is None
    assert "is nan" in tried["plain", 1e30]["divergence"]
    assert "plain.seed0.rates1e+30 diverged: " in (tmp_path / "comparison.md").read_text()
    alone = compare_options(folders, tmp_path / "alone", "--arms", "plain", "--rate-factors", "1e30")
    assert cli.main(["compare", *alone]) == 2
    printed, errors = capsys.readouterr()
    assert "plain.seed0.rates1e+30: The loss of step" in errors
    assert "feedback.seed4.rates1e+30: The loss of step" in errors  # the others were run first
    assert "leave out the arm (`--arms`, `--variants`) or the seed" in errors
    assert printed.count(": diverged") == 2 * (1 + 5)  # seed 0 once more, as the best of one rate


@pytest.mark.parametrize(
    ("ending", "content"), [("npz", ""), ("json", "[]"), ("json", "null"), ("json", '{"validation": 1}')]
)
def test_a_damaged_run_is_none(tmp_path, ending, content):
    job = Job("plain", 0, 1.0)
    ArmRun(job, 0.5, {"own": np.ones((3, 1))}, {"metric": "accuracy"}).save(tmp_path)
    assert ArmRun.load(tmp_path, job).validation == 0.5
    (tmp_path / f"{job.name}.{ending}").write_text(content)
    assert ArmRun.load(tmp_path, job) is None


def test_no_example_receives_its_own_messages(folders, tmp_path, monkeypatch):
    """Neither where the last batch has one example; nor is a single one swapped."""
    comparison = comparison_of(folders, tmp_path, "--per-device-eval-batch-size", "23")  # of 24
    trainer, sizes = ArmTrainer(comparison, Job("feedback", 0, 1.0), Budget(500)), []
    trainer.core.register_forward_pre_hook(
        lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    in_order, shuffled = trainer._measure("test"), trainer._measure("test", in_random_order=True)
    np.testing.assert_array_equal(in_order, shuffled)
    assert sizes == [23, 1, 23, 2]
    assert trainer._can_swap()
    split = trainer.prepared.splits["test"]
    trainer.prepared.splits["test"] = dataclasses.replace(split, data=split.data.select([0]))
    assert not trainer._can_swap()


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_contributions_are_in_the_order_of_the_file(folders, tmp_path, sampling):
    """Those of each example alone, whatever batches it is read in."""
    options = f"--train-sampling-strategy {sampling} --per-device-eval-batch-size 2".split()
    trainer = ArmTrainer(comparison_of(folders, tmp_path, *options), Job("feedback", 0, 1.0), Budget(500))
    rows_ = trainer.prepared.splits["test"].data
    assert len({len(ids) for ids in rows_["input_ids"]}) > 1
    model = trainer.core.eval()
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits.argmax(-1).item() for row in rows_]
    expected = np.equal(alone, [row["labels"] for row in rows_])
    assert 0 < expected.sum() < len(expected)
    for in_random_order in (False, True):
        found = trainer._measure("test", in_random_order)
        np.testing.assert_array_equal(found[:, 0], expected)


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_questions_whose_texts_have_several_windows(folders, tmp_path, sampling):
    """One contribution for each question; the answers are those of the model alone, whatever the order of batches."""
    for split, count in (("train", 4), ("validation", 4), ("test", 5)):
        lines = []
        for i in range(count):
            context = "we have a lamp and a table here " * (1 + i) + "and it is red"
            answer = {"text": [context], "answer_start": [0]}
            lines.append(json.dumps({"question": "which hue is it?", "context": context, "answers": answer}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = f"--task question-answering --max-length 24 --stride 4 --train-sampling-strategy {sampling}".split()
    comparison = comparison_of(tmp_path, tmp_path / "out", *options, family=folders / "bert", ending="jsonl")
    trainer = ArmTrainer(comparison, Job("feedback", 0, 1.0), Budget(500))
    windows = trainer.prepared.splits["test"].data
    assert len(windows) > 2 * 5
    found = trainer._measure("test")
    rows_ = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    answers = trainer.core.predict(
        [(row["question"], row["context"]) for row in rows_], AutoTokenizer.from_pretrained(folders / "bert"),
        max_length=24, stride=4,
    )  # fmt: skip
    expected = [answer_f1(row["context"], answer["answer"]) for row, answer in zip(rows_, answers, strict=True)]
    assert len(set(expected)) > 2
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
    assert trainer.run().test_value() == pytest.approx(trainer._measure("test")[:, 0].mean())


def test_right_answers_may_not_change_between_runs(folders, tmp_path, capsys):
    """Those that the windows do not hold: only the first answer of a question is among their labels."""
    row = {"question": "which hue is it?", "context": "it is red", "answers": {"text": ["red"], "answer_start": [6]}}
    for i, split in enumerate(("train", "validation", "test")):
        lines = [json.dumps({**row, "question": f"which hue is {'it ' * (i + j + 1)}?"}) for j in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = "--task question-answering --arms plain --seeds 0 --rate-factors 1".split()
    command = compare_options(tmp_path, tmp_path / "out", *options, family=folders / "bert", ending="jsonl")
    assert cli.main(["compare", *command]) == 0
    test = tmp_path / "test.jsonl"
    test.write_text(test.read_text().replace('["red"], "answer_start": [6]', '["red", "it"], "answer_start": [6, 0]'))
    assert cli.main(["compare", *command]) == 2
    assert "`right answers of test` was" in capsys.readouterr().err


def test_feedback_that_is_trained_further_may_not_change_between_runs(folders, tmp_path, capsys):
    model = FeedbackForSequenceClassification.from_backbone(str(folders / "bert"), **LABELS)
    tokenizer = AutoTokenizer.from_pretrained(folders / "bert")
    for i, split in enumerate(("train", "validation", "test")):
        write(tmp_path, f"{split}.csv", rows(8, i))
    for name in ("one", "other"):
        randomize_messages(model, seed=len(name))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    options = "--arms plain --seeds 0 --rate-factors 1".split()
    for name, status in (("one", 0), ("one", 0), ("other", 2)):
        command = compare_options(tmp_path, tmp_path / "out", *options, family=name)
        command = [part for part in command if part not in ("--feedback-rank", "4")]
        assert cli.main(["compare", *command]) == status
    assert "`other weights of the model` was" in capsys.readouterr().err


def test_the_backbones_own_head_may_not_change_between_runs(folders, tmp_path, capsys):
    """The backbone is the same, whose fingerprint leaves out its head."""
    model, tokenizer = BertForSequenceClassification(tiny_config("bert", **LABELS)), tiny_tokenizer()
    for i, split in enumerate(("train", "validation", "test")):
        write(tmp_path, f"{split}.csv", rows(8, i))
    options = "--head backbone --arms plain --seeds 0 --rate-factors 1".split()
    for name, status in (("one", 0), ("other", 2)):
        torch.nn.init.normal_(model.classifier.weight)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        assert cli.main(["compare", *compare_options(tmp_path, tmp_path / "out", *options, family=name)]) == status
    error = capsys.readouterr().err
    assert "`other weights of the model` was" in error
    assert "`weights of the backbone`" not in error


def test_a_second_call_runs_nothing_again_and_a_lost_run_alone(folders, finished, monkeypatch, capsys, tmp_path):
    output, _, options = finished
    again = tmp_path / "again"
    shutil.copytree(output, again)
    ran, run = [], ArmTrainer.run
    monkeypatch.setattr(ArmTrainer, "run", lambda self, to_beat: ran.append(self.job.name) or run(self, to_beat))
    assert cli.main(["compare", *compare_options(folders, again, *options)]) == 0
    assert ran == []
    lost = next((again / "runs").glob("lora.seed2*.json"))
    before = json.loads(lost.read_text())["validation"]
    lost.unlink()
    assert cli.main(["compare", *compare_options(folders, again, *options)]) == 0
    assert ran == [lost.stem]
    assert json.loads(lost.read_text())["validation"] == before
    assert (
        json.loads((again / "comparison.json").read_text())["verdict"]
        == json.loads((output / "comparison.json").read_text())["verdict"]
    )


def test_another_comparison_is_not_mixed_with_it(folders, finished, capsys):
    output, _, options = finished
    assert cli.main(["compare", *compare_options(folders, output, *options, "--feedback-rank", "8")]) == 2
    assert "`feedback_rank` was 4, is 8" in capsys.readouterr().err
    assert cli.main(["compare", *compare_options(folders, output, *options, "--weight-decay", "0.5")]) == 2
    assert "`weight_decay`" in capsys.readouterr().err
    assert cli.main(["compare", *compare_options(folders, output, *options, family="other")]) == 2
    assert "`weights of the backbone`" in capsys.readouterr().err
    assert cli.main(["compare", *compare_options(folders, output, *options, "--metrics", "macro_f1")]) == 2
    assert '`metric` was "accuracy", is "macro_f1"' in capsys.readouterr().err


def test_further_test_files_may_have_moved(folders, finished, monkeypatch, tmp_path):
    """Their rows are compared; earlier versions noted where they were."""
    output, _, options = finished
    shutil.copytree(output, tmp_path / "again")
    settings = json.loads((tmp_path / "again" / "settings.json").read_text())
    assert settings["also_test"] == ["noisy"]
    (tmp_path / "again" / "settings.json").write_text(json.dumps({**settings, "also_test": ["before/noisy.csv"]}))
    monkeypatch.setattr(ArmTrainer, "run", lambda *_: pytest.fail("a finished run was repeated"))
    assert cli.main(["compare", *compare_options(folders, tmp_path / "again", *options)]) == 0


def test_settings_that_cannot_be_read(folders, tmp_path, capsys):
    for content, message in (("{", "cannot be read"), ("[]", "holds no settings of a comparison")):
        (tmp_path / "settings.json").write_text(content)
        assert cli.main(["compare", *compare_options(folders, tmp_path, "--arms", "plain")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert str(tmp_path / "settings.json") in error


def test_rows_are_not_chosen_and_tested_on(folders, tmp_path, capsys):
    test = str(folders / "test.csv")
    for split in ("train", "validation"):
        assert cli.main(["compare", *compare_options(folders, tmp_path, f"--{split}-file", test, "--dry-run")]) == 2
        assert f"`test_file`: these rows are those of {split}" in capsys.readouterr().err


def test_parallel_processes_find_the_same(folders, finished, tmp_path):
    output, options = finished[0], "--arms plain --seeds 0 --rate-factors 1 --processes 2".split()
    options += ["--also-test", str(folders / "noisy.csv")]
    assert cli.main(["compare", *compare_options(folders, tmp_path, *options)]) == 0
    for file in tmp_path.glob("runs/*.json"):
        mine, theirs = (json.loads(one.read_text()) for one in (file, output / "runs" / file.name))
        assert mine["validation"] == pytest.approx(theirs["validation"], abs=0.05)


def test_a_process_that_the_system_ends_is_named(folders, tmp_path, monkeypatch, capsys):
    def ended(*_):
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(compare_module, "as_completed", ended)
    options = "--arms plain --seeds 0 --rate-factors 1 --processes 2".split()
    assert cli.main(["compare", *compare_options(folders, tmp_path, *options)]) == 2
    assert "`processes`: the system ended one of 2 processes, usually because memory ran" in capsys.readouterr().err


def test_the_plan_is_all_that_a_dry_run_makes(folders, tmp_path, capsys):
    assert cli.main(["compare", *compare_options(folders, tmp_path, "--quick", "--dry-run")]) == 0
    assert "15 runs: 5 arms" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "magic"], "`arms` must be one of 'head-only'"),
        (["--task", "magic"], "`task` must be one of 'text-classification'"),
        (["--seeds", "1", "1"], "`seeds` must be different values"),
        (["--rate-factors", "0"], "`rate_factors` must be above 0"),
        (["--rate-factors", "nan"], "`rate_factors` must be above 0, got nan"),
        (["--seeds", "-1"], "`seeds` must be an integer"),
        (["--metric-for-best-model", "entity_f1"], "`metric_for_best_model` must be one of accuracy"),
        (["--margin", "0"], "`margin` must be above 0"),
        (["--also-test", "a/test.csv"], "`also_test` must be files of different names"),
        (["--processes", "0"], "`processes` must be an integer of at least 1"),
        (["--variants", "[]"], "`variants` must be JSON such as"),
        (["--variants", '{"plain": {}}'], "not the name of an arm"),
        (["--variants", '{"a/b": {}}'], "must be letters, digits"),
        (["--variants", '{"a": {}, "a": {"feedback_rank": 4}}'], "`variants` gives 'a' several values"),
        (["--num-iterations", "1"], "`num_iterations`=1 is the plain backbone"),
        (["--variants", '{"a": {"magic": 1}}'], "'magic' of 'a' is not an option of FeedbackConfig"),
        (["--variants", '{"a": {"feedback_rnk": 3}}'], "FeedbackConfig; did you mean 'feedback_rank'?"),
        (["--variants", '{"a": {"feedback_type": "magic"}}'], "'magic'"),
        (["--variants", '{"silent": {}}'], "not the name of an arm or of a check"),
        (["--variants", '{"a": {"num_iterations": 1}}'], "'a' has `num_iterations`=1, the plain backbone"),
        (["--seed", "7"], "`seed` has no effect on a comparison: its runs have the seeds of `seeds`"),
        (["--early-stopping-patience", "2"], "`early_stopping_patience` has no effect on a comparison"),
        (["--push-to-hub"], "`push_to_hub` has no effect on a comparison"),
        (["--save-strategy", "steps"], "`save_strategy` has no effect on a comparison"),
    ],
)
def test_wrong_options(folders, tmp_path, capsys, options, message):
    assert cli.main(["compare", *compare_options(folders, tmp_path, *options)]) == 2
    assert message in capsys.readouterr().err


def test_a_comparison_needs_all_three_splits(folders, tmp_path, capsys):
    arguments = compare_options(folders, tmp_path)
    for name in ("validation", "test"):
        at = arguments.index(f"--{name}-file")
        assert cli.main(["compare", *arguments[:at], *arguments[at + 2 :]]) == 2
        output = capsys.readouterr()
        assert f"give `{name}_file` too" in output.err
        assert "Counting the cost" not in output.out  # nothing was loaded
    unlabelled = write(tmp_path, "unlabelled.csv", [{**row, "label": ""} for row in rows(3)])
    assert cli.main(["compare", *arguments[: at + 1], str(unlabelled), *arguments[at + 2 :]]) == 2
    assert f"`test_file`: {unlabelled} has no labels; a comparison needs them." in capsys.readouterr().err


def test_comparisons_side_by_side(finished, capsys, tmp_path):
    output = finished[0]
    shutil.copytree(output, tmp_path / "second")
    assert cli.main(["compare", "--join", str(output), str(tmp_path / "second")]) == 0
    printed = capsys.readouterr().out
    assert "| feedback minus plain | points | seeds | p (Holm) | verdict |" in printed
    assert "| second | " in printed
    assert "too few seeds" in printed  # three seeds, two data sets
    card = tmp_path / "regime.md"
    assert cli.main(["compare", "--join", str(output), str(tmp_path / "second"), "--card", str(card)]) == 0
    data, found = ModelCard.load(card).data, json.loads((output / "comparison.json").read_text())
    assert ModelCardData(**data.to_dict()).to_dict() == data.to_dict()  # valid, and complete
    assert [one.dataset_name for one in data.eval_results] == [output.name, "second"]
    assert data.eval_results[0].metric_value == round(float(np.mean(found["arms"]["feedback"]["test"])), 4)
    assert found["verdict"] in card.read_text()
    assert data.base_model is None
    assert cli.main(["compare", "--join", str(output), "--card", str(card)]) == 2
    assert f"`card`: {card} already exists; name another, or overwrite it (`--force`)" in capsys.readouterr().err
    for on_hub, base_model in ((False, None), (True, "models/tiny")):  # which is a folder where it was trained
        result = {**found, "model": "models/tiny", "is_on_hub": on_hub}
        (tmp_path / "second" / "comparison.json").write_text(json.dumps(result))
        assert cli.main(["compare", "--join", str(tmp_path / "second"), "--card", str(card), "--force"]) == 0
        assert ModelCard.load(card).data.base_model == base_model
    assert cli.main(["compare", "--join", str(output), "--card", str(card), "--force", "--base-model", "a/b"]) == 0
    assert ModelCard.load(card).data.base_model == "a/b"
    assert "The backbone is a/b." in card.read_text()
    assert cli.main(["compare", "--join", str(tmp_path)]) == 2
    assert "holds no finished comparison" in capsys.readouterr().err


def test_the_mean_over_data_sets_leaves_out_those_that_taught_nothing(finished, capsys, tmp_path):
    result = json.loads((finished[0] / "comparison.json").read_text())
    lead = dict(mean=3.0, low=0.0, high=6.0, by_seed=[2.0, 3.0, 4.0], equivalence=[0.5, 5.5], resolution=0.1)
    for name, mean, learned in (("one", 3.0, True), ("two", 4.0, True), ("three", 9.0, False)):
        contrast = result["differences"][0]
        contrast |= {"learned": learned, "difference": contrast["difference"] | lead | {"mean": mean, "high": mean + 4}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "comparison.json").write_text(json.dumps({**result, "differences": [contrast]}))
    folders = [str(tmp_path / name) for name in ("one", "two", "three")]
    assert cli.main(["compare", "--join", *folders]) == 0
    assert "| mean of 2 (without three) | +3.5 [+1.0, +6.3] | 3 | too few seeds | ahead |" in capsys.readouterr().out
    assert cli.main(["compare", "--join", *folders[::2]]) == 0
    assert "mean of" not in capsys.readouterr().out


def test_the_mean_of_other_numbers_of_seeds_has_no_p_value(finished, capsys, tmp_path):
    result = json.loads((finished[0] / "comparison.json").read_text())
    for name, count in (("one", 6), ("two", 12)):
        contrast = result["differences"][0]
        contrast |= {
            "learned": True,
            "difference": contrast["difference"] | {"by_seed": [1.0] * count, "p_value": 0.03},
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "comparison.json").write_text(json.dumps({**result, "differences": [contrast]}))
    assert cli.main(["compare", "--join", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert " | 6 to 12 | numbers of seeds differ | " in capsys.readouterr().out


def test_comparisons_in_folders_of_one_name(finished, capsys, tmp_path, monkeypatch):
    for folder in ("books", "runs/books"):
        shutil.copytree(finished[0], tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    for folders in (["books", "runs/books"], ["runs/books", "books"]):
        assert cli.main(["compare", "--join", *folders]) == 0
        table = capsys.readouterr().out.split("\n\n")[0].splitlines()[2:]
        assert [row.split(" | ")[0] for row in table[:2]] == [f"| {folder}" for folder in folders]


def test_a_card_is_about_the_feedback_of_its_verdict(finished, tmp_path):
    result = json.loads((finished[0] / "comparison.json").read_text())
    result["arms"]["deep"] = {**result["arms"]["feedback"], "options": {"num_iterations": 6, "feedback_scale": 50}}
    result["differences"] += [{**one, "feedback": "deep"} for one in result["differences"]]
    (tmp_path / "comparison.json").write_text(json.dumps({**result, "feedback": "deep"}))
    assert cli.main(["compare", "--join", str(tmp_path), "--card", str(tmp_path / "card.md")]) == 0
    body = (tmp_path / "card.md").read_text()
    assert "| num_iterations | 6 |" in body
    assert "| feedback_scale | 50 |" in body
    assert re.search(r"\*\*: .*[Ff]eedback \(deep\)", body)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"differences": [{}]}, "holds no comparison (KeyError('feedback'))"),
        ({"settings": None}, "holds no comparison (TypeError('settings is None'))"),
        ({"metric": ["accuracy"]}, "holds no comparison"),
        ({"metric": "magic"}, "holds no comparison (ValueError('unknown metric or verdict'))"),
        ({"arms": {"feedback": {"test": ["x"]}}}, "holds no comparison"),
        ({"model": "models/other"}, "`card`: these comparisons differ in `model`"),
    ],
)
def test_what_is_joined_is_checked(finished, capsys, tmp_path, changes, message):
    output, other = finished[0], tmp_path / "other"
    other.mkdir()
    found = json.loads((output / "comparison.json").read_text())
    (other / "comparison.json").write_text(json.dumps({**found, **changes}))
    assert cli.main(["compare", "--join", str(output), str(other), "--card", str(tmp_path / "card.md")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "card.md").exists()


def test_numbers_that_are_not_finite_are_joined(finished, capsys, tmp_path):
    found = json.loads((finished[0] / "comparison.json").read_text())
    found["arms"]["feedback"]["test"][0] = found["differences"][0]["difference"]["mean"] = None
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    assert cli.main(["compare", "--join", str(tmp_path)]) == 0
    assert "+nan [" in capsys.readouterr().out
    found["differences"][0]["difference"]["by_seed"][0] = found["differences"][0]["difference"]["p_value"] = None
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    assert cli.main(["compare", "--join", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (printed.count("| not finite |"), printed.count("| too few seeds |")) == (1, 1)


def test_feedback_alone_is_nothing_to_compare(folders, tmp_path, capsys):
    assert cli.main(["compare", *compare_options(folders, tmp_path, "--arms", "repeated")]) == 2
    assert "`arms`: there is nothing to compare feedback with (no repeated: " in capsys.readouterr().err


def test_a_card_of_one_backbone_from_two_folders(finished, tmp_path):
    found = json.loads((finished[0] / "comparison.json").read_text())
    (tmp_path / "comparison.json").write_text(json.dumps({**found, "model": "elsewhere/bert"}))
    joined = ["compare", "--join", str(finished[0]), str(tmp_path), "--card", str(tmp_path / "card.md")]
    assert cli.main(joined) == 2
    assert cli.main([*joined, "--base-model", "a/bert"]) == 0
    assert ModelCard.load(tmp_path / "card.md").data.base_model == "a/bert"


def test_a_comparison_is_joined_once(finished, capsys):
    assert cli.main(["compare", "--join", str(finished[0]), f"{finished[0]}/"]) == 2
    assert "a comparison is named twice" in capsys.readouterr().err


def test_a_card_holds_no_markup_of_the_results(finished, tmp_path):
    found = json.loads((finished[0] / "comparison.json").read_text())
    hostile = "<img src=x>|[x](http://evil)"
    found["verdict"] = hostile
    found["machine"] = {hostile: hostile}
    found["arms"][hostile] = found["arms"].pop("plain")
    for contrast in found["differences"]:
        contrast["other"] = hostile if contrast["other"] == "plain" else contrast["other"]
    folder, card = tmp_path / "pipe|<b>", tmp_path / "card.md"
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps(found))
    assert cli.main(["compare", "--join", str(folder), "--card", str(card)]) == 0
    body = card.read_text().split("---", 2)[2]
    assert "evil" in body
    assert not any(sign in body for sign in ("<img", "<b>", "pipe|", "](http"))


def test_variants_with_none():
    assert read_variants('{"full": {"feedback_rank": null}}')["full"].options == {"feedback_rank": "none"}


def test_runs_are_read_only_when_both_files_are_complete(tmp_path, monkeypatch):
    run = ArmRun(Job("plain", 0, 1.0), 0.5, {"own": np.ones((3, 2))}, {"metric": "accuracy"})

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(arm_runs.json, "dumps", fail)
    with pytest.raises(OSError, match="no space"):
        run.save(tmp_path)
    assert ArmRun.load(tmp_path, run.job) is None
    monkeypatch.undo()
    run.save(tmp_path)
    loaded = ArmRun.load(tmp_path, run.job)
    assert (loaded.validation, loaded.facts, loaded.test_value()) == (0.5, {"metric": "accuracy"}, 1.0)
    assert set(ARMS) >= {"plain", "lora"}
