"""Loading a feedback model from a folder or repository."""

import copy
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.utils import logging

from .adapter_checks import check_adapters_are_whole
from .backbone_layout import name_of_part, select_part
from .building import file_kwargs_of, hub_kwargs_of, settle_label_piece, warn_if_offloaded
from .configuration_feedback import EDGE_OPTIONS, FeedbackConfig, nearest_option
from .feedback_checkpoint import has_same_head, is_feedback_only, load_feedback_only
from .operator_code import load_operator_code
from .validation import Keywords

if TYPE_CHECKING:
    from .modeling_base import FeedbackPreTrainedModel

logger = logging.get_logger(__name__)

# Options that the weights in a folder are tied to.
TIED_TO_WEIGHTS = {"head", "backbone_part"}


def load_pretrained(
    model_class: "type[FeedbackPreTrainedModel]",
    load: Callable[..., Any],
    name: str | Path,
    args: tuple[Any, ...],
    kwargs: Keywords,
) -> Any:
    """See `FeedbackPreTrainedModel.from_pretrained`.

    Args:
        model_class: class of the result.
        load: transformers' own `from_pretrained` of that class.
        name: folder or hub id.
        args, kwargs: as `from_pretrained` was given them.
    """
    hub_kwargs = hub_kwargs_of(kwargs)
    # with `backbone`, a GGUF file is that one's
    stored, _ = PreTrainedConfig.get_config_dict(
        name, **(hub_kwargs if "backbone" in kwargs else file_kwargs_of(kwargs))
    )
    if "model_type" not in stored:
        raise OSError(
            f"{name} has no config.json that names a `model_type`. If it holds PEFT adapters, load the feedback model "
            "that they belong to, and then `PeftModel.from_pretrained(model, …)`."
        )
    if stored["model_type"] != FeedbackConfig.model_type:
        logger.warning(f"{name} is a plain {stored['model_type']} model: adding fresh feedback.")
        return _load_plain(model_class, name, hub_kwargs, kwargs)
    given_config = _read_given_config(kwargs)
    options = FeedbackConfig.accepted_keywords() - TIED_TO_WEIGHTS
    options_given = {key: kwargs[key] for key in kwargs if key in options}
    config = FeedbackConfig.from_dict(copy.deepcopy(stored), **options_given)  # errors name the option
    wanted = config if given_config is None else given_config
    if wanted.backbone_config is not None:
        _check_edges(name, stored, wanted)
    load_operator_code(config, name, hub_kwargs)
    saved_by = find_model_class(root_of(model_class), config.architectures) or model_class
    _check_head_for_pipeline(model_class, saved_by, name)
    _refuse_misspelt(kwargs.keys() - FeedbackConfig.accepted_keywords() - {"backbone", "backbone_config"})
    if given := [key for key in ("config_overrides", "backbone_kwargs") if kwargs.get(key)]:
        raise ValueError(
            f"`{given[0]}` is for adding feedback to a plain backbone; {name} holds a feedback model. Load "
            "`FeedbackConfig.from_pretrained(…)`, change its `backbone_config`, and pass it as `config`; keywords of "
            "loading, such as `dtype`, stand by themselves."
        )
    if is_feedback_only(config):
        return load_feedback_only(model_class, name, saved_by, hub_kwargs, kwargs)
    if kwargs.pop("backbone", None) is not None:
        raise ValueError(f"`backbone` is for feedback-only checkpoints; {name} holds a whole model.")
    return _load_whole(model_class, load, name, args, kwargs, saved_by, config)


def _refuse_misspelt(keywords: Iterable[str]) -> None:
    """Raises ValueError for a keyword that is close to an option of FeedbackConfig."""
    for key in keywords:
        if near := nearest_option(key):
            raise ValueError(f"`{key}` is not an option of FeedbackConfig; did you mean `{near}`?")


def _read_given_config(kwargs: Keywords) -> FeedbackConfig | None:
    """The `config` that `from_pretrained` was given; a folder or hub id in its place is read, and replaced in `kwargs`.

    Raises:
        ValueError: it is of another class.
    """
    config = kwargs.get("config")
    if isinstance(config, str | Path):
        config = kwargs["config"] = FeedbackConfig.from_pretrained(config, **hub_kwargs_of(kwargs))
    # by its type, since that of an Auto class comes from another copy of the code, with `trust_remote_code`
    if config is not None and getattr(config, "model_type", None) != FeedbackConfig.model_type:
        raise ValueError(
            f"`config` must be a FeedbackConfig, got a {type(config).__name__}; change options of the backbone's own "
            "config with `config_overrides` when feedback is added."
        )
    return config


