"""Building a feedback model from a pretrained backbone."""

import copy
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .backbone_layout import UnsupportedBackboneError, drop_pooler, is_sharded, select_part
from .backbone_probe import reads_causally
from .configuration_feedback import FeedbackConfig, nearest_option
from .cutting import find_special_tokens
from .gguf_files import drop_quantization_marks, find_gguf_file, with_unpacking
from .label_options import LABEL_OPTIONS, adopt_labels
from .model_connections import operators_of
from .pooling import find_pooling
from .stored_config import drop_code_keys
from .task_traits import TaskTraits, check_task_model
from .validation import Keywords

if TYPE_CHECKING:
    from .modeling_base import FeedbackPreTrainedModel

    Model = TypeVar("Model", bound=FeedbackPreTrainedModel)

logger = logging.get_logger(__name__)

HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


def build_from_backbone(
    model_class: "type[Model]",
    backbone: str | Path | PreTrainedModel,
    config: FeedbackConfig,
    given_options: Keywords,
    config_overrides: Keywords | None,
    backbone_kwargs: Keywords | None,
) -> "Model":
    """See `FeedbackPreTrainedModel.from_backbone`.

    Args:
        model_class: class of the result.
        backbone: a hub id, a folder or a model.
        config: the feedback options, completed here.
        given_options: those that the user gave.
        config_overrides, backbone_kwargs: as in `from_backbone`.
    """
    labels_given = {name for name in LABEL_OPTIONS if given_options.get(name) is not None}
    backbone_kwargs = dict(backbone_kwargs or {})
    operators_of(config)  # raises where one is not registered, before anything is loaded
    if isinstance(backbone, PreTrainedModel):
        if config_overrides or backbone_kwargs:
            raise ValueError(
                "`config_overrides` and `backbone_kwargs` are for loading a backbone by name; set them on the model "
                f"that is passed instead (got a {type(backbone).__name__})."
            )
        name: Any = getattr(backbone, "name_or_path", None)
        gguf_file = find_gguf_file(backbone)
        backbone = _use_backbone(model_class, backbone, config, labels_given)
    elif isinstance(backbone, str | Path):
        backbone_kwargs["trust_remote_code"] = False  # the code of a backbone never runs
        name, gguf_file = backbone, backbone_kwargs.get("gguf_file")
        backbone = _load_backbone(model_class, backbone, config, config_overrides, backbone_kwargs, labels_given)
    else:
        raise TypeError(
            "`backbone` must be a hub id, a folder or a transformers PreTrainedModel, got a "
            f"{type(backbone).__name__}. (For a PeftModel, use `hf_feedback.training.from_peft`.)"
        )
    new_head_options = ("pooling", "classifier_dropout") if config.head == "backbone" else ()
    if given := [option for option in new_head_options if given_options.get(option) not in (None, "auto")]:
        logger.warning(f"`{'`, `'.join(given)}`: for a new head; the backbone's own goes by its own config.")
        config.pooling, config.classifier_dropout = "auto", None
    if name and config.feedback_span == "segment" and config.segment_special_tokens is None:
        config.segment_special_tokens = find_special_tokens(name, **file_kwargs_of(backbone_kwargs))
    if name:
        commit = getattr(backbone.config, "_commit_hash", None) or backbone_kwargs.get("revision")
        folder_or_id = str(Path(name).resolve()) if Path(name).is_dir() else str(name)
        source = {"name_or_path": folder_or_id, "revision": commit, "subfolder": backbone_kwargs.get("subfolder")}
        source["gguf_file"] = gguf_file
        config.backbone_source = {key: value for key, value in source.items() if value}
    return wrap_backbone(model_class, backbone, config)


def hub_kwargs_of(kwargs: Keywords) -> Keywords:
    """The keywords that locate a folder or repository."""
    return {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}


def file_kwargs_of(kwargs: Keywords) -> Keywords:
    """`hub_kwargs_of`, and the GGUF file that stands there for config, weights and tokenizer, if one does."""
    return {key: kwargs[key] for key in (*HUB_KWARGS, "gguf_file") if key in kwargs}


def check_option_names(options: Keywords) -> None:
    """Refuses names that are not options, such as misspelt ones or keywords for loading.

    Raises:
        ValueError: names the option that was probably meant.
    """
    for key in options.keys() - FeedbackConfig.accepted_keywords():
        near = None if key == "torch_dtype" else nearest_option(key)
        keyword = key.removeprefix("torch_")  # `torch_dtype` is now `dtype`
        hint = (
            f"did you mean `{near}`?"
            if near
            else f"if it is for loading the backbone, pass `backbone_kwargs={{{keyword!r}: …}}`; the options are: "
            f"{', '.join(sorted(FeedbackConfig.option_names()))}."
        )
        raise ValueError(f"`{key}` is not an option of `from_backbone`; {hint}")


