"""`--lora-rank`: LoRA adapters in the frozen backbone, beside feedback and head, merged at the end of the run."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from builders import fnn_model, task_model
from closeness import assert_exact
from families import tiny_backbone, tiny_batch
from fresh_processes import LOADED, run_python
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from training_runs import arguments, make, rows, tiny_data, train_command, write
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from hf_feedback import FeedbackForAudioClassification, FeedbackForSequenceClassification
from hf_feedback.cli import main
from hf_feedback.training import FeedbackTrainer, peft_options
from hf_feedback.training import run as run_module
from hf_feedback.training.lora import LoraArguments
from hf_feedback.training.task_search import fixed_options

TESTS = Path(__file__).parent
LORA = ["--lora-rank=4"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def command_in(folder, backbone, *more):
    """A run with LoRA of three epochs, of which the best on validation is kept."""
    train, validation = write(folder, "train.csv", rows()), write(folder, "validation.csv", rows(12, seed=1))
    rates = ["--learning-rate", "0.03", "--num-train-epochs", "3", "--save-total-limit", "3"]
    return train_command(backbone, folder / "out", *LORA, *rates, *more, train=train, validation=validation)


@pytest.fixture(scope="module")
def finished(backbone, tmp_path_factory):
    """A finished run: its command, its folder, and the logits of the trained model before its adapters were merged."""
    folder, seen = tmp_path_factory.mktemp("run"), []
    command = command_in(folder, backbone)
    with pytest.MonkeyPatch.context() as patch:
        merge = run_module.merge_adapters

        def note_logits(trainer, args):
            assert isinstance(trainer.model, PeftModel)
            seen.append(trainer.model.eval()(**tiny_batch()).logits)
            merge(trainer, args)

        patch.setattr(run_module, "merge_adapters", note_logits)
        assert main(command) == 0
    return command, folder / "out", seen[0]


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that run without its results, and the command that goes on with it."""
    command, out, _ = finished
    shutil.copytree(out, tmp_path / "out")
    for file in (tmp_path / "out").glob("*.*"):
        file.unlink()
    command = [str(tmp_path / "out") if part == str(out) else part for part in command]
    return [*command, "--resume", "auto"], tmp_path / "out"


# What is trained and saved


def test_only_the_adapted_maps_of_the_backbone_change(finished, backbone):
    _, out, _ = finished
    before = FeedbackForSequenceClassification.from_backbone(backbone, num_labels=3).backbone.state_dict()
    after = {name.removeprefix("backbone."): w for name, w in weights(out).items() if name.startswith("backbone.")}
    assert after.keys() <= before.keys()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    maps = ("query", "value")
    assert changed == {f"encoder.layer.{i}.attention.self.{name}.weight" for i in range(4) for name in maps}
    difference = after["encoder.layer.0.attention.self.query.weight"] - before[next(iter(sorted(changed)))]
    assert torch.linalg.matrix_rank(difference, rtol=1e-4) == 4


def test_the_folder_is_a_whole_model_with_the_trained_logits(finished):
    _, out, logits = finished
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert type(model) is FeedbackForSequenceClassification
    torch.testing.assert_close(model(**tiny_batch()).logits, logits, rtol=1e-4, atol=1e-5)
    assert not list(out.glob("adapter_config.json"))
    assert not [name for name in model.state_dict() if "lora" in name or "base_layer" in name]


def test_the_commands_read_the_folder(finished, tmp_path, capsys):
    _, out, _ = finished
    model, file = ["--model", str(out)], str(out.parent / "validation.csv")
    assert main(["predict", *model, "--text", "where is my parcel", "--output", str(tmp_path / "answers.jsonl")]) == 0
    assert (tmp_path / "answers.jsonl").is_file()
    assert main(["evaluate", *model, "--file", file]) == 0
    accuracy = json.loads((out / "all_results.json").read_text())["eval_accuracy"]
    assert f"{accuracy:.4f}" in capsys.readouterr().out
    assert main(["predict", "--model", str(out / "checkpoint-9"), "--text", "help"]) == 2
    assert "holds an adapter of PEFT" in capsys.readouterr().err


