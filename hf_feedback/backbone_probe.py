"""Probe that checks on a tiny batch whether a backbone's layers can be replayed exactly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .backbone_layout import (
    BackboneLayout,
    forward_arguments,
    is_decoder,
    unsupported,
    without_cache,
)
from .batch_rows import find_batch_axes
from .evaluation_mode import evaluating, keeping_modules
from .layer_recorder import recording
from .loop_record import LayerArguments, LayerOutput, LoopRecord, OutOfOrderError, hidden_of
from .modeling_outputs import OUTPUT_FIELDS, split_iterations
from .probe_inputs import Batch, probe_inputs


def probe_backbone(
    backbone: PreTrainedModel, layout: BackboneLayout, head: str, predicts_next_token: bool = False
) -> BackboneLayout:
    """Checks on a tiny batch that the backbone can be replayed exactly, and completes its layout.

    Args:
        backbone: the model, its layers hooked; without weights yet, it is not tried out.
        layout: from `prepare_backbone`.
        head: the option of the config; `"backbone"` uses the backbone's own head.
        predicts_next_token: whether that head predicts for every token.

    Raises:
        UnsupportedBackboneError: layers are skipped or routed, something is computed between them, or another argument
            of theirs depends on the hidden states.
    """
    if head == "backbone" and getattr(backbone.config, "use_weighted_layer_sum", False):
        raise unsupported(
            backbone, "its own head sums the states of all layers (`use_weighted_layer_sum`).", "Use `head='new'`."
        )
    if any(parameter.is_meta for parameter in backbone.parameters()):
        return layout
    part, layers = layout.looped_model(backbone), layout.layers(backbone)
    with keeping_modules(backbone), evaluating(backbone):
        inputs = probe_inputs(part)
        plain, disturbed = _check_replay(part, layers, layout.looped_range, inputs)
        batch_dim = 0 if cast(torch.Tensor, plain.record.calls[0].hidden).shape[0] == 2 else 1
        answers = part if head == "new" else backbone if predicts_next_token else None
        ends_the_stack = layout.looped_range[1] == layout.num_layers - 1
        below, above = _modules_around(part, layers, inputs)
        prefix = f"{layout.part}." if layout.part else ""
        return replace(
            layout,
            is_probed=True,
            batch_dim=batch_dim,
            packing_positions=_find_packing_positions(part, inputs),
            modules_below=tuple(prefix + name for name in below),
            modules_above=tuple(prefix + name for name in above),
            can_batch_iterations=_can_batch_iterations(backbone, (disturbed, plain), batch_dim, inputs),
            final_modules=_find_final_modules(answers, layers, batch_dim, inputs)
            if answers and ends_the_stack
            else None,
            batch_axes=_find_batch_axes(part, plain.record, inputs),
        )


def check_padding_after_texts(backbone: PreTrainedModel, pad_token_id: int | None) -> None:
    """Checks on a tiny batch that the backbone's own head does not read padding after a text, as segments have it.

    Args:
        backbone: the model with its head; without weights yet, or where a text of random tokens cannot be answered, it
            is not tried out.
        pad_token_id: id of the padding; where there is none, `cut_texts` says what is missing.

    Raises:
        UnsupportedBackboneError: it does, as XLNet's, whose texts are padded before them.
    """
    if pad_token_id is None or any(parameter.is_meta for parameter in backbone.parameters()):
        return
    with keeping_modules(backbone), evaluating(backbone):
        inputs = probe_inputs(backbone)
        padding = inputs["attention_mask"] == 0
        inputs["input_ids"] = inputs["input_ids"].masked_fill(padding, pad_token_id)
        row, size = int(padding.any(1).int().argmax()), int((~padding).sum(1).min())
        try:
            padded = backbone(**inputs).logits[row]
            alone = backbone(**{name: value[row : row + 1, :size] for name, value in inputs.items()}).logits[0]
        except ValueError:  # BART's head reads the end of the text, which random tokens do not have
            return
    if not torch.allclose(padded, alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max())):
        raise unsupported(
            backbone, "its own head reads padding after a text, which cutting into segments adds.", "Use `head='new'`."
        )


def reads_causally(backbone: PreTrainedModel, config: PreTrainedConfig, part: str = "auto") -> bool:
    """Whether no token of the backbone sees a later one, tried out on two tiny texts that differ in their last token.
    If that cannot be done (no token ids, no weights yet), what the config says counts; see `is_decoder`.

    Args:
        backbone: the half that `part` names.
        config: config of the whole model.
        part: which half.
    """
    if backbone.main_input_name != "input_ids" or any(parameter.is_meta for parameter in backbone.parameters()):
        return is_decoder(config, part)
    try:
        with keeping_modules(backbone), evaluating(backbone):
            ids = probe_inputs(backbone)["input_ids"][:1].repeat(2, 1)
            ids[1, -1] = ids[0, 0] if ids[0, 0] != ids[0, -1] else ids[0, 1]
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            one, other = backbone(**inputs, **without_cache(backbone)).last_hidden_state
            return torch.allclose(one[:-1], other[:-1], rtol=1e-5, atol=1e-6)
    except Exception:  # whatever it is, `probe_backbone` raises it with a reason
        return is_decoder(config, part)


def disturb_states(hidden: torch.Tensor) -> torch.Tensor:
    """Returns other hidden states of the same shape."""
    wave = torch.arange(hidden.numel(), device=hidden.device, dtype=torch.float32).sin().view_as(hidden)
    return hidden + wave.to(hidden.dtype)


# Replaying


@dataclass(frozen=True)
class _Run:
    """One forward call of the model whose layers are looped.

    Args:
        backbone: that model.
        record: what its layers read and returned.
        entry: the hidden states that entered the looped layers, before they were disturbed.
        result: what the last looped layer returned.
        output: what the model answered.
    """

    backbone: PreTrainedModel
    record: LoopRecord
    result: LayerOutput
    output: ModelOutput


def _check_replay(
    backbone: PreTrainedModel, layers: list[nn.Module], looped_range: tuple[int, int], inputs: Batch
) -> tuple[_Run, _Run]:
    """Runs the backbone twice, the second time with the loop's input disturbed, and checks that replaying the first
    record from the disturbed input gives exactly the second run. Returns both."""
    plain = _record_run(backbone, layers, looped_range, inputs, disturb=False)
    disturbed = _record_run(backbone, layers, looped_range, inputs, disturb=True)
    if not _same_arguments(plain.record.entry, disturbed.record.entry):
        raise unsupported(backbone, "it draws random numbers in evaluation mode.", "Switch that off in its config.")
    width, shape = backbone.config.get_text_config().hidden_size, tuple(plain.record.entry.shape)
    if len(shape) != 3 or shape[-1] != width:
        reason = f"its layers read {shape} and not (batch, tokens, {width})."
        raise unsupported(backbone, reason, "Use another backbone.")
    _check_nothing_between(backbone, plain.record)
    _check_nothing_between(backbone, disturbed.record)
    _check_same_arguments(backbone, plain.record, disturbed.record)
    _check_same_result(backbone, plain.record, disturbed)
    return plain, disturbed


def _record_run(
    backbone: PreTrainedModel, layers: list[nn.Module], looped_range: tuple[int, int], inputs: Batch, disturb: bool
) -> _Run:
    """One call, with the hidden states that enter the looped layers as they are or disturbed."""

    def disturb_entry(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        return disturb_states(hidden) if disturb and layer == looped_range[0] else hidden

    record = LoopRecord(layers, looped_range, on_input=disturb_entry)
    try:
        with recording(record):
            output = backbone(**inputs, **without_cache(backbone))
    except OutOfOrderError as error:
        raise unsupported(backbone, str(error), "") from error
    except Exception as error:
        reason = f"it failed on a tiny batch of {', '.join(inputs)} ({type(error).__name__}: {error})."
        raise unsupported(backbone, reason, "Check that it runs by itself.") from error
    if getattr(output, "last_hidden_state", None) is None:
        raise unsupported(backbone, "its output has no `last_hidden_state`.", "Use the model that it is made of.")
    if record.position != len(layers):
        raise unsupported(
            backbone,
            f"it called {record.position} of its {len(layers)} layers.",
            "Layers that are skipped or routed cannot be looped.",
        )
    return _Run(backbone, record, cast(LayerOutput, record.calls[-1].output), output)


CONFINE = "Confine feedback to layers without it (`feedback_layers`, `feedback_edges`) or use another backbone."


def _check_nothing_between(backbone: PreTrainedModel, record: LoopRecord) -> None:
    for lower, upper in zip(record.calls, record.calls[1:], strict=False):
        if not _same_arguments(hidden_of(cast(LayerOutput, lower.output)), upper.hidden):
            raise unsupported(
                backbone,
                f"it computes something between layers {lower.layer} and {upper.layer}, which a replay of the layers "
                "would leave out.",
                CONFINE,
            )


def _check_same_arguments(backbone: PreTrainedModel, plain: LoopRecord, disturbed: LoopRecord) -> None:
    for one, other in zip(plain.calls, disturbed.calls, strict=True):
        if not _same_arguments((one.args, one.kwargs), (other.args, other.kwargs)):
            reason = f"an argument of layer {one.layer} depends on the hidden states of the layers below."
            if one.layer == plain.first:  # there before the layers ran, and changed by them
                reason = "its layers share what they compute, such as keys and values, in one of their arguments."
            raise unsupported(backbone, reason, CONFINE)


def _check_same_result(backbone: PreTrainedModel, plain: LoopRecord, disturbed: _Run) -> None:
    hidden = cast(torch.Tensor, disturbed.record.calls[0].hidden)
    expected = hidden_of(disturbed.result)
    for call in plain.calls:
        hidden = hidden_of(call.replay(hidden))
    error = (hidden.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-30)
    if not error <= 32 * torch.finfo(expected.dtype).eps:
        reason = f"replaying its layers gives another result than running it (relative error {error:.1e})."
        raise unsupported(backbone, reason, CONFINE)


def _same_arguments(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same_arguments, one, other))
    if isinstance(one, Mapping):  # some hold keys and values that lower layers write and higher ones read
        return one.keys() == other.keys() and all(_same_arguments(one[key], other[key]) for key in one)
    return type(one) is type(other)


# Texts in one row


def _find_packing_positions(backbone: PreTrainedModel, inputs: Batch) -> int | None:
    """See `BackboneLayout.packing_positions`; tried out with two texts in a row, of which the first is changed."""
    if "input_ids" not in inputs or "position_ids" not in forward_arguments(backbone):
        return None
    ids = inputs["input_ids"][:1]
    other = ids.clone()
    other[0, 0] = ids[0, -1] if ids[0, 0] != ids[0, -1] else ids[0, 1]
    half = ids.shape[1] // 2
    positions = torch.cat((torch.arange(half), torch.arange(ids.shape[1] - half)))[None].to(ids.device)
    for position_ids in (positions, positions.expand(4, 1, -1)):
        try:
            outputs = [
                backbone(input_ids=one, position_ids=position_ids, **without_cache(backbone)).last_hidden_state
                for one in (ids, other)
            ]
        except Exception:  # whatever it is: it does not read such positions
            continue
        if torch.allclose(outputs[0][:, half:], outputs[1][:, half:], rtol=1e-5, atol=1e-6):
            return position_ids.dim()
    return None


# What is around the layers


def _modules_around(
    backbone: PreTrainedModel, layers: list[nn.Module], inputs: Batch
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the modules that finish before the first layer begins, and of those that finish after the last layer
    and hold no layer."""
    record = LoopRecord(layers, (0, len(layers) - 1))
    finished: dict[str, int] = {}  # the number of layers that had run before

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: LayerArguments, output: Any) -> None:
            finished.setdefault(name, record.position)

        return hook

    in_layers = {module for layer in layers for module in layer.modules()}
    around = {name: module for name, module in backbone.named_modules() if in_layers.isdisjoint(module.modules())}
    handles = [module.register_forward_hook(note(name)) for name, module in around.items()]
    try:
        with recording(record):
            backbone(**inputs, **without_cache(backbone))
    finally:
        for handle in handles:
            handle.remove()
    below = tuple(name for name, position in finished.items() if position == 0)
    return below, tuple(name for name, position in finished.items() if position == len(layers))


