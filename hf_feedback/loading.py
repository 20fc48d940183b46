"""From a pretrained backbone, or a saved folder, to a feedback model."""

import copy
import re
from pathlib import Path
from typing import Any, Self, cast

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .backbones import drop_pooler, place_of_part, select_part
from .configuration_feedback import FeedbackConfig, nearest_option
from .modeling_base import FeedbackPreTrainedModel
from .pooling import find_pooling

logger = logging.get_logger(__name__)

# The classes that a saved folder offers to `trust_remote_code=True`, whichever of them saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_feedback.FeedbackConfig",
    "AutoModel": "modeling_feedback.FeedbackModel",
    **{
        f"AutoModel{task}": f"modeling_feedback.Feedback{task}"
        for task in (
            "ForSequenceClassification",
            "ForTokenClassification",
            "ForQuestionAnswering",
            "ForMultipleChoice",
            "ForMaskedLM",
            "ForImageClassification",
            "ForAudioClassification",
        )
    },
}

HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
LABEL_OPTIONS = ("num_labels", "id2label", "label2id", "problem_type")


class LoadableFeedbackModel(FeedbackPreTrainedModel):
    """The ways to get a feedback model: `from_backbone` and `from_pretrained`; and `save_pretrained`."""

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        *,
        head: str = "new",
        backbone_kwargs: dict[str, Any] | None = None,
        config_overrides: dict[str, Any] | None = None,
        backbone_part: str = "auto",
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
        feedback_options = _whole_labels(feedback_options)
        config = FeedbackConfig(head=head, backbone_part=backbone_part, **feedback_options)
        labels_given = {name for name in LABEL_OPTIONS if feedback_options.get(name) is not None}
        backbone_kwargs = dict(backbone_kwargs or {})
        if isinstance(backbone, FeedbackPreTrainedModel):
            raise ValueError("`backbone` is a feedback model already; pass its `.backbone` to start anew.")
        if isinstance(backbone, PreTrainedModel):
            if config_overrides or backbone_kwargs:
                raise ValueError(
                    "`config_overrides` and `backbone_kwargs` are for loading a backbone by name; set them on the "
                    f"model that is passed instead (got a {type(backbone).__name__})."
                )
            config.head = cls._choose_head(head, backbone)
            if config.head == "backbone":
                cls._check_task_model(backbone)
                if cls._labelled:
                    _adopt_labels(config, backbone.config, labels_given)
            else:
                backbone = select_part(cast(PreTrainedModel, backbone.base_model), backbone_part)
        elif isinstance(backbone, str | Path):
            backbone = cls._load_backbone(backbone, config, config_overrides, backbone_kwargs, labels_given)
        else:
            raise TypeError(
                "`backbone` must be a hub id, a folder or a transformers PreTrainedModel, got a "
                f"{type(backbone).__name__}. (Add feedback first, and PEFT adapters to the feedback model.)"
            )
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
    def _choose_head(cls, head: str, backbone: PreTrainedModel | PreTrainedConfig) -> str:
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
        config.head = cls._choose_head(config.head, backbone_config)
        if config.head == "backbone":
            if cls._backbone_task_class is None:
                raise ValueError(f"`head='backbone'` needs a class with a task head; {cls.__name__} has none.")
            if cls._labelled and cls.has_trained_head(backbone_config):
                _adopt_labels(config, backbone_config, labels_given)
            elif cls._labelled:
                backbone_config.id2label, backbone_config.label2id = config.id2label, config.label2id
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
        if config.head == "new":
            drop_pooler(backbone)
        config.backbone_config = backbone.config if config.backbone_layers is None else copy.deepcopy(backbone.config)
        config.check_options()
        model = cls(config, backbone=backbone)
        for child in model.children():
            if child is not backbone:
                child.to(device=backbone.device, dtype=backbone.dtype)
        config.dtype = backbone.dtype
        _warn_if_offloaded(backbone)
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a saved feedback model; from the folder or repository of a plain backbone, does `from_backbone`.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            **kwargs: as in transformers; for a plain backbone, also the options of `from_backbone`.

        Raises:
            OSError: the weights are missing, damaged or belong to another model.
            RuntimeError: they do not fit the options that were given.
        """
        if pretrained_model_name_or_path is None:  # config and state_dict given instead
            return super().from_pretrained(None, *args, **kwargs)
        hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
        found, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
        if found.get("model_type") != FeedbackConfig.model_type:
            logger.warning(
                f"{pretrained_model_name_or_path} is a plain {found.get('model_type')} model: adding fresh feedback. "
                "A task head of its own is left out unless `head='backbone'`."
            )
            return cls._from_plain(pretrained_model_name_or_path, hub_kwargs, kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)
        for key in kwargs.keys() - FeedbackConfig.option_names() - {"num_labels"}:
            if near := nearest_option(key):
                raise ValueError(f"`{key}` is not an option of FeedbackConfig; did you mean `{near}`?")
        kwargs["output_loading_info"] = True
        saved_by = _class_called(*found.get("architectures") or ()) or cls
        other = cls._other_head(saved_by, found, kwargs)
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
        theirs = "backbone." if saved_by is cls else f"backbone.{model._stack_name}."
        missing = sorted(key for key in info["missing_keys"] if key.startswith((theirs, "feedback.")))
        if missing:
            raise OSError(
                f"The weights in {pretrained_model_name_or_path} do not belong to the config beside them: "
                f"{len(missing)} tensors are missing, among them {missing[0]}. Load the folder with the options it was "
                "saved with, or start anew with `from_backbone`."
            )
        model.probe_backbone()
        _warn_if_offloaded(model)
        return (model, info) if wants_info else model

    @classmethod
    def _other_head(
        cls, saved_by: "type[LoadableFeedbackModel]", found: dict[str, Any], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """What `from_pretrained` needs besides, where the model is to have another head than the folder's.

        Args:
            saved_by: the class of the folder.
            found: its config.
            kwargs: what `from_pretrained` got.
        """
        given = kwargs.get("config")
        asked = kwargs.get("head", found["head"] if given is None else given.head)
        backbone_config = cast(
            PreTrainedConfig, FeedbackConfig(backbone_config=dict(found["backbone_config"])).backbone_config
        )
        if saved_by is not cls and "head" not in kwargs:
            asked = cls._choose_head("new", backbone_config)
        if asked == found["head"]:
            return {}
        with torch.device("meta"):
            with_head = (saved_by if asked == "new" else cls)._backbone_task_class.from_config(backbone_config)
            place = place_of_part(with_head, found["backbone_part"])
        keys = {rf"^backbone\.{re.escape(place)}\.": "backbone."}
        if asked == "backbone":
            keys = {r"^backbone\.": f"backbone.{place}."}
        changes: dict[str, Any] = {"key_mapping": {**keys, **(kwargs.get("key_mapping") or {})} if place else None}
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
        super().save_pretrained(save_directory, *args, **kwargs)


def _warn_if_offloaded(model: PreTrainedModel) -> None:
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


def _class_called(*names: str) -> "type[LoadableFeedbackModel] | None":
    """The feedback model class of one of these names."""
    waiting: list[type[LoadableFeedbackModel]] = [LoadableFeedbackModel]
    while waiting:
        kind = waiting.pop()
        if kind.__name__ in names:
            return kind
        waiting += kind.__subclasses__()
    return None


def _whole_labels(options: dict[str, Any]) -> dict[str, Any]:
    """`label2id` alone says `id2label` too; `num_labels` must not contradict it."""
    if options.get("label2id") and not options.get("id2label"):
        options = {**options, "id2label": {number: name for name, number in options["label2id"].items()}}
    names, count = options.get("id2label"), options.get("num_labels")
    if names and count is not None and len(names) != count:
        raise ValueError(
            f"`num_labels`={count!r} contradicts `id2label`, which names {len(names)} labels; leave one out."
        )
    return options


def _adopt_labels(config: FeedbackConfig, task_config: PreTrainedConfig, given: set[str]) -> None:
    """A head that is trained already keeps its labels, in their order; all of them may be given new names.

    Args:
        config: gets the head's labels.
        task_config: the head's own.
        given: which of `LABEL_OPTIONS` the user gave.
    """
    own: dict[Any, Any] = dict(task_config.id2label or {})
    asked = config.id2label or {}
    named = "id2label" in given
    moved = named and any(own.get(i) != name and name in own.values() for i, name in asked.items())
    if (given & {"num_labels", "id2label"} and len(asked) != len(own)) or moved:
        raise ValueError(
            f"`head='backbone'`: the head was trained for the labels {list(own.values())} in this order, got "
            f"{list(asked.values())}; leave `num_labels` and `id2label` out, or use `head='new'`."
        )
    problem = task_config.problem_type
    if "problem_type" in given and problem not in (None, config.problem_type):
        raise ValueError(f"`problem_type`: the head was trained for {problem!r}, got {config.problem_type!r}.")
    for name in ("problem_type",) if named else LABEL_OPTIONS[1:]:
        if getattr(task_config, name) is not None:
            setattr(config, name, copy.deepcopy(getattr(task_config, name)))