def _check_edges(name: str | Path, stored: Keywords, config: FeedbackConfig) -> None:
    """Raises `ValueError` where a folder's weights would be taken for those of other layers, or of other edges, as many
    of which have tensors of the same shapes.

    Args:
        name: the folder.
        stored: what its config file says.
        config: what it is to be loaded with.
    """
    saved = copy.copy(config)
    for option in ("backbone_layers", *EDGE_OPTIONS):
        setattr(saved, option, stored.get(option))
    if config.backbone_layers != saved.backbone_layers:
        raise ValueError(
            f"`backbone_layers`: {name} was saved with {saved.backbone_layers}, not {config.backbone_layers}; leave it "
            "out, or add new feedback to those layers of its backbone."
        )
    if config.edges() != saved.edges():
        raise ValueError(
            f"`{'`, `'.join(EDGE_OPTIONS)}`: the feedback in {name} has the edges {saved.edges()}, not "
            f"{config.edges()}; leave these options out, or add new feedback to its backbone."
        )


def _load_whole(
    model_class: "type[FeedbackPreTrainedModel]",
    load: Callable[..., Any],
    name: str | Path,
    args: tuple[Any, ...],
    kwargs: Keywords,
    saved_by: "type[FeedbackPreTrainedModel]",
    config: FeedbackConfig,
) -> Any:
    """A folder with all weights; `saved_by` is the class that wrote it, and `config` what it wrote."""
    wants_info = kwargs.pop("output_loading_info", False)
    kwargs.setdefault("use_safetensors", True)
    kwargs["output_loading_info"] = True
    other_head = _kwargs_for_other_head(model_class, saved_by, config, kwargs)
    kwargs.update(other_head)
    same_head = has_same_head(model_class, saved_by)
    is_new = not same_head and kwargs.get("head", getattr(kwargs.get("config"), "head", config.head)) == "new"
    allows_mismatches = kwargs.get("ignore_mismatched_sizes", False)
    if is_new:  # what both classes call `classifier` may have another size
        kwargs["ignore_mismatched_sizes"] = True
    try:
        model, info = load(name, *args, **kwargs)
    except SafetensorError as error:
        raise OSError(
            f"The weights in {name} are damaged or truncated ({error}); copy or download them again."
        ) from error
    if "key_mapping" in other_head:  # the model is saved under its own keys, not those of the folder
        model._weight_conversions = None
    _check_weights(name, model, info, other_task=bool(other_head))
    if is_new:
        _replace_head(model, info, name, allows_mismatches)
    if not is_fsdp_managed_module(model):  # else its weights come together in the first call alone
        model.probe_backbone()
    if not same_head:
        model.config.__dict__.pop("data_options", None)  # of the other task
        settle_label_piece(model)
    warn_if_offloaded(model)
    return (model, info) if wants_info else model


def _check_head_for_pipeline(
    model_class: "type[FeedbackPreTrainedModel]", saved_by: "type[FeedbackPreTrainedModel]", name: str | Path
) -> None:
    """Raises `ValueError` where a pipeline would answer from a new head."""
    if (
        not has_same_head(model_class, saved_by)
        and model_class.traits.auto_class is not None
        and _is_loaded_by_a_pipeline()
    ):
        raise ValueError(
            f"{name} was trained as a {saved_by.__name__} and has no trained head to answer as a "
            f"{model_class.__name__}; use the pipeline of its own task."
        )


