"""PEFT on a feedback model: adapters in the backbone, feedback and head trained in full beside them."""

import copy

import pytest
import torch
from families import speak, tiny_backbone, tiny_batch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments, parameter_groups

LORA = dict(target_modules=["query", "value"], modules_to_save=["feedback", "classifier"], task_type="SEQ_CLS")
METHODS = {
    "lora": lambda: LoraConfig(r=4, **LORA),
    "ia3": lambda: IA3Config(feedforward_modules=[], **LORA),
}


def make():
    return speak(
        FeedbackForSequenceClassification.from_backbone(
            tiny_backbone("bert"), feedback_rank=8, num_labels=3, num_iterations=3
        )
    )


def train(model, tmp_path, **options):
    args = FeedbackTrainingArguments(
        output_dir=str(tmp_path), max_steps=4, learning_rate=1e-2, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, **options,
    )  # fmt: skip
    rows = [
        {"input_ids": tiny_batch(seed)["input_ids"][0], "attention_mask": torch.ones(9).long(), "labels": seed % 3}
        for seed in range(12)
    ]
    FeedbackTrainer(model=model, args=args, train_dataset=rows).train()
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_train_save_load_merge(method, tmp_path, capsys):
    base, batch = make(), tiny_batch()
    expected = base(**batch).logits
    model = get_peft_model(copy.deepcopy(base), METHODS[method]()).eval()
    torch.testing.assert_close(model(**batch).logits, expected)
    model.print_trainable_parameters()
    assert "trainable params" in capsys.readouterr().out
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora_" in name or "ia3_" in name for name in trainable)
    assert any(".feedback.modules_to_save" in name for name in trainable)
    assert any(".classifier.modules_to_save" in name for name in trainable)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trainable), name
    found = model(**batch).logits
    assert not torch.allclose(found, expected, atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**batch).logits, found)
    if method != "lora":  # PEFT 0.21 merges modules_to_save without a `weight` of their own for LoRA alone
        return
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, found, rtol=1e-4, atol=1e-5)
    assert type(merged) is FeedbackForSequenceClassification
    merged.save_pretrained(tmp_path / "merged")
    again = FeedbackForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(again(**batch).logits, merged(**batch).logits)


def test_groups_of_a_wrapped_model():
    model = get_peft_model(make(), METHODS["lora"]())
    rates = {group["name"]: group["lr"] for group in parameter_groups(model, 1e-3, backbone_lr=1e-4)}
    assert rates["feedback"] == rates["head"] == 1e-3
    assert rates["layer 2"] == 1e-4
    assert "embeddings" not in rates


def test_prefix_tuning_is_refused():
    config = PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=2, token_dim=32, num_layers=4, num_attention_heads=4
    )
    model = get_peft_model(make(), config)
    with pytest.raises(ValueError, match="prefix-tuning"):
        model(**tiny_batch())