def test_counts_and_card(backbone, tmp_path, capsys, caplog):
    assert main([*command_in(tmp_path, backbone, "--lora-alpha", "6"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    plain = FeedbackForSequenceClassification.from_backbone(backbone, num_labels=3, feedback_rank=4)
    adapters, feedback, head = 4 * 2 * (32 + 32) * 4, sum(p.numel() for p in plain.feedback.parameters()), 3 * 33
    assert f"{feedback:,} parameters of feedback, " in shown
    assert f"LoRA: rank 4, alpha 6, in 8 modules of the backbone, frozen otherwise: {adapters:,} para" in shown
    count = sum(p.numel() for p in plain.parameters()) + adapters
    assert f"parameters: {count:,}, of which {adapters + feedback + head:,} train" in shown
    assert not (tmp_path / "out").exists()
    with caplog.at_level("WARNING"):
        assert main(command_in(tmp_path, backbone, "--lora-alpha", "6", "--freeze", "layers:0-1")) == 0
    assert caplog.text == ""
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| LoRA | rank 4, alpha 6; its adapters are merged into the backbone |" in card
    assert "| frozen | backbone, layers:0-1 |" in card
    before = FeedbackForSequenceClassification.from_backbone(backbone, num_labels=3).backbone.state_dict()
    query = "encoder.layer.{}.attention.self.query.weight"
    trained = [not torch.equal(weights(tmp_path / "out")[f"backbone.{query.format(i)}"], before[query.format(i)])
               for i in range(4)]  # fmt: skip
    assert trained == [False, False, True, True]


@pytest.mark.parametrize(
    ("more", "rate"), [((), 0.03), (("--backbone-lr", "0.002"), 0.002)], ids=["of all that is new", "its own"]
)
def test_rate_of_the_adapters(backbone, tmp_path, capsys, more, rate):
    assert main([*command_in(tmp_path, backbone, *more), "--dry-run"]) == 0
    groups = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines() if "  " in line}
    assert [float(groups[name][-2]) for name in ("layer 0", "layer 3", "head")] == [rate, rate, 0.03]
    assert "embeddings" not in groups


@pytest.mark.parametrize(("name", "head"), [("TokenClassification", "new"), ("SequenceClassification", "backbone"),
                                            ("MultipleChoice", "new"), ("QuestionAnswering", "new")])  # fmt: skip
def test_a_trainer_adds_what_peft_options_says(name, head, tmp_path):
    model = task_model(name, head)
    expected = get_peft_model(task_model(name, head), LoraConfig(r=2, **peft_options(model)))
    trainer = FeedbackTrainer(model, arguments(tmp_path, lora_rank=2), train_dataset=tiny_data())
    assert isinstance(trainer.model, PeftModel)
    trained = [{n for n, p in one.named_parameters() if p.requires_grad} for one in (trainer.model, expected)]
    assert trained[0] == trained[1]
    assert trainer.model.peft_config["default"].lora_alpha == 4


def test_batch_norms_of_the_backbone_stay_as_they_were(tmp_path):
    """Their running statistics are no part of the adapters, and do not move."""
    sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=37, vocab_size=30)
    front = dict(conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 4), num_feat_extract_layers=2, layerdrop=0.0)
    convolution = dict(conv_depthwise_kernel_size=3, position_embeddings_type=None)
    torch.manual_seed(0)
    config = AutoConfig.for_model("wav2vec2-conformer", **sizes, **front, **convolution)
    model = FeedbackForAudioClassification.from_backbone(AutoModel.from_config(config), num_labels=3, feedback_rank=8)
    before = {name: buffer.clone() for name, buffer in model.backbone.named_buffers() if "batch_norm" in name}
    assert len(before) == 9
    rows = [{"input_values": torch.randn(400), "labels": i % 3} for i in range(8)]
    FeedbackTrainer(model, arguments(tmp_path, lora_rank=2, learning_rate=0.05), train_dataset=rows).train()
    after = dict(model.backbone.named_buffers())
    assert all(torch.equal(buffer, after[name]) for name, buffer in before.items())


# Best epoch, early stopping, stages, frozen layers


