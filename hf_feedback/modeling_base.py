"""What all feedback models share: building and loading, the loop around the backbone, the switches."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import TransformersKwargs, logging

from .backbones import (
    check_static,
    find_layers,
    forward_arguments,
    keep_layers,
    no_cache,
    probe,
    select_part,
)
from .configuration_feedback import FeedbackConfig
from .connections import FeedbackConnections, init_connection_weights
from .loop import iterate
from .pooling import find_pooling
from .recorder import Run, hidden_of, install_hooks, recording
from .topology import segment

logger = logging.get_logger(__name__)

# The classes that a saved folder offers to `trust_remote_code=True`, whichever of them saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_feedback.FeedbackConfig",
    "AutoModel": "modeling_feedback.FeedbackModel",
    "AutoModelForSequenceClassification": "modeling_feedback.FeedbackForSequenceClassification",
}

HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "revision", "token", "trust_remote_code")

# What every backbone's `forward` may get besides the arguments that it names.
COMMON_ARGUMENTS = frozenset(TransformersKwargs.__annotations__)

_DISABLED: ContextVar[frozenset[int]] = ContextVar("hf_feedback_disabled", default=frozenset())


class FeedbackPreTrainedModel(PreTrainedModel):
    """What all feedback models share: building, loading, the loop, and the switches.

    `model.backbone` is the transformers model, its names and keys untouched; `model.feedback` holds the connections.
    """

    config_class = FeedbackConfig
    config: FeedbackConfig
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

    def __init__(self, config: FeedbackConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ValueError(
                f"{type(self).__name__} needs a config with a `backbone_config`; use "
                f"`{type(self).__name__}.from_backbone(...)` to start from a pretrained backbone."
            )
        if backbone is None:
            backbone = self._new_backbone(config)
        else:  # its weights are there already: nothing of it is to be initialized again
            for module in backbone.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]
        check_static(backbone)
        self.backbone = backbone
        self._stack_name = find_layers(backbone, config.text_config.num_hidden_layers)
        if config.backbone_layers is not None:
            keep_layers(backbone, self._stack_name, config.backbone_layers)
        layers = self._layers()
        edges = config.edges(len(layers))
        self._segment = segment(edges)
        self.feedback = FeedbackConnections(config, edges, config.hidden_size)
        self._backbone_arguments = forward_arguments(backbone)
        self._no_cache = no_cache(backbone)
        self._disabled_compiled = 0
        install_hooks(layers)

    def _new_backbone(self, config: FeedbackConfig) -> PreTrainedModel:
        backbone_config = config.backbone_config
        if config.backbone_layers is not None:  # it is going to be changed with the layers
            backbone_config = copy.deepcopy(backbone_config)
        if config.head == "backbone":
            if self._backbone_task_class is None:
                raise ValueError(
                    f"{type(self).__name__} has no head of the backbone's own; `head='backbone'` is for the models "
                    "with a task head, such as FeedbackForSequenceClassification."
                )
            return self._backbone_task_class.from_config(backbone_config)
        return self._without_pooler(select_part(AutoModel.from_config(backbone_config), config.backbone_part))

    @staticmethod
    def _without_pooler(backbone: PreTrainedModel) -> PreTrainedModel:
        """Drops a pooler that nothing would read: distributed training refuses parameters without a gradient."""
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # type: ignore[assignment]
        return backbone

    def _init_weights(self, module: nn.Module) -> None:
        if not init_connection_weights(module):
            super()._init_weights(module)

    # Building and loading

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        *,
        head: str = "new",
        backbone_kwargs: dict[str, Any] | None = None,
        config_overrides: dict[str, Any] | None = None,
        backbone_part: str = "auto",
        **feedback_options: Any,
    ) -> Self:
        """Adds fresh feedback to a pretrained backbone. In evaluation mode the result equals the backbone exactly.

        Args:
            backbone: a hub id, a local folder, or a transformers model (which is used as it is, not copied).
            head: `"new"` for a new pooling and classifier, `"backbone"` for the family's own task head.
            backbone_kwargs: passed to the backbone's `from_pretrained`: `dtype`, `attn_implementation`, `revision`, …
            config_overrides: options of the backbone's own config to change, such as `{"layerdrop": 0.0}`.
            backbone_part: the half of an encoder–decoder to use.
            **feedback_options: the options of `FeedbackConfig`, `num_labels` and `id2label` included.

        Raises:
            ValueError: an option is not allowed.
            UnsupportedBackboneError: the backbone cannot be looped exactly; says why.
            OSError: the folder or repository is missing or damaged.

        Example:

        ```python
        >>> from transformers import BertConfig, BertModel
        >>> from hf_feedback import FeedbackForSequenceClassification
        >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=3, num_iterations=2)
        >>> model.check_equivalence({"input_ids": torch.tensor([[5, 6, 7]])})
        0.0

        ```
        """
        config = FeedbackConfig(head=head, backbone_part=backbone_part, **feedback_options)
        backbone_kwargs = dict(backbone_kwargs or {})
        if not isinstance(backbone, PreTrainedModel):
            hub_kwargs = {key: backbone_kwargs[key] for key in HUB_KWARGS if key in backbone_kwargs}
            if config.pooling == "auto" and head == "new":
                config.pooling = find_pooling(backbone, **hub_kwargs) or "auto"
            backbone = cls._load_backbone(backbone, config, config_overrides, backbone_kwargs, hub_kwargs)
        elif config_overrides or backbone_kwargs:
            raise ValueError(
                "`config_overrides` and `backbone_kwargs` are for loading a backbone by name; set them on the model "
                f"that is passed instead (got a {type(backbone).__name__})."
            )
        elif head == "new":
            backbone = select_part(backbone.base_model, backbone_part)
        return cls._wrap(backbone, config)

    @classmethod
    def _load_backbone(
        cls,
        name: str | Path,
        config: FeedbackConfig,
        overrides: dict[str, Any] | None,
        backbone_kwargs: dict[str, Any],
        hub_kwargs: dict[str, Any],
    ) -> PreTrainedModel:
        backbone_config = AutoConfig.from_pretrained(name, **hub_kwargs)
        if isinstance(backbone_config, FeedbackConfig):
            raise ValueError(f"{str(name)!r} holds a feedback model already; load it with `from_pretrained`.")
        for key, value in (overrides or {}).items():
            if not hasattr(backbone_config, key):
                raise ValueError(f"`config_overrides`: {key!r} is not an option of {type(backbone_config).__name__}.")
            setattr(backbone_config, key, value)
        if config.head == "backbone":
            if cls._backbone_task_class is None:
                raise ValueError(f"`head='backbone'` needs a class with a task head; {cls.__name__} has none.")
            backbone_config.id2label, backbone_config.label2id = config.id2label, config.label2id
            return cls._backbone_task_class.from_pretrained(name, config=backbone_config, **backbone_kwargs)
        loaded = AutoModel.from_pretrained(name, config=backbone_config, **backbone_kwargs)
        return select_part(loaded, config.backbone_part)

    @classmethod
    def _wrap(cls, backbone: PreTrainedModel, config: FeedbackConfig) -> Self:
        """A feedback model around a loaded backbone; `config` has everything but the `backbone_config`."""
        if config.head == "new":
            cls._without_pooler(backbone)
        config.backbone_config = (
            backbone.config if config.backbone_layers is None else copy.deepcopy(backbone.config)
        )
        config.check_options()
        model = cls(config, backbone=backbone)
        for child in model.children():
            if child is not backbone:
                child.to(device=backbone.device, dtype=backbone.dtype)
        config.dtype = backbone.dtype
        model.probe_backbone()
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a saved feedback model; from the folder or repository of a plain backbone, does `from_backbone`.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            **kwargs: as in transformers; for a plain backbone, also the options of `from_backbone`.

        Raises:
            OSError: the weights are missing, damaged or belong to another model.
        """
        hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
        found, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
        if found.get("model_type") != FeedbackConfig.model_type:
            logger.warning(
                f"{pretrained_model_name_or_path} is a plain {found.get('model_type')} model: adding fresh feedback."
            )
            return cls._from_plain(pretrained_model_name_or_path, hub_kwargs, kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise OSError(
                f"The weights in {pretrained_model_name_or_path} are damaged or truncated ({error}); copy or download "
                "them again."
            ) from error
        missing = sorted(key for key in info["missing_keys"] if key.startswith(("backbone.", "feedback.")))
        if missing:
            raise OSError(
                f"The weights in {pretrained_model_name_or_path} do not belong to the config beside them: "
                f"{len(missing)} tensors are missing, among them {missing[0]}. Load the folder with the options it was "
                "saved with, or start anew with `from_backbone`."
            )
        model.probe_backbone()
        return (model, info) if wants_info else model

    @classmethod
    def _from_plain(cls, name: Any, hub_kwargs: dict[str, Any], kwargs: dict[str, Any]) -> Self:
        options = FeedbackConfig.option_names() | {"num_labels", "config_overrides"}
        mine = {key: value for key, value in kwargs.items() if key in options}
        rest = {key: value for key, value in kwargs.items() if key not in options}
        config = rest.pop("config", None)
        if isinstance(config, FeedbackConfig):
            mine = {**config.options(), **mine}
        return cls.from_backbone(name, backbone_kwargs={**rest, **hub_kwargs}, **mine)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; the folder also carries the code, for `trust_remote_code=True`."""
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)

    # The loop

    def _layers(self) -> list[nn.Module]:
        return list(self.backbone.get_submodule(self._stack_name))  # type: ignore[arg-type]

    def probe_backbone(self) -> None:
        """Checks on a tiny batch that the backbone can be replayed exactly.

        Raises:
            UnsupportedBackboneError: it cannot; says why and what to do.
        """
        if self.device.type != "meta":
            probe(self.backbone.base_model, self._layers(), *self._segment)

    def _iterations(self, num_iterations: int | None) -> int:
        """K for this call."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel copies the model without its hooks' order; start one process per GPU instead, with "
                "`torchrun --nproc_per_node N` or `accelerate launch`."
            )
        if self._is_disabled():
            return 1
        if num_iterations is None:
            return self.config.num_iterations
        if isinstance(num_iterations, bool) or not isinstance(num_iterations, int) or num_iterations < 1:
            raise ValueError(f"`num_iterations` must be an integer of at least 1, got {num_iterations!r}.")
        return num_iterations

    def _run_backbone(self, inputs: dict[str, Any], num_iterations: int, observe: Any = None) -> Any:
        """The backbone's own output after K iterations."""
        first, last = self._segment
        if num_iterations == 1 and observe is None:
            run = None
        else:
            collects = inputs.get("output_hidden_states") or inputs.get("output_attentions")
            run = Run(
                self._layers(),
                first,
                last,
                on_segment=lambda run: iterate(run, self.feedback, num_iterations, observe),
                keep=None if collects else {last, *map(int, self.feedback.sources)},
            )
        with recording(run):
            outputs = self.backbone(**inputs)
        if run is not None and num_iterations > 1:
            self._mend_collected(run, outputs, num_iterations)
        return outputs

    def _run_from(self, inputs: dict[str, Any], state: torch.Tensor) -> Any:
        """The backbone's own output when its segment ends in `state`, `(B, T, d)`."""

        def put(run: Run) -> Any:
            output = run.segment[-1].output
            return (state, *output[1:]) if isinstance(output, tuple) else state

        with recording(Run(self._layers(), *self._segment, put)):
            return self.backbone(**inputs)

    def _mend_collected(self, run: Run, outputs: Any, num_iterations: int) -> None:
        """Makes `hidden_states` and `attentions` those of the last iteration, one for each layer."""
        first, last, calls = run.first, run.last, run.segment
        if outputs.get("hidden_states") is not None:
            states = list(outputs.hidden_states)
            if len(states) > len(run.layers) + 1:
                states = _without_replays(states, first + 1, (last - first) * (num_iterations - 1))
            states[first + 1 : last + 1] = [hidden_of(call.output) for call in calls[:-1]]
            outputs.hidden_states = tuple(states)
        if outputs.get("attentions") is not None:
            replayed = (last - first + 1) * (num_iterations - 1)
            if len(outputs.attentions) > len(run.layers):
                outputs.attentions = tuple(_without_replays(outputs.attentions, first, replayed))
            else:  # the family collects them itself, from the layers' outputs in iteration 1
                attentions = list(outputs.attentions)
                for call in calls[:-1]:
                    place = next(i for i, extra in enumerate(call.extras) if extra is attentions[call.layer])
                    attentions[call.layer] = call.output[1 + place]
                outputs.attentions = tuple(attentions)

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
                valid = sorted({"num_iterations", "output_iterations", *self._backbone_arguments} - {"kwargs", "labels"})
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
        was_training = self.training
        self.eval()
        try:
            inputs = {
                key: value.to(self.device) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
                if key != "labels"
            }
            looped = self(**inputs, return_dict=True)
            with self.feedback_disabled():
                bare = self(**inputs, return_dict=True)
        finally:
            self.train(was_training)
        key = "logits" if "logits" in looped else "last_hidden_state"
        return (looped[key].double() - bare[key].double()).abs().max().item()

    def feedback_summary(self) -> str:
        """A table of the feedback edges with the parameters of each source, beside the backbone's."""
        total = sum(p.numel() for p in self.backbone.parameters())
        first, last = self._segment
        rows = [("source", "targets", "parameters")]
        for source, connection in self.feedback.sources.items():
            targets = [t for t, incoming in self.feedback.incoming.items() if int(source) in dict(incoming)]
            count = sum(p.numel() for p in connection.parameters())
            rows.append((f"layer {source}", ", ".join(map(str, sorted(targets))), f"{count:,}"))
        count = sum(p.numel() for p in self.feedback.parameters())
        rows.append(("all", f"layers {first} to {last} loop", f"{count:,} ({count / total:.2%} of the backbone)"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)


def _without_replays(collected: Any, start: int, count: int) -> list[Any]:
    return [*collected[:start], *collected[start + count :]]