def _check_weights(name: str | Path, model: "FeedbackPreTrainedModel", info: dict[str, Any], other_task: bool) -> None:
    """Raises `OSError` where the folder lacks weights that are not to be new, or has feedback that the model has not.

    Args:
        name: the folder.
        model: the loaded model.
        info: what transformers reports of the loading.
        other_task: whether the folder holds another head.
    """
    # of a task model of another kind, everything but the layers may be new
    needed = f"backbone.{model.layout.stack}." if other_task and model.config.head != "new" else "backbone."
    missing = sorted(key for key in info["missing_keys"] if key.startswith((needed, "feedback.")))
    left_out = sorted(key for key in info["unexpected_keys"] if key.startswith("feedback."))
    check_adapters_are_whole(model, missing, name)
    for keys, fault in ((missing, "are missing"), (left_out, "have no place in the model")):
        if keys:
            raise OSError(
                f"The weights in {name} do not belong to the config beside them: {len(keys)} tensors {fault}, among "
                f"them {keys[0]}. Load the folder with the options it was saved with, or start anew with "
                "`from_backbone`."
            )


def _replace_head(
    model: "FeedbackPreTrainedModel", info: dict[str, Any], name: str | Path, allows_mismatches: bool
) -> None:
    """Initializes the head again, since some of its tensors may have been filled from the head of another class.

    Args:
        model: the loaded model.
        info: what transformers reports of the loading, changed in place.
        name: the folder.
        allows_mismatches: whether other tensors may have another size than those of the folder.

    Raises:
        RuntimeError: they have.
    """
    drawn = draw_head(model)
    wrong = sorted(key for key, *_ in info["mismatched_keys"] if key not in drawn)
    if wrong and not allows_mismatches:
        raise RuntimeError(
            f"{name}: the sizes of {', '.join(wrong[:3])}{', …' * (len(wrong) > 3)} are not those of the model; load "
            "the folder with the options it was saved with, or pass `ignore_mismatched_sizes=True`."
        )
    if read := drawn - info["missing_keys"]:
        logger.warning(f"{name} has no head for this task: {', '.join(sorted(read)[:3])} are new; train them.")
    info["missing_keys"] |= drawn
    info["mismatched_keys"] = {mismatch for mismatch in info["mismatched_keys"] if mismatch[0] not in drawn}


def draw_head(model: "FeedbackPreTrainedModel") -> set[str]:
    """Initializes the weights of a new head again, and returns their names."""
    names = {name for name, _ in model.named_parameters() if not name.startswith(("backbone.", "feedback."))}
    for owner in sorted({name.rpartition(".")[0] for name in names}):
        module = model.get_submodule(owner)
        for name, parameter in module.named_parameters(recurse=False):
            # but not embeddings of the backbone to which a head is tied
            parameter._is_hf_initialized = f"{owner}.{name}" not in names  # type: ignore[attr-defined]
        model._init_weights(module)
    return names


def _kwargs_for_other_head(
    model_class: "type[FeedbackPreTrainedModel]",
    saved_by: "type[FeedbackPreTrainedModel]",
    saved: FeedbackConfig,
    kwargs: Keywords,
) -> Keywords:
    """Returns further keywords of `from_pretrained` for a model with another head than that of the folder.

    Args:
        model_class: class of the model.
        saved_by: the class of the folder.
        saved: its config.
        kwargs: what `from_pretrained` was given.
    """
    given_config = kwargs.get("config")
    head = kwargs.get("head", saved.head if given_config is None else given_config.head)
    backbone_config = cast(PreTrainedConfig, saved.backbone_config)
    same_head = has_same_head(model_class, saved_by)
    if not same_head and "head" not in kwargs:
        head = model_class.traits.choose_head("new", backbone_config)
    if head == saved.head and (same_head or head == "new"):
        return {}
    with torch.device("meta"):
        old_prefixes = _prefixes(saved_by, saved.head, saved)
        new_prefixes = _prefixes(model_class, head, saved)
    # embeddings that both halves of an encoder-decoder share stand outside of them
    moves = {old: new for old, new in zip(reversed(old_prefixes), reversed(new_prefixes), strict=True) if old != new}
    keys = {f"^{re.escape(old)}": new for old, new in moves.items()}
    changes: Keywords = {"key_mapping": {**keys, **(kwargs.get("key_mapping") or {})} if keys else None}
    if head == saved.head:
        return changes
    if given_config is None:
        return {**changes, "head": head}
    kwargs.pop("head", None)
    config = copy.deepcopy(given_config)
    config.head = head
    return {**changes, "config": config}


