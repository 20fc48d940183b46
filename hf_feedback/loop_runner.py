"""Runs the loop inside one call of the backbone, from its inputs to its output after K iterations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.utils import logging

from .backbone_layout import BackboneLayout
from .collected_states import asks_for_states, keep_last_iteration
from .configuration_feedback import FeedbackConfig
from .example_halting import ExampleHalting
from .feedback_connection import MessageContext
from .feedback_loop import FeedbackLoop, find_fixed_point, run_iterations
from .forward_context import ForwardContext, token_mask
from .gradients import GRADIENTS, FullGradient
from .halting import Halting, reads_answers
from .iteration_trace import IterationTrace, States, batch_first
from .layer_recorder import recording, run_uncompiled
from .loop_record import LayerOutput, LoopRecord, with_hidden
from .modeling_outputs import BackboneOutput, split_iterations
from .one_pass import run_in_one_pass
from .option_checks import check_halting
from .stability import estimate_contraction, jacobian_penalty
from .token_halting import TokenHalting

logger = logging.get_logger(__name__)


@dataclass
class LoopResult:
    """The result of K iterations.

    Args:
        output: the backbone's own output.
        trace: states of every iteration, on request.
        is_batched: whether `output` is that of all iterations as one larger batch.
        iterations: `(B,)`, number of iterations of each example, or `(B, T)`, of each token, with halting.
        penalty: penalty on the loop's Jacobian, in training.
    """

    output: Any = None
    trace: IterationTrace | None = None
    is_batched: bool = False
    iterations: torch.Tensor | None = None
    penalty: torch.Tensor | None = None

    def statistics(self) -> dict[str, torch.Tensor | None]:
        """`residuals` `(B, K − 1)` if a trace was kept, and `iterations`."""
        return {"iterations": self.iterations} if self.trace is None else {**self.trace.statistics(self.iterations)}


@dataclass(frozen=True)
class LoopRunner:
    """Runs the loop over a backbone. It holds no modules, since PEFT and others replace them, and no state of a call.

    Args:
        config: the feedback options, read in every call.
        layout: layout of the backbone.
    """

    config: FeedbackConfig
    layout: BackboneLayout

    def run(self, context: ForwardContext, keep_trace: bool = False, batch_iterations: bool = False) -> LoopResult:
        """K iterations.

        Args:
            context: inputs and settings of the call, K among them.
            keep_trace: whether to record the states of every iteration.
            batch_iterations: whether the backbone's output may be that of all iterations as one larger batch.

        Raises:
            ValueError: an option excludes an argument of the call.
            RuntimeError: the backbone was changed after the model was built.
        """
        config = self.config
        if self._halts(context) and context.backbone_inputs.get("output_attentions"):
            raise ValueError(
                f"`output_attentions` cannot be had with `halting`={config.halting!r}, where examples stop at "
                "iterations of their own; set `model.config.halting = 'none'` for it."
            )
        if self._penalizes(context) and context.is_sharded:
            raise ValueError(
                f"`jacobian_penalty`={config.jacobian_penalty!r} differentiates twice, which a model that is sharded "
                "over processes (`distributed_config`) cannot do; set it to 0, or load the model without."
            )
        result = LoopResult(trace=self._make_trace(context) if keep_trace else None)
        can_batch = self.layout.can_batch_iterations and not asks_for_states(context.backbone_inputs)
        result.is_batched = keep_trace and batch_iterations and can_batch
        # solving for a fixed point, or differentiating inside the loop, cannot be compiled
        solves = context.num_iterations > 1 and GRADIENTS[config.gradient].finds_fixed_point
        if (solves or self._penalizes(context)) and torch.compiler.is_compiling():
            run_uncompiled(self._run_backbone, context, result)
        else:
            self._run_backbone(context, result)
        return result

    def _halts(self, context: ForwardContext) -> bool:
        # tokens have nothing to stop in one iteration
        has_none = context.predicts_next_token and (context.cache is None or context.num_iterations == 1)
        return self.config.halting != "none" and not context.is_training and not context.is_disabled and not has_none

    def _penalizes(self, context: ForwardContext) -> bool:
        loops = context.num_iterations > 1 and context.is_training and torch.is_grad_enabled()
        return loops and self.config.jacobian_penalty > 0

    def _make_trace(self, context: ForwardContext) -> IterationTrace:
        return IterationTrace(self.layout.batch_dim, context.segments)

    def _run_backbone(self, context: ForwardContext, result: LoopResult) -> None:
        """Calls the backbone, with the iterations inside of it, and fills in the result."""
        if context.cache is not None and context.cache.state_slots:
            result.output = run_in_one_pass(
                context.backbone,
                self.layout.layers(context.backbone),
                self.layout.looped_range,
                context.feedback,
                context.backbone_inputs,
                context.attention_mask,
                context.cache,
            )
            return

        def on_last_layer(record: LoopRecord) -> LayerOutput:
            return self._iterate(self.make_loop(record, context), context, result)

        record = None
        acts = context.feedback.acts_in_first_iteration and not context.is_disabled
        if context.num_iterations > 1 or result.trace is not None or acts or self._halts(context):
            record = self._make_record(context, on_last_layer)
        with recording(record):
            result.output = context.backbone(**context.backbone_inputs)
        if record is None:
            return
        if len(record.calls) != record.last - record.first + 1:
            raise RuntimeError(
                "The backbone's layers did not report to the loop: they were replaced after the model was built. Build "
                "a new model with `from_backbone`."
            )
        if record.num_replays:
            keep_last_iteration(result.output, record, self.config.backbone_part)

    def _make_record(self, context: ForwardContext, on_last_layer: Callable[[LoopRecord], LayerOutput]) -> LoopRecord:
        feedback = context.feedback

        def on_input(layer: int, x: torch.Tensor) -> torch.Tensor:
            return feedback.add_messages(x, layer, None, self._message_context(context, x))

        return LoopRecord(
            self.layout.layers(context.backbone),
            self.layout.looped_range,
            on_last_layer,
            on_input if feedback.acts_in_first_iteration and not context.is_disabled else None,
            keep=None if asks_for_states(context.backbone_inputs) else set(feedback.source_layers),
            batch_dim=self.layout.batch_dim,
        )

    def _iterate(self, loop: FeedbackLoop, context: ForwardContext, result: LoopResult) -> LayerOutput:
        """Iterations 2 … K, as the config asks for; fills in the result."""
        if result.trace:
            result.trace.mask = loop.token_mask
        run = self._iterate_until_halted if self._halts(context) else self._iterate_to_the_end
        output = loop.output(run(loop, context, result))
        if result.trace and result.is_batched:
            loop.record.earlier_states = result.trace.outputs[:-1]
        if context.cache is not None:  # the layers above the loop run once
            context.cache.start_iteration(1)
        return output

    def _iterate_until_halted(self, loop: FeedbackLoop, context: ForwardContext, result: LoopResult) -> States:
        """Each example stops by itself, or each token where every one is answered."""
        config = self.config
        check_halting(config)  # options may have been set since the model was built
        logits_of_state = (lambda state: self._logits_at(context, state)) if reads_answers(config.halting) else None
        halting: Halting
        if context.cache is not None:
            halting = TokenHalting(config, loop, context.cache, logits_of_state)
        else:
            halting = ExampleHalting(config, loop, logits_of_state)
        states = run_iterations(loop, context.num_iterations, FullGradient(), result.trace, halting)
        result.iterations = halting.iterations
        return states

    def _iterate_to_the_end(self, loop: FeedbackLoop, context: ForwardContext, result: LoopResult) -> States:
        """All examples take K iterations, with the gradient that the config asks for."""
        config = self.config
        gradient = GRADIENTS[config.gradient](
            config.gradient_iterations, config.fixed_point_tolerance, config.fixed_point_solver
        )
        # the states of a token must not depend on when those of later tokens have settled
        each_by_itself = context.predicts_next_token and not context.is_training
        run = find_fixed_point if gradient.finds_fixed_point and not each_by_itself else run_iterations
        states = run(loop, context.num_iterations, gradient, result.trace)
        if self._penalizes(context):
            result.penalty = jacobian_penalty(loop, states)
        return states

    def make_loop(self, record: LoopRecord, context: ForwardContext) -> FeedbackLoop:
        """The loop over a complete record."""
        length = record.entry.shape[1 - self.layout.batch_dim]
        return FeedbackLoop(
            record,
            context.feedback,
            self._message_context(context, record.entry),
            token_mask(context.backbone, context.attention_mask, length),
            (lambda state: self._class_probabilities(context, state)) if context.feedback.reads_classes else None,
            carries=self.config.feedback_state == "carry",
            batch_axes=self.layout.batch_axes,
        )

    def _message_context(self, context: ForwardContext, entry: torch.Tensor) -> MessageContext:
        """Inputs of messages besides the states; `entry` is the input of the first looped layer."""
        batch_dim, mask = self.layout.batch_dim, context.attention_mask
        reads_mask = context.feedback.mixes_tokens or self.config.feedback_shift or context.cache is not None
        if not reads_mask:
            return MessageContext(batch_dim=batch_dim, cache=context.cache)
        length = entry.shape[1 - batch_dim]
        if context.cache is not None and isinstance(mask, torch.Tensor):
            length = mask.shape[1]  # of earlier tokens too
        real = None if mask is None else token_mask(context.backbone, mask, length)
        if context.cache is not None and not context.feedback.mixes_tokens:
            return MessageContext(mask=real, cache=context.cache)
        if real is None:
            self._check_no_mask_is_lost(context, length)
        return MessageContext(
            mask=real,
            packed_texts=self._packed_texts(context, entry.shape[batch_dim]),
            causal=self.layout.causal,
            batch_dim=batch_dim,
            segments=context.segments,
            cache=context.cache,
        )

    def _check_no_mask_is_lost(self, context: ForwardContext, length: int) -> None:
        """Raises `ValueError` where there is a mask from which one cannot tell which of the T tokens are padding."""
        mask, mixes_tokens = context.attention_mask, context.feedback.mixes_tokens
        if not isinstance(mask, torch.Tensor | None) or (mask is not None and mask.dim() > 3):
            reads = f"`feedback_type`={self.config.feedback_type!r}" if mixes_tokens else "`feedback_shift`=1"
            raise ValueError(
                f"{reads} needs an `attention_mask` of shape (batch, tokens); give one (beside another mask as "
                "`padding_mask`), or use `feedback_type='additive'` without `feedback_shift`."
            )
        if mask is not None and mixes_tokens:
            raise ValueError(
                f"`attention_mask` has {mask.shape[-1]} tokens, and the layers of {context.model_name} read {length}, "
                f"so that messages of `feedback_type`={self.config.feedback_type!r} would read padding. Where the "
                "backbone pads texts inside, pad them to that length (`pad_to_multiple_of` in the tokenizer's call), "
                "or use `feedback_type='additive'`."
            )

    def _packed_texts(self, context: ForwardContext, num_rows: int) -> torch.Tensor | None:
        """`(B, T)`, the number of the text of each token, where rows hold several; `None`: one each. As in the masks of
        transformers' decoders, a text ends where positions do not go on by one, in calls without a mask or a cache."""
        arguments, positions = context.forward_arguments, context.forward_arguments.get("position_ids")
        is_read = arguments.get("attention_mask") is None and context.cache is None and context.segments is None
        if not is_read or positions is None or positions.dim() != self.layout.packing_positions:
            return None
        texts = find_packed_sequence_indices((positions if positions.dim() == 2 else positions[0]).expand(num_rows, -1))
        if texts is not None and not context.feedback.separates_texts and not torch.compiler.is_compiling():
            raise ValueError(
                f"`position_ids` put several texts into one row, which messages of `feedback_type`="
                f"{self.config.feedback_type!r} do not keep apart; give each text a row of its own, or use 'additive', "
                "'gated', 'attention' or 'temporal'."
            )
        return texts

    def _class_probabilities(self, context: ForwardContext, state: torch.Tensor) -> torch.Tensor:
        """`(B, C)`, the answer if the loop ended in `state`."""
        logits = self._logits_at(context, state)
        if self.config.problem_type == "multi_label_classification":
            return logits.sigmoid()
        return logits if logits.shape[-1] == 1 else logits.softmax(-1)

    def _logits_at(self, context: ForwardContext, state: torch.Tensor) -> torch.Tensor:
        """`(B, C)`, or `(B, T, V)` where each token is answered: the logits if the loop ended in `state`."""
        halts = self._halts(context)
        if context.compute_logits is None:
            option = f"halting={self.config.halting!r}" if halts else "feedback_context='classes'"
            instead = "halting='convergence'" if halts else "feedback_context='state'"
            raise ValueError(
                f"`{option}` needs a model with classes, one answer for each text or image; {context.model_name} gives "
                f"none. Use `{instead}`."
            )
        if context.cache is not None and self.layout.looped_range[1] < self.layout.num_layers - 1:
            raise ValueError(
                f"`halting`={self.config.halting!r} reads the answer after every iteration, and layers above those "
                "that loop would need a cache for each; use 'convergence', or let a message start at the last layer."
            )
        if halts and self.layout.final_modules is None:
            logger.warning_once(
                f"`halting`={self.config.halting!r} reads the answer after every iteration, which costs a pass through "
                "the whole backbone each time where layers follow those that loop, and with `head='backbone'`; "
                "'convergence' does not."
            )
        return context.compute_logits(self.output_from(context, state), context)

    def output_from(self, context: ForwardContext, state: torch.Tensor) -> BackboneOutput:
        """The backbone's own output if the loop ends in `state`, `(B, T, d)`. If only a norm follows the loop, it
        alone is run."""
        if self.layout.final_modules is not None:
            for name in self.layout.final_modules:
                state = context.backbone.get_submodule(name)(state)
            state = batch_first(state, self.layout.batch_dim)
            if self.config.head == "backbone":
                return cast(BackboneOutput, CausalLMOutput(logits=cast(torch.FloatTensor, state)))
            return cast(BackboneOutput, BaseModelOutput(last_hidden_state=state))

        def on_last_layer(record: LoopRecord) -> LayerOutput:
            output = record.calls[-1].output
            return state if output is None else with_hidden(output, state)

        inputs = context.backbone_inputs
        if context.cache is not None:  # nothing above the loop reads earlier tokens, and nothing below it counts
            inputs = {key: inputs[key] for key in ("input_ids", "inputs_embeds") if key in inputs}
            inputs = {**inputs, "use_cache": False}
        record = LoopRecord(self.layout.layers(context.backbone), self.layout.looped_range, on_last_layer)
        with recording(record):
            return context.backbone(**inputs)

    def outputs_of_iterations(self, context: ForwardContext, result: LoopResult) -> Iterator[BackboneOutput]:
        """The backbone's output for every iteration of a result with a trace, one after the other; that of the last one
        alone without."""
        if result.trace is not None and result.is_batched:
            yield from split_iterations(result.output, len(result.trace.outputs))
            return
        for state in () if result.trace is None else result.trace.outputs[:-1]:
            yield self.output_from(context, self._kept(context, state))
        yield result.output

    def _kept(self, context: ForwardContext, state: torch.Tensor) -> torch.Tensor:
        """The tokens of a state, `(B, T, d)`, that the backbone's own head is to answer, where that alone is run."""
        keep = context.backbone_inputs.get("logits_to_keep", 0)
        if self.layout.final_modules is None or self.config.head != "backbone":
            return state
        return state[:, slice(-keep, None) if isinstance(keep, int) else keep]

    def estimate_contraction(self, context: ForwardContext, steps: int) -> torch.Tensor:
        """By which factor one more iteration shrinks a small difference between states after K iterations, `(B,)`; see
        `stability.estimate_contraction`."""
        estimates: list[torch.Tensor] = []

        def on_last_layer(record: LoopRecord) -> LayerOutput:
            loop = self.make_loop(record, context)
            estimates.append(estimate_contraction(loop, context.num_iterations, steps))
            return loop.output(loop.initial_states())

        with torch.no_grad(), recording(self._make_record(context, on_last_layer)):
            context.backbone(**context.backbone_inputs)
        return estimates[0]
