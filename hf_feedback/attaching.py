"""Feedback for a model that is there already: fresh, or that of a checkpoint."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .building import check_option_names
from .configuration_feedback import FeedbackConfig
from .label_options import LABEL_OPTIONS
from .loading import load_feedback_folder
from .modeling_base import FeedbackPreTrainedModel
from .modeling_feedback import HEADS


def add_feedback(
    task_model: PreTrainedModel, config: FeedbackConfig | None = None, **feedback_options: Any
) -> FeedbackPreTrainedModel:
    """Adds fresh feedback to a fine-tuned task model; its head is kept, and it answers exactly as before.

    Args:
        task_model: a transformers model for sequence, token, image or audio classification, question answering,
            multiple choice, masked or causal language modelling; it is used as it is, not copied.
        config: the feedback options, without a `backbone_config`. The labels are those of the task model; labels that
            are given here have to agree with them.
        **feedback_options: the options of `FeedbackConfig` one by one, instead of `config`.

    Raises:
        TypeError: it is no transformers model, but a name, for example.
        ValueError: the model is for another task, an option contradicts it, or there are a config and options.
        UnsupportedBackboneError: the model cannot be looped exactly; says why.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> from hf_feedback import add_feedback
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = add_feedback(BertForSequenceClassification(tiny), num_iterations=3)
    >>> model.check_equivalence({"input_ids": torch.tensor([[5, 6, 7]])})
    0.0

    ```
    """
    if not isinstance(task_model, PreTrainedModel):
        raise TypeError(
            f"`task_model` must be a loaded transformers model, got a {type(task_model).__name__}; load it first, for "
            "example with `AutoModelForSequenceClassification.from_pretrained(…)`. (For a PeftModel, use "
            "`hf_feedback.training.from_peft`.)"
        )
    if config is not None and feedback_options:
        raise ValueError(
            f"`add_feedback` takes a config or options, got both; set {list(feedback_options)} in the config."
        )
    check_option_names(feedback_options)
    config = config or FeedbackConfig(**feedback_options)
    if config.backbone_config is not None:
        raise ValueError(
            "`add_feedback` takes the feedback options alone; got a config with a `backbone_config`. Leave it out."
        )
    options = {name: value for name, value in config.options().items() if name not in ("head", *LABEL_OPTIONS)}
    default = FeedbackConfig()
    for name in LABEL_OPTIONS:  # given ones are checked against the labels of the head
        if name in feedback_options or getattr(config, name) != getattr(default, name):
            options[name] = getattr(config, name)
    for head in HEADS:
        if head.traits.is_task_model(task_model):
            return head.from_backbone(task_model, head="backbone", **options)
    kinds = ", ".join(head.__name__.removeprefix("Feedback") for head in HEADS)
    raise ValueError(
        f"`task_model` must be a transformers model of one of the kinds {kinds}, got a {type(task_model).__name__}; "
        "a backbone without a head becomes a feedback model with `from_backbone`."
    )


def load_feedback(
    name_or_path: str | Path, backbone: str | Path | PreTrainedModel | None = None, **kwargs: Any
) -> FeedbackPreTrainedModel:
    """Puts a feedback-only checkpoint on its backbone.

    Several may be put on one backbone: each gives a model of its own, and all share the backbone's weights. They can be
    used in turn, or at the same time from several threads. What is done to the backbone of one (training, adapters,
    `.half()`) is done to all; for that, load by name.

    Args:
        name_or_path: folder or hub id that `save_feedback` or `push_feedback_to_hub` wrote.
        backbone: a transformers model, or a feedback model whose backbone is meant; it is used by both and not changed.
            A name: loads that one. Left out: loads the one that the checkpoint names.
        **kwargs: for loading the checkpoint and the backbone by name: `token`, `dtype`, `device_map`, …

    Raises:
        ValueError: the backbone is not the one that the feedback was trained on, or the folder holds a whole model.
        OSError: the folder or repository is missing or damaged.

    Example:

    ```python
    >>> import tempfile, torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification, load_feedback
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> bert, batch = BertModel(tiny).eval(), {"input_ids": torch.tensor([[5, 6, 7]])}
    >>> folder = tempfile.mkdtemp()
    >>> FeedbackForSequenceClassification.from_backbone(bert, num_labels=3).save_feedback(folder)
    >>> model = load_feedback(folder, bert)
    >>> model.get_input_embeddings().weight is bert.get_input_embeddings().weight
    True

    ```
    """
    return load_feedback_folder(FeedbackPreTrainedModel, name_or_path, backbone, kwargs)
