"""From a saved folder or repository to a feedback model, and back."""

import copy
import re
import traceback
from pathlib import Path
from typing import Any, Self, cast

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.utils import logging

from .backbones import place_of_part, select_part
from .checkpoint import FeedbackOnlyCheckpoints, is_feedback_only
from .configuration_feedback import AUTO_MAP, FeedbackConfig, nearest_option
from .from_backbone import HUB_KWARGS, warn_if_offloaded

logger = logging.get_logger(__name__)


class LoadableFeedbackModel(FeedbackOnlyCheckpoints):
    """The ways to get a feedback model: `from_backbone` and `from_pretrained`; and `save_pretrained`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a saved feedback model; from the folder or repository of a plain backbone, does `from_backbone`.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            **kwargs: as in transformers; for a plain backbone, also the options of `from_backbone`; for a feedback-only
                checkpoint, `backbone` as in `load_feedback`.

        Raises:
            OSError: the weights are missing, damaged or belong to another model.
            RuntimeError: they do not fit the options that were given.
        """
        if pretrained_model_name_or_path is None:  # config and state_dict given instead
            return super().from_pretrained(None, *args, **kwargs)
        hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
        found, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
        if "model_type" not in found:
            raise OSError(
                f"{pretrained_model_name_or_path} has no config.json that names a `model_type`. If it holds PEFT "
                "adapters, load the feedback model that they belong to, and then `PeftModel.from_pretrained(model, …)`."
            )
        if found["model_type"] != FeedbackConfig.model_type:
            logger.warning(
                f"{pretrained_model_name_or_path} is a plain {found['model_type']} model: adding fresh feedback. "
                "A task head of its own is left out unless `head='backbone'`."
            )
            return cls._from_plain(pretrained_model_name_or_path, hub_kwargs, kwargs)
        options = FeedbackConfig.option_names() - {"head", "backbone_part"}  # which the weights in the folder have
        given = {key: kwargs[key] for key in kwargs if key in options | {"num_labels"}}
        saved = FeedbackConfig.from_dict(copy.deepcopy(found), **given)  # whatever is wrong there is said by name
        saved_by = _class_called(saved.architectures) or cls
        if not issubclass(saved_by, cls) and cls._backbone_task_class is not None and _is_for_a_pipeline():
            raise ValueError(
                f"{pretrained_model_name_or_path} was trained as a {saved_by.__name__} and has no trained head to "
                f"answer as a {cls.__name__}; use the pipeline of its own task."
            )
        for key in kwargs.keys() - FeedbackConfig.option_names() - {"num_labels", "backbone"}:
            if near := nearest_option(key):
                raise ValueError(f"`{key}` is not an option of FeedbackConfig; did you mean `{near}`?")
        if is_feedback_only(saved):
            return cls._from_feedback_only(pretrained_model_name_or_path, saved_by, hub_kwargs, kwargs)
        if kwargs.pop("backbone", None) is not None:
            raise ValueError(
                f"`backbone` is for feedback-only checkpoints; {pretrained_model_name_or_path} holds a whole model."
            )
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)
        kwargs["output_loading_info"] = True
        other = cls._other_head(saved_by, saved, kwargs)
        kwargs.update(other)
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise OSError(
                f"The weights in {pretrained_model_name_or_path} are damaged or truncated ({error}); copy or download "
                "them again."
            ) from error
        model, info = loaded
        if "key_mapping" in other:  # the model is saved under its own keys, not those of the folder
            model._weight_conversions = None
        # of a task model of another kind, everything but the layers may be new
        theirs = "backbone." if model.config.head == "new" or not other else f"backbone.{model._stack_name}."
        missing = sorted(key for key in info["missing_keys"] if key.startswith((theirs, "feedback.")))
        if missing:
            raise OSError(
                f"The weights in {pretrained_model_name_or_path} do not belong to the config beside them: "
                f"{len(missing)} tensors are missing, among them {missing[0]}. Load the folder with the options it was "
                "saved with, or start anew with `from_backbone`."
            )
        if not is_fsdp_managed_module(model):  # else its weights come together in the first call alone
            model.probe_backbone()
        warn_if_offloaded(model)
        return (model, info) if wants_info else model

    @classmethod
    def _other_head(
        cls, saved_by: "type[LoadableFeedbackModel]", saved: FeedbackConfig, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """What `from_pretrained` needs besides, where the model is to have another head than the folder's.

        Args:
            saved_by: the class of the folder.
            saved: its config.
            kwargs: what `from_pretrained` got.
        """
        given = kwargs.get("config")
        asked = kwargs.get("head", saved.head if given is None else given.head)
        backbone_config = cast(PreTrainedConfig, saved.backbone_config)
        if saved_by is not cls and "head" not in kwargs:
            asked = cls._choose_head("new", backbone_config)
        if asked == saved.head and (saved_by is cls or asked == "new"):
            return {}

        def prefixes(kind: Any, head: str) -> tuple[str, str]:
            """Where a model with that head keeps its backbone, and the backbone's token embeddings."""
            if head == "backbone":
                model, inner = kind._backbone_task_class.from_config(backbone_config), "backbone."
                place = place_of_part(model, saved.backbone_part)
                inner += f"{place}." if place else ""
            else:
                model, inner = select_part(AutoModel.from_config(backbone_config), saved.backbone_part), "backbone."
            table = model.get_input_embeddings() if backbone_config.is_encoder_decoder else None
            return inner, next((f"backbone.{name}." for name, module in model.named_modules() if module is table), "")

        with torch.device("meta"):
            here, there = prefixes(saved_by, saved.head), prefixes(cls, asked)
        # embeddings that both halves of an encoder-decoder share stand outside of them
        moves = {old: new for old, new in zip(reversed(here), reversed(there), strict=True) if old != new}
        keys = {f"^{re.escape(old)}": new for old, new in moves.items()}
        changes: dict[str, Any] = {"key_mapping": {**keys, **(kwargs.get("key_mapping") or {})} if keys else None}
        if asked == saved.head:
            return changes
        if given is None:
            return {**changes, "head": asked}
        kwargs.pop("head", None)
        config = copy.deepcopy(given)
        config.head = asked
        return {**changes, "config": config}

    @classmethod
    def _from_plain(cls, name: Any, hub_kwargs: dict[str, Any], kwargs: dict[str, Any]) -> Self:
        options = FeedbackConfig.option_names() | {"num_labels", "config_overrides"}
        if kwargs.pop("output_loading_info", False):
            raise ValueError("`output_loading_info` is for saved feedback models; this folder holds a plain backbone.")
        mine = {key: value for key, value in kwargs.items() if key in options}
        rest = {key: value for key, value in kwargs.items() if key not in options}
        config = rest.pop("config", None)
        if config is not None and not isinstance(config, FeedbackConfig):
            raise ValueError(
                f"`config` must be a FeedbackConfig, got a {type(config).__name__}; change options of the backbone's "
                "own config with `config_overrides`."
            )
        if config is not None:
            options_of_config = config.options()
            if options_of_config["id2label"] == {0: "LABEL_0", 1: "LABEL_1"}:  # nobody named any
                del options_of_config["id2label"], options_of_config["label2id"]
            mine = {**options_of_config, **mine}
        rest.update(rest.pop("backbone_kwargs", None) or {})
        return cls.from_backbone(name, backbone_kwargs={**rest, **hub_kwargs}, **mine)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; the folder also carries the code, for `trust_remote_code=True`."""
        self.config.auto_map = dict(AUTO_MAP)
        (self.config.backbone_source or {}).pop("fingerprint", None)  # of a feedback-only checkpoint, which this is not
        super().save_pretrained(save_directory, *args, **kwargs)


def load_feedback(
    name_or_path: str | Path, backbone: str | Path | PreTrainedModel | None = None, **kwargs: Any
) -> LoadableFeedbackModel:
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
    hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
    found, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub_kwargs)
    saved = FeedbackConfig.from_dict(found) if found.get("model_type") == FeedbackConfig.model_type else None
    if saved is None or not is_feedback_only(saved):
        raise ValueError(f"{name_or_path} holds no feedback-only checkpoint; load it with `from_pretrained`.")
    kind = _class_called(saved.architectures)
    if kind is None:
        raise ValueError(f"{name_or_path} was saved by {saved.architectures}, which this version does not have.")
    return kind.from_pretrained(name_or_path, backbone=backbone, **kwargs)


def _is_for_a_pipeline() -> bool:
    """Whether a pipeline of transformers is loading the model, which it does not tell Auto classes. What it loads
    answers at once, and nothing asks for training in between."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_stack(None))
    return any(module.startswith("transformers.pipelines") for module in modules)


def _class_called(names: Any) -> "type[LoadableFeedbackModel] | None":
    """The feedback model class of one of these names, which stand in a config."""
    if not isinstance(names, list | tuple):
        return None
    waiting: list[type[LoadableFeedbackModel]] = [LoadableFeedbackModel]
    while waiting:
        kind = waiting.pop()
        if kind.__name__ in names:
            return kind
        waiting += kind.__subclasses__()
    return None
