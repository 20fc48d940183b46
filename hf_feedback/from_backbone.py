"""From a pretrained backbone to a feedback model."""

import copy
from pathlib import Path
from typing import Any, Self

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .backbones import drop_pooler, is_sharded, select_part
from .configuration_feedback import FeedbackConfig, HeadOption, PartOption, nearest_option
from .labels import LABEL_OPTIONS, adopt_labels
from .modeling_base import FeedbackPreTrainedModel
from .pooling import find_pooling
from .segments import find_special_tokens
from .stored_config import drop_switches

logger = logging.get_logger(__name__)

HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


class FromBackbone(FeedbackPreTrainedModel):
    """`from_backbone`, and what a class knows of transformers' models for its task."""

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        *,
        head: HeadOption = "new",
        backbone_kwargs: dict[str, Any] | None = None,
        config_overrides: dict[str, Any] | None = None,
        backbone_part: PartOption = "auto",
        **feedback_options: Any,
    ) -> Self:
        """Adds fresh feedback to a pretrained backbone. In evaluation mode the result equals the backbone exactly.

        Args:
            backbone: a hub id, a local folder, or a transformers model, which is used as it is, not copied: with
                `head="new"` it loses its pooler and task head, with `backbone_layers` some of its layers.
            head: `"new"` for a new pooling and classifier, `"backbone"` for the family's own task head.
            backbone_kwargs: passed to the backbone's `from_pretrained`: `dtype`, `attn_implementation`, `revision`, …
            config_overrides: options of the backbone's own config to change, such as `{"layerdrop": 0.0}`.
            backbone_part: the half of an encoder–decoder to use.
            **feedback_options: the options of `FeedbackConfig`, `num_labels` and `id2label` included.

        Raises:
            ValueError: an option is not allowed.
            UnsupportedBackboneError: the backbone cannot be looped exactly; says why.
            OSError: the folder or repository is missing or damaged.

        Example:

        ```python
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from hf_feedback import FeedbackForSequenceClassification
        >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=3, num_iterations=2)
        >>> model.check_equivalence({"input_ids": torch.tensor([[5, 6, 7]])})
        0.0

        ```
        """
        _check_names(feedback_options)
        config = FeedbackConfig(head=head, backbone_part=backbone_part, **feedback_options)
        labels_given = {name for name in LABEL_OPTIONS if feedback_options.get(name) is not None}
        backbone_kwargs = dict(backbone_kwargs or {})
        name = backbone if isinstance(backbone, str | Path) else getattr(backbone, "name_or_path", None)
        if isinstance(backbone, FeedbackPreTrainedModel):
            raise ValueError("`backbone` is a feedback model already; pass its `.backbone` to start anew.")
        if isinstance(backbone, PreTrainedModel):
            if any(hasattr(module, "base_layer") for module in backbone.modules()):
                raise ValueError(
                    "`backbone` holds adapters, which would be lost when the feedback model is saved; use "
                    "`hf_feedback.training.from_peft` with the PeftModel, or merge them."
                )
            if config_overrides or backbone_kwargs:
                raise ValueError(
                    "`config_overrides` and `backbone_kwargs` are for loading a backbone by name; set them on the "
                    f"model that is passed instead (got a {type(backbone).__name__})."
                )
            config.head = cls._choose_head(head, backbone)
            if config.head == "backbone":
                cls._check_task_model(backbone)
                if cls._labelled:
                    adopt_labels(config, backbone.config, labels_given)
            else:
                backbone = select_part(backbone, backbone_part)
        elif isinstance(backbone, str | Path):
            backbone = cls._load_backbone(backbone, config, config_overrides, backbone_kwargs, labels_given)
        else:
            raise TypeError(
                "`backbone` must be a hub id, a folder or a transformers PreTrainedModel, got a "
                f"{type(backbone).__name__}. (For a PeftModel, use `hf_feedback.training.from_peft`.)"
            )
        if name and config.feedback_span == "segment" and config.segment_special_tokens is None:
            hub_kwargs = {key: backbone_kwargs[key] for key in HUB_KWARGS if key in backbone_kwargs}
            config.segment_special_tokens = find_special_tokens(name, **hub_kwargs)
        if name:
            commit = getattr(backbone.config, "_commit_hash", None) or backbone_kwargs.get("revision")
            place = str(Path(name).resolve()) if Path(name).is_dir() else str(name)
            source = {"name_or_path": place, "revision": commit, "subfolder": backbone_kwargs.get("subfolder")}
            config.backbone_source = {key: value for key, value in source.items() if value}
        return cls._wrap(backbone, config)

    @classmethod
    def _task_models(cls, config: PreTrainedConfig) -> tuple[type[PreTrainedModel], ...]:
        """The transformers classes of that family with a head for this class' task; usually one, maybe none."""
        mapping = {} if cls._backbone_task_class is None else cls._backbone_task_class._model_mapping
        found = mapping.get(type(config), ())
        return found if isinstance(found, tuple) else (found,)

    @classmethod
    def _is_task_model(cls, backbone: PreTrainedModel | PreTrainedConfig) -> bool:
        """Whether it has a head for this class' task; for a config, whether its family has one."""
        if isinstance(backbone, PreTrainedConfig):
            return bool(cls._task_models(backbone))
        return type(backbone) in cls._task_models(backbone.config)

    @classmethod
    def has_trained_head(cls, config: PreTrainedConfig) -> bool:
        """Whether the folder of this config holds a transformers model that was trained for this class' task."""
        return any(kind.__name__ in (config.architectures or ()) for kind in cls._task_models(config))

    @classmethod
    def _choose_head(cls, head: HeadOption, backbone: PreTrainedModel | PreTrainedConfig) -> HeadOption:
        """The value of `config.head` for a backbone, or a backbone to be loaded by its config."""
        return head

    @classmethod
    def _check_task_model(cls, model: PreTrainedModel) -> None:
        if not cls._is_task_model(model):
            raise ValueError(
                f"`head='backbone'` of {cls.__name__} takes a transformers model that has its task head, got "
                f"{type(model).__name__}; use `head='new'`."
            )

    @classmethod
    def _load_backbone(
        cls,
        name: str | Path,
        config: FeedbackConfig,
        overrides: dict[str, Any] | None,
        backbone_kwargs: dict[str, Any],
        labels_given: set[str],
    ) -> PreTrainedModel:
        hub_kwargs = {key: backbone_kwargs[key] for key in HUB_KWARGS if key in backbone_kwargs}
        backbone_config = AutoConfig.from_pretrained(name, **hub_kwargs)
        if isinstance(backbone_config, FeedbackConfig):
            raise ValueError(f"{str(name)!r} holds a feedback model already; load it with `from_pretrained`.")
        for key, value in (overrides or {}).items():
            if not hasattr(backbone_config, key):
                raise ValueError(f"`config_overrides`: {key!r} is not an option of {type(backbone_config).__name__}.")
            setattr(backbone_config, key, value)
        drop_switches(backbone_config, backbone_kwargs)
        config.head = cls._choose_head(config.head, backbone_config)
        if config.head == "backbone":
            if cls._backbone_task_class is None:
                raise ValueError(f"`head='backbone'` needs a class with a task head; {cls.__name__} has none.")
            if cls._labelled and cls.has_trained_head(backbone_config):
                adopt_labels(config, backbone_config, labels_given)
            elif cls._labelled:
                backbone_config.id2label, backbone_config.label2id = config.id2label, config.label2id
            elif cls._num_outputs_of_own_head and not cls.has_trained_head(backbone_config):
                backbone_config.num_labels = cls._num_outputs_of_own_head
            task_model, info = cls._backbone_task_class.from_pretrained(
                name, config=backbone_config, output_loading_info=True, **backbone_kwargs
            )
            _warn_of_new_head(name, task_model, info["missing_keys"])
            return task_model
        if config.pooling == "auto":
            config.pooling = find_pooling(name, **hub_kwargs) or "auto"
        loaded = AutoModel.from_pretrained(name, config=backbone_config, **backbone_kwargs)
        return select_part(loaded, config.backbone_part)

    @classmethod
    def _wrap(cls, backbone: PreTrainedModel, config: FeedbackConfig) -> Self:
        """A feedback model around a loaded backbone; `config` has everything but the `backbone_config`."""
        if is_sharded(backbone):
            raise ValueError(
                "`distributed_config`: a backbone that is sharded over processes cannot be given feedback, which would "
                "be left out of the sharding and run apart in training; save the feedback model from one process with "
                "`save_pretrained`, and load that with `from_pretrained(folder, distributed_config=…)`."
            )
        if config.head == "new":
            drop_pooler(backbone)
        config.backbone_config = backbone.config if config.backbone_layers is None else copy.deepcopy(backbone.config)
        config.check_options()
        model = cls(config, backbone=backbone)
        for child in model.children():
            if child is not backbone:
                child.to(device=backbone.device, dtype=backbone.dtype)
        config.dtype = backbone.dtype
        warn_if_offloaded(backbone)
        return model.eval()


