"""Builders that tests share: models of every head with messages that are not zero, their batches and targets, networks
from scratch, tokenizers, processes without the package."""

import copy
import os
import string
import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pytest
import torch
from families import randomize_messages, tiny_backbone, tiny_batch, tiny_config
from fresh_processes import run_python
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast, ViTImageProcessorPil, Wav2Vec2FeatureExtractor

from hf_feedback import (
    FeedbackConfig,
    FeedbackForSequenceClassification,
    FeedbackModel,
    FNNConfig,
    FNNForSequenceClassification,
    FNNModel,
    add_feedback,
)
from hf_feedback.modeling_feedback import HEADS

LABELS = {"id2label": {0: "late", 1: "lost", 2: "fine"}, "label2id": {"late": 0, "lost": 1, "fine": 2}}

# Feedback models


def built_once(build: Callable) -> Callable:
    """A builder that builds once for the same arguments and then copies, since building tries the backbone out. It
    seeds what it draws. The last models, as many as there are heads, are kept."""
    models: dict[str, tuple[torch.nn.Module, torch.Tensor]] = {}

    @wraps(build)
    def copy_of(*args, **options):
        key = repr((args, sorted(options.items()), torch.get_default_dtype()))
        if key not in models:
            models[key] = build(*args, **options), torch.get_rng_state()
        if len(models) > 16:
            models.pop(next(iter(models)))
        model, random_state = models[key]
        torch.set_rng_state(random_state)  # as it is when a model has been built
        return copy.deepcopy(model)

    return copy_of


EDGES = [[2, 0], [3, 0], [3, 2]]


@built_once
def feedback_model(cls=FeedbackModel, family="bert", dtype=torch.float64, scale=0.3, **options):
    """A model in float64 over a tiny backbone, with messages of that scale."""
    options = {"feedback_rank": 8, "num_iterations": 4, "feedback_edges": EDGES, **options}
    if cls is not FeedbackModel:
        options.setdefault("num_labels", 3)
    model = cls.from_backbone(tiny_backbone(family).to(dtype), **options)
    return randomize_messages(model, scale=scale) if scale else model


def labelled_model(family="bert", **options):
    """A classifier with names of labels, as users save it."""
    options = {"num_iterations": 3, "feedback_rank": 8, **LABELS, **options}
    return randomize_messages(FeedbackForSequenceClassification.from_backbone(tiny_backbone(family), **options))


