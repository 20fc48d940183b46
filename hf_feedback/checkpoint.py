"""Feedback-only checkpoints: feedback and head without the backbone, which is named and recognized by its fingerprint.

A folder holds `config.json`, `feedback.safetensors` and the code files. To the backbone belongs its base model, without
a pooler; everything else (feedback, a new head, the head of a task model) is saved.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_utils import load_state_dict, safe_save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, PushToHubMixin, cached_file, logging
from transformers.utils.hub import get_checkpoint_shard_files

from .backbones import is_sharded, select_part
from .configuration_feedback import AUTO_MAP, FeedbackConfig
from .fingerprint import core_of, fingerprint, fingerprint_of_files, same_backbone, share_weights
from .from_backbone import HUB_KWARGS, FromBackbone
from .modeling_base import FeedbackPreTrainedModel
from .stored_config import PLACE_KEYS

logger = logging.get_logger(__name__)

WEIGHTS_NAME = "feedback.safetensors"


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A place to write a file to; the file appears when all of it is written, and nothing of it if that fails."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def is_feedback_only(config: FeedbackConfig) -> bool:
    """Whether the folder of this config holds a feedback-only checkpoint."""
    return "fingerprint" in (config.backbone_source or {})


def write(model: FeedbackPreTrainedModel, folder: str | Path) -> None:
    """Writes the feedback-only checkpoint; see `save_feedback`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state, core = model.state_dict(keep_vars=True), core_of(model)
    theirs = {id(state[name]) for name in core}  # a decoder that is tied to the embeddings is not saved either
    ours = {name: tensor.detach() for name, tensor in state.items() if id(tensor) not in theirs}
    config = copy.deepcopy(model.config)
    config.backbone_source = {**(config.backbone_source or {}), "fingerprint": fingerprint(model)}
    config.architectures = [type(model).__name__]
    custom_object_save(model, folder)
    config.auto_map = dict(AUTO_MAP)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in _untied(ours)}
    with whole_file(folder / WEIGHTS_NAME) as partial:
        safe_save_file(tensors, partial, metadata={"format": "pt"})
    config.save_pretrained(folder)