def warn_if_offloaded(model: PreTrainedModel) -> None:
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if "disk" in places or ("cpu" in places and len(places) > 1):
        logger.warning(
            "Some layers are offloaded: their weights are loaded anew in every iteration, which is slow. Keep the "
            "looped layers on one device (`device_map`), or loop fewer of them (`feedback_edges`)."
        )


def _check_names(options: dict[str, Any]) -> None:
    """Refuses whatever is no option: nothing that is misspelt, or meant for loading, goes unnoticed into the config."""
    for key in options.keys() - FeedbackConfig.option_names() - {"num_labels"}:
        near = nearest_option(key)
        hint = (
            f"did you mean `{near}`?"
            if near
            else f"if it is for loading the backbone, pass `backbone_kwargs={{{key!r}: …}}`; the options are: "
            f"{', '.join(sorted(FeedbackConfig.option_names()))}."
        )
        raise ValueError(f"`{key}` is not an option of `from_backbone`; {hint}")


def _warn_of_new_head(name: Any, task_model: PreTrainedModel, missing: Any) -> None:
    if missing:
        output = task_model.get_output_embeddings()
        inputs = task_model.get_input_embeddings()
        tied = output is not None and getattr(output, "weight", None) is getattr(inputs, "weight", 0)
        logger.warning(
            f"{name} has no trained head for this task: a new one is made{', tied to the input embeddings' * tied} "
            f"({', '.join(sorted(missing)[:3])}{', …' * (len(missing) > 3)}). It knows nothing yet; train it."
        )
