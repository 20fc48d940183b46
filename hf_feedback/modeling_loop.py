"""From a call of `forward` to K iterations inside the backbone, and back to one output."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import TransformersKwargs, logging

from .backbones import is_sharded
from .configuration_feedback import FeedbackConfig, rules_of
from .connections import FeedbackConnections, Reading
from .dynamics import IterationTrace
from .equilibrium import contraction, converge, jacobian_penalty
from .halting import Halting
from .loop import Loop, States, iterate
from .modeling_outputs import select_states
from .recorder import Run, eagerly, hidden_of, recording, with_hidden
from .segments import Segments
from .validation import MOST_ITERATIONS, check_integer

logger = logging.get_logger(__name__)

# What every backbone's `forward` may get besides the arguments that it names.
COMMON_ARGUMENTS = frozenset(TransformersKwargs.__annotations__)


@dataclass
class Call:
    """What one call of `forward` is about.

    Args:
        given: what it was called with; texts that were cut are their segments, a row each.
        inputs: what the backbone is called with.
        segments: which text each row belongs to, where texts are cut.
        choices: how many rows belong to one question, in multiple choice.
        iterations: `(B,)`, how many each example took, where examples stop by themselves.
        penalty: on the loop's Jacobian, in training.
    """

    given: dict[str, Any]
    inputs: dict[str, Any]
    segments: Segments | None = None
    choices: int | None = None
    iterations: torch.Tensor | None = None
    penalty: torch.Tensor | None = None


class LoopedModel(PreTrainedModel):
    """A model that runs its backbone with K iterations of a segment of its layers."""

    config: FeedbackConfig
    backbone: PreTrainedModel
    feedback: FeedbackConnections
    _segment: tuple[int, int]
    _backbone_arguments: frozenset[str]
    _no_cache: dict[str, bool]
    _batch_dim: int | None
    _stacks: bool
    _final: list[str] | None
    _row_places: list[Any] | None
    _is_causal: bool

    def _layers(self) -> list[nn.Module]:
        """The backbone's layers in the order of the calls."""
        raise NotImplementedError

    def probe_backbone(self) -> None:
        """Finds out how the backbone can be looped."""
        raise NotImplementedError

    def _find_row_places(self) -> list[Any] | None:
        """Where the arguments of the segment's layers hold rows of the batch."""
        raise NotImplementedError

    def _is_disabled(self) -> bool:
        """Whether the bare backbone is to run."""
        raise NotImplementedError

    def check_options_set_since(self) -> None:
        """Checks the options that were set on the config since the model was built."""
        raise NotImplementedError

    def _iterations(self, num_iterations: int | None) -> int:
        """K for this call."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel is not supported; start one process per GPU instead, with `torchrun --nproc_per_node "
                "N` or `accelerate launch`."
            )
        if self._is_disabled():
            return 1
        if num_iterations is None:
            return self.config.num_iterations
        check_integer("num_iterations", num_iterations, 1, "1 is the plain backbone", MOST_ITERATIONS)
        return num_iterations

    def _run(
        self, num_iterations: int | None, notes: bool, stacks: bool = False, **tensors: Any
    ) -> tuple[Any, IterationTrace | None, Call]:
        """K iterations.

        Args:
            num_iterations: K; the config's by default.
            notes: whether to note the states of each iteration.
            stacks: whether the backbone's output may be of all iterations at once (then `trace.stacked` is true).
            **tensors: what `forward` was called with.

        Returns:
            The backbone's own output, the notes, and what the call was about.
        """
        if not torch.compiler.is_compiling():
            self.check_options_set_since()
        k = self._iterations(num_iterations)
        call = self._call(tensors)
        if self._batch_dim is None and not torch.compiler.is_compiling():  # weights came after the model was built
            self.probe_backbone()
        if self._row_places is None and self._halts() and not torch.compiler.is_compiling():
            self._row_places = self._find_row_places() or []
        trace = IterationTrace(self._batch_dim) if notes else None
        if trace:
            trace.segments = call.segments
            trace.stacked = stacks and self._stacks and not _collects(call.inputs)
        if self._halts() and call.inputs.get("output_attentions"):
            raise ValueError(
                f"`output_attentions` cannot be had with `halting`={self.config.halting!r}, where examples stop at "
                "iterations of their own; set `model.config.halting = 'none'` for it."
            )
        if self.training and self.config.jacobian_penalty > 0 and is_sharded(self):
            raise ValueError(
                f"`jacobian_penalty`={self.config.jacobian_penalty!r} differentiates twice, which a model that is "
                "sharded over processes (`distributed_config`) cannot do; set it to 0, or load the model without."
            )
        # what solves for a fixed point, or differentiates inside the loop, is no graph that can be compiled
        apart = k > 1 and (self.config.gradient == "implicit" or (self.training and self.config.jacobian_penalty > 0))
        if apart and torch.compiler.is_compiling():
            return eagerly(self._run_backbone, call, k, trace), trace, call
        return self._run_backbone(call, k, trace), trace, call

    def _call(self, tensors: dict[str, Any]) -> Call:
        """What a call of `forward` is about; texts are cut into segments where the config says so."""
        given, segments = self._cut(tensors)
        return Call(given, self._inputs(**given), segments)

    def _cut(self, tensors: dict[str, Any]) -> tuple[dict[str, Any], Segments | None]:
        """What `forward` was called with as rows of segments, and which text each is of, where texts are cut."""
        raise NotImplementedError

    def _run_backbone(self, call: Call, num_iterations: int, trace: IterationTrace | None) -> Any:
        """The backbone's own output after K iterations.

        Args:
            call: what it is about; takes down when examples stopped by themselves.
            num_iterations: K.
            trace: takes notes of each iteration.
        """
        first, last = self._segment
        on_input = self._on_input()

        def on_segment(run: Run) -> Any:
            run.batch_dim = self._batch_dim or 0
            output = self._iterate(self._make_loop(run, call), num_iterations, call, trace)
            if trace and trace.stacked:
                run.companions = trace.ends[:-1]
            return output

        if num_iterations == 1 and trace is None and on_input is None and not self._halts():
            run = None
        else:
            run = Run(
                self._layers(),
                first,
                last,
                on_segment=on_segment,
                keep=None if _collects(call.inputs) else set(map(int, self.feedback.sources)),
                on_input=on_input,
            )
        with recording(run):
            outputs = self.backbone(**call.inputs)
        if run is not None and len(run.segment) != last - first + 1:
            raise RuntimeError(
                "The backbone's layers did not report to the loop: they were replaced after the model was built. Build "
                "a new model with `from_backbone`."
            )
        if run is not None and run.replays:
            self._mend_collected(run, outputs, run.replays + 1)
        return outputs

    def _on_input(self) -> Callable[[int, torch.Tensor], torch.Tensor] | None:
        """What messages add in iteration 1, where operators speak without a source."""
        if not self.feedback.adapts or self._is_disabled():
            return None
        return lambda layer, x: self.feedback.add(None, layer, x, Reading())

    def _halts(self) -> bool:
        return self.config.halting != "none" and not self.training and not self._is_disabled()

    def _iterate(self, loop: Loop, num_iterations: int, call: Call, trace: IterationTrace | None) -> Any:
        """Iterations 2 … K with the gradient and the halting that the config asks for."""
        config = self.config
        mask = self._real_tokens(call.given.get("attention_mask"), loop.entry.shape[1 - (self._batch_dim or 0)])
        if trace:
            trace.mask = mask
        if self._halts():
            answers = any(rule != "convergence" for group in rules_of(config.halting) for rule in group)
            halting = Halting(config, loop, mask, (lambda end: self._answer_at(call, end)) if answers else None)
            output = iterate(loop, num_iterations, observe=trace, halting=halting)
            call.iterations = halting.iterations
            if trace:
                trace.iterations = halting.iterations
            return output
        penalizes = config.jacobian_penalty > 0 and num_iterations > 1 and self.training and torch.is_grad_enabled()
        latest: States = {}

        def note(k: int, h: States) -> None:
            latest.update(h)
            if trace:
                trace(k, h)

        observe = note if penalizes else trace
        if config.gradient == "implicit":
            output = converge(loop, num_iterations, config.fixed_point_tolerance, config.fixed_point_solver, observe)
        else:
            kept = {"full": None, "one_step": 1, "truncated": config.gradient_iterations}[config.gradient]
            output = iterate(loop, num_iterations, kept, observe)
        if penalizes:
            call.penalty = jacobian_penalty(loop, latest, mask)
        return output

    def _make_loop(self, run: Run, call: Call) -> Loop:
        """The loop over a record, its segment complete."""
        believe = (lambda state: self._beliefs(call, state)) if self.feedback.reads_classes else None
        reading = self._reading(call, run.entry)
        carries = self.config.feedback_state == "carry"
        return Loop(run, self.feedback, reading, believe, carries, self._row_places or None)

    def estimate_contraction(
        self, batch: dict[str, Any], num_iterations: int | None = None, steps: int = 12
    ) -> torch.Tensor:
        """How strongly the loop contracts on a batch: by which factor one more iteration shrinks a small difference
        between states after K. Above 1 the iterations run apart, which is warned of.

        Args:
            batch: what `forward` takes, such as a tokenizer's output.
            num_iterations: K; the config's by default.
            steps: of the power iteration.

        Returns:
            `(B,)`, an estimate of the spectral radius of the loop's Jacobian.

        Raises:
            ValueError: the model is sharded with FSDP, whose weights come together in `forward` alone.
        """
        if is_fsdp_managed_module(self):
            raise ValueError(
                "`estimate_contraction` cannot run on a model that is sharded with FSDP; load it without `fsdp_size`."
            )
        given = {key: value for key, value in self._on_device(batch).items() if key != "labels"}
        call = self._call({"output_hidden_states": False, "output_attentions": False, **given})
        k, found = self._iterations(num_iterations), []

        def on_segment(run: Run) -> None:
            found.append(contraction(self._make_loop(run, call), k, steps))

        training, keep = [module for module in self.modules() if module.training], set(map(int, self.feedback.sources))
        self.eval()
        try:
            run = Run(self._layers(), *self._segment, on_segment, keep, self._on_input())
            with torch.no_grad(), recording(run):
                self.backbone(**call.inputs)
        finally:
            for module in training:
                module.training = True
        expanding = found[0][found[0] > 1]  # no number where states are not finite
        if len(expanding):
            logger.warning(
                f"The loop expands on {len(expanding)} of {len(found[0])} texts (by up to "
                f"{expanding.max():.2f} an iteration): more iterations will not settle. Train with a smaller "
                "`feedback_lr` or more weight decay, a smaller `feedback_scale`, or `feedback_damping` below 1."
            )
        return found[0]

    def _reading(self, call: Call, entry: torch.Tensor) -> Reading:
        """What messages may know besides the states; `entry` is what entered the segment."""
        batch_dim, mask = self._batch_dim or 0, call.given.get("attention_mask")
        if not self.feedback.mixes_tokens:
            return Reading(batch_dim=batch_dim)
        real = None if mask is None else self._real_tokens(mask, entry.shape[1 - batch_dim])
        if real is None and (not isinstance(mask, torch.Tensor | None) or (mask is not None and mask.dim() > 3)):
            raise ValueError(
                f"`feedback_type`={self.config.feedback_type!r} needs an `attention_mask` of shape (batch, tokens); "
                "give one, or use `feedback_type='additive'`."
            )
        return Reading(mask=real, causal=self._is_causal, batch_dim=batch_dim, segments=call.segments)

    def _real_tokens(self, mask: Any, length: int) -> torch.Tensor | None:
        """`(B, T)`, true at real tokens, where the mask tells that. Recordings become shorter inside the backbone;
        transformers' audio families say how much."""
        shorten = getattr(self.backbone, "_get_feature_vector_attention_mask", None)
        if isinstance(mask, torch.Tensor) and mask.dim() == 3:  # the choices of a multiple choice are texts
            mask = mask.flatten(0, 1)
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            return None
        if mask.shape[1] != length:
            mask = None if shorten is None else shorten(length, mask)
        return None if mask is None else mask != 0

    def _answer_at(self, call: Call, state: torch.Tensor) -> torch.Tensor:
        """`(B, C)`, the logits if the segment ended in `state`."""
        option = f"halting={self.config.halting!r}" if self._halts() else "feedback_context='classes'"
        instead = "halting='convergence'" if self._halts() else "feedback_context='state'"
        raise ValueError(
            f"`{option}` needs a model with classes, one answer for each text or image; {type(self).__name__} gives "
            f"none. Use `{instead}`."
        )

    def _beliefs(self, call: Call, state: torch.Tensor) -> torch.Tensor:
        """`(B, C)`, what the model would believe if its segment ended in `state`."""
        logits = self._answer_at(call, state)
        if self.config.problem_type == "multi_label_classification":
            return logits.sigmoid()
        return logits if logits.shape[-1] == 1 else logits.softmax(-1)

    def _run_from(self, call: Call, state: torch.Tensor) -> Any:
        """The backbone's own output when its segment ends in `state`, `(B, T, d)`. Where nothing but a norm follows the
        segment, that alone is run."""
        if self._final is not None:
            for name in self._final:
                state = self.backbone.get_submodule(name)(state)
            return BaseModelOutput(last_hidden_state=state.transpose(0, self._batch_dim or 0))

        def put(run: Run) -> Any:
            return with_hidden(run.segment[-1].output, state)

        with recording(Run(self._layers(), *self._segment, put)):
            return self.backbone(**call.inputs)

    def _mend_collected(self, run: Run, outputs: Any, num_iterations: int) -> None:
        """Makes `hidden_states` and `attentions` those of the last iteration, one for each layer.

        transformers appends at every call of a layer, replays included; some families collect in a loop of their own,
        which sees iteration 1 only.
        """
        first, calls = run.first, run.segment
        states_key, attentions_key = (self._collected_key(outputs, name) for name in ("hidden_states", "attentions"))
        if outputs.get(states_key) is not None:
            states = _without_replays(outputs[states_key], len(run.layers) + 1, first + 1, calls, num_iterations)
            for call in calls[:-1]:
                state = hidden_of(call.output)
                states[call.layer + 1] = state.transpose(0, 1) if self._batch_dim == 1 else state
            outputs[states_key] = tuple(states)
        if outputs.get(attentions_key):  # empty where the attention implementation gives none
            replayed = len(outputs[attentions_key]) > len(run.layers)
            attentions = _without_replays(outputs[attentions_key], len(run.layers), first, calls, num_iterations)
            if not replayed:
                for call in calls[:-1]:
                    places = [i for i, extra in enumerate(call.extras) if extra is attentions[call.layer]]
                    if len(places) != 1:
                        raise RuntimeError(
                            f"{type(self.backbone).__name__} does not hand on its layers' attentions as they are; call "
                            "it without `output_attentions`."
                        )
                    place = places[0]
                    attentions[call.layer] = call.output[1 + place]
            outputs[attentions_key] = tuple(attentions)

    def _collected_key(self, outputs: Any, name: str) -> str:
        """Where `hidden_states` or `attentions` of the looped layers are: whole encoder–decoders have two of each."""
        half = f"{'decoder' if self.config.backbone_part == 'decoder' else 'encoder'}_{name}"
        return half if half in outputs and name not in outputs else name

    def _collected(self, outputs: Any, call: Call) -> dict[str, Any]:
        """`hidden_states` and `attentions` for our own output."""
        found = {name: outputs.get(self._collected_key(outputs, name)) for name in ("hidden_states", "attentions")}
        if found["hidden_states"] is not None:
            found["hidden_states"] = select_states(found["hidden_states"], call.given.get("output_hidden_states"))
        return found

    def _inputs(self, output_hidden_states: Any, output_attentions: Any, **tensors: Any) -> dict[str, Any]:
        """What the backbone is called with: everything given that it takes.

        `token_type_ids` and `position_ids` that it does not know are dropped, as transformers does.
        """
        inputs = {key: value for key, value in tensors.items() if value is not None}
        if "past_key_values" in inputs:
            raise ValueError(
                "`past_key_values`: iterations cannot share a key–value cache, so prefix-tuning and cached decoding do "
                "not work with feedback; tune with LoRA or the feedback alone instead."
            )
        for key in list(inputs):
            if key in self._backbone_arguments or key in COMMON_ARGUMENTS:
                continue
            if key not in ("token_type_ids", "position_ids"):
                valid = sorted(
                    {"num_iterations", "output_iterations", *self._backbone_arguments} - {"kwargs", "labels"}
                )
                near = get_close_matches(key, valid, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"the backbone takes: {', '.join(valid)}."
                raise TypeError(f"{type(self).__name__}.forward got an unexpected argument `{key}`; {hint}")
            del inputs[key]
        if output_hidden_states or (output_hidden_states is None and self.config.output_hidden_states):
            inputs["output_hidden_states"] = True
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            inputs["output_attentions"] = True
        return {**inputs, **self._no_cache}

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _collects(inputs: dict[str, Any]) -> bool:
    return bool(inputs.get("output_hidden_states") or inputs.get("output_attentions"))


def _without_replays(collected: Any, expected: int, start: int, calls: list[Any], num_iterations: int) -> list[Any]:
    """Drops what was collected from all iterations but the last, counted from place `start`."""
    extra = len(collected) - expected
    # the segment's last layer replays inside its own call, so what hangs on the layer itself misses it
    if extra not in {0, (len(calls) - 1) * (num_iterations - 1), len(calls) * (num_iterations - 1)}:
        raise RuntimeError(
            f"The backbone collected {len(collected)} tensors where {expected} or a multiple of its replays was "
            "expected; call it without `output_hidden_states` and `output_attentions`."
        )
    return [*collected[:start], *collected[start + extra :]]