def _prefixes(model_class: "type[FeedbackPreTrainedModel]", head: str, config: FeedbackConfig) -> tuple[str, str]:
    """Prefixes of the backbone, and of its token embeddings, in the state dict of a model with that head."""
    backbone_config, part = cast(PreTrainedConfig, config.backbone_config), config.backbone_part
    model: PreTrainedModel
    if head == "backbone":
        model = model_class.traits.auto_class.from_config(backbone_config)
        name = name_of_part(model, part)
        prefix = f"backbone.{name}." if name else "backbone."
    else:
        model, prefix = select_part(AutoModel.from_config(backbone_config), part), "backbone."
    table = model.get_input_embeddings() if backbone_config.is_encoder_decoder else None
    return prefix, next((f"backbone.{name}." for name, module in model.named_modules() if module is table), "")


def _load_plain(
    model_class: "type[FeedbackPreTrainedModel]", name: str | Path, hub_kwargs: Keywords, kwargs: Keywords
) -> "FeedbackPreTrainedModel":
    """Calls `from_backbone` with the arguments of `from_pretrained`."""
    options = FeedbackConfig.accepted_keywords() | {"config_overrides"}
    if kwargs.pop("output_loading_info", False):
        raise ValueError("`output_loading_info` is for saved feedback models; this folder holds a plain backbone.")
    feedback_options = {key: value for key, value in kwargs.items() if key in options}
    backbone_kwargs = {key: value for key, value in kwargs.items() if key not in options}
    config = _read_given_config(kwargs)
    backbone_kwargs.pop("config", None)
    _refuse_misspelt(backbone_kwargs)
    if config is not None:
        if config.backbone_config is not None:
            raise ValueError(
                f"`config`: {name} is a plain backbone with a config of its own, and the FeedbackConfig has another "
                "`backbone_config`; leave that out, and change options of the backbone with `config_overrides`."
            )
        options_of_config = config.options()
        if options_of_config["id2label"] == {0: "LABEL_0", 1: "LABEL_1"}:  # names that transformers makes up
            del options_of_config["id2label"], options_of_config["label2id"]
        feedback_options = {**options_of_config, **feedback_options}
    backbone_kwargs |= backbone_kwargs.pop("backbone_kwargs", None) or {}
    return model_class.from_backbone(name, backbone_kwargs={**backbone_kwargs, **hub_kwargs}, **feedback_options)


def load_feedback_folder(
    root: "type[FeedbackPreTrainedModel]",
    name: str | Path,
    backbone: str | Path | PreTrainedModel | None,
    kwargs: Keywords,
) -> "FeedbackPreTrainedModel":
    """See `load_feedback`.

    Args:
        root: the class of which all feedback models are.
        name: folder or hub id.
        backbone, kwargs: as in `load_feedback`.
    """
    stored, _ = PreTrainedConfig.get_config_dict(name, **hub_kwargs_of(kwargs))
    saved = FeedbackConfig.from_dict(stored) if stored.get("model_type") == FeedbackConfig.model_type else None
    if saved is None or not is_feedback_only(saved):
        raise ValueError(f"{name} holds no feedback-only checkpoint; load it with `from_pretrained`.")
    model_class = find_model_class(root, saved.architectures)
    if model_class is None:
        raise ValueError(f"{name} was saved by {saved.architectures}, which this version does not have.")
    return model_class.from_pretrained(name, backbone=backbone, **kwargs)


def _is_loaded_by_a_pipeline() -> bool:
    """Whether a pipeline of transformers is loading the model, which Auto classes are not informed of. What it loads
    answers at once, and nothing asks for training in between."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_stack(None))
    return any(module.startswith("transformers.pipelines") for module in modules)


def root_of(model_class: "type[FeedbackPreTrainedModel]") -> "type[FeedbackPreTrainedModel]":
    """The class of which all feedback models are."""
    return next(one for one in reversed(model_class.__mro__) if "traits" in vars(one))


def find_model_class(root: "type[FeedbackPreTrainedModel]", names: object) -> "type[FeedbackPreTrainedModel] | None":
    """The feedback model class of one of these names, which stand in a config."""
    if not isinstance(names, list | tuple):
        return None
    waiting = [root]
    while waiting:
        model_class = waiting.pop()
        if model_class.__name__ in names:
            return model_class
        waiting += model_class.__subclasses__()
    return None
