"""Feedback-only checkpoints: feedback and head without the backbone, which is identified by its name and fingerprint.

A folder holds `config.json`, `feedback.safetensors`, the code files and, of a model that generates,
`generation_config.json`. The backbone is its base model without a pooler; everything else (feedback, a new head, the
head of a task model) is saved.
"""

import copy
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_utils import load_state_dict, safe_save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, PushToHubMixin, cached_file, logging
from transformers.utils.hub import get_checkpoint_shard_files

from .backbone_fingerprint import backbone_tensor_names, fingerprint, fingerprint_of_files, same_backbone, share_weights
from .backbone_layout import is_sharded, select_part
from .building import HUB_KWARGS, wrap_backbone
from .configuration_feedback import AUTO_MAP, FeedbackConfig
from .gguf_files import with_unpacking
from .operator_code import save_operator_code
from .stored_config import PLACE_KEYS, place_keywords
from .task_traits import check_task_model
from .validation import Keywords
from .whole_files import whole_file

if TYPE_CHECKING:
    from .modeling_base import FeedbackPreTrainedModel

logger = logging.get_logger(__name__)

WEIGHTS_NAME = "feedback.safetensors"
# What `from_pretrained` of transformers sets in the config, beside our options.
CONFIG_KEYWORDS = {"output_attentions", "output_hidden_states", "pad_token_id", "return_dict"}


def is_feedback_only(config: FeedbackConfig) -> bool:
    """Whether the folder of this config holds a feedback-only checkpoint."""
    return "fingerprint" in (config.backbone_source or {})


def save_feedback(model: "FeedbackPreTrainedModel", folder: str | Path) -> None:
    """See `FeedbackPreTrainedModel.save_feedback`."""
    check_backbone_is_unchanged(model)
    write_feedback(model, folder)


def write_feedback(model: "FeedbackPreTrainedModel", folder: str | Path) -> None:
    """Writes config, code and tensors of a feedback-only checkpoint."""
    model._built_options.check(model.config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state, backbone_names = model.state_dict(keep_vars=True), backbone_tensor_names(model)
    # a decoder that is tied to the embeddings is not saved either
    of_backbone = {id(state[name]) for name in backbone_names}
    ours = {name: tensor.detach() for name, tensor in state.items() if id(tensor) not in of_backbone}
    config = copy.deepcopy(model.config)
    config.backbone_source = {**(config.backbone_source or {}), "fingerprint": fingerprint(model)}
    config.architectures = [type(model).__name__]
    custom_object_save(model, folder)
    config.auto_map = dict(AUTO_MAP)
    config.custom_operators = save_operator_code(config, folder)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in _untied(ours)}
    with whole_file(folder / WEIGHTS_NAME) as partial:
        safe_save_file(tensors, partial, metadata={"format": "pt"})
    if model.can_generate():
        cast(Any, model).generation_config.save_pretrained(folder)
    config.save_pretrained(folder)