def without_dropout(model):
    """The model in training mode, with all dropout off."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def gradients(model, batch, weight):
    """By the parameter's name, of a weighted sum of the last hidden state."""
    model.zero_grad()
    (model(**batch).last_hidden_state * weight).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def graph_size(model, batch, k):
    """How many nodes the graph of one forward call has."""
    nodes, seen = [model(**batch, num_iterations=k).last_hidden_state.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    return len(seen)


# Heads

NAMES = {head.__name__.removeprefix("FeedbackFor"): head for head in HEADS}
REPRESENTATIVE = {"ImageClassification": "vit", "AudioClassification": "wav2vec2", "CausalLM": "gpt2"}
# A language model predicts with the backbone's own head alone.
HEADED = [(name, head) for name in NAMES for head in ("new", "backbone") if (name, head) != ("CausalLM", "new")]
headed = pytest.mark.parametrize(("name", "head"), HEADED, ids=[f"{name}-{head}" for name, head in HEADED])


def first_head(name):
    """The head of the class that is tried where one is enough."""
    return next(head for one, head in HEADED if one == name)


def batch_for(name, family="bert"):
    """Inputs of the task; the last token of every text is its end."""
    batch = tiny_batch(family=family)
    if "input_ids" in batch:
        batch["input_ids"][0, -1] = batch["input_ids"][1, -4] = 3
    if name == "MultipleChoice":
        batch = {key: torch.stack([value, value.flip(0)], 1) for key, value in batch.items()}
    return batch


def targets_for(name):
    """Labels of the task, as keyword arguments."""
    if name == "QuestionAnswering":
        return {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
    if name in ("TokenClassification", "MaskedLM", "CausalLM"):
        labels = torch.arange(18).view(2, 9) % 3
        labels[0, :3] = -100
        return {"labels": labels}
    return {"labels": torch.tensor([0, 1])}


@built_once
def task_model(name, head=None, family=None, **options):
    """A feedback model of the task over a tiny backbone."""
    head = head or first_head(name)
    family = family or REPRESENTATIVE.get(name, "bert")
    options = {"num_labels": 3} | options if NAMES[name].traits.predicts_config_labels else options
    options = {"num_iterations": 3, "feedback_rank": 8, **options}
    if head == "new":
        return NAMES[name].from_backbone(tiny_backbone(family), **options)
    config = FeedbackConfig(**options)
    torch.manual_seed(0)
    plain_model = NAMES[name].traits.task_models(tiny_config(family))[0](tiny_config(family, num_labels=3)).eval()
    if name == "QuestionAnswering":
        plain_model = NAMES[name].traits.task_models(tiny_config(family))[0](tiny_config(family)).eval()
    return add_feedback(plain_model, config)


def answers(output):
    """The logits of the last iteration by name."""
    return {key: value for key, value in output.items() if key.endswith("logits") and torch.is_tensor(value)}


# Networks from scratch

NETWORKS = {
    "temporal": dict(fnn_type="temporal"),
    "temporal, parallel": dict(fnn_type="temporal", sweep="parallel"),
    "layered": dict(fnn_type="layered", num_layers=3),
}


def fnn_model(kind="temporal", head=False, dtype=torch.float64, **options):
    """A network with biases that are not zero, with or without a classifier."""
    torch.manual_seed(0)
    options = {"vocab_size": 30, "hidden_size": 4, **NETWORKS.get(kind, {"fnn_type": kind}), **options}
    config = FNNConfig(**{**LABELS, **options} if head else options)
    model = (FNNForSequenceClassification if head else FNNModel)(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


# Folders and processes


def tiny_tokenizer():
    """A word tokenizer with the special tokens that the tiny backbones know."""
    words = [
        "[UNK]",
        "[PAD]",
        "[CLS]",
        "[SEP]",
        *["where", "is", "my", "parcel", "the", "refund", "has", "not", "come", "please", "help", "it", "a"],
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )


def character_tokenizer():
    """A tokenizer of a decoder: reads character by character, adds nothing, and has no padding."""
    vocabulary = {
        sign: i for i, sign in enumerate(["[END]", "[UNK]", *string.ascii_lowercase, *"0123456789", *" .,?-;"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="[END]", unk_token="[UNK]", model_max_length=48
    )


def letter_tokenizer():
    """A tokenizer that reads words letter by letter, so that most words have several pieces."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *"0123456789", *".,?-;"]
    vocabulary = {token: i for i, token in enumerate([*special, *pieces])}
    assert len(vocabulary) < tiny_config("bert").vocab_size
    return BertTokenizer(vocab=vocabulary, model_max_length=64)


# Models of every task, as users save them

PROCESSORS = {
    "ImageClassification": lambda: ViTImageProcessorPil(size={"height": 8, "width": 8}),
    "AudioClassification": lambda: Wav2Vec2FeatureExtractor(return_attention_mask=True),
    "CausalLM": character_tokenizer,
}


def save_task_model(folder, name):
    """Saves a model of a task, "Network" for a network from scratch, with its processor; returns the folder."""
    if name == "Network":
        model = fnn_model(head=True, dtype=torch.float32)
    else:
        model = task_model(name, **(LABELS if name in ("SequenceClassification", "TokenClassification") else {}))
    processor = PROCESSORS.get(name, tiny_tokenizer)()
    if name == "MaskedLM":
        processor.mask_token = "[UNK]"
    if name == "CausalLM":
        processor.pad_token = processor.eos_token
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def run_without_package(code: str, folder: Path) -> str:
    """Runs code in a fresh process where `import hf_feedback` fails."""
    blocked = textwrap.dedent(
        """
        import sys

        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "hf_feedback":
                    raise ModuleNotFoundError(f"No module named {name!r}")

        sys.meta_path.insert(0, Block())
        """
    )
    env = {**os.environ, "HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "modules")}
    found = run_python("-c", blocked + textwrap.dedent(code), env=env, cwd=folder)
    assert found.returncode == 0, found.stderr
    return found.stdout