# What follows the looped layers


def _can_batch_iterations(model: PreTrainedModel, runs: tuple[_Run, _Run], batch_dim: int, inputs: Batch) -> bool:
    """Whether the states of several iterations can go through what follows the loop in one call: through each layer one
    after the other, and through the rest as one larger batch.

    Args:
        model: the backbone, or the task model around it whose head answers.
        runs: runs of the model whose layers are looped, with different states after the looped layers.
        batch_dim: which dimension of the hidden states is the batch.
        inputs: those of the runs.
    """
    earlier, last = runs
    arguments: dict[str, Any] = {**inputs, **without_cache(model)}
    if model is not last.backbone and "input_values" in inputs and "attention_mask" in forward_arguments(model):
        arguments["attention_mask"] = torch.ones_like(inputs["input_values"], dtype=torch.long)  # some heads read it

    def answer(earlier_states: list[torch.Tensor], output: LayerOutput) -> ModelOutput:
        def on_last_layer(record: LoopRecord) -> LayerOutput:
            record.batch_dim, record.earlier_states = batch_dim, earlier_states
            return output

        with recording(LoopRecord(last.record.layers, (last.record.first, last.record.last), on_last_layer)):
            return model(**arguments)

    try:
        singly: list[Any] = [run.output if model is run.backbone else answer([], run.result) for run in runs]
        batched = split_iterations(answer([hidden_of(earlier.result)], last.result), 2)
    except Exception:  # whatever it is: the states then go through one by one
        return False
    pairs = [
        (getattr(one, name), expected.get(name))
        for one, expected in zip(batched, singly, strict=True)
        for name in OUTPUT_FIELDS
        if getattr(one, name) is not None
    ]
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def _find_final_modules(
    backbone: PreTrainedModel, layers: list[nn.Module], batch_dim: int, inputs: Batch
) -> tuple[str, ...] | None:
    """The names of the modules that make the backbone's last hidden state, or the logits of its own head, of the last
    layer's output, called one after the other: in general a norm, at times with a dropout, and a linear layer; `None`
    if it takes anything else."""
    states: list[torch.Tensor] = []
    names: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: LayerArguments, output: Any) -> None:
            follows = states and len(args) == 1 and _same_arguments(args[0], states[-1])
            if follows and isinstance(output, torch.Tensor) and output.shape[:-1] == states[-1].shape[:-1]:
                names.append(name)
                states.append(output)

        return hook

    def on_last_layer(record: LoopRecord) -> LayerOutput:
        output = cast(LayerOutput, record.calls[-1].output)
        states.append(hidden_of(output))
        return output

    last = len(layers) - 1
    handles = [module.register_forward_hook(note(name)) for name, module in backbone.named_modules() if name]
    outputs: ModelOutput
    try:
        with recording(LoopRecord(layers, (last, last), on_last_layer)):
            outputs = backbone(**inputs, **without_cache(backbone))
    finally:
        for handle in handles:
            handle.remove()
    final = outputs.get("last_hidden_state", outputs.get("logits"))
    same = final is not None and torch.equal(states[-1].transpose(0, batch_dim), final)
    return tuple(names) if same else None


def _find_batch_axes(backbone: PreTrainedModel, two: LoopRecord, inputs: Batch) -> tuple[Any, ...] | None:
    """Finds the positions of batch rows in the arguments of the looped layers, with a batch of three.

    Args:
        two: the record of the batch of two.
        inputs: that batch.
    """
    three = LoopRecord(two.layers, (two.first, two.last))
    larger = {name: torch.cat((value, value[:1])) for name, value in inputs.items()}
    try:
        with recording(three):
            backbone(**larger, **without_cache(backbone))
        calls = zip(two.calls, three.calls, strict=True)
        return tuple(find_batch_axes((a.args, a.kwargs), (b.args, b.kwargs)) for a, b in calls)
    except Exception:  # whatever it is: stopped examples then stay in the batch
        return None