def _untied(tensors: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Of tensors that share their memory, the first."""
    seen: dict[int, str] = {}
    return [(name, tensor) for name, tensor in tensors.items() if seen.setdefault(tensor.data_ptr(), name) == name]


def read_feedback_tensors(name: str | Path, **hub_kwargs: Any) -> dict[str, torch.Tensor]:
    """The tensors of a feedback-only checkpoint, from a folder or the Hub.

    Raises:
        OSError: the file is missing or damaged.
    """
    file = cached_file(str(name), WEIGHTS_NAME, **hub_kwargs)
    try:
        return load_state_dict(str(file))
    except SafetensorError as error:
        raise OSError(
            f"{WEIGHTS_NAME} in {name} is damaged or truncated ({error}); copy or download it again."
        ) from error


def assign_feedback_tensors(model: "FeedbackPreTrainedModel", tensors: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    """Gives the model these tensors as parameters of its own; what it shares with other models stays as it is.

    Returns:
        As the loading info of transformers: `missing_keys`, `unexpected_keys` and `mismatched_keys`.
    """
    state, backbone_names = model.state_dict(keep_vars=True), backbone_tensor_names(model)
    aliases: dict[int, list[str]] = {}
    for name, tensor in state.items():
        aliases.setdefault(id(tensor), []).append(name)
    own_names = {name for name in state if not backbone_names.keys() & aliases[id(state[name])]}
    waiting = set(own_names)
    mismatched = [name for name, tensor in tensors.items() if name in waiting and state[name].shape != tensor.shape]
    for name in tensors.keys() & waiting - set(mismatched):
        old = state[name]
        new = tensors[name].to(old.device, old.dtype)
        new = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        for alias in aliases[id(old)]:
            module, _, attribute = alias.rpartition(".")
            setattr(model.get_submodule(module), attribute, new)
            waiting.discard(alias)
    return {
        "missing_keys": sorted(waiting - set(mismatched)),
        "unexpected_keys": sorted(tensors.keys() - own_names),
        "mismatched_keys": sorted(mismatched),
    }


class FeedbackOnlyFolder(PushToHubMixin):
    """The object that `push_to_hub` of transformers pushes for a feedback-only repository."""

    def __init__(self, model: "FeedbackPreTrainedModel") -> None:
        self.model = model

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes the folder that is pushed."""
        write_feedback(self.model, save_directory)


def push_feedback(model: "FeedbackPreTrainedModel", repo_id: str, **kwargs: Any) -> str:
    """See `FeedbackPreTrainedModel.push_feedback_to_hub`."""
    check_backbone_is_unchanged(model, **{key: kwargs[key] for key in ("token",) if key in kwargs})
    name = (model.config.backbone_source or {}).get("name_or_path")
    if name is None or Path(name).is_dir():
        logger.warning(
            f"The backbone comes from {name or 'no named place'}, which others cannot load: they will have to pass it "
            "as `backbone`. Use a backbone from the Hub, or push the whole model."
        )
    return FeedbackOnlyFolder(model).push_to_hub(repo_id, **kwargs)


SAVE_WHOLE = "save the whole model with `save_pretrained`"


def check_backbone_is_unchanged(model: "FeedbackPreTrainedModel", **hub_kwargs: Any) -> None:
    """Raises `ValueError` where the feedback alone would not do: the backbone was trained, or holds adapters."""
    if any(hasattr(module, "base_layer") for module in model.backbone.modules()):
        raise ValueError(
            f"`save_feedback`: the backbone holds adapters; save them with PEFT, or merge them and {SAVE_WHOLE}."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("`save_feedback`: parts of the model are offloaded; load it whole and save it then.")
    if is_sharded(model):
        raise ValueError(
            "`save_feedback`: the model is sharded over processes; save it whole with `save_pretrained`, load that in "
            "one process and save its feedback then."
        )
    source = model.config.backbone_source
    if source is None or "name_or_path" not in source:
        return  # nothing to compare with
    in_files = _is_in_files_of(model, source, **hub_kwargs)
    if not (in_files or _is_as_loaded(model, source["name_or_path"], hub_kwargs)):
        raise ValueError(
            f"`save_feedback`: the backbone was trained, its weights are no longer those of {source['name_or_path']}; "
            f"{SAVE_WHOLE}, or train with `freeze='backbone'`."
        )


def _is_as_loaded(model: "FeedbackPreTrainedModel", name: str, hub_kwargs: Keywords) -> bool:
    """Whether the backbone's weights are those of its source, loaded whole, whatever the names in its files."""
    try:
        loaded = load_named_backbone(type(model), model.config, None, {"dtype": model.backbone.dtype, **hub_kwargs})
    except RuntimeError as error:  # transformers' word for weights of another size
        raise ValueError(
            f"`save_feedback`: the backbone's weights have other sizes than those of {name} (were its embeddings "
            f"resized?); {SAVE_WHOLE}."
        ) from error
    except OSError as error:
        if not any(parameter.requires_grad for parameter in model.backbone.base_model.parameters()):
            return True  # it was not trained as far as is known; whoever loads it will see
        raise ValueError(
            f"`save_feedback`: {name} cannot be loaded to see whether the backbone is still the same ({error}). If it "
            f"was not trained, say `model.backbone.requires_grad_(False)`; otherwise {SAVE_WHOLE}."
        ) from error
    untrained = wrap_backbone(type(model), loaded, copy.deepcopy(model.config))
    return same_backbone(fingerprint(untrained), fingerprint(model))


def _is_in_files_of(model: "FeedbackPreTrainedModel", source: Keywords, **hub_kwargs: Any) -> bool:
    """Whether the backbone's weights are those in the safetensors files of its source, by the same names."""
    if model.config.backbone_layers is not None:  # its layers have other numbers there
        return False
    name, source_kwargs = source["name_or_path"], {**hub_kwargs, "revision": source.get("revision")}
    source_kwargs["subfolder"] = source.get("subfolder") or ""
    quiet = {"_raise_exceptions_for_missing_entries": False}
    try:
        file = cached_file(name, SAFE_WEIGHTS_NAME, **quiet, **source_kwargs)
        index = None if file else cached_file(name, SAFE_WEIGHTS_INDEX_NAME, **quiet, **source_kwargs)
        files = get_checkpoint_shard_files(name, index, **source_kwargs)[0] if index else [file] if file else []
        return bool(files) and same_backbone(fingerprint_of_files(model, files), fingerprint(model))
    except (OSError, SafetensorError):
        return False


def load_feedback_only(
    model_class: "type[FeedbackPreTrainedModel]",
    name: str | Path,
    saved_by: "type[FeedbackPreTrainedModel]",
    hub_kwargs: Keywords,
    kwargs: Keywords,
) -> Any:
    """`from_pretrained` of a folder that holds feedback and head alone.

    Args:
        model_class: class of the result.
        name: folder or hub id.
        saved_by: the class that wrote it.
        hub_kwargs, kwargs: as `from_pretrained` was given them.
    """
    config_keywords = FeedbackConfig.accepted_keywords() | CONFIG_KEYWORDS
    options = {key: kwargs.pop(key) for key in [*kwargs] if key in config_keywords}
    loading_kwargs = {key: value for key, value in kwargs.items() if key not in HUB_KWARGS}
    given_config, backbone, wants_info, ignore_mismatched = (
        loading_kwargs.pop(key, None)
        for key in ("config", "backbone", "output_loading_info", "ignore_mismatched_sizes")
    )
    if given_config is not None and options:
        raise ValueError(f"`{next(iter(options))}`: `config` is given too; set the option there.")
    for key in ("use_safetensors", "adapter_kwargs"):  # they are about the feedback's own folder
        loading_kwargs.pop(key, None)
    folder_kwargs = {key: value for key, value in hub_kwargs.items() if key != "trust_remote_code"}
    saved = FeedbackConfig.from_pretrained(name, **folder_kwargs, **options)
    config = copy.deepcopy(given_config) or saved
    source = cast(Keywords, saved.backbone_source).copy()
    expected = source.pop("fingerprint")
    config.backbone_source, config.name_or_path = source or None, str(name)
    is_same_head = has_same_head(model_class, saved_by)
    if not is_same_head and "head" not in options:
        config.head = model_class.traits.choose_head("new", cast(PreTrainedConfig, config.backbone_config))
    loaded = _backbone_for(model_class, config, backbone, name, hub_kwargs, loading_kwargs)
    model = wrap_backbone(model_class, loaded, config)
    _check_fingerprint(model, expected, name)
    if model.can_generate() and "generation_config" not in kwargs:
        _load_generation_config(model, name, folder_kwargs)
    tensors = read_feedback_tensors(name, **folder_kwargs)
    if not is_same_head:
        model.config.__dict__.pop("data_options", None)  # of the other task
        if config.head == "new":  # what is called the same is still another head
            tensors = {key: tensor for key, tensor in tensors.items() if key.startswith("feedback.")}
    info = assign_feedback_tensors(model, tensors)
    if ignore_mismatched and info["mismatched_keys"]:
        logger.warning(f"{name}: {', '.join(info['mismatched_keys'])} have another size and are new; train them.")
        info["mismatched_keys"] = []
    _check_tensors(name, info, saved_by is model_class and config.head == saved.head)
    return (model, info) if wants_info else model


def _check_tensors(name: str | Path, info: dict[str, list[str]], has_all: bool) -> None:
    """Raises `OSError` where the tensors of a folder are not those of the model, or some of them alone.

    Args:
        name: the folder.
        info: what `assign_feedback_tensors` returned.
        has_all: whether the head has to be there, too; another one may be new or left out, feedback may not.
    """
    if wrong := [key for keys in info.values() for key in keys if has_all or key.startswith("feedback.")]:
        raise OSError(
            f"The weights in {name} do not belong to the config beside them, e.g. {wrong[0]}. Load the folder with the "
            "options it was saved with, or start anew with `from_backbone`."
        )
    if info["missing_keys"]:
        logger.warning(f"{name} has no head for this task: {', '.join(info['missing_keys'][:3])} are new; train them.")


def _load_generation_config(model: "FeedbackPreTrainedModel", name: str | Path, hub_kwargs: Keywords) -> None:
    """Gives the model the generation config beside its feedback, read as of a whole model; without one it keeps that of
    the backbone."""
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(name, **hub_kwargs)


def has_same_head(model_class: "type[FeedbackPreTrainedModel]", saved_by: "type[FeedbackPreTrainedModel]") -> bool:
    """Whether a class has the head of the class that saved a folder: one is the other or derived from it, for the same
    task."""
    related = issubclass(model_class, saved_by) or issubclass(saved_by, model_class)
    return related and model_class.traits == saved_by.traits


def _backbone_for(
    model_class: "type[FeedbackPreTrainedModel]",
    config: FeedbackConfig,
    backbone: Any,
    name: str | Path,
    hub_kwargs: Keywords,
    loading_kwargs: Keywords,
) -> PreTrainedModel:
    """The backbone that was passed, or named, or that the checkpoint names."""
    if backbone is not None and not isinstance(backbone, str | Path | PreTrainedModel):
        raise TypeError(
            f"`backbone` must be a hub id, a folder or a transformers PreTrainedModel, got a {type(backbone).__name__}."
        )
    if not isinstance(backbone, PreTrainedModel):
        names = ("token", "cache_dir", "local_files_only")
        shared: Keywords = {key: hub_kwargs[key] for key in names if key in hub_kwargs}
        return load_named_backbone(model_class, config, backbone, {**shared, **loading_kwargs})
    if loading_kwargs:
        raise ValueError(
            f"`{next(iter(loading_kwargs))}` is for loading a backbone; it has no use with one that is given."
        )
    return _share_backbone(model_class, backbone, config, name)


def _check_fingerprint(model: "FeedbackPreTrainedModel", expected: dict[str, str], name: str | Path) -> None:
    """Raises `ValueError` where the backbone is not the one that the feedback was trained on."""
    actual = fingerprint(model, expected)
    if not actual.keys() & expected.keys():
        raise ValueError(
            f"`dtype`: the feedback in {name} was saved with its backbone in {', '.join(expected)}, which cannot be "
            f"compared with {', '.join(actual)}; load it in that precision or in float32."
        )
    if not same_backbone(actual, expected):
        raise ValueError(_other_backbone(name, model.config, "its weights are others (or were trained since)"))


def _share_backbone(
    model_class: "type[FeedbackPreTrainedModel]", backbone: PreTrainedModel, config: FeedbackConfig, name: str | Path
) -> PreTrainedModel:
    """A model over the weights of `backbone`, for one more feedback."""
    if isinstance(backbone.config, FeedbackConfig):
        if (kept := backbone.config.backbone_layers) is not None:
            raise ValueError(
                f"`backbone`: this feedback model holds the layers {kept} of its backbone alone, and the feedback in "
                f"{name} picks its own of all; name the backbone instead, or pass the whole of it."
            )
        backbone = cast("FeedbackPreTrainedModel", backbone).backbone
    if config.head == "backbone":
        check_task_model(model_class, backbone)
    else:
        backbone = select_part(backbone, config.backbone_part)
    trained_on, offered = config.text_config, backbone.config.get_text_config()
    for key in ("model_type", "hidden_size", "num_hidden_layers"):
        if getattr(trained_on, key) != getattr(offered, key, None):
            raise ValueError(_other_backbone(name, config, f"it has `{key}` {getattr(offered, key, None)!r}"))
    return share_weights(backbone)


def load_named_backbone(
    model_class: "type[FeedbackPreTrainedModel]",
    config: FeedbackConfig,
    name: str | Path | None,
    backbone_kwargs: Keywords,
) -> PreTrainedModel:
    """The backbone that a feedback-only checkpoint names, or that is named instead.

    Raises:
        ValueError: it names none.
        OSError: it cannot be loaded.
    """
    source = (config.backbone_source or {}) if name is None else {"name_or_path": str(name)}
    if "name_or_path" not in source:
        raise ValueError("This feedback was trained on a backbone without a name; pass it as `backbone`.")
    load_kwargs = with_unpacking({**place_keywords(source), **backbone_kwargs})
    auto_class = AutoModel if config.head == "new" else model_class.traits.auto_class
    try:
        loaded = auto_class.from_pretrained(config=copy.deepcopy(config.backbone_config), **load_kwargs)
    except OSError as error:
        raise OSError(
            f"The backbone that this feedback names, {source['name_or_path']}, cannot be loaded ({error}). If it is "
            "elsewhere, pass it as `backbone`."
        ) from error
    return loaded if config.head == "backbone" else select_part(loaded, config.backbone_part)


def _other_backbone(name: str | Path, config: FeedbackConfig, reason: str) -> str:
    source = config.backbone_source or {}
    place = " ".join(source[key] for key in PLACE_KEYS if key in source) or "a backbone without a name"
    return (
        f"`backbone`: the feedback in {name} was trained on {place} "
        f"({config.text_config.model_type}, {config.num_backbone_layers} layers of width {config.hidden_size}), and "
        f"this is another: {reason}. Load that backbone, or train new feedback for this one."
    )
