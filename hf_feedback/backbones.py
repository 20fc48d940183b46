"""Any transformers model as a backbone: find its layer stack, probe whether it can be replayed, say why when not."""

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from .recorder import (
    IndivisibleError,
    OutOfOrderError,
    Run,
    first_argument,
    hidden_of,
    recording,
    row_places,
    with_hidden,
)


class UnsupportedBackboneError(ValueError):
    """The backbone cannot be looped exactly; the message says why and what to do."""


def refuse(backbone: nn.Module, reason: str, remedy: str) -> UnsupportedBackboneError:
    """The error for a backbone that cannot be looped."""
    return UnsupportedBackboneError(
        f"{type(backbone).__name__} cannot be used as a feedback backbone: {reason} {remedy}"
    )


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether transformers has sharded its weights over several processes (`distributed_config`)."""
    return getattr(model, "_device_mesh", None) is not None


def is_decoder(config: PreTrainedConfig, part: str = "auto") -> bool:
    """Whether the backbone, or that half of it, reads from left to right as language models do."""
    if getattr(config, "is_encoder_decoder", False):
        return part == "decoder"
    next_token_only = (
        config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    return bool(getattr(config, "is_decoder", False)) or next_token_only


@torch.no_grad()
def reads_causally(backbone: PreTrainedModel, config: PreTrainedConfig, part: str = "auto") -> bool:
    """Whether no token of the backbone sees a later one, tried out on two tiny texts that differ in their last token.
    Where that cannot be (no token ids, no weights yet), what the config says counts; see `is_decoder`.

    Args:
        backbone: the half that `part` names.
        config: of the whole.
        part: which half.
    """
    if backbone.main_input_name != "input_ids" or any(parameter.is_meta for parameter in backbone.parameters()):
        return is_decoder(config, part)
    was_training = backbone.training
    backbone.eval()
    try:
        ids = probe_inputs(backbone)["input_ids"][:1].repeat(2, 1)
        ids[1, -1] = ids[0, 0] if ids[0, 0] != ids[0, -1] else ids[0, 1]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        one, other = backbone(**inputs, **no_cache(backbone)).last_hidden_state
        return torch.allclose(one[:-1], other[:-1], rtol=1e-5, atol=1e-6)
    except Exception:  # whatever it is, the probe says it with a reason
        return is_decoder(config, part)
    finally:
        backbone.train(was_training)


def select_part(backbone: PreTrainedModel, part: str) -> PreTrainedModel:
    """The backbone inside a model: without a head, and of an encoder–decoder the half that `backbone_part` names
    (`"auto"`: the encoder)."""
    while backbone.base_model is not backbone:
        backbone = cast(PreTrainedModel, backbone.base_model)
    # T5's encoder alone says that it is none; a model of that config would have both halves again
    if not (backbone.config.is_encoder_decoder or type(backbone.config).is_encoder_decoder):
        return backbone
    half = backbone.get_decoder() if part == "decoder" else backbone.get_encoder()
    if not isinstance(half, PreTrainedModel):
        raise refuse(
            backbone, f"its {type(half).__name__} is no transformers model by itself.", "Use another backbone."
        )
    return half


def place_of_part(model: PreTrainedModel, part: str) -> str:
    """The name inside a task model of the backbone whose layers are looped; empty where it is the model itself."""
    inner = select_part(model, part)
    return next(name for name, module in model.named_modules() if module is inner)


def place_of_core(model: PreTrainedModel, part: str) -> str:
    """The name inside a task model of everything below its head; empty where that is the model itself."""
    if model.base_model is model:
        return place_of_part(model, part)
    return next(name for name, module in model.named_modules() if module is model.base_model)


def drop_pooler(backbone: PreTrainedModel) -> PreTrainedModel:
    """Drops a pooler that nothing would read: distributed training refuses parameters without a gradient."""
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # type: ignore[assignment]
    return backbone


def find_layers(backbone: nn.Module, num_layers: int, within: str = "") -> str:
    """The name of the backbone's layer stack: its largest `ModuleList` of `num_layers` layers, or else of a divisor of
    that number, each layer then being called several times in a row (as in ALBERT).

    Args:
        backbone: a model, with or without a task head.
        num_layers: L.
        within: the module in which to look.

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
        raise refuse(
            backbone,
            f"it has no list of {num_layers} layers, the `num_hidden_layers` of its config.",
            "Use a backbone whose layers are a plain stack.",
        )
    return max(candidates, key=lambda name: (sizes[name][1], -len(name)))


