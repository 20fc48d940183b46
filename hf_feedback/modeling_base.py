"""Base of all feedback models: their parts, one call of `forward`, switches, loading and saving."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, logging

from .adapter_checks import check_adapters_fit, warn_of_adapters_without_folder, warn_of_frozen_feedback
from .backbone_layout import BackboneLayout, is_decoder, is_sharded, prepare_backbone
from .backbone_probe import check_padding_after_texts, probe_backbone
from .building import build_from_backbone, check_option_names, new_backbone, settle_causality
from .built_options import BuiltOptions
from .collected_states import collected_key
from .configuration_feedback import AUTO_MAP, FeedbackConfig, HeadOption, PartOption
from .cutting import Cutting, cut_texts, cutting_of
from .extra_losses import extra_losses
from .feedback_checkpoint import push_feedback, save_feedback
from .forward_context import ForwardContext, backbone_inputs
from .halting import reads_answers
from .iteration_cache import IterationCache
from .iteration_losses import ITERATION_LOSSES, check_targets_are_read, loss_of_iterations
from .layer_recorder import run_uncompiled
from .loading import load_pretrained
from .loop_runner import LoopResult, LoopRunner
from .model_checks import ModelChecks
from .model_connections import FeedbackConnections
from .modeling_outputs import BackboneOutput, FeedbackTaskOutput, select_states
from .operator_code import save_operator_code
from .pooling import Pooling, pool
from .predictor import PredictsMixin
from .segments import SegmentPooling, Segments
from .stacked_linear import on_device_of
from .summary import summarize
from .switches import disable_feedback, is_feedback_disabled
from .task_traits import TaskTraits
from .unlabelled_passes import warn_of_lost_losses
from .validation import MAX_ITERATIONS, Keywords, check_integer

logger = logging.get_logger(__name__)


class FeedbackPreTrainedModel(ModelChecks, PredictsMixin, PreTrainedModel):
    """Base class of all feedback models.

    `model.backbone` is the transformers model, its names and keys untouched; `model.feedback` holds the connections;
    `model.layout` describes the backbone. (`model.base_model` is, by transformers' rules, the whole model: freeze the
    backbone with `model.backbone.requires_grad_(False)`.) The iterations of a call are run by a `LoopRunner`.

    Args:
        config: the options, with a `backbone_config`. The model keeps it, and settles in it what is open, such as
            `head` and `feedback_future`; give every model one of its own.
        backbone: a model of that config, used as it is; a new one, without trained weights, if left out.

    Raises:
        ValueError: the config has no backbone, or an option does not fit this class.
        UnsupportedBackboneError: the backbone cannot be looped exactly; says why.
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
    traits: ClassVar[TaskTraits] = TaskTraits()

    def __init__(self, config: FeedbackConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self._check_config(config)
        if self.traits.predicts_next_token:
            config.head = self.traits.choose_head(config.head, cast(PreTrainedConfig, config.backbone_config))
        if backbone is None:
            backbone = new_backbone(type(self), config)
        else:  # its weights are there already: nothing of it is to be initialized again
            for module in backbone.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]
            # what its config says now: embeddings may have been untied since it was made
            backbone.all_tied_weights_keys = backbone.get_expanded_tied_weights_keys(all_submodels=True)
        self.layout: BackboneLayout = prepare_backbone(backbone, config)
        self.backbone: PreTrainedModel = backbone
        if tied := backbone.all_tied_weights_keys:  # other libraries read them of the whole model
            self._tied_weights_keys = {f"backbone.{key}": f"backbone.{source}" for key, source in tied.items()}
        self.main_input_name = backbone.main_input_name
        self.num_labels = config.num_labels
        causal = settle_causality(self.layout.looped_model(backbone), config, self.traits)
        self.layout = replace(self.layout, causal=causal)
        self.feedback = FeedbackConnections(config, config.edges(), config.hidden_size, causal)
        self._check_backbone(config)
        keeps_no_cache = self.layout.has_cache and not self.traits.predicts_next_token
        if config.head == "backbone" and keeps_no_cache:  # some task models do not pass the argument on
            backbone.config.get_text_config().use_cache = False
        if config.head == "new":
            self._make_head(config)
        # transformers finds the loss by the name of the class; a subclass may have any
        tasks = [one.__name__.removeprefix("Feedback") for one in type(self).__mro__]
        if task := next((task for task in tasks if task.startswith("For")), None):
            self.loss_type = self.loss_type or task
        self._built_options = BuiltOptions(config)
        self.model_tags = ["hf_feedback"]  # of its card on the Hub
        self.probe_backbone()
        self.post_init()

    def _check_config(self, config: FeedbackConfig) -> None:
        name = type(self).__name__
        if config.backbone_config is None:
            raise ValueError(
                f"{name} needs a config with a `backbone_config`; use `{name}.from_backbone(...)` to start from a "
                "pretrained backbone."
            )
        config.check_options()
        if config.feedback_span == "segment" and not self.traits.takes_segments:
            raise ValueError(
                "`feedback_span='segment'` is for FeedbackForSequenceClassification, FeedbackForTokenClassification "
                f"and FeedbackForQuestionAnswering; {name} does not answer for a whole text or its tokens."
            )
        if config.segment_pooling != "mean" and not (self.traits.answers_once and config.head == "new"):
            raise ValueError(
                f"`segment_pooling`={config.segment_pooling!r} weights the segments' answers of "
                f"FeedbackForSequenceClassification with `head='new'`, got {name} with {config.head!r}; leave it out."
            )

    def _check_backbone(self, config: FeedbackConfig) -> None:
        if self.feedback.reads_classes and not self.traits.answers_once:
            raise ValueError(
                f"`feedback_context='classes'` needs a model with one answer for each text or image; "
                f"{type(self).__name__} gives none. Use `feedback_context='state'`."
            )
        if reads_answers(config.halting) and not (self.traits.answers_once or self.traits.predicts_next_token):
            raise ValueError(
                f"`halting`={config.halting!r} needs a model with classes, one answer for each text or image; "
                f"{type(self).__name__} gives none. Use `halting='convergence'`."
            )
        if config.feedback_span == "segment" and "attention_mask" not in self.layout.arguments:
            raise ValueError(
                f"`feedback_span='segment'` needs a backbone that takes an `attention_mask`; "
                f"{type(self.backbone).__name__} does not, and would read the padding of a text's last segment."
            )

    def probe_backbone(self) -> None:
        """Checks on a tiny batch that the backbone can be replayed exactly.

        Raises:
            UnsupportedBackboneError: it cannot; says why and what to do.
        """
        predicts = self.traits.predicts_next_token
        self.layout = probe_backbone(self.backbone, self.layout, self.config.head, predicts)
        if self.config.feedback_span == "segment" and self.config.head == "backbone" and self.traits.answers_once:
            check_padding_after_texts(self.backbone, self.config.pad_token_id)

    @property
    def layers(self) -> list[nn.Module]:
        """The backbone's layers in the order of the calls."""
        return self.layout.layers(self.backbone)

    # One call: inputs → context → K iterations → logits → output

    def _forward(
        self,
        labels: Any,
        num_iterations: int | None,
        output_iterations: bool,
        iteration_targets: torch.Tensor | None = None,
        /,
        **inputs: Any,
    ) -> ModelOutput:
        """K iterations on the inputs, the logits, and their loss.

        Args:
            labels: targets, as `_loss` takes them.
            num_iterations: K; the config's by default.
            output_iterations: whether to also return the logits and residuals of all iterations.
            iteration_targets: targets of the first iterations in training, see `targets_of_iterations`.
            **inputs: everything else that `forward` was given.
        """
        check_targets_are_read(self.config, self.training, labels, iteration_targets)
        iteration_loss = ITERATION_LOSSES[
            self.config.iteration_loss if self.training and labels is not None else "last"
        ]()
        context, result = self._run(
            inputs, num_iterations, output_iterations or iteration_loss.needs_all_iterations, batch_iterations=True
        )
        if labels is None and self.training and context.num_iterations > 1 and not torch.compiler.is_compiling():
            warn_of_lost_losses(self.config)
        logits = [self.compute_logits(one, context) for one in self.runner.outputs_of_iterations(context, result)]
        fields: Keywords = {**self._collected(context, result), "iterations": result.iterations}
        if output_iterations:
            fields |= {**result.statistics(), "iteration_logits": tuple(logits)}
        if labels is not None:
            fields["loss"] = loss_of_iterations(iteration_loss, self._loss, logits, labels, iteration_targets)
            for extra in extra_losses(self.config, result):
                fields["loss"] = fields["loss"] + self._batch_weight(labels) * extra.to(logits[-1].device)
        return self._make_output(logits[-1], fields)

    def _run(
        self, inputs: Keywords, num_iterations: int | None, keep_trace: bool, batch_iterations: bool = False
    ) -> tuple[ForwardContext, LoopResult]:
        """K iterations; see `LoopRunner.run`."""
        if not torch.compiler.is_compiling():
            self._built_options.check(self.config)
            if self.config.backbone_layers is not None and self.config.pad_token_id is not None:
                # the backbone's own config is another one
                self.backbone.config.get_text_config().pad_token_id = self.config.pad_token_id
            if not self.layout.is_probed:  # weights came after the model was built
                self.probe_backbone()
        k = self._choose_num_iterations(num_iterations)
        if self.training and k > 1 and not torch.compiler.is_compiling():
            warn_of_frozen_feedback(self)
        context = self._make_context(inputs, k)
        if keep_trace and context.cache is not None:
            cause = "`use_cache=False` and without `past_key_values`" if context.cache.is_kept else "`halting='none'`"
            raise ValueError(
                "`output_iterations=True`, or a loss of every iteration (`iteration_loss`), reads the answer after "
                f"every one, of which a cache, and a token that stops by itself, have but one; call with {cause}."
            )
        return context, self.runner.run(context, keep_trace, batch_iterations)

    @property
    def runner(self) -> LoopRunner:
        """Runs the iterations of a call."""
        return LoopRunner(self.config, self.layout)

    def _choose_num_iterations(self, num_iterations: int | None) -> int:
        """K for this call."""
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel is not supported; start one process per GPU instead, with `torchrun --nproc_per_node "
                "N` or `accelerate launch`."
            )
        if is_feedback_disabled(self):
            return 1
        if num_iterations is None:
            return self.config.num_iterations
        check_integer("num_iterations", num_iterations, 1, "1 is the plain backbone", MAX_ITERATIONS)
        return num_iterations

    def _make_context(self, inputs: Keywords, num_iterations: int, halts: bool = True) -> ForwardContext:
        """Returns the inputs and settings of a call of `forward`; texts are cut into segments if the config says so.

        Args:
            inputs: what `forward` was given.
            num_iterations: K.
            halts: whether examples and tokens may stop early.
        """
        inputs, num_choices = self._flatten_choices(inputs)
        inputs, segments = self._cut(inputs)
        if not self.traits.predicts_next_token and inputs.get("attention_mask") is None:
            inputs = {**inputs, "padding_mask": self._text_mask(inputs)}  # for messages, as for pooling
        inputs, cache = self._take_cache(inputs, num_iterations, halts)
        arguments = backbone_inputs(self.layout, self.config, type(self), inputs)
        if cache is not None:
            arguments |= {cast(str, self.layout.cache_argument): cache.view, "use_cache": True}
        answers = self.traits.answers_once or self.traits.predicts_next_token
        return ForwardContext(
            backbone=self.backbone,
            feedback=self.feedback,
            forward_arguments=inputs,
            backbone_inputs=arguments,
            num_iterations=num_iterations,
            compute_logits=self.compute_logits if answers else None,
            segments=segments,
            num_choices=num_choices,
            is_training=self.training,
            is_disabled=is_feedback_disabled(self),
            is_sharded=is_sharded(self),
            model_name=type(self).__name__,
            cache=cache,
            predicts_next_token=self.traits.predicts_next_token,
        )

    def _take_cache(self, inputs: Keywords, num_iterations: int, halts: bool) -> tuple[Keywords, IterationCache | None]:
        """The inputs without a key–value cache, and that of the call, in models that generate text."""
        return inputs, None

    def _flatten_choices(self, inputs: Keywords) -> tuple[Keywords, int | None]:
        """The inputs with one row for each choice, and the number of choices, in multiple choice."""
        return inputs, None

    def _cut(self, inputs: Keywords) -> tuple[Keywords, Segments | None]:
        """The inputs as rows of segments, and which text each is of, if texts are cut."""
        cutting = self.cutting
        if cutting is None:
            return inputs, None
        inputs = {**inputs, "attention_mask": self._text_mask(inputs)}
        # a compiled graph cannot know the number of rows
        return run_uncompiled(cut_texts, cutting, inputs, self.config)

    def _collected(self, context: ForwardContext, result: LoopResult) -> Keywords:
        """`hidden_states`, `attentions` and `jacobian_penalty` for our own output."""
        part = self.config.backbone_part
        names = ("hidden_states", "attentions")
        fields = {name: result.output.get(collected_key(result.output, name, part)) for name in names}
        if fields["hidden_states"] is not None:
            wanted = context.forward_arguments.get("output_hidden_states")
            fields["hidden_states"] = select_states(fields["hidden_states"], wanted)
        return {**fields, "jacobian_penalty": result.penalty}

    def compute_logits(self, outputs: BackboneOutput, context: ForwardContext) -> torch.Tensor:
        """The logits of the backbone's output, `(B, C)`, or `(B, T, V)` where each token is answered; those of the
        whole text where it was cut into segments.

        Args:
            outputs: outputs of the backbone, or of its task model with a head of its own.
            context: inputs and settings of the call of `forward`.
        """
        if self.config.head == "backbone":
            logits = self._backbone_head_logits(outputs)
        else:
            logits = self._new_head_logits(outputs.last_hidden_state, context)
        return logits if context.segments is None else self._join_segments(logits, outputs, context)

    def _join_segments(self, logits: torch.Tensor, outputs: BackboneOutput, context: ForwardContext) -> torch.Tensor:
        """The logits of the N segments → those of the B texts."""
        segments = cast(Segments, context.segments)
        if self.config.segment_pooling == "mean":
            return segments.mean(logits)
        return self.segment_pooling(logits, self._pooled(outputs.last_hidden_state, context), segments)

    # Methods that a task may override; by default, a linear classifier over the pooled last hidden state

    def _make_head(self, config: FeedbackConfig) -> None:
        """Adds the modules of a new head."""
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or {}))
        if config.segment_pooling == "attention":
            self.segment_pooling = SegmentPooling(config.hidden_size)

    def _backbone_head_logits(self, outputs: BackboneOutput) -> torch.Tensor:
        """The logits of the backbone's own head."""
        return outputs.logits

    def _new_head_logits(self, hidden: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """The logits of a new head for the last hidden state `(B, T, d)`."""
        logits = self.classifier(self.dropout(on_device_of(self.classifier, self._pooled(hidden, context))))
        return logits if context.num_choices is None else logits.view(-1, context.num_choices)

    def _pooled(self, hidden: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """`(B, d)`, what a new head reads of the last hidden state `(B, T, d)`."""
        return pool(hidden, self._pooling_mask(hidden, context), self._pooling())

    def _pooling_mask(self, hidden: torch.Tensor, context: ForwardContext) -> torch.Tensor | None:
        """`(B, T)`, 0 where the last hidden state belongs to padding."""
        return self._text_mask(context.forward_arguments)

    def _loss(self, logits: torch.Tensor, labels: Any) -> torch.Tensor:
        """The loss of the logits, a scalar."""
        problem = self.config.problem_type
        if problem == "multi_label_classification" or self.config.num_labels == 1 or labels.is_floating_point():
            dtype = torch.promote_types(logits.dtype, torch.float32)  # half precision would round the targets
            logits, labels = logits.to(dtype), labels.to(dtype)
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)

    def _batch_weight(self, labels: Any) -> float | torch.Tensor:
        """Weight of a mean over this batch in a loss that is summed over several calls."""
        return 1.0

    def _make_output(self, logits: torch.Tensor, fields: Keywords) -> ModelOutput:
        """The output of `forward`."""
        return FeedbackTaskOutput(logits=logits, **fields)

    def _pooling(self) -> Pooling:
        if self.config.pooling != "auto":
            return self.config.pooling
        config = cast(PreTrainedConfig, self.config.backbone_config)
        return "last" if is_decoder(config, self.config.backbone_part) else self.traits.auto_pooling

    def _text_mask(self, inputs: Keywords) -> torch.Tensor | None:
        """`(B, T)`, 0 at padding, which may have to be found by its token."""
        mask, input_ids, pad = inputs.get("attention_mask"), inputs.get("input_ids"), self.config.pad_token_id
        if mask is None and input_ids is not None and pad is not None and self._pooling() == "last":
            real = (input_ids != pad).int()  # the token may stand inside of a text too, such as an end of text
            mask = real.cummax(1).values * real.flip(1).cummax(1).values.flip(1)
        return mask

    # Switches and checks

    def set_num_iterations(self, num_iterations: int) -> None:
        """Sets K for all further calls; it is saved with the model.

        Raises:
            ValueError: K is not an integer of at least 1.

        Example:

        ```python
        >>> from transformers import BertConfig, BertModel
        >>> from hf_feedback import FeedbackModel
        >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> model = FeedbackModel.from_backbone(BertModel(tiny))
        >>> model.set_num_iterations(4)
        >>> model.config.num_iterations
        4

        ```
        """
        self.config.set_checked(num_iterations=num_iterations)

    @contextmanager
    def feedback_disabled(self) -> Iterator[None]:
        """Context in which the model is its bare backbone, for the current thread alone.

        Example:

        ```python
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from hf_feedback import FeedbackModel
        >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> model = FeedbackModel.from_backbone(BertModel(tiny))
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7]])}
        >>> with model.feedback_disabled():
        ...     output = model(**batch, output_iterations=True)
        >>> output.iterations
        tensor([1])

        ```
        """
        with disable_feedback(self):
            yield

    def feedback_summary(self, length: int = 128) -> str:
        """A table of the feedback edges with parameters and FLOPs, and totals beside the backbone's.

        Args:
            length: tokens of a text, for operators whose cost depends on it.

        Example:

        ```python
        >>> from transformers import BertConfig, BertModel
        >>> from hf_feedback import FeedbackModel
        >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> model = FeedbackModel.from_backbone(BertModel(tiny))
        >>> print(model.feedback_summary().splitlines()[0])
        source   targets  parameters an edge  FLOPs a token and edge

        ```
        """
        return summarize(self.config, self.feedback, self.backbone, self.layout, self.cutting, length)

    @property
    def cutting(self) -> Cutting | None:
        """The settings by which texts are cut into segments; `None` if they are not.

        Raises:
            ValueError: an option is missing, or there is no room in a segment.
        """
        return cutting_of(self.config, self.backbone)

    # Building, loading and saving

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        *,
        head: HeadOption = "new",
        backbone_kwargs: Keywords | None = None,
        config_overrides: Keywords | None = None,
        backbone_part: PartOption = "auto",
        **feedback_options: Any,
    ) -> Self:
        """Adds fresh feedback to a pretrained backbone. In evaluation mode the result equals the backbone exactly.

        Args:
            backbone: a hub id, a local folder, or a transformers model, which is used as it is, not copied: it is put
                into evaluation mode and keeps the hooks that record its layers; with `head="new"` it loses its pooler
                and task head, with `backbone_layers` some of its layers. Pass a copy to go on using it by itself.
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
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from hf_feedback import FeedbackForSequenceClassification
        >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny), num_labels=3, num_iterations=2)
        >>> model.check_equivalence({"input_ids": torch.tensor([[5, 6, 7]])})
        0.0

        ```
        """
        check_option_names(feedback_options)
        config = FeedbackConfig(head=head, backbone_part=backbone_part, **feedback_options)
        return build_from_backbone(cls, backbone, config, feedback_options, config_overrides, backbone_kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a saved feedback model; from the folder or repository of a plain backbone, does `from_backbone`.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            *args: as in transformers.
            **kwargs: as in transformers; for a plain backbone, also the options of `from_backbone`; for a feedback-only
                checkpoint, `backbone` as in `load_feedback`.

        Raises:
            ValueError: an option is not allowed.
            OSError: the weights are missing, damaged or belong to another model.
            RuntimeError: they do not fit the options that were given.

        Example:

        ```python
        >>> import tempfile
        >>> from transformers import BertConfig, BertModel
        >>> from hf_feedback import FeedbackModel
        >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     FeedbackModel.from_backbone(BertModel(tiny), num_iterations=3).save_pretrained(folder)
        ...     FeedbackModel.from_pretrained(folder).config.num_iterations
        3

        ```
        """
        if pretrained_model_name_or_path is None:  # config and state_dict given instead
            return super().from_pretrained(None, *args, **kwargs)
        return load_pretrained(cls, super().from_pretrained, pretrained_model_name_or_path, args, kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; the folder also holds the code, for `trust_remote_code=True`.

        Raises:
            ValueError: an option was set since that is not allowed, or that the model was not built with.
        """
        self._built_options.check(self.config)
        self.config.auto_map = dict(AUTO_MAP)
        (self.config.backbone_source or {}).pop("fingerprint", None)  # of a feedback-only checkpoint, which this is not
        self.config.custom_operators = save_operator_code(self.config, save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def save_feedback(self, save_directory: str | Path) -> None:
        """Writes feedback, head and config alone, with the name of the backbone and a fingerprint of its weights.

        `load_feedback` and `from_pretrained` read the folder.

        Args:
            save_directory: folder, made if it is not there.

        Raises:
            ValueError: the backbone was trained too, or holds adapters, so that the feedback alone would not do.
        """
        save_feedback(self, save_directory)

    def push_feedback_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Pushes what `save_feedback` writes.

        Args:
            repo_id: the repository.
            **kwargs: as in `push_to_hub`.
        """
        return push_feedback(self, repo_id, **kwargs)

    @classmethod
    def has_trained_head(cls, config: PreTrainedConfig) -> bool:
        """Whether the folder of this config holds a transformers model that was trained for this class' task."""
        return cls.traits.has_trained_head(config)

    # Methods that transformers and other libraries call

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether transformers must not rely on `_init_weights`, as it may on ours. Of custom code it skips the modules
        that own no weights, by which some families initialize the modules inside of them."""
        return cls._init_weights is not FeedbackPreTrainedModel._init_weights

    def _init_weights(self, module: nn.Module) -> None:
        init_feedback_weights = getattr(module, "init_feedback_weights", None)
        if init_feedback_weights is None:
            super()._init_weights(module)
        else:
            init_feedback_weights()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._save_to_state_dict(*args, **kwargs)
        warn_of_adapters_without_folder(self)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        check_adapters_fit(self, state_dict, prefix)

    def init_parallel_plans(self) -> None:
        """As in transformers; the plan for FSDP has the looped layers of every family, and no rule that names nothing.
        Layers that are shared cannot be put away between two of their calls: they have none."""
        super().init_parallel_plans()
        modules, plan, layers = dict(self.named_modules()), cast(dict[str, str], self._fsdp_plan), self.layers
        self._fsdp_plan = {name: style for name, style in plan.items() if name.removesuffix(".*") in modules}
        if len(set(layers)) == len(layers):
            self._fsdp_plan[f"backbone.{self.layout.stack}.*"] = "free_full_weight"

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the backbone's own config follows if it is a copy (`backbone_layers`)."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.backbone.config.get_text_config().vocab_size = self.config.vocab_size
        return embeddings


def classifier_dropout(config: FeedbackConfig) -> float:
    """The option, or the first that the backbone's config has of its own classifier, hidden or general dropout."""
    if config.classifier_dropout is not None:
        return config.classifier_dropout
    names = ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "dropout")
    values = (getattr(config.text_config, name, None) for name in names)
    return next((float(value) for value in values if value is not None), 0.0)
