"""What all feedback models share: the parts they are built of, the loop around the backbone, the switches."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import TransformersKwargs, logging

from .backbones import (
    check_static,
    drop_pooler,
    find_layers,
    forward_arguments,
    is_decoder,
    keep_layers,
    layers_in_order,
    no_cache,
    place_of_part,
    probe,
    select_part,
    takes_a_larger_batch,
)
from .configuration_feedback import FeedbackConfig
from .connections import FeedbackConnections, Reading
from .dynamics import IterationTrace
from .equilibrium import contraction, converge
from .loop import Loop, iterate
from .maps import init_map
from .recorder import Run, hidden_of, install_hooks, recording, with_hidden
from .summary import summarize
from .topology import segment

logger = logging.get_logger(__name__)

# What every backbone's `forward` may get besides the arguments that it names.
COMMON_ARGUMENTS = frozenset(TransformersKwargs.__annotations__)

_DISABLED: ContextVar[frozenset[int]] = ContextVar("hf_feedback_disabled", default=frozenset())


class FeedbackPreTrainedModel(PreTrainedModel):
    """What all feedback models share: their parts, the loop, and the switches.

    `model.backbone` is the transformers model, its names and keys untouched; `model.feedback` holds the connections.
    """

    config_class = FeedbackConfig
    config: FeedbackConfig
    backbone: PreTrainedModel
    feedback: FeedbackConnections
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The auto class of the backbone when `head="backbone"`; a class without one takes the plain backbone.
    _backbone_task_class: Any = None
    # Whether the head's outputs are the labels of the config.
    _labelled = True
    # Whether the answer is about a whole text or its tokens, all of which are there from the start.
    _answers_texts = True

    def __init__(self, config: FeedbackConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ValueError(
                f"{type(self).__name__} needs a config with a `backbone_config`; use "
                f"`{type(self).__name__}.from_backbone(...)` to start from a pretrained backbone."
            )
        config.check_options()
        if backbone is None:
            backbone = self._new_backbone(config)
        else:  # its weights are there already: nothing of it is to be initialized again
            for module in backbone.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]
        check_static(backbone)
        self.backbone = backbone
        self.main_input_name = backbone.main_input_name
        self._part_name = place_of_part(backbone, config.backbone_part)
        self._stack_name = find_layers(backbone, cast(int, config.num_backbone_layers), self._part_name)
        if config.backbone_layers is not None:
            keep_layers(backbone, self._stack_name, config.backbone_layers)
        layers = self._layers()
        edges = config.edges(len(layers))
        self._segment = segment(edges)
        self._is_causal = self._must_stay_causal()
        self.feedback = FeedbackConnections(config, edges, config.hidden_size, self._is_causal)
        self._backbone_arguments = forward_arguments(backbone)
        self._no_cache = no_cache(backbone)
        if config.head == "backbone" and self._no_cache:  # some task models do not pass the argument on
            backbone.config.get_text_config().use_cache = False
        self._disabled_compiled = 0
        self._stacks = False
        self._batch_dim: int | None = None  # of the layers' hidden states; the probe finds it out
        install_hooks(layers)
        self.probe_backbone()

    def _new_backbone(self, config: FeedbackConfig) -> PreTrainedModel:
        backbone_config = cast(PreTrainedConfig, config.backbone_config)
        if config.backbone_layers is not None:  # it is going to be changed with the layers
            backbone_config = copy.deepcopy(backbone_config)
        if config.head == "backbone":
            if self._backbone_task_class is None:
                raise ValueError(
                    f"{type(self).__name__} has no head of the backbone's own; `head='backbone'` is for the models "
                    "with a task head, such as FeedbackForSequenceClassification."
                )
            if self._labelled:
                backbone_config.id2label, backbone_config.label2id = config.id2label, config.label2id
            return self._backbone_task_class.from_config(backbone_config)
        return drop_pooler(select_part(AutoModel.from_config(backbone_config), config.backbone_part))

    def _must_stay_causal(self) -> bool:
        """Whether messages must not tell a token of later ones; where that is the question, the config says so ever
        after, whichever class loads it.

        Raises:
            ValueError: the operator cannot do without.
        """
        config = self.config
        if not is_decoder(cast(PreTrainedConfig, config.backbone_config), config.backbone_part):
            return False
        if config.feedback_future == "auto":
            config.feedback_future = self._answers_texts
        causal = not config.feedback_future
        if causal and "context" in config.feedback_type.split("+"):
            raise ValueError(
                "`feedback_type='context'` speaks to every token of the whole text, which tells the early tokens of a "
                "decoder of later ones; allow that with `feedback_future=True`, or use 'attention' or 'temporal'."
            )
        return causal

    def _init_weights(self, module: nn.Module) -> None:
        if not init_map(module):
            super()._init_weights(module)

    # The loop

    def _layers(self) -> list[nn.Module]:
        stack = cast(nn.ModuleList, self.backbone.get_submodule(self._stack_name))
        return layers_in_order(stack, cast(int, self.config.num_hidden_layers))

    def probe_backbone(self) -> None:
        """Checks on a tiny batch that the backbone can be replayed exactly.

        Raises:
            UnsupportedBackboneError: it cannot; says why and what to do.
        """
        if not any(parameter.is_meta for parameter in self.backbone.parameters()):
            part = cast(PreTrainedModel, self.backbone.get_submodule(self._part_name))
            self._batch_dim = probe(part, self._layers(), *self._segment)
            # whether what follows the segment takes the states of several iterations as one larger batch
            whole = self.config.head == "new" and part is self.backbone
            self._stacks = whole and takes_a_larger_batch(part, self._layers(), *self._segment, self._batch_dim)

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
        if isinstance(num_iterations, bool) or not isinstance(num_iterations, int) or num_iterations < 1:
            raise ValueError(f"`num_iterations` must be an integer of at least 1, got {num_iterations!r}.")
        return num_iterations

    def _run(
        self, num_iterations: int | None, notes: bool, stacks: bool = False, **tensors: Any
    ) -> tuple[Any, IterationTrace | None, dict[str, Any]]:
        """K iterations.

        Args:
            num_iterations: K; the config's by default.
            notes: whether to note the states of each iteration.
            stacks: whether the backbone's output may be of all iterations at once (then `trace.stacked` is true).
            **tensors: what `forward` was called with.

        Returns:
            The backbone's own output, the notes, and what the backbone was called with.
        """
        k = self._iterations(num_iterations)
        inputs = self._inputs(**tensors)
        if self._batch_dim is None and not torch.compiler.is_compiling():  # weights came after the model was built
            self.probe_backbone()
        trace = IterationTrace(tensors.get("attention_mask"), self._batch_dim) if notes else None
        if trace and stacks and self._stacks and not _collects(inputs):
            trace.stacked = True
        return self._run_backbone(inputs, k, trace, tensors), trace, inputs

    def _run_backbone(
        self, inputs: dict[str, Any], num_iterations: int, trace: IterationTrace | None, given: dict[str, Any]
    ) -> Any:
        """The backbone's own output after K iterations.

        Args:
            inputs: what the backbone is called with.
            num_iterations: K.
            trace: takes notes of each iteration.
            given: what `forward` was called with.
        """
        first, last = self._segment
        adapts = self.feedback.adapts and not self._is_disabled()

        def on_segment(run: Run) -> Any:
            output = self._iterate(self._make_loop(run, inputs, given), num_iterations, trace)
            return with_hidden(output, trace.stack()) if trace and trace.stacked else output

        if num_iterations == 1 and trace is None and not adapts:
            run = None
        else:
            run = Run(
                self._layers(),
                first,
                last,
                on_segment=on_segment,
                keep=None if _collects(inputs) else set(map(int, self.feedback.sources)),
                on_input=(lambda layer, x: self.feedback.add(None, layer, x, Reading())) if adapts else None,
            )
        with recording(run):
            outputs = self.backbone(**inputs)
        if run is not None and len(run.segment) != last - first + 1:
            raise RuntimeError(
                "The backbone's layers did not report to the loop: they were replaced after the model was built. Build "
                "a new model with `from_backbone`."
            )
        if run is not None and num_iterations > 1:
            self._mend_collected(run, outputs, num_iterations)
        return outputs

    def _iterate(self, loop: Loop, num_iterations: int, trace: IterationTrace | None) -> Any:
        """Iterations 2 … K with the gradient that the config asks for."""
        config = self.config
        if config.gradient == "implicit":
            return converge(loop, num_iterations, config.fixed_point_tolerance, config.fixed_point_solver, trace)
        kept = {"full": None, "one_step": 1, "truncated": config.gradient_iterations}[config.gradient]
        return iterate(loop, num_iterations, kept, trace)

    def _make_loop(self, run: Run, inputs: dict[str, Any], given: dict[str, Any]) -> Loop:
        """The loop over a record.

        Args:
            run: its segment is complete.
            inputs: what the backbone was called with.
            given: what `forward` was called with.
        """
        believe = (lambda state: self._beliefs(inputs, given, state)) if self.feedback.reads_classes else None
        reading = self._reading(given.get("attention_mask"), run.entry)
        return Loop(run, self.feedback, reading, believe, self.config.feedback_state == "carry")

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
        """
        given = {key: value for key, value in self._on_device(batch).items() if key != "labels"}
        inputs = self._inputs(**{"output_hidden_states": False, "output_attentions": False, **given})
        k, found = self._iterations(num_iterations), []

        def on_segment(run: Run) -> None:
            found.append(contraction(self._make_loop(run, inputs, given), k, steps))

        training, keep = [module for module in self.modules() if module.training], set(map(int, self.feedback.sources))
        self.eval()
        try:
            with torch.no_grad(), recording(Run(self._layers(), *self._segment, on_segment, keep)):
                self.backbone(**inputs)
        finally:
            for module in training:
                module.training = True
        if (found[0] > 1).any():
            logger.warning(
                f"The loop expands on {int((found[0] > 1).sum())} of {len(found[0])} texts (by up to "
                f"{found[0].max():.2f} an iteration): more iterations will not settle. Train with a smaller "
                "`feedback_lr` or more weight decay, a smaller `feedback_scale`, or `feedback_damping` below 1."
            )
        return found[0]

    def _reading(self, mask: Any, entry: torch.Tensor) -> Reading:
        """What messages may know besides the states; `entry` is what entered the segment."""
        batch_dim = self._batch_dim or 0
        if not self.feedback.mixes_tokens:
            return Reading(batch_dim=batch_dim)
        if mask is not None:
            mask = self._real_tokens(mask, entry.shape[1 - batch_dim])
        return Reading(mask=mask, causal=self._is_causal, batch_dim=batch_dim)

    def _real_tokens(self, mask: Any, length: int) -> torch.Tensor | None:
        """`(B, T)`, true at real tokens. Recordings become shorter inside the backbone; transformers' audio families
        say how much."""
        shorten = getattr(self.backbone, "_get_feature_vector_attention_mask", None)
        if isinstance(mask, torch.Tensor) and mask.dim() == 3:  # the choices of a multiple choice are texts
            mask = mask.flatten(0, 1)
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            raise ValueError(
                f"`feedback_type`={self.config.feedback_type!r} needs an `attention_mask` of shape (batch, tokens); "
                "give one, or use `feedback_type='additive'`."
            )
        if mask.shape[1] != length:
            mask = None if shorten is None else shorten(length, mask)
        return None if mask is None else mask != 0

    def _beliefs(self, inputs: dict[str, Any], given: dict[str, Any], state: torch.Tensor) -> torch.Tensor:
        """`(B, C)`, what the model would answer if its segment ended in `state`."""
        raise ValueError("`feedback_context='classes'` needs a model with classes.")

    def _run_from(self, inputs: dict[str, Any], state: torch.Tensor) -> Any:
        """The backbone's own output when its segment ends in `state`, `(B, T, d)`."""

        def put(run: Run) -> Any:
            return with_hidden(run.segment[-1].output, state)

        with recording(Run(self._layers(), *self._segment, put)):
            return self.backbone(**inputs)

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
                    place = next(i for i, extra in enumerate(call.extras) if extra is attentions[call.layer])
                    attentions[call.layer] = call.output[1 + place]
            outputs[attentions_key] = tuple(attentions)

    def _collected_key(self, outputs: Any, name: str) -> str:
        """Where `hidden_states` or `attentions` of the looped layers are: whole encoder–decoders have two of each."""
        half = f"{'decoder' if self.config.backbone_part == 'decoder' else 'encoder'}_{name}"
        return half if half in outputs and name not in outputs else name

    def _collected(self, outputs: Any) -> dict[str, Any]:
        """`hidden_states` and `attentions` for our own output."""
        return {name: outputs.get(self._collected_key(outputs, name)) for name in ("hidden_states", "attentions")}

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

    # Switches and checks

    def set_num_iterations(self, num_iterations: int) -> None:
        """Sets K for all further calls; it is saved with the model.

        Raises:
            ValueError: K is not an integer of at least 1.
        """
        before, self.config.num_iterations = self.config.num_iterations, num_iterations
        try:
            self.config.check_options()
        except ValueError:
            self.config.num_iterations = before
            raise

    @contextmanager
    def feedback_disabled(self) -> Iterator[None]:
        """Context in which the model is its bare backbone (K = 1), for the current thread alone."""
        token = _DISABLED.set(_DISABLED.get() | {id(self)})
        self._disabled_compiled += 1
        try:
            yield
        finally:
            self._disabled_compiled -= 1
            _DISABLED.reset(token)

    def _is_disabled(self) -> bool:
        # A compiled graph cannot read a context variable; it is guarded on a plain number, which all threads share.
        if torch.compiler.is_compiling():
            return self._disabled_compiled > 0
        return id(self) in _DISABLED.get()

    @torch.no_grad()
    def check_equivalence(self, batch: dict[str, Any]) -> float:
        """How far the model is from its bare backbone with the same head, in evaluation mode.

        Args:
            batch: what `forward` takes, such as a tokenizer's output.

        Returns:
            The largest |Δ| of a logit (for `FeedbackModel`, of a hidden state). Exactly 0.0 for fresh feedback.
        """
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            inputs = {key: value for key, value in self._on_device(batch).items() if key != "labels"}
            looped = self(**inputs, return_dict=True)
            with self.feedback_disabled():
                bare = self(**inputs, return_dict=True)
        finally:
            for module in training:
                module.training = True
        keys = [key for key in looped if key.endswith("logits")] or ["last_hidden_state"]
        return max((looped[key].double() - bare[key].double()).abs().max().item() for key in keys)

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def feedback_summary(self, length: int = 128) -> str:
        """A table of the feedback edges with parameters and FLOPs, and totals beside the backbone's.

        Args:
            length: tokens of a text, for operators whose cost depends on it.
        """
        return summarize(self, length)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the backbone's own config follows where it is a copy (`backbone_layers`)."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.backbone.config.get_text_config().vocab_size = self.config.vocab_size
        return embeddings


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