def _untied(tensors: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Of tensors that share their memory, the first."""
    seen: dict[int, str] = {}
    return [(name, tensor) for name, tensor in tensors.items() if seen.setdefault(tensor.data_ptr(), name) == name]


def read(name: str | Path, **hub_kwargs: Any) -> dict[str, torch.Tensor]:
    """The tensors of a feedback-only checkpoint, from a folder or the Hub.

    Raises:
        OSError: the file is missing or damaged.
    """
    file = cached_file(str(name), WEIGHTS_NAME, **hub_kwargs)
    try:
        return load_state_dict(str(file))
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise OSError(
            f"{WEIGHTS_NAME} in {name} is damaged or truncated ({error}); copy or download it again."
        ) from error


def put(model: FeedbackPreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    """Gives the model these tensors as parameters of its own; what it shares with other models stays as it is.

    Returns:
        As the loading info of transformers: `missing_keys`, `unexpected_keys` and `mismatched_keys`.
    """
    state, core = model.state_dict(keep_vars=True), core_of(model)
    aliases: dict[int, list[str]] = {}
    for name, tensor in state.items():
        aliases.setdefault(id(tensor), []).append(name)
    waiting = {name for name in state if not core.keys() & aliases[id(state[name])]}
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
        "unexpected_keys": sorted(tensors.keys() - state.keys()),
        "mismatched_keys": sorted(mismatched),
    }


class FeedbackOnly(PushToHubMixin):
    """What `push_to_hub` of transformers pushes for a feedback-only repository."""

    def __init__(self, model: FeedbackPreTrainedModel) -> None:
        self.model = model

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        write(self.model, save_directory)


class FeedbackOnlyCheckpoints(FromBackbone):
    """`save_feedback` and `push_feedback_to_hub`, and the way back."""

    def save_feedback(self, save_directory: str | Path) -> None:
        """Writes feedback, head and config alone, with the name of the backbone and a fingerprint of its weights.

        `load_feedback` and `from_pretrained` read the folder.

        Args:
            save_directory: folder, made if it is not there.

        Raises:
            ValueError: the backbone was trained too, or holds adapters, so that the feedback alone would not do.
        """
        self._check_backbone_is_as_it_was()
        write(self, save_directory)

    def push_feedback_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Pushes what `save_feedback` writes; arguments as in `push_to_hub`."""
        self._check_backbone_is_as_it_was(**{key: kwargs[key] for key in ("token",) if key in kwargs})
        name = (self.config.backbone_source or {}).get("name_or_path")
        if name is None or Path(name).is_dir():
            logger.warning(
                f"The backbone comes from {name or 'no named place'}, which others cannot load: they will have to pass "
                "it as `backbone`. Use a backbone from the Hub, or push the whole model."
            )
        return FeedbackOnly(self).push_to_hub(repo_id, **kwargs)

    def _check_backbone_is_as_it_was(self, **hub_kwargs: Any) -> None:
        advice = "save the whole model with `save_pretrained`"
        if any(hasattr(module, "base_layer") for module in self.backbone.modules()):
            raise ValueError(
                f"`save_feedback`: the backbone holds adapters; save them with PEFT, or merge them and {advice}."
            )
        if any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError("`save_feedback`: parts of the model are offloaded; load it whole and save it then.")
        if is_sharded(self):
            raise ValueError(
                "`save_feedback`: the model is sharded over processes; save it whole with `save_pretrained`, load that "
                "in one process and save its feedback then."
            )
        source = self.config.backbone_source
        if source is None or "name_or_path" not in source:
            return  # nothing to compare with
        if self._is_in_files_of(source, **hub_kwargs):
            return
        name = source["name_or_path"]
        try:  # loaded whole, whatever the names in its files
            found = self._named_backbone(self.config, None, {"dtype": self.backbone.dtype, **hub_kwargs})
        except RuntimeError as error:  # transformers' word for weights of another size
            raise ValueError(
                f"`save_feedback`: the backbone's weights have other sizes than those of {name} (were its embeddings "
                f"resized?); {advice}."
            ) from error
        except OSError as error:
            if not any(parameter.requires_grad for parameter in self.backbone.base_model.parameters()):
                return  # it was not trained as far as one can tell; whoever loads it will see
            raise ValueError(
                f"`save_feedback`: {name} cannot be loaded to see whether the backbone is still the same ({error}). If "
                f"it was not trained, say `model.backbone.requires_grad_(False)`; otherwise {advice}."
            ) from error
        if not same_backbone(fingerprint(self._wrap(found, copy.deepcopy(self.config))), fingerprint(self)):
            raise ValueError(
                f"`save_feedback`: the backbone was trained, its weights are no longer those of {name}; {advice}, or "
                "train with `freeze='backbone'`."
            )

    def _is_in_files_of(self, source: dict[str, Any], **hub_kwargs: Any) -> bool:
        """Whether the backbone's weights are those in the safetensors files of its source, by the same names."""
        if self.config.backbone_layers is not None:  # its layers have other numbers there
            return False
        name, place = source["name_or_path"], {**hub_kwargs, "revision": source.get("revision")}
        place["subfolder"] = source.get("subfolder") or ""
        quiet = {"_raise_exceptions_for_missing_entries": False}
        try:
            file = cached_file(name, SAFE_WEIGHTS_NAME, **quiet, **place)
            index = None if file else cached_file(name, SAFE_WEIGHTS_INDEX_NAME, **quiet, **place)
            files = get_checkpoint_shard_files(name, index, **place)[0] if index else [file] if file else []
            return bool(files) and same_backbone(fingerprint_of_files(self, files), fingerprint(self))
        except (OSError, SafetensorError):
            return False

    @classmethod
    def _from_feedback_only(
        cls, name: Any, saved_by: type[FromBackbone], hub_kwargs: dict[str, Any], kwargs: dict[str, Any]
    ) -> Any:
        """`from_pretrained` where the folder holds feedback and head alone."""
        options = {key: kwargs.pop(key) for key in [*kwargs] if key in FeedbackConfig.option_names() | {"num_labels"}}
        rest = {key: value for key, value in kwargs.items() if key not in HUB_KWARGS}
        given, backbone, wants_info, mismatched = (
            rest.pop(key, None) for key in ("config", "backbone", "output_loading_info", "ignore_mismatched_sizes")
        )
        for key in ("use_safetensors", "adapter_kwargs"):  # they are about the feedback's own folder
            rest.pop(key, None)
        here = {key: value for key, value in hub_kwargs.items() if key != "trust_remote_code"}
        saved = FeedbackConfig.from_pretrained(name, **here, **options)
        config = copy.deepcopy(given) or saved
        backbone_config = cast(PreTrainedConfig, config.backbone_config)
        source = cast(dict[str, Any], saved.backbone_source).copy()
        expected = source.pop("fingerprint")
        config.backbone_source = source or None
        if saved_by is not cls and "head" not in options:
            config.head = cls._choose_head("new", backbone_config)
        if backbone is not None and not isinstance(backbone, str | Path | PreTrainedModel):
            raise TypeError(
                "`backbone` must be a hub id, a folder or a transformers PreTrainedModel, got a "
                f"{type(backbone).__name__}."
            )
        if isinstance(backbone, PreTrainedModel):
            if rest:
                raise ValueError(
                    f"`{next(iter(rest))}` is for loading a backbone; it has no use with one that is given."
                )
            backbone = cls._shared(backbone, config, name)
        else:
            there: dict[str, Any] = {
                key: hub_kwargs[key] for key in ("token", "cache_dir", "local_files_only") if key in hub_kwargs
            }
            backbone = cls._named_backbone(config, backbone, {**there, **rest})
        model = cls._wrap(backbone, config)
        there = fingerprint(model, expected)
        if not there.keys() & expected.keys():
            raise ValueError(
                f"`dtype`: the feedback in {name} was saved with its backbone in {', '.join(expected)}, which cannot "
                f"be compared with {', '.join(there)}; load it in that precision or in float32."
            )
        if not same_backbone(there, expected):
            raise ValueError(_not_its_backbone(name, config, "its weights are others (or were trained since)"))
        info = put(model, read(name, **here))
        if mismatched and info["mismatched_keys"]:
            logger.warning(f"{name}: {', '.join(info['mismatched_keys'])} have another size and are new; train them.")
            info["mismatched_keys"] = []
        same = saved_by is cls and config.head == saved.head
        if same and (wrong := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]):
            raise OSError(f"The weights in {name} do not belong to the config beside them, e.g. {wrong[0]}.")
        if info["missing_keys"]:
            logger.warning(
                f"{name} has no head for this task: {', '.join(info['missing_keys'][:3])} are new; train them."
            )
        return (model, info) if wants_info else model

    @classmethod
    def _shared(cls, backbone: PreTrainedModel, config: FeedbackConfig, name: Any) -> PreTrainedModel:
        """A model over the weights of `backbone`, for one more feedback."""
        if isinstance(backbone, FeedbackPreTrainedModel):
            backbone = backbone.backbone
        if config.head == "backbone":
            cls._check_task_model(backbone)
        else:
            backbone = select_part(backbone, config.backbone_part)
        mine, theirs = config.text_config, backbone.config.get_text_config()
        for key in ("model_type", "hidden_size", "num_hidden_layers"):
            if getattr(mine, key) != getattr(theirs, key, None):
                raise ValueError(_not_its_backbone(name, config, f"it has `{key}` {getattr(theirs, key, None)!r}"))
        return share_weights(backbone)

    @classmethod
    def _named_backbone(
        cls, config: FeedbackConfig, name: str | Path | None, backbone_kwargs: dict[str, Any]
    ) -> PreTrainedModel:
        """The backbone that a feedback-only checkpoint names, or that is named instead."""
        source = (config.backbone_source or {}) if name is None else {"name_or_path": str(name)}
        if "name_or_path" not in source:
            raise ValueError("This feedback was trained on a backbone without a name; pass it as `backbone`.")
        place = {key: source[key] for key in PLACE_KEYS[1:] if key in source}
        kind = AutoModel if config.head == "new" else cls._backbone_task_class
        try:
            loaded = kind.from_pretrained(
                source["name_or_path"], config=copy.deepcopy(config.backbone_config), **place, **backbone_kwargs
            )
        except OSError as error:
            raise OSError(
                f"The backbone that this feedback names, {source['name_or_path']}, cannot be loaded ({error}). If it "
                "is elsewhere, pass it as `backbone`."
            ) from error
        return loaded if config.head == "backbone" else select_part(loaded, config.backbone_part)


def _not_its_backbone(name: Any, config: FeedbackConfig, reason: str) -> str:
    source = config.backbone_source or {"name_or_path": "a backbone without a name"}
    return (
        f"`backbone`: the feedback in {name} was trained on {' '.join(map(str, source.values()))} "
        f"({config.text_config.model_type}, {config.num_backbone_layers} layers of width {config.hidden_size}), and "
        f"this is another: {reason}. Load that backbone, or train new feedback for this one."
    )
