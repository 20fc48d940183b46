"""The layout of a backbone: its layers and other properties that are determined once."""

import copy
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from .layer_recorder import install_hooks
from .topology import looped_range_of

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig


class UnsupportedBackboneError(ValueError):
    """The backbone cannot be looped exactly; the message says why and what to do."""


def unsupported(backbone: nn.Module, reason: str, remedy: str) -> UnsupportedBackboneError:
    """The error for a backbone that cannot be looped."""
    return UnsupportedBackboneError(
        f"{type(backbone).__name__} cannot be used as a feedback backbone: {reason} {remedy}"
    )


@dataclass(frozen=True)
class BackboneLayout:
    """The properties of a backbone that the loop needs; see `prepare_backbone` and `probe_backbone`.

    Args:
        part: name inside the backbone of the model whose layers are looped; empty if that is the backbone itself.
        stack: name of its list of layers.
        num_layers: L, the number of layer calls in a forward pass.
        looped_range: numbers of the first and the last layer that are looped.
        arguments: names that the backbone's `forward` takes.
        has_cache: whether the backbone has a key–value cache, which must be switched off.
        causal: whether messages must not inform a token about later ones.
        is_probed: whether `probe_backbone` has tried the backbone out, which takes its weights.
        batch_dim: batch dimension of the layers' hidden states: 0 nearly always, 1 in XLNet.
        can_batch_iterations: whether the states of several iterations can pass the modules after the loop as one larger
            batch.
        final_modules: names of the modules from the loop's output to the backbone's output, usually a norm; `None`
            if there are others, such as further layers.
        cache_argument: name of the argument for a cache in which each iteration can have its own slots; `None` if a
            language model has no such cache.
        batch_axes: positions of batch rows in the arguments of each looped layer, see `find_batch_axes`;
            `None` if they cannot be divided.
        packing_positions: number of dimensions of the `position_ids` by which the backbone keeps texts of a row apart:
            2, or 3 where they are (4, B, T); `None` if it does not.
        modules_below: names inside the backbone of the modules that run before the first layer.
        modules_above: the same for those that run after the last layer.
    """

    part: str
    stack: str
    num_layers: int
    looped_range: tuple[int, int]
    arguments: frozenset[str]
    has_cache: bool
    causal: bool = False
    is_probed: bool = False
    batch_dim: int = 0
    can_batch_iterations: bool = False
    final_modules: tuple[str, ...] | None = None
    cache_argument: str | None = None
    batch_axes: tuple[Any, ...] | None = None
    packing_positions: int | None = None
    modules_below: tuple[str, ...] = ()
    modules_above: tuple[str, ...] = ()

    def layers(self, backbone: PreTrainedModel) -> list[nn.Module]:
        """The backbone's layers in the order of the calls; a shared layer is repeated for each of its calls."""
        stack = cast(nn.ModuleList, backbone.get_submodule(self.stack))
        return [stack[i * len(stack) // self.num_layers] for i in range(self.num_layers)]

    def looped_model(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """The model whose layers are looped."""
        return cast(PreTrainedModel, backbone.get_submodule(self.part))


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether transformers has sharded its weights over several processes (`distributed_config`)."""
    return getattr(model, "_device_mesh", None) is not None


def is_decoder(config: PreTrainedConfig, part: str = "auto") -> bool:
    """Whether the backbone, or that half of it, reads from left to right as language models do."""
    if getattr(config, "is_encoder_decoder", False):
        return part == "decoder"
    name = config.model_type
    next_token_only = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and name not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    writes_about_pictures = name.endswith("_text") and name[: -len("_text")] in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    return bool(getattr(config, "is_decoder", False)) or next_token_only or writes_about_pictures


def _reads_more_than_text(model: PreTrainedModel) -> bool:
    """Whether a text model is only a part of it, as in vision–language models."""
    return not model.config.is_encoder_decoder and model.config.get_text_config() is not model.config


def _reads_too_much(model: PreTrainedModel) -> UnsupportedBackboneError:
    """The error for a model whose text model alone can be looped: what it does with other inputs is not tried out."""
    remedy = "Use its text model alone (`backbone_part='decoder'` with `head='new'`), or pass another model inside it."
    return unsupported(model, "it reads more than text.", remedy)


def select_part(backbone: PreTrainedModel, part: str) -> PreTrainedModel:
    """The backbone inside a model: without a head, and of an encoder–decoder the half that `backbone_part` names
    (`"auto"`: the encoder). `"decoder"` is also the text model of a model that reads more than text.

    Raises:
        UnsupportedBackboneError: that part is not a model by itself, or the model reads more than text.
    """
    inner = cast(PreTrainedModel, backbone.base_model)
    while inner is not backbone and inner.main_input_name in forward_arguments(inner):
        backbone, inner = inner, cast(PreTrainedModel, inner.base_model)
    is_wider = _reads_more_than_text(backbone)
    # T5's encoder alone says that it is none; a model of that config would have both halves again
    if not (is_wider or backbone.config.is_encoder_decoder or type(backbone.config).is_encoder_decoder):
        return backbone
    if is_wider and part != "decoder":
        raise _reads_too_much(backbone)
    half = backbone.get_decoder() if part == "decoder" else backbone.get_encoder()
    if not isinstance(half, PreTrainedModel) or (is_wider and half is backbone):
        raise unsupported(
            backbone, f"its {type(half).__name__} is not a transformers model by itself.", "Use another backbone."
        )
    return select_part(half, part) if is_wider else half


def name_of_part(model: PreTrainedModel, part: str) -> str:
    """The name inside a task model of the backbone whose layers are looped; empty if it is the model itself.

    Raises:
        UnsupportedBackboneError: as `select_part`, and a model with a head must not read more than text.
    """
    if _reads_more_than_text(model):
        raise _reads_too_much(model)
    inner = select_part(model, part)
    return next(name for name, module in model.named_modules() if module is inner)


def name_of_core(model: PreTrainedModel, part: str) -> str:
    """The name inside a task model of everything below its head; empty if that is the model itself."""
    if model.base_model is model:
        return name_of_part(model, part)
    return next(name for name, module in model.named_modules() if module is model.base_model)


def drop_pooler(backbone: PreTrainedModel) -> PreTrainedModel:
    """Drops an unused pooler, since distributed training refuses parameters without a gradient."""
    if getattr(backbone, "pooler", None) is not None:
        can_do_without = "add_pooling_layer" in inspect.signature(type(backbone).__init__).parameters
        backbone.pooler = None if can_do_without else nn.Identity()  # type: ignore[assignment]
    return backbone


def find_stack(backbone: nn.Module, num_layers: int, within: str = "") -> str:
    """The name of the backbone's layer stack: its largest `ModuleList` of `num_layers` layers, or else of a divisor of
    that number, each layer then being called several times in a row (as in ALBERT).

    Args:
        backbone: a model, with or without a task head.
        num_layers: L.
        within: name of the module to search.

    Raises:
        UnsupportedBackboneError: it has none.
    """
    sizes = {
        name: (len(module), sum(parameter.numel() for parameter in module.parameters()))
        for name, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 0
        and f"{name}.".startswith(f"{within}." if within else "")
    }
    whole = [name for name, (length, _) in sizes.items() if length == num_layers]
    shared = [name for name, (length, _) in sizes.items() if num_layers % length == 0]
    candidates = whole or shared
    if not candidates:
        raise unsupported(
            backbone,
            f"it has no list of {num_layers} layers, the `num_hidden_layers` of its config.",
            "Use a backbone whose layers are a plain stack.",
        )
    return max(candidates, key=lambda name: (sizes[name][1], -len(name)))


def keep_layers(backbone: PreTrainedModel, stack_name: str, keep: list[int]) -> None:
    """Keeps only the layers `keep` in the stack, and changes the backbone's own config accordingly.

    The config is replaced by a copy; per-layer lists in it (such as `layer_types`) are cut with the layers.

    Raises:
        UnsupportedBackboneError: the layers are shared.
    """
    stack = cast(nn.ModuleList, backbone.get_submodule(stack_name))
    total = len(stack)
    if keep[-1] >= total:
        raise unsupported(backbone, "its layers are shared, so none can be left out.", "Leave `backbone_layers` out.")
    parent, _, attribute = stack_name.rpartition(".")
    kept = nn.ModuleList(stack[i] for i in keep)
    setattr(backbone.get_submodule(parent), attribute, kept)
    number_layers(list(kept))
    old = backbone.config
    config = copy.deepcopy(old)
    text_config = config.get_text_config()
    for key, value in list(vars(text_config).items()):
        if isinstance(value, list) and len(value) == total and not key.startswith("_"):
            setattr(text_config, key, [value[i] for i in keep])
    text_config.num_hidden_layers = len(keep)
    for module in backbone.modules():
        if getattr(module, "config", None) is old:
            module.config = config  # type: ignore[assignment]


def number_layers(layers: list[nn.Module]) -> None:
    """Numbers layers from 0 on, which determines their slots in a cache."""
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index  # type: ignore[assignment]


def forward_arguments(backbone: PreTrainedModel) -> frozenset[str]:
    """The names that the backbone's `forward` takes."""
    return frozenset(inspect.signature(backbone.forward).parameters)


def without_cache(backbone: PreTrainedModel) -> dict[str, bool]:
    """Keywords of `forward` that switch off the key–value cache, since iterations that share one are silently wrong."""
    takes = "use_cache" in forward_arguments(backbone) or hasattr(backbone.config.get_text_config(), "use_cache")
    return {"use_cache": False} if takes else {}


def _is_loaded_as_itself(backbone: PreTrainedModel) -> bool:
    """Whether the Auto classes make a model of this very code from its config: one of transformers, or registered."""
    config = backbone.config
    if config.model_type not in CONFIG_MAPPING:
        return False
    classes = MODEL_MAPPING.get(type(config), ())
    registered = type(backbone) in (classes if isinstance(classes, tuple) else (classes,))
    is_known_config = _is_of_transformers(config) or CONFIG_MAPPING[config.model_type] is type(config)
    return is_known_config and (_is_of_transformers(backbone) or registered)


def _is_of_transformers(thing: object) -> bool:
    return type(thing).__module__.startswith("transformers.")


def check_static(backbone: PreTrainedModel, head: str) -> None:
    """Refuses backbones that cannot be looped according to their config.

    Args:
        backbone: the model.
        head: the config's; with `"new"` the backbone is loaded again by its config alone.

    Raises:
        UnsupportedBackboneError: it is not a stack of layers of one width, or layers are skipped at random.
    """
    if not _is_loaded_as_itself(backbone):
        raise unsupported(
            backbone,
            "its code is not part of transformers.",
            "Use a model type that transformers has, or register config and class under a model type of their own.",
        )
    if head == "new" and type(backbone.config) not in MODEL_MAPPING:
        reason = f"AutoModel has no model for its {type(backbone.config).__name__}."
        raise unsupported(backbone, reason, "Use a model that AutoModel loads.")
    for key in ("num_hidden_layers", "hidden_size"):
        if not isinstance(getattr(backbone.config.get_text_config(), key, None), int):
            raise unsupported(backbone, f"its config has no `{key}`.", "Use a backbone of equal transformer layers.")
    for key, value in vars(backbone.config).items():
        if "layerdrop" in key and isinstance(value, float) and value > 0:
            raise unsupported(
                backbone,
                f"its config has {key}={value}, which skips layers at random in training.",
                f"Pass `config_overrides={{{key!r}: 0.0}}`.",
            )


def prepare_backbone(backbone: PreTrainedModel, config: "FeedbackConfig") -> BackboneLayout:
    """Finds the layers of a backbone, keeps those that `backbone_layers` names, and puts the hooks on them.

    Raises:
        UnsupportedBackboneError: it is not a stack of layers, or cannot be cut to `backbone_layers`.
        ValueError: the edges do not fit its layers.
    """
    check_static(backbone, config.head)
    part = name_of_part(backbone, config.backbone_part)
    stack = find_stack(backbone, cast(int, config.num_backbone_layers), part)
    if config.backbone_layers is not None:
        keep_layers(backbone, stack, config.backbone_layers)
    num_layers = cast(int, config.num_hidden_layers)
    layout = BackboneLayout(
        part=part,
        stack=stack,
        num_layers=num_layers,
        looped_range=looped_range_of(config.edges(num_layers)),
        arguments=forward_arguments(backbone),
        has_cache=bool(without_cache(backbone)),
    )
    install_hooks(layout.layers(backbone))
    return layout