def _use_backbone(
    model_class: "type[FeedbackPreTrainedModel]",
    backbone: PreTrainedModel,
    config: FeedbackConfig,
    labels_given: set[str],
) -> PreTrainedModel:
    """The backbone inside a model that was passed."""
    if isinstance(backbone.config, FeedbackConfig):
        raise ValueError("`backbone` is a feedback model already; pass its `.backbone` to start anew.")
    if any(hasattr(module, "base_layer") for module in backbone.modules()):
        raise ValueError(
            "`backbone` holds adapters, which would be lost when the feedback model is saved; use "
            "`hf_feedback.training.from_peft` with the PeftModel, or merge them."
        )
    config.head = model_class.traits.choose_head(config.head, backbone)
    if config.head == "new":
        if model_class.traits.is_task_model(backbone):
            _warn_of_head_left_out(type(backbone).__name__)
        return select_part(backbone, config.backbone_part)
    check_task_model(model_class, backbone)
    if model_class.traits.predicts_config_labels:
        adopt_labels(config, backbone.config, labels_given)
    return backbone


def _load_backbone(
    model_class: "type[FeedbackPreTrainedModel]",
    name: str | Path,
    config: FeedbackConfig,
    overrides: Keywords | None,
    backbone_kwargs: Keywords,
    labels_given: set[str],
) -> PreTrainedModel:
    """The backbone that a folder or repository holds; a task model with its head if `config.head` says so."""
    traits, hub_kwargs = model_class.traits, hub_kwargs_of(backbone_kwargs)
    backbone_config = _read_backbone_config(name, backbone_kwargs)
    if isinstance(backbone_config, FeedbackConfig):
        raise ValueError(f"{str(name)!r} holds a feedback model already; load it with `from_pretrained`.")
    for key, value in (overrides or {}).items():
        if not hasattr(backbone_config, key):
            raise ValueError(f"`config_overrides`: {key!r} is not an option of {type(backbone_config).__name__}.")
        setattr(backbone_config, key, value)
    drop_code_keys(backbone_config, backbone_kwargs)
    backbone_kwargs = with_unpacking(backbone_kwargs)
    config.head = traits.choose_head(config.head, backbone_config)
    if config.head == "new":
        if traits.has_trained_head(backbone_config):
            _warn_of_head_left_out(name)
        if config.pooling == "auto":
            config.pooling = find_pooling(name, **hub_kwargs) or "auto"
        loaded = AutoModel.from_pretrained(name, config=backbone_config, **backbone_kwargs)
        return select_part(loaded, config.backbone_part)
    if traits.auto_class is None:
        raise ValueError(f"`head='backbone'` needs a class with a task head; {model_class.__name__} has none.")
    if traits.predicts_config_labels and traits.has_trained_head(backbone_config):
        adopt_labels(config, backbone_config, labels_given)
    else:
        set_backbone_head_outputs(
            backbone_config, config, traits, keep_trained=traits.has_trained_head(backbone_config)
        )
    task_model, info = traits.auto_class.from_pretrained(
        name, config=backbone_config, output_loading_info=True, **backbone_kwargs
    )
    _warn_of_new_head(name, task_model, info["missing_keys"])
    return task_model


def _read_backbone_config(name: str | Path, backbone_kwargs: Keywords) -> PreTrainedConfig:
    if given := [key for key in ("config", "output_loading_info") if key in backbone_kwargs]:
        raise ValueError(
            f"`backbone_kwargs`: {given[0]!r} is not for adding feedback; change options of the backbone's own config "
            "with `config_overrides`."
        )
    try:
        return AutoConfig.from_pretrained(name, **file_kwargs_of(backbone_kwargs))
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UnsupportedBackboneError(
            f"{name} cannot be used as a feedback backbone: its code is not part of transformers, and the code of a "
            "backbone never runs. Use a model type that transformers has."
        ) from error


def set_backbone_head_outputs(
    backbone_config: PreTrainedConfig, config: FeedbackConfig, traits: TaskTraits, keep_trained: bool = False
) -> None:
    """Gives the backbone's own head the labels, or the number of outputs, that the task needs.

    Args:
        backbone_config: changed in place.
        config: has the labels.
        traits: traits of the task.
        keep_trained: leave the number of outputs of a head that is trained already.
    """
    if traits.predicts_config_labels:
        backbone_config.id2label, backbone_config.label2id = config.id2label, config.label2id
    elif traits.num_backbone_head_outputs and not keep_trained:
        backbone_config.num_labels = traits.num_backbone_head_outputs


def new_backbone(model_class: "type[FeedbackPreTrainedModel]", config: FeedbackConfig) -> PreTrainedModel:
    """A backbone without trained weights, into which saved ones are loaded."""
    backbone_config = cast(PreTrainedConfig, config.backbone_config)
    if config.backbone_layers is not None:  # it is going to be changed with the layers
        backbone_config = copy.deepcopy(backbone_config)
    if config.head == "new":
        return drop_pooler(select_part(AutoModel.from_config(backbone_config), config.backbone_part))
    if model_class.traits.auto_class is None:
        raise ValueError(
            f"{model_class.__name__} has no head of the backbone's own; `head='backbone'` is for models with a task "
            "head, such as FeedbackForSequenceClassification."
        )
    set_backbone_head_outputs(backbone_config, config, model_class.traits)
    return model_class.traits.auto_class.from_config(backbone_config)