def layers_in_order(stack: nn.ModuleList, num_layers: int) -> list[nn.Module]:
    """The layers in the order of the calls; a shared layer stands there once for each of its calls."""
    return [stack[i * len(stack) // num_layers] for i in range(num_layers)]


def keep_layers(backbone: PreTrainedModel, name: str, keep: list[int]) -> None:
    """Leaves only the layers `keep` in the stack called `name`, and says so in the backbone's own config.

    The config is replaced by a copy; per-layer lists in it (such as `layer_types`) are cut with the layers.
    """
    stack = cast(nn.ModuleList, backbone.get_submodule(name))
    total = len(stack)
    if keep[-1] >= total:
        raise refuse(backbone, "its layers are shared, so none can be left out.", "Leave `backbone_layers` out.")
    parent, _, attribute = name.rpartition(".")
    kept = nn.ModuleList(stack[i] for i in keep)
    setattr(backbone.get_submodule(parent), attribute, kept)
    for index, layer in enumerate(kept):  # a layer's place, by which it finds its slot in a cache
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index  # type: ignore[assignment]
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


def check_static(backbone: PreTrainedModel) -> None:
    """Refuses what the config alone shows to be impossible.

    Raises:
        UnsupportedBackboneError: it is no stack of layers of one width, or layers are skipped at random.
    """
    if backbone.config.model_type not in CONFIG_MAPPING:
        raise refuse(backbone, "its code is not part of transformers.", "Use a model type that transformers has.")
    for key in ("num_hidden_layers", "hidden_size"):
        if not isinstance(getattr(backbone.config.get_text_config(), key, None), int):
            raise refuse(backbone, f"its config has no `{key}`.", "Use a backbone of equal transformer layers.")
    for key, value in vars(backbone.config).items():
        if "layerdrop" in key and isinstance(value, float) and value > 0:
            raise refuse(
                backbone,
                f"its config has {key}={value}, which skips layers at random in training.",
                f"Pass `config_overrides={{{key!r}: 0.0}}`.",
            )


def _token_ids(config: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Two rows of eight tokens, the second one with two padding tokens."""
    ids = torch.randint(min(5, config.vocab_size - 1), config.vocab_size, (2, 8), generator=generator, device="cpu")
    if isinstance(pad := getattr(config, "pad_token_id", None), int):
        ids = torch.where(ids == pad, (ids + 1) % config.vocab_size, ids)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _pixels(config: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size, config.image_size)
    return {"pixel_values": torch.randn((2, config.num_channels, *size), generator=generator, device="cpu")}


def _waves(config: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    shape: tuple[int, ...] = (2, 4000)
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):  # spectra by the name of waves
        shape = (2, config.max_length, config.num_mel_bins)
    return {"input_values": torch.randn(shape, generator=generator, device="cpu")}


def _spectra(config: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
    return {"input_features": torch.randn(shape, generator=generator, device="cpu")}


# What a backbone reads, by the name of its main input: a tiny batch of two.
PROBE_INPUTS: dict[str, Callable[[Any, torch.Generator], dict[str, torch.Tensor]]] = {
    "input_ids": _token_ids,
    "pixel_values": _pixels,
    "input_values": _waves,
    "input_features": _spectra,
}


def probe_inputs(backbone: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A tiny batch of two for the backbone, on its device and in its dtype.

    Raises:
        UnsupportedBackboneError: what it reads is not known.
    """
    name = backbone.main_input_name
    if name not in PROBE_INPUTS:
        known = ", ".join(PROBE_INPUTS)
        raise refuse(backbone, f"its main input is `{name}`.", f"Use a backbone that reads one of {known}.")
    weight = next(backbone.parameters())
    try:
        inputs = PROBE_INPUTS[name](backbone.config.get_text_config(), torch.Generator("cpu").manual_seed(0))
    except (AttributeError, TypeError) as error:
        raise refuse(
            backbone, f"its config does not tell the size of its {name} ({error}).", "Use another backbone."
        ) from error
    return {k: v.to(weight.device, weight.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}


@torch.no_grad()
def probe(backbone: PreTrainedModel, layers: list[nn.Module], first: int, last: int) -> int:
    """Runs the backbone twice, the second time with the segment's input disturbed, and checks that replaying the
    first record from the disturbed input gives exactly the second run.

    Args:
        backbone: the model, its layers hooked.
        layers: the layer stack.
        first, last: the segment to be looped.

    Returns:
        Which dimension of the layers' hidden states is the batch: 0 nearly always, 1 in XLNet.

    Raises:
        UnsupportedBackboneError: layers are skipped or routed, something is computed between them, or another
            argument of theirs depends on the state.
    """
    was_training = backbone.training
    backbone.eval()
    try:
        inputs = probe_inputs(backbone)
        plain, entries = _recorded(backbone, layers, first, last, inputs, disturb=False)
        disturbed, again = _recorded(backbone, layers, first, last, inputs, disturb=True)
        if not _same_arguments(entries, again):
            raise refuse(backbone, "it draws random numbers in evaluation mode.", "Switch that off in its config.")
        width = backbone.config.get_text_config().hidden_size
        if entries[0].dim() != 3 or entries[0].shape[-1] != width:
            shape = tuple(entries[0].shape)
            raise refuse(
                backbone, f"its layers read {shape} and not (batch, tokens, {width}).", "Use another backbone."
            )
        _check_record(backbone, plain, disturbed)
        return 0 if plain.segment[0].hidden.shape[0] == 2 else 1
    finally:
        backbone.train(was_training)


@torch.no_grad()
def takes_a_larger_batch(
    model: PreTrainedModel,
    backbone: PreTrainedModel,
    layers: list[nn.Module],
    first: int,
    last: int,
    batch_dim: int,
) -> bool:
    """Whether the states of several iterations can go through what follows the segment in one call: through each layer
    one after the other, and through the rest as one larger batch. Tried out on the tiny batch of the probe, in
    evaluation mode.

    Args:
        model: the backbone, or the task model around it whose head answers.
        (the others): as in `probe`.
    """
    was_training = model.training
    model.eval()

    def other(run: Run) -> Any:
        return with_hidden(run.segment[-1].output, _disturbed(hidden_of(run.segment[-1].output)))

    def both(run: Run) -> Any:
        run.batch_dim, run.companions = batch_dim, [hidden_of(other(run))]
        return run.segment[-1].output

    try:
        inputs: dict[str, Any] = {**probe_inputs(backbone), **no_cache(model)}
        if "input_values" in inputs and "attention_mask" in forward_arguments(model):  # for heads that read it
            inputs["attention_mask"] = torch.ones_like(inputs["input_values"], dtype=torch.long)
        singly = []
        for change in (other, None):
            with recording(Run(layers, first, last, change)):
                singly.append(model(**inputs))
        with recording(Run(layers, first, last, both)):
            found = unstack(model(**inputs), 2)
    except Exception:  # whatever it says: the states are then handed over one by one
        return False
    finally:
        model.train(was_training)
    pairs = [
        (getattr(one, name), answer.get(name))
        for one, answer in zip(found, singly, strict=True)
        for name in ANSWERS
        if getattr(one, name) is not None
    ]
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


# What a head answers by, or is made of.
ANSWERS = ("last_hidden_state", "logits", "start_logits", "end_logits")


class IterationOutput:
    """What the backbone gave for one of several iterations; a plain class, which compiled graphs can build."""

    def __init__(self, answers: dict[str, torch.Tensor]) -> None:
        for name in ANSWERS:
            setattr(self, name, answers.get(name))


def unstack(outputs: Any, number: int) -> list[IterationOutput]:
    """The outputs of several iterations that went through as one larger batch, the first iteration first."""
    chunks = {name: outputs[name].chunk(number) for name in ANSWERS if outputs.get(name) is not None}
    return [IterationOutput({name: chunk[i] for name, chunk in chunks.items()}) for i in range(number)]


@torch.no_grad()
def find_final(backbone: PreTrainedModel, layers: list[nn.Module], last: int, batch_dim: int) -> list[str] | None:
    """What makes the backbone's last hidden state of the last layer's output, `last` being that layer.

    Returns:
        The names of modules that are called one after the other, in general a norm, at times with a dropout; `None`
        where it is anything else.
    """
    ends: list[torch.Tensor] = []
    names: list[str] = []
    was_training = backbone.training
    backbone.eval()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if ends and len(args) == 1 and args[0] is ends[-1] and getattr(output, "shape", None) == args[0].shape:
                names.append(name)
                ends.append(output)

        return hook

    def on_segment(run: Run) -> Any:
        ends.append(hidden_of(run.segment[-1].output))
        return run.segment[-1].output

    handles = [module.register_forward_hook(note(name)) for name, module in backbone.named_modules() if name]
    try:
        with recording(Run(layers, last, last, on_segment)):
            final = backbone(**probe_inputs(backbone), **no_cache(backbone)).last_hidden_state
    finally:
        backbone.train(was_training)
        for handle in handles:
            handle.remove()
    return names if torch.equal(ends[-1].transpose(0, batch_dim), final) else None


@torch.no_grad()
def find_row_places(
    backbone: PreTrainedModel, layers: list[nn.Module], first: int, last: int
) -> list[tuple[Any, Any]] | None:
    """Where the arguments of the segment's layers hold rows of the batch, found by running batches of two and three;
    `None` where that cannot be told."""
    runs = []
    was_training = backbone.training
    backbone.eval()
    try:
        two = probe_inputs(backbone)
        for inputs in (two, {name: torch.cat((value, value[:1])) for name, value in two.items()}):
            runs.append(Run(layers, first, last))
            with recording(runs[-1]):
                backbone(**inputs, **no_cache(backbone))
        calls = zip(runs[0].segment, runs[1].segment, strict=True)
        return [row_places((a.args, a.kwargs), (b.args, b.kwargs)) for a, b in calls]
    except IndivisibleError:
        return None
    finally:
        backbone.train(was_training)


def _recorded(
    backbone: PreTrainedModel, layers: list[nn.Module], first: int, last: int, inputs: dict[str, Any], disturb: bool
) -> tuple[Run, list[torch.Tensor]]:
    """The run, and what entered the segment before it was disturbed."""
    entries: list[torch.Tensor] = []
    run = Run(layers, first, last)
    keyword = first_argument(layers[first])

    def add_noise(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if run.position != first:  # a shared layer is called elsewhere too
            return args, kwargs
        hidden = args[0] if args else kwargs[keyword]
        entries.append(hidden)
        if disturb:
            hidden = _disturbed(hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, keyword: hidden})

    handle = layers[first].register_forward_pre_hook(add_noise, with_kwargs=True)
    try:
        with recording(run):
            output = backbone(**inputs, **no_cache(backbone))
    except OutOfOrderError as error:
        raise refuse(backbone, str(error), "") from error
    except Exception as error:
        reason = f"it failed on a tiny batch of {', '.join(inputs)} ({type(error).__name__}: {error})."
        raise refuse(backbone, reason, "Check that it runs by itself.") from error
    finally:
        handle.remove()
    if getattr(output, "last_hidden_state", None) is None:
        raise refuse(backbone, "its output has no `last_hidden_state`.", "Use the model that it is made of.")
    if run.position != len(layers):
        raise refuse(
            backbone,
            f"it called {run.position} of its {len(layers)} layers.",
            "Layers that are skipped or routed cannot be looped.",
        )
    return run, entries


def _disturbed(hidden: torch.Tensor) -> torch.Tensor:
    wave = torch.arange(hidden.numel(), device=hidden.device, dtype=torch.float32).sin().view_as(hidden)
    return hidden + wave.to(hidden.dtype)


def _check_record(backbone: PreTrainedModel, plain: Run, disturbed: Run) -> None:
    segment = plain.segment
    hint = "Confine feedback to layers without it (`feedback_layers`, `feedback_edges`) or use another backbone."
    for run in (plain, disturbed):
        for lower, upper in zip(run.segment, run.segment[1:], strict=False):
            if not torch.equal(hidden_of(lower.output), upper.hidden):
                raise refuse(
                    backbone,
                    f"it computes something between layers {lower.layer} and {upper.layer}, which a replay of the "
                    "layers would leave out.",
                    hint,
                )
    for one, other in zip(segment, disturbed.segment, strict=True):
        if not _same_arguments((one.args, one.kwargs), (other.args, other.kwargs)):
            raise refuse(
                backbone, f"an argument of layer {one.layer} depends on the hidden states of the layers below.", hint
            )
    hidden = disturbed.segment[0].hidden
    expected = hidden_of(disturbed.segment[-1].output)
    for call in segment:
        hidden = hidden_of(call.replay(hidden))
    error = (hidden.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-30)
    if not error <= 32 * torch.finfo(expected.dtype).eps:
        raise refuse(
            backbone, f"replaying its layers gives another result than running it (relative error {error:.1e}).", hint
        )


def _same_arguments(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same_arguments, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same_arguments(one[key], other[key]) for key in one)
    return type(one) is type(other)


def max_positions(model: nn.Module, config: PreTrainedConfig | None) -> float:
    """How many tokens a model reads at most, as its text config and its position embeddings tell; infinite where
    nothing does."""
    for name, module in model.named_modules():
        # families that count positions from the padding token on (RoBERTa) have fewer of them
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return cast(int, module.num_embeddings) - cast(int, module.padding_idx) - 1
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    return positions if positions > 0 else math.inf  # XLNet says -1


def forward_arguments(backbone: PreTrainedModel) -> frozenset[str]:
    """The names that the backbone's `forward` takes."""
    return frozenset(inspect.signature(backbone.forward).parameters)


def no_cache(backbone: PreTrainedModel) -> dict[str, bool]:
    """Iterations that shared a key–value cache would be silently wrong, so it is switched off."""
    takes = "use_cache" in forward_arguments(backbone) or hasattr(backbone.config.get_text_config(), "use_cache")
    return {"use_cache": False} if takes else {}