def test_the_best_epoch_is_kept(backbone, tmp_path):
    """With a rate that spoils the later epochs, and also where training goes on from the last checkpoint."""
    command = command_in(tmp_path, backbone, "--learning-rate", "0.5", "--early-stopping-patience", "2")
    assert main(command) == 0
    out = tmp_path / "out"
    state = json.loads((out / "checkpoint-9" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.name != "checkpoint-9"
    losses = [log["eval_loss"] for log in state["log_history"] if "eval_loss" in log]
    results = json.loads((out / "all_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(losses[int(best.name.removeprefix("checkpoint-")) // 3 - 1], rel=1e-4)
    whole = weights(out)
    for file in out.glob("*.*"):
        file.unlink()
    assert main([*command, "--resume", "auto"]) == 0
    assert_exact_weights(weights(out), whole)


def assert_exact_weights(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []


WITH = {
    "frozen layers from a file": "--freeze layers:0-1 --cache-prefix true",
    "stages": "--unfreeze-every 2steps",
    "adversarial training": "--adversarial fgm",
    "agreement of iterations": "--agreement-weight 0.5",
    "decay from layer to layer": "--layer-lr-decay 0.5",
    "without feedback": "--num-iterations 1",
    "checkpointing": "--activation-checkpointing true",
    "half precision": "--bf16 true",
}


@pytest.mark.parametrize("case", WITH)
def test_with_other_options_of_training(case, backbone, tmp_path):
    """The saved model has the metrics that were measured, and only adapted maps have changed."""
    assert main(command_in(tmp_path, backbone, *WITH[case].split(), "--learning-rate", "0.01")) == 0
    after = weights(tmp_path / "out")
    before = FeedbackForSequenceClassification.from_backbone(backbone, num_labels=3).backbone.state_dict()
    changed = {name for name in before if not torch.equal(after[f"backbone.{name}"], before[name])}
    assert changed
    assert all(name.endswith(("query.weight", "value.weight")) for name in changed)


def test_a_search(backbone, tmp_path):
    assert main([*command_in(tmp_path, backbone, "--num-train-epochs", "1"), "--search-trials", "2"]) == 0
    best = (tmp_path / "out" / "best_options.yaml").read_text()
    assert "layer_lr_decay" in best
    assert "backbone_lr" not in best
    assert "backbone_lr" in fixed_options(None, arguments(tmp_path, lora_rank=2), ())


# Runs that are killed, resumed or finished

MOMENTS = (
    "transformers.trainer:Trainer.training_step:3",
    "peft.peft_model:safe_save_file:1:half",  # the adapters of the first checkpoint
    "torch:save:6:half",  # the optimizer of the second
    "hf_feedback.training.resuming.resumable_trainer:rotate_checkpoints:1",
    "hf_feedback.training.run:merge_adapters:1",  # after the last step
    "transformers.modeling_utils:safe_save_file:1:half",  # the weights in the output folder
)


def test_killed_and_resumed(backbone, tmp_path):
    often = "--save-strategy steps --eval-strategy steps --save-steps 3 --eval-steps 3 --load-best-model-at-end True"
    command = [*command_in(tmp_path, backbone, "--freeze", "layers:1"), *often.split(), "--resume", "auto"]
    statuses = {}
    for name, moments in (("whole", ()), ("killed", MOMENTS)):
        parts = [str(tmp_path / name) if part == str(tmp_path / "out") else part for part in command]
        done = run_python(str(TESTS / "killed_runs.py"), json.dumps(parts), *moments, modules=LOADED)
        assert done.returncode == 0, done.stderr[-2000:]
        statuses[name] = json.loads(done.stdout.splitlines()[-1])
    assert statuses == {"whole": [0], "killed": [-signal.SIGKILL] * len(MOMENTS) + [0]}
    assert_exact_weights(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("left", ["all", "two epochs", "one epoch", "none"])
def test_one_command_from_the_first_start_on(finished, copied, left):
    command, out = copied
    for step in {"all": (), "two epochs": (9,), "one epoch": (9, 6), "none": (9, 6, 3)}[left]:
        shutil.rmtree(out / f"checkpoint-{step}")
    assert main(command) == 0
    assert_exact_weights(weights(out), weights(finished[1]))
    before = os.stat(out / "model.safetensors").st_mtime_ns
    assert main(command) == 0  # finished
    assert os.stat(out / "model.safetensors").st_mtime_ns == before


CHANGED = {
    "rank": (["--lora-rank", "2"], "`lora_rank` was 4, is 2"),
    "alpha": (["--lora-alpha", "2"], "`lora_alpha` was null, is 2.0"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_resuming_with_other_adapters_is_refused(copied, capsys, case):
    command, _ = copied
    option, words = CHANGED[case]
    assert main([*command, *option]) == 2
    assert words in capsys.readouterr().err


def test_resuming_without_adapters_or_with_another_backbone_is_refused(copied, backbone, tmp_path, capsys):
    command, out = copied
    plain = [part for part in command if part not in LORA]
    assert main(plain) == 2
    assert "`lora_rank` was 4, is null" in capsys.readouterr().err
    shutil.copytree(backbone, tmp_path / "other")
    tiny_backbone("bert", seed=1).save_pretrained(tmp_path / "other")
    assert main([str(tmp_path / "other") if part == backbone else part for part in command]) == 2
    assert "`weights of the backbone` was " in capsys.readouterr().err
    for checkpoint in out.glob("checkpoint-*"):
        (checkpoint / "training_manifest.json").unlink()
    assert main(command) == 2
    assert "checkpoint-9 holds adapters without the options of their model" in capsys.readouterr().err


# What is refused

REFUSED = {
    "no rank": (["--lora-rank", "0"], "`lora_rank` must be an integer of at least 1, got 0"),
    "no scale": (["--lora-alpha", "0"], "`lora_alpha` must be a finite number above 0, got 0.0"),
    "no adapter left": (["--freeze", "backbone"], r"`freeze`=['backbone'] freezes all adapters of `lora_rank`=4"),
    "all layers": (["--freeze", "layers:0-3"], r"`freeze`=['layers:0-3'] freezes all adapters of `lora_rank`=4"),
    "checkpoints on the Hub": (
        ["--push-to-hub", "True", "--hub-strategy", "every_save"],
        "`hub_strategy`='every_save' pushes checkpoints, which are adapters with `lora_rank`=4",
    ),
    "FSDP": (["--fsdp", "full_shard"], "`lora_rank`=4 cannot merge the adapters of a model that `fsdp` divides"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be(case, backbone, tmp_path, capsys):
    option, words = REFUSED[case]
    assert main(command_in(tmp_path, backbone, *option)) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_models_that_accelerate_divides(name, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(ValueError, match=f"of a model that `{name}` divides"):
        LoraArguments(lora_rank=2).check_lora()


def test_alpha_alone(backbone, tmp_path, capsys):
    command = [part for part in command_in(tmp_path, backbone, "--lora-alpha", "8") if part not in LORA]
    assert main(command) == 2
    assert "`lora_alpha`=8.0 scales adapters; give `lora_rank`, or leave it out" in capsys.readouterr().err


def test_networks_from_scratch_and_comparisons(backbone, tmp_path, capsys):
    train = ["--train-file", write(tmp_path, "train.csv", rows())]
    network = ["--fnn", "temporal", "--tokenizer", backbone, "--output-dir", str(tmp_path / "out")]
    assert main(["train", *network, *train, *LORA]) == 2
    assert (
        "`lora_rank`=4 needs a pretrained backbone, which FNNForSequenceClassification has" in capsys.readouterr().err
    )
    assert main(["compare", "--model", backbone, *train, *LORA, "--output-dir", str(tmp_path / "out")]) == 2
    assert "`lora_rank` has no effect on a comparison: LoRA is among its `arms`" in capsys.readouterr().err


def test_models_that_cannot_have_adapters(tmp_path):
    def refused(model, words):
        with pytest.raises(ValueError, match=words):
            FeedbackTrainer(model, arguments(tmp_path, lora_rank=2), train_dataset=tiny_data())

    adapted = make()
    refused(get_peft_model(adapted, LoraConfig(r=2, **peft_options(adapted))), "PeftModel.* has some or is wrapped")
    refused(fnn_model(head=True, dtype=torch.float32), "needs a pretrained backbone")
    normed, quantized = make(), make()
    normed.backbone.encoder.layer[0].norm = torch.nn.BatchNorm1d(32, affine=False)
    refused(normed, "BertModel has batch norms without weights, whose running statistics change")
    quantized.backbone.hf_quantizer = object()
    refused(quantized, "the weights of this BertModel are quantized")


def test_a_trainer_without_the_command_keeps_the_adapters(tmp_path):
    """As with PEFT itself; they are merged on request."""
    args = arguments(tmp_path, lora_rank=2, learning_rate=0.05)
    trainer = FeedbackTrainer(make(), args, train_dataset=tiny_data())
    trainer.train()
    logits = trainer.model.eval()(**tiny_batch()).logits
    merged = trainer.model.merge_and_unload()
    assert type(merged) is FeedbackForSequenceClassification
    torch.testing.assert_close(merged(**tiny_batch()).logits, logits, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = FeedbackForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert_exact(again.double()(**tiny_batch()).logits, merged.double()(**tiny_batch()).logits)