def wrap_backbone(model_class: "type[Model]", backbone: PreTrainedModel, config: FeedbackConfig) -> "Model":
    """A feedback model around a loaded backbone; `config` has everything but the `backbone_config`.

    Raises:
        ValueError: the backbone is sharded, or the options do not fit it.
    """
    if is_sharded(backbone):
        raise ValueError(
            "`distributed_config`: a backbone that is sharded over processes cannot be given feedback, which would be "
            "left out of the sharding and run apart in training; save the feedback model from one process with "
            "`save_pretrained`, and load that with `from_pretrained(folder, distributed_config=…)`."
        )
    drop_quantization_marks(backbone)
    if config.head == "new":
        drop_pooler(backbone)
    config.backbone_config = backbone.config if config.backbone_layers is None else copy.deepcopy(backbone.config)
    config.check_options()
    model = model_class(config, backbone=backbone)
    for child in model.children():
        if child is not backbone:
            child.to(device=backbone.device, dtype=backbone.dtype)
    config.dtype = backbone.dtype
    settle_label_piece(model)
    warn_if_offloaded(backbone)
    return model.eval()


def settle_causality(backbone_part: PreTrainedModel, config: FeedbackConfig, traits: TaskTraits) -> bool:
    """Whether messages must not inform a token about later ones. The decision is stored in `config.feedback_future`, so
    that every class that loads the folder later uses it.

    Args:
        backbone_part: the model whose layers are looped.
        config: the feedback options.
        traits: traits of the task.

    Raises:
        ValueError: the operator cannot do without.
    """
    if traits.predicts_next_token and config.feedback_future is True:
        raise ValueError(
            "`feedback_future=True` informs tokens about later ones, which FeedbackForCausalLM is to predict; leave it "
            "out, or use a head for whole texts, such as FeedbackForTokenClassification."
        )
    if config.feedback_future == "auto":
        whole_config = cast(PreTrainedConfig, config.backbone_config)
        causal = not traits.may_read_later_tokens and reads_causally(backbone_part, whole_config, config.backbone_part)
        if traits.predicts_next_token and not causal:
            raise ValueError(
                "FeedbackForCausalLM needs a backbone that reads from left to right, and "
                f"{type(backbone_part).__name__} reads later tokens too; if its family can be a decoder, pass "
                "`config_overrides={'is_decoder': True}`."
            )
        config.feedback_future = not causal
    causal = not config.feedback_future
    if causal and any(operator.needs_later_tokens for operator in operators_of(config)):
        by_segment = config.feedback_span == "segment"
        whole = "feedback_span='segment'" if by_segment else f"feedback_type={config.feedback_type!r}"
        raise ValueError(
            f"`{whole}` sends messages from the whole text to every token, which informs the early tokens of a decoder "
            "about later ones; allow that with `feedback_future=True`, or use 'attention' or 'temporal'."
        )
    for operator in operators_of(config):
        if causal and operator.left_out_if_causal:
            logger.warning_once(
                f"`feedback_type`={config.feedback_type!r} goes without {operator.left_out_if_causal} here, which "
                "would inform the tokens of a backbone that reads from left to right about later ones; "
                "`feedback_future=True` allows that."
            )
    return causal


def settle_label_piece(model: "FeedbackPreTrainedModel") -> None:
    """Decides at which piece of a word the labels of a new head stand, and stores it in the config.

    A head of the backbone's own that is trained keeps the first, as taggers of transformers are trained.
    """
    config, backbone = model.config, model.backbone
    if model.traits.labels_words and config.label_piece == "auto":
        whole_config = cast(PreTrainedConfig, config.backbone_config)
        is_trained = config.head == "backbone" and model.traits.has_trained_head(whole_config)
        part = model.layout.looped_model(backbone)
        causal = not is_trained and reads_causally(part, whole_config, config.backbone_part)
        config.label_piece = "last" if causal else "first"


def warn_if_offloaded(model: PreTrainedModel) -> None:
    """Warns that the weights of offloaded layers are loaded again in every iteration."""
    devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if "disk" in devices or ("cpu" in devices and len(devices) > 1):
        logger.warning(
            "Some layers are offloaded: their weights are loaded anew in every iteration, which is slow. Keep the "
            "looped layers on one device (`device_map`), or loop fewer of them (`feedback_edges`)."
        )


def _warn_of_head_left_out(name: str | Path) -> None:
    logger.warning(
        f"{name} has a head for this task, which is left out: `head='new'` makes another one, which is not trained. "
        "Use `head='backbone'` to keep it."
    )


def _warn_of_new_head(name: str | Path, task_model: PreTrainedModel, missing: Collection[str]) -> None:
    if missing:
        output = task_model.get_output_embeddings()
        inputs = task_model.get_input_embeddings()
        tied = output is not None and getattr(output, "weight", None) is getattr(inputs, "weight", 0)
        logger.warning(
            f"{name} has no trained head for this task: a new one is made{', tied to the input embeddings' * tied} "
            f"({', '.join(sorted(missing)[:3])}{', …' * (len(missing) > 3)}). It is not trained; train it."
        )
