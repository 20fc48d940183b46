"""Every method of PEFT that adapts modules, on every operator: what is merged answers as what was trained."""

import dataclasses

import pytest
import torch
from families import randomize_messages, tiny_backbone
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.connections import CONNECTIONS
from hf_feedback.training import peft_options

OPERATORS = [*CONNECTIONS, "additive+context"]

# Options that methods cannot do without on a tiny backbone.
OPTIONS = {
    "ADALORA": dict(total_step=10, tinit=0, tfinal=5),
    "BOFT": dict(boft_block_size=4),
    "C3A": dict(block_size=4),
    "FOURIERFT": dict(n_frequency=20, scaling=5.0),
    "HRA": dict(r=4),
    "IA3": dict(feedforward_modules=[]),
    "LILY": dict(r=4),
    "MISS": dict(r=4),
    "OFT": dict(oft_block_size=4),
    "POLY": dict(n_tasks=1, n_skills=2),
    "PSOFT": dict(r=2),
    "ROAD": dict(group_size=4),
    "SHIRA": dict(r=2),
    "SUPERTUNING": dict(sparsity=0.9),
    "TRAINABLE_TOKENS": dict(target_modules=r".*word_embeddings", token_indices=[*range(5, 60)]),
    "UNILORA": dict(theta_d_length=64),
    "VBLORA": dict(vector_length=4, num_vectors=8, topk=2),
    "WAVEFT": dict(n_frequency=20),
}
VARIANTS = {
    "dora": dict(use_dora=True),
    "rslora": dict(use_rslora=True),
    "bias": dict(lora_bias=True),
    **{name: dict(init_lora_weights=name) for name in ("pissa", "olora", "orthogonal")},
}
# PEFT raises NotImplementedError, for a plain model as well.
CANNOT_MERGE = ("LILY", "POLY")
# A mixture of trained LoRA adapters; a second network that runs beside a decoder.
ADAPT_NO_MODULES = {"XLORA", "SHADOW"}

METHODS = {
    kind.value: (config, OPTIONS.get(kind.value, {}))
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if isinstance(tuner := PEFT_TYPE_TO_TUNER_MAPPING.get(kind), type)
    and issubclass(tuner, BaseTuner)
    and kind.value not in ADAPT_NO_MODULES
}
METHODS |= {f"LORA, {name}": (METHODS["LORA"][0], options) for name, options in VARIANTS.items()}


def make(operator: str) -> FeedbackForSequenceClassification:
    """A tiny classifier with messages and without dropout, its sizes good for every method."""
    sizes = dict(intermediate_size=64, num_hidden_layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    options = dict(feedback_type=operator, feedback_rank=8, num_labels=4, num_iterations=2)
    return randomize_messages(
        FeedbackForSequenceClassification.from_backbone(tiny_backbone("bert", **sizes), **options)
    )


def adapt(method: str, model: FeedbackForSequenceClassification, target: str):
    """The model with adapters of that method, in all linear maps or where `peft_options` says."""
    config, options = METHODS[method]
    known = {field.name for field in dataclasses.fields(config)}
    where = {"task_type": "SEQ_CLS", "target_modules": "all-linear"} if target == "all-linear" else peft_options(model)
    torch.manual_seed(0)
    return get_peft_model(model, config(**{key: value for key, value in where.items() if key in known} | options))


@pytest.mark.parametrize("target", ["all-linear", "peft_options"])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in CANNOT_MERGE])
def test_merged_answers_as_trained(method, target):
    operator = OPERATORS[[*METHODS].index(method) % len(OPERATORS)]
    tuned = adapt(method, make(operator), target)
    batch = {"input_ids": torch.arange(5, 23).view(2, 9), "attention_mask": torch.ones(2, 9).long()}
    batches = [batch, {key: value[:1] for key, value in batch.items()}]

    @torch.no_grad()
    def logits(model):
        return [model.eval()(**rows).logits for rows in batches]

    before = logits(tuned)
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], 2e-2)
    for _ in range(2):
        optimizer.zero_grad()
        tuned.train()(**batch, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    trained = logits(tuned)
    merged = logits(tuned.merge_and_unload())
    for start, expected, found in zip(before, trained, merged, strict=True):
        assert (expected - start).abs().max() > 1e-4
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("method", CANNOT_MERGE)
def test_what_peft_cannot_merge(method):
    with pytest.raises(NotImplementedError):
        adapt(method, make("additive"), "all-linear").merge_and_unload()


@pytest.mark.parametrize("operator", OPERATORS)
def test_all_linear_is_what_is_linear(operator):
    """Adapters go into the backbone alone: a map of the feedback is none, for it has several edges or a gate."""
    tuned = adapt("LORA", make(operator), "all-linear")
    adapted = {name.split(".lora_")[0] for name, _ in tuned.base_model.model.named_parameters() if ".lora_" in name}
    linear = {name for name, module in make(operator).named_modules() if isinstance(module, nn.Linear)}
    assert adapted == linear - {"classifier"}
    assert all(name.startswith("backbone.") for name in adapted)
