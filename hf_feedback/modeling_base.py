"""What all feedback models share: the parts they are built of, and the switches."""

import copy
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .backbones import (
    check_static,
    drop_pooler,
    find_final,
    find_layers,
    find_row_places,
    forward_arguments,
    is_decoder,
    keep_layers,
    layers_in_order,
    max_positions,
    no_cache,
    place_of_part,
    probe,
    reads_causally,
    select_part,
    takes_a_larger_batch,
)
from .configuration_feedback import BUILT_IN, EDGE_OPTIONS, FeedbackConfig
from .connections import FeedbackConnections
from .maps import init_map
from .modeling_loop import LoopedModel
from .recorder import eagerly, install_hooks
from .segments import Cutting, Segments
from .summary import summarize
from .topology import segment

logger = logging.get_logger(__name__)

_DISABLED: ContextVar[frozenset[int]] = ContextVar("hf_feedback_disabled", default=frozenset())


class _DisabledWhenCompiled(threading.local):
    """The same for compiled graphs, which cannot read a context variable: each thread's number is a guard of theirs."""

    def __init__(self) -> None:  # once in every thread
        self.models: frozenset[int] = frozenset()


_COMPILED = _DisabledWhenCompiled()


class FeedbackPreTrainedModel(LoopedModel):
    """What all feedback models share: their parts and the switches.

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
    # How many labels the backbone's own head must have, where that does not depend on the data.
    _num_outputs_of_own_head: int | None = None
    # Whether there is one answer, `(B, num_labels)`, for each row of the batch.
    _answers_once = False
    # Whether it answers for a text that is cut into segments.
    _answers_segments = False
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
        if config.feedback_span == "segment" and not self._answers_segments:
            raise ValueError(
                f"`feedback_span='segment'` is for FeedbackForSequenceClassification; {type(self).__name__} does not "
                "answer once for a whole text."
            )
        if backbone is None:
            backbone = self._new_backbone(config)
        else:  # its weights are there already: nothing of it is to be initialized again
            for module in backbone.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]
        check_static(backbone)
        self.backbone = backbone
        if tied := backbone.all_tied_weights_keys:  # other libraries read them of the whole model
            self._tied_weights_keys = {f"backbone.{key}": f"backbone.{source}" for key, source in tied.items()}
        self.main_input_name = backbone.main_input_name
        self._part_name = place_of_part(backbone, config.backbone_part)
        self._stack_name = find_layers(backbone, cast(int, config.num_backbone_layers), self._part_name)
        if config.backbone_layers is not None:
            keep_layers(backbone, self._stack_name, config.backbone_layers)
        layers = self._layers()
        edges = config.edges(len(layers))
        self._segment = segment(edges)
        self._is_causal = self._must_stay_causal()
        if self._is_causal and "temporal" in config.feedback_type.split("+"):
            logger.warning_once(
                "`feedback_type`='temporal' goes without V here, which would tell the tokens of a backbone that reads "
                "from left to right of later ones; `feedback_future=True` allows that."
            )
        self.feedback = FeedbackConnections(config, edges, config.hidden_size, self._is_causal)
        self._backbone_arguments = forward_arguments(backbone)
        if self.feedback.reads_classes and not self._answers_once:
            raise ValueError(
                f"`feedback_context='classes'` needs a model with one answer for each text or image; "
                f"{type(self).__name__} gives none. Use `feedback_context='state'`."
            )
        if config.feedback_span == "segment" and "attention_mask" not in self._backbone_arguments:
            raise ValueError(
                f"`feedback_span='segment'` needs a backbone that takes an `attention_mask`; {type(backbone).__name__} "
                "does not, and would read the padding of a text's last segment."
            )
        self._no_cache = no_cache(backbone)
        if config.head == "backbone" and self._no_cache:  # some task models do not pass the argument on
            backbone.config.get_text_config().use_cache = False
        self._stacks, self._row_places = False, None
        self._final: list[str] | None = None
        self._batch_dim: int | None = None  # of the layers' hidden states; the probe finds it out
        self._built_with = {name: copy.deepcopy(getattr(config, name)) for name in BUILT_IN}
        self._edges, self._checked_options = edges, copy.deepcopy(config.options())
        install_hooks(layers)
        self.probe_backbone()

    def init_parallel_plans(self) -> None:
        """As in transformers; the plan for FSDP has the looped layers of every family, and no rule that names nothing.
        Layers that are shared cannot be put away between two of their calls: they have none."""
        super().init_parallel_plans()
        modules, plan, layers = dict(self.named_modules()), cast(dict[str, str], self._fsdp_plan), self._layers()
        self._fsdp_plan = {name: style for name, style in plan.items() if name.removesuffix(".*") in modules}
        if len(set(layers)) == len(layers):
            self._fsdp_plan[f"backbone.{self._stack_name}.*"] = "free_full_weight"

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
            if self._num_outputs_of_own_head:
                backbone_config.num_labels = self._num_outputs_of_own_head
            return self._backbone_task_class.from_config(backbone_config)
        return drop_pooler(select_part(AutoModel.from_config(backbone_config), config.backbone_part))

    def _must_stay_causal(self) -> bool:
        """Whether messages must not tell a token of later ones; the config says so ever after, whichever class loads
        it.

        Raises:
            ValueError: the operator cannot do without.
        """
        config = self.config
        if config.feedback_future == "auto":
            part = cast(PreTrainedModel, self.backbone.get_submodule(self._part_name))
            whole_config = cast(PreTrainedConfig, config.backbone_config)
            config.feedback_future = self._answers_texts or not reads_causally(part, whole_config, config.backbone_part)
        causal = not config.feedback_future
        whole = "feedback_span='segment'" if config.feedback_span == "segment" else "feedback_type='context'"
        if causal and (config.feedback_span == "segment" or "context" in config.feedback_type.split("+")):
            raise ValueError(
                f"`{whole}` speaks to every token of the whole text, which tells the early tokens of a "
                "decoder of later ones; allow that with `feedback_future=True`, or use 'attention' or 'temporal'."
            )
        return causal

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether transformers must not rely on `_init_weights`, as it may on ours. Of custom code it skips the modules
        that own no weights, by which some families initialize the modules inside of them."""
        return cls._init_weights is not FeedbackPreTrainedModel._init_weights

    def _init_weights(self, module: nn.Module) -> None:
        if not init_map(module):
            super()._init_weights(module)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._save_to_state_dict(*args, **kwargs)
        adapters = getattr(self, "peft_config", {}).values()
        if adapters and not (self.name_or_path or all(adapter.base_model_name_or_path for adapter in adapters)):
            logger.warning_once(
                "These adapters belong to a feedback model that was not loaded from a folder: what PEFT saves of them "
                "names no model and holds no feedback options. Keep the options, to build the model again with "
                "`from_backbone`; or merge the adapters (`merge_and_unload`) and save the whole model."
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not hasattr(self, "peft_config"):
            return
        # PEFT loads without being strict: of other feedback it would take what fits
        own = {name: tensor.shape for name, tensor in self.feedback.state_dict(prefix=f"{prefix}feedback.").items()}
        theirs = {name: tensor.shape for name, tensor in state_dict.items() if name.startswith(f"{prefix}feedback.")}
        if other := sorted(name for name, shape in theirs.items() if own.get(name) != shape):
            config = self.config
            raise ValueError(
                f"These adapters were saved with other feedback than that of this model, which has `feedback_type`="
                f"{config.feedback_type!r}, `feedback_rank`={config.feedback_rank!r} and the edges {config.edges()}: "
                f"{other[0].removeprefix(prefix)} {tuple(theirs[other[0]])} does not fit. Build the model with the "
                "options that it had when they were saved."
            )

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
            layers, (first, last) = self._layers(), self._segment
            self._stacks = takes_a_larger_batch(self.backbone, part, layers, first, last, self._batch_dim)
            if self.config.head == "new" and last == len(layers) - 1:
                self._final = find_final(part, layers, last, self._batch_dim)

    def _find_row_places(self) -> list[Any] | None:
        part = cast(PreTrainedModel, self.backbone.get_submodule(self._part_name))
        return find_row_places(part, self._layers(), *self._segment)

    @property
    def cutting(self) -> Cutting | None:
        """How texts are cut into segments; `None` where they are not.

        Raises:
            ValueError: an option is missing, or there is no room in a segment.
        """
        config = self.config
        if config.feedback_span != "segment":
            return None
        most = max_positions(self.backbone, config.text_config)
        length = config.segment_length or most
        if most < length < math.inf:
            raise ValueError(f"`segment_length` must be at most {most}, what the backbone reads, got {length}.")
        if config.segment_special_tokens is None or length == math.inf:
            missing = "segment_length" if length == math.inf else "segment_special_tokens"
            raise ValueError(
                f"`{missing}` is not known and must be given"
                f"{': [1, 1] where a text is [CLS] … [SEP], [0, 0] for bare tokens' * (length != math.inf)}."
            )
        overlap = int(length) // 8 if config.segment_overlap is None else config.segment_overlap
        front, back = config.segment_special_tokens
        cutting = Cutting(int(length), overlap, (front, back), config.max_segments, config.pad_token_id or 0)
        if cutting.stride < 1:
            raise ValueError(
                f"`segment_length`={length} leaves no room beside {front + back} special tokens and an overlap of "
                f"{overlap}; raise it, or lower `segment_overlap`."
            )
        return cutting

    def _cut(self, tensors: dict[str, Any]) -> tuple[dict[str, Any], Segments | None]:
        cutting = self.cutting
        if cutting is None:
            return tensors, None
        cut, segments = eagerly(cutting.cut, tensors)  # how many rows there will be, no compiled graph can know
        needed = {"pad_token_id": self.config.pad_token_id, "input_ids": tensors.get("input_ids")}
        missing = [name for name, value in needed.items() if value is None]
        decoder = is_decoder(cast(PreTrainedConfig, self.config.backbone_config), self.config.backbone_part)
        if missing and cut is not tensors and self.config.head == "backbone" and decoder:
            raise ValueError(
                f"`{missing[0]}` is needed where a decoder's own head reads segments, to find the last token of each; "
                "give it, or use `head='new'`."
            )
        return cut, segments

    # Switches and checks

    def check_options_set_since(self) -> None:
        """Checks the options that were set on the config since the model was built.

        Raises:
            ValueError: one has a value that is not allowed, or that the modules were not made for.
        """
        config, options = self.config, self.config.options()
        if options == self._checked_options:
            return
        config.check_options()
        same_edges = config.edges(len(self._layers())) == self._edges
        for name, built in self._built_with.items():
            now = getattr(config, name)
            if now != built and not (same_edges and name in EDGE_OPTIONS):
                raise ValueError(
                    f"`{name}` was {built!r} when the model was built, which cannot become {now!r} now; set it back, "
                    "or build another model with it."
                )
        self._checked_options = copy.deepcopy(options)

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
        before, token = _COMPILED.models, _DISABLED.set(_DISABLED.get() | {id(self)})
        _COMPILED.models = before | {id(self)}
        try:
            yield
        finally:
            _COMPILED.models = before
            _DISABLED.reset(token)

    def _is_disabled(self) -> bool:
        return id(self) in (_COMPILED.models if torch.compiler.is_compiling() else _DISABLED.get())

    @torch.no_grad()
    def check_equivalence(self, batch: dict[str, Any]) -> float:
        """How far the model is from its bare backbone with the same head, in evaluation mode. With `"joint"` messages,
        which speak in iteration 1 too, that is so of K = 1 as well, once they have been trained.

        Args:
            batch: what `forward` takes, such as a tokenizer's output.

        Returns:
            The largest |Δ| of a logit (for `FeedbackModel`, of a hidden state). Exactly 0.0 for fresh feedback, whose
            two runs call the same kernels on the same batch; where `halting` sends texts on in a smaller batch, or the
            two are compiled apart, kernels may differ, and with them the last digits.
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
