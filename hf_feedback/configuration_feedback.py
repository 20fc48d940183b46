"""`FeedbackConfig`: every option of a feedback model, validated when it is built and when it is loaded."""

import copy
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

from .activations import check_activation
from .configuration_base import OptionsConfig, document_options
from .connections import CONNECTIONS
from .cutting import PairOption
from .gradients import GRADIENTS
from .halting import HALTING_RULES, parse_halting
from .iteration_losses import ITERATION_LOSSES
from .labels import normalize_labels_of
from .pooling import Pooling
from .recipes import options_of_recipe
from .segment_connections import SEGMENT_CONNECTIONS
from .solvers import SOLVERS
from .stored_config import backbone_config_from_dict, check_class_references, check_place, refuse_attributes
from .topology import TOPOLOGIES, resolve_edges
from .validation import (
    MOST_ITERATIONS,
    TRANSFORMERS_KEYS,
    Keywords,
    check_choice,
    check_integer,
    check_problem,
    check_shared_options,
    check_types,
    is_integer,
    is_newer,
    is_number,
    option,
)
from .version import HF_FEEDBACK_VERSION
from .words import LabelPiece

logger = logging.get_logger(__name__)

HeadOption = Literal["new", "backbone"]
PartOption = Literal["auto", "encoder", "decoder"]

# The classes that a saved folder offers to `trust_remote_code=True`, whichever of them saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_feedback.FeedbackConfig",
    "AutoModel": "modeling_feedback.FeedbackModel",
    **{
        f"AutoModel{task}": f"modeling_feedback.Feedback{task}"
        for task in (
            "ForSequenceClassification",
            "ForTokenClassification",
            "ForQuestionAnswering",
            "ForMultipleChoice",
            "ForMaskedLM",
            "ForCausalLM",
            "ForImageClassification",
            "ForAudioClassification",
        )
    },
}

# As in transformers; it reads labels at the last piece of a word, where the pipeline of transformers has none.
LAST_PIECE_PIPELINE = {
    "impl": "token_classification_pipeline.FeedbackTokenClassificationPipeline",
    "pt": "AutoModelForTokenClassification",
}

# What other libraries read in a config and its dictionary, and what the backbone determines here.
BACKBONE_FACTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
)


EDGE_OPTIONS = ("feedback_topology", "feedback_edges", "feedback_layers")
# What the modules of a model are made of; every other option may be set on the config of a built one.
BUILT_IN = (
    *(*EDGE_OPTIONS, "feedback_type", "feedback_heads", "feedback_sweeps", "feedback_context", "feedback_signal"),
    *("feedback_sharing", "feedback_future", "feedback_span", "feedback_rank", "feedback_activation"),
    *("segment_summaries", "segment_pooling", "feedback_dropout", "learn_damping"),
    *("backbone_layers", "backbone_part", "head", "classifier_dropout"),
    "num_labels",
)


@document_options
class FeedbackConfig(OptionsConfig):
    """Configuration of a pretrained backbone with top-down feedback.

    Layers are counted from 0. An edge `[source, target]` carries a message from the output of layer `source` of one
    iteration to the input of layer `target` of the next, so `target < source`. `backbone_config` is filled in by
    `from_backbone` and `add_feedback`; `num_labels`, `id2label`, `label2id` and `problem_type` are as in every
    configuration of transformers.

    Raises:
        ValueError: an option has a value that is not allowed, contradicts another, or looks misspelt.

    Example:

    ```python
    >>> from hf_feedback import FeedbackConfig
    >>> config = FeedbackConfig(num_iterations=3, feedback_topology="adjacent")
    >>> config.edges(num_layers=4)
    [(1, 0), (2, 1), (3, 2)]

    ```
    """

    model_type = "hf_feedback"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(AutoConfig, model_type="bert", optional=True)
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "hidden_states",
        "attentions",
        "iteration_logits",
        "residuals",
        "iterations",
        "jacobian_penalty",
        "past_key_values",
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    # Operators that are not part of hf_feedback: name → "module.Class" in the folder, see `operator_code.py`.
    custom_operators: dict | None = None
    # Where the backbone came from: name_or_path, revision, subfolder, gguf_file; in a feedback-only checkpoint its
    # fingerprint.
    backbone_source: dict | None = None

    # Feedback loop
    num_iterations: int = option(2, "K ≥ 1, number of passes through the looped layers; 1 is the plain backbone.")
    feedback_topology: str | None = option(
        None,
        "Edges by name: 'top' (last layer to every lower one; the default without explicit edges), 'adjacent' (layer "
        "l + 1 to layer l) or 'dense' (every layer to every lower one).",
        choices=TOPOLOGIES,
    )
    feedback_edges: list[list[int]] | None = option(
        None, "Explicit edges [[source, target], …], layers counted from 0; excludes a topology."
    )
    feedback_layers: list[int] | None = option(
        None, "[lowest, highest] target layer of a topology, both included; all layers by default."
    )
    feedback_state: Literal["reentry", "carry"] = option(
        "reentry",
        "Input of the looped layers in each iteration: the same as in the first ('reentry'), or their output of the "
        "previous one ('carry', as in looped transformers; for K > 1 such a model differs from its backbone).",
    )
    feedback_shift: int = option(
        0,
        "0 or 1; with 1 a token receives the messages of the token before it: over K iterations a state moves by K − "
        "1 tokens, and in generation, with one pass per token, through the whole text.",
    )
    feedback_damping: float = option(
        1.0, "α in (0, 1], the damping: messages read lerp(previous states, new states, α); 1 is no damping."
    )
    learn_damping: bool = option(False, "Learn α, one value per source layer, starting from `feedback_damping`.")
    backbone_layers: list[int] | None = option(
        None, "Layers of the backbone to keep, in ascending order; other options count only these. All by default."
    )
    backbone_part: PartOption = option(
        "auto",
        "Part of the backbone to use: 'encoder' (the same as 'auto') or 'decoder' of an encoder–decoder; 'decoder' is "
        "also the text model of a multimodal one.",
    )

    # Feedback messages
    feedback_type: str = option(
        "additive",
        "Operator that computes the messages: additive, gated, attention, temporal, context or joint, several joined "
        "by a plus (additive+context). With `feedback_span='segment'`: additive (reads the segment and its "
        "neighbours) or memory (every token attends to summaries of all segments of its text).",
    )
    feedback_rank: int | None = option(
        32, "Width of the inner projection of a message, at most the hidden size; none: two full d × d maps."
    )
    feedback_activation: str = option(
        "swish",
        "Activation of the messages: swish (x·sigmoid(βx), one learnable β per edge) or one of transformers by name: "
        "sigmoid, tanh, relu, gelu, mish, …",
    )
    feedback_signal: Literal["state", "error"] = option(
        "state", "Input of a message: the 'state' of the source layer, or the 'error', source minus target."
    )
    feedback_sharing: Literal["edge", "targets"] = option(
        "edge", "Weights for every 'edge', or one set shared by all 'targets' of a source layer."
    )
    feedback_future: Literal["auto"] | bool = option(
        "auto",
        "Whether messages to a token may depend on later tokens; auto: true, except for `FeedbackModel` over a causal "
        "backbone, whose states may serve to predict the next token.",
    )
    feedback_heads: int = option(4, "Attention heads of 'attention' and 'memory'; the rank is divided among them.")
    feedback_sweeps: int = option(
        3, "Sweeps of 'temporal' per iteration, at least 2; n sweeps move information by n − 1 tokens."
    )
    feedback_context: Literal["state", "classes"] = option(
        "state", "Input of 'context': the mean 'state' of the source layer, or the probabilities of the 'classes'."
    )
    feedback_dropout: float = option(0.0, "Dropout probability inside a message, after the activation.")
    feedback_scale: float = option(1.0, "Constant factor on every message.")

    # Long texts
    feedback_span: Literal["token", "segment"] = option(
        "token",
        "'segment': texts are cut into segments, each a row of the batch, which exchange messages; for text "
        "classification, token classification and question answering.",
    )
    segment_length: int | None = option(
        None, "Tokens of a segment, special tokens included; the most that the backbone reads by default."
    )
    segment_overlap: int | None = option(
        None, "Tokens that a segment shares with the one before; an eighth of a segment by default."
    )
    segment_special_tokens: list[int] | None = option(
        None,
        "Number of special tokens at the start and at the end of a text, repeated around every segment: [1, 1] for "
        "[CLS] … [SEP]; those of the tokenizer by default.",
    )
    segment_pair: PairOption = option(
        "first",
        "Position of the first text of a pair: before the second ('first', both are cut as one text), or at the front "
        "of 'every' segment.",
    )
    segment_summaries: int = option(4, "m ≥ 1, number of vectors per segment that 'memory' reads.")
    segment_pooling: Literal["mean", "attention"] = option(
        "mean",
        "How the outputs of the segments are combined into that of the text: 'mean', or 'attention' with a learned "
        "query.",
    )
    max_segments: int = option(64, "Maximum number of segments of a text; longer texts are refused.")

    # Halting in evaluation
    halting: str = option(
        "none",
        "Rule by which an example stops before iteration K: none, convergence (of its states), confidence (of its "
        "prediction) or patience (several equal predictions); 'a+b': both, 'a|b': either.",
    )
    halting_threshold: float = option(
        0.01, "'convergence': relative residual ‖h^(k) − h^(k−1)‖ / ‖h^(k)‖ at or below which an example stops."
    )
    halting_confidence: float = option(0.9, "'confidence': confidence in (0, 1] at or above which an example stops.")
    halting_measure: Literal["probability", "margin"] = option(
        "probability", "Confidence of a prediction: the 'probability' of the top class, or its 'margin' over the next."
    )
    halting_patience: int = option(2, "'patience': number of consecutive equal predictions at which an example stops.")
    min_iterations: int = option(2, "Minimum number of iterations of every example.")

    # Loss and gradient of the iterations
    iteration_loss: str = option(
        "last",
        "Loss of the 'last' iteration, or a weighted mean over all: 'uniform' or 'linear' (weights rise with k), both "
        "with `gradient='full'` only.",
        choices=ITERATION_LOSSES,
    )
    jacobian_penalty: float = option(
        0.0,
        "Weight of a penalty on the loop's Jacobian, ‖J‖²_F per entry, which helps further iterations converge (Bai "
        "et al. 2021); costs one more iteration, differentiated twice.",
    )
    gradient: str = option(
        "full",
        "Gradient through all iterations ('full'), the last `gradient_iterations` ('truncated'), the last one "
        "('one_step'), or of the fixed point ('implicit': one dropout mask for all iterations; if the fixed point is "
        "not reached, the full gradient with a warning).",
        choices=GRADIENTS,
    )
    gradient_iterations: int | None = option(
        None, "n ≥ 1, iterations that 'truncated' differentiates; n ≥ K is the full gradient."
    )
    fixed_point_solver: str = option(
        "iteration",
        "Solver of 'implicit': plain 'iteration' or 'anderson' acceleration.",
        choices=SOLVERS,
    )
    fixed_point_tolerance: float = option(1e-4, "Relative residual at which 'implicit' accepts a fixed point.")

    # Task head
    head: HeadOption = option(
        "new", "'new': pooling and a linear `classifier`; 'backbone': the task head of the backbone's own family."
    )
    pooling: Literal["auto"] | Pooling = option(
        "auto",
        "Pooling of a new head, without padding; auto: that of a sentence-transformers folder, else the last token "
        "for decoders and the first for others.",
    )
    label_piece: LabelPiece = option(
        "auto",
        "Word piece that carries the label of a word in token classification: 'first', 'last', or auto: the last "
        "(which has read the whole word) for causal backbones, else the first. It is fixed when a model is built; "
        "models saved without it use the first.",
    )
    classifier_dropout: float | None = option(
        None,
        "Dropout probability before a new classifier; that of the backbone's classifier or hidden states by default.",
    )
    initializer_range: float = option(0.02, "Standard deviation of the initial weights of a new classifier.")

    def __post_init__(self, **kwargs: Any) -> None:
        facts = {name: kwargs.pop(name) for name in BACKBONE_FACTS if name in kwargs}
        kwargs = self._check_unknown_keys(kwargs)
        if isinstance(self.backbone_layers, range):
            self.backbone_layers = list(self.backbone_layers)
        check_types(self)
        check_shared_options(self, kwargs)
        if isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_config_from_dict(self.backbone_config)
        normalize_labels_of(self, kwargs)
        super().__post_init__(**kwargs)
        self._check_backbone_facts(facts)
        self.check_options()

    @staticmethod
    def recipe(name: str) -> Keywords:
        """Options that have been measured to pay, for `from_backbone`; see `recipes.py`.

        Args:
            name: what they are for, such as `"depth-on-demand"`.

        Raises:
            ValueError: there is no recipe of that name.

        Example:

        ```python
        >>> FeedbackConfig.recipe("depth-on-demand")["num_iterations"]
        4

        ```
        """
        return options_of_recipe(name)

    # What follows from the options

    @property
    def text_config(self) -> Any:
        """The part of `backbone_config` that describes the layers, or `None` where there is no backbone yet."""
        return self.backbone_config.get_text_config() if isinstance(self.backbone_config, PreTrainedConfig) else None

    @property
    def hidden_size(self) -> Any:
        """d, the backbone's hidden size; `None` where there is no backbone yet."""
        return getattr(self.text_config, "hidden_size", None)

    @property
    def num_hidden_layers(self) -> int | None:
        """L, the number of layers that are kept."""
        return self.num_backbone_layers if self.backbone_layers is None else len(self.backbone_layers)

    @property
    def num_backbone_layers(self) -> int | None:
        """How many layers the backbone (or the half of it that is used) was pretrained with."""
        config = self.text_config
        if self.backbone_part == "decoder" and getattr(config, "is_encoder_decoder", False):
            return getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None)
        num_layers = getattr(config, "num_hidden_layers", None)
        return num_layers if isinstance(num_layers, int) else None  # LXMERT has a dict of them

    @property
    def num_attention_heads(self) -> int | None:
        """The backbone's."""
        return getattr(self.text_config, "num_attention_heads", None)

    @property
    def max_position_embeddings(self) -> int:
        """The backbone's; it has no such attribute where positions are not numbered.

        Raises:
            AttributeError: as in a backbone's config without it, where libraries ask `hasattr`.
        """
        return self.text_config.max_position_embeddings

    @property
    def vocab_size(self) -> int | None:
        """The backbone's vocabulary size; set here, it is set there."""
        return getattr(self.text_config, "vocab_size", None)

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self._set_in_backbone(self.text_config, "vocab_size", value)

    @property
    def tie_word_embeddings(self) -> bool | None:
        """Whether the output embeddings are the input embeddings: as the backbone says of its own head, or as set for
        a new masked-LM head; `None` where there are no output embeddings."""
        if self.head == "backbone":
            return getattr(self.backbone_config, "tie_word_embeddings", None)
        return self.__dict__.get("tie_word_embeddings")

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool) -> None:
        if self.head == "backbone":
            self._set_in_backbone(self.backbone_config, "tie_word_embeddings", value)
        else:
            self.__dict__["tie_word_embeddings"] = value

    @property
    def pad_token_id(self) -> int | None:
        """The backbone's padding token; set here, it is set there."""
        return getattr(self.text_config, "pad_token_id", None)

    @pad_token_id.setter
    def pad_token_id(self, value: int | None) -> None:
        self._set_in_backbone(self.text_config, "pad_token_id", value)

    def _set_in_backbone(self, config: Any, name: str, value: Any) -> None:
        if config is None:
            raise ValueError(f"`{name}` is the backbone's; give a `backbone_config` first, and set it there.")
        setattr(config, name, value)

    @property
    def custom_pipelines(self) -> dict[str, Keywords]:
        """The pipelines of a folder's own by task, as transformers reads them; it follows from `label_piece`."""
        is_tagger = "FeedbackForTokenClassification" in (self.architectures or ())
        return {"token-classification": dict(LAST_PIECE_PIPELINE)} if is_tagger and self.label_piece == "last" else {}

    def edges(self, num_layers: int | None = None) -> list[tuple[int, int]]:
        """The edges that the options stand for, as sorted `(source, target)` pairs.

        Args:
            num_layers: L; the backbone's by default.

        Raises:
            ValueError: an edge is out of range, not downwards or given twice, or there is none at all.
        """
        num_layers = self.num_hidden_layers if num_layers is None else num_layers
        if num_layers is None:
            raise ValueError("`edges()` needs `num_layers` as long as the config has no `backbone_config`.")
        return resolve_edges(num_layers, self.feedback_topology, self.feedback_edges, self.feedback_layers)

    # Validation

    def check_options(self) -> None:
        """Raises `ValueError` naming the option, its value, what is allowed and what to do."""
        super().check_options()
        check_place(self.backbone_source)
        check_class_references("custom_operators", self.custom_operators)
        hint = "1 is the plain backbone, 2 reads feedback once"
        check_integer("num_iterations", self.num_iterations, 1, hint, MOST_ITERATIONS)
        self._check_type()
        self._check_segments()
        self.check_dynamics()
        self.check_halting()
        self._check_shift()
        check_activation(self.feedback_activation)
        for name in ("feedback_dropout", "classifier_dropout"):
            value = getattr(self, name)
            if value is None and name == "classifier_dropout":
                continue
            if not is_number(value) or not 0 <= value < 1:
                raise ValueError(f"`{name}` must be a probability in [0, 1), got {value!r}.")
        for name in ("feedback_scale", "initializer_range"):
            if not is_number(getattr(self, name)):
                raise ValueError(f"`{name}` must be a finite number, got {getattr(self, name)!r}.")
        check_problem(self)
        self._check_rank()
        self._check_layers()
        self._check_edges()

    def _check_type(self) -> None:
        names = self.feedback_type.split("+") if isinstance(self.feedback_type, str) else [self.feedback_type]
        for name in names:
            check_choice("feedback_type", name, (*CONNECTIONS, *SEGMENT_CONNECTIONS, *(self.custom_operators or {})))
        if len(set(names)) < len(names):
            raise ValueError(f"`feedback_type` names an operator twice: {self.feedback_type!r}; name each once.")
        reads_classes = any(CONNECTIONS[name].may_read_classes for name in names if name in CONNECTIONS)
        if self.feedback_context == "classes" and not reads_classes and self.feedback_span == "token":
            raise ValueError(
                f"`feedback_context`='classes' is for `feedback_type='context'`, got {self.feedback_type!r}; leave one "
                "out."
            )
        check_integer("feedback_heads", self.feedback_heads, 1, "the heads share the rank")
        hint = "one sweep reads no neighbours: use 'additive'"
        check_integer("feedback_sweeps", self.feedback_sweeps, 2, hint, MOST_ITERATIONS)
        for name in names:
            registry = CONNECTIONS if self.feedback_span == "token" else SEGMENT_CONNECTIONS
            if name in registry:
                registry[name].check_options(self)

    def _check_shift(self) -> None:
        """One pass a token is the limit of many iterations only where nothing but the messages moves on."""
        check_integer("feedback_shift", self.feedback_shift, 0, "0: each token's own messages; 1: those before", 1)
        if self.feedback_shift == 0:
            return
        others = ("feedback_state", "feedback_damping", "learn_damping", "halting", "feedback_span")
        for name in others:
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"`feedback_shift`=1 carries a state from token to token and excludes `{name}`, got "
                    f"{getattr(self, name)!r}; leave one out."
                )
        names = [name for name in self.feedback_type.split("+") if name in CONNECTIONS]
        if mixing := [name for name in names if CONNECTIONS[name].mixes_tokens]:
            raise ValueError(
                f"`feedback_shift`=1 is for messages of single tokens, got `feedback_type`={self.feedback_type!r}, "
                f"where {mixing[0]!r} reads several; use 'gated', 'additive' or 'joint'."
            )

    def check_dynamics(self) -> None:
        """The part of `check_options` about iterations and their gradient, which may be changed after building."""
        if not is_number(self.feedback_damping) or not 0 < self.feedback_damping <= 1:
            raise ValueError(f"`feedback_damping` must be in (0, 1], got {self.feedback_damping!r}; 1 damps nothing.")
        if not is_number(self.jacobian_penalty) or self.jacobian_penalty < 0:
            raise ValueError(f"`jacobian_penalty` must be a number of at least 0, got {self.jacobian_penalty!r}.")
        if not is_number(self.fixed_point_tolerance) or self.fixed_point_tolerance <= 0:
            raise ValueError(f"`fixed_point_tolerance` must be above 0, got {self.fixed_point_tolerance!r}.")
        if self.iteration_loss != "last" and self.gradient != "full":
            raise ValueError(
                f"`iteration_loss`={self.iteration_loss!r} needs a gradient of every iteration, and "
                f"`gradient`={self.gradient!r} drops that of the earlier ones; use 'full', or `iteration_loss='last'`."
            )
        if self.fixed_point_solver != "iteration" and self.gradient != "implicit":
            raise ValueError(
                f"`fixed_point_solver`={self.fixed_point_solver!r} is for `gradient='implicit'`, got "
                f"{self.gradient!r}; leave one out."
            )
        truncated = self.gradient == "truncated"
        if truncated:
            check_integer("gradient_iterations", self.gradient_iterations, 1, "for `gradient='truncated'`")
        elif self.gradient_iterations is not None:
            raise ValueError(
                f"`gradient_iterations` is for `gradient='truncated'`, got {self.gradient_iterations!r} with "
                f"`gradient`={self.gradient!r}; leave one out."
            )

    def _check_segments(self) -> None:
        if self.segment_overlap is not None:
            check_integer("segment_overlap", self.segment_overlap, 0, "0: segments share no tokens")
        check_integer("max_segments", self.max_segments, 1, "of a text")
        check_integer("segment_summaries", self.segment_summaries, 1, "vectors of a segment")
        around = self.segment_special_tokens
        if around is not None and not (
            isinstance(around, list | tuple) and len(around) == 2 and all(is_integer(n) and n >= 0 for n in around)
        ):
            raise ValueError(
                "`segment_special_tokens` must be how many tokens stand at the start and at the end of a text, such "
                f"as [1, 1], got {around!r}."
            )
        if self.segment_length is not None:
            least = 1 + (self.segment_overlap or 0) + sum(around or ())
            check_integer("segment_length", self.segment_length, least, "overlap and special tokens need as many")
        if self.feedback_span == "token":
            for name in sorted(name for name in self.option_names() if "segment" in name):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(
                        f"`{name}` is for `feedback_span='segment'`, got {getattr(self, name)!r} with 'token'; leave "
                        "one out."
                    )
            if only := [
                name
                for name in self.feedback_type.split("+")
                if name not in CONNECTIONS and name in SEGMENT_CONNECTIONS
            ]:
                raise ValueError(
                    f"`feedback_type`={only[0]!r} is for `feedback_span='segment'`, got 'token'; give both, or use "
                    "'attention'."
                )
        else:
            self._check_segment_messages()

    def _check_segment_messages(self) -> None:
        if self.feedback_context != "state":
            raise ValueError(
                f"`feedback_span='segment'` reads the segments' states; leave out `feedback_context`, got "
                f"{self.feedback_context!r}."
            )
        if not {*self.feedback_type.split("+")} <= SEGMENT_CONNECTIONS.keys():
            raise ValueError(
                f"`feedback_span='segment'` has messages of its own, {', '.join(SEGMENT_CONNECTIONS)}; use one of them "
                f"as `feedback_type`, got {self.feedback_type!r}."
            )

    def check_halting(self) -> None:
        """The part of `check_options` about halting, which may be changed after training."""
        for rules in parse_halting(self.halting):
            for rule in rules:
                check_choice("halting", rule, ("none", *HALTING_RULES))
        if self.halting != "none" and "none" in self.halting.replace("+", "|").split("|"):
            raise ValueError(f"`halting`: 'none' cannot be joined with others, got {self.halting!r}.")
        values = self.problem_type == "regression" or len(self.id2label or {}) == 1
        if values and self.halting not in ("none", "convergence"):
            raise ValueError(f"`halting`={self.halting!r} needs classes, not one value; use 'convergence'.")
        if not is_number(self.halting_threshold) or self.halting_threshold < 0:
            raise ValueError(f"`halting_threshold` must be a number of at least 0, got {self.halting_threshold!r}.")
        if not is_number(self.halting_confidence) or not 0 < self.halting_confidence <= 1:
            raise ValueError(f"`halting_confidence` must be in (0, 1], got {self.halting_confidence!r}.")
        check_integer("halting_patience", self.halting_patience, 1, "the same answer so many times in a row")
        check_integer("min_iterations", self.min_iterations, 1, "no example stops before")

    def _check_rank(self) -> None:
        if self.feedback_rank is None:
            return
        hint = "`None` means full rank"
        check_integer("feedback_rank", self.feedback_rank, 1, hint)
        if self.hidden_size is not None and self.feedback_rank > self.hidden_size:
            raise ValueError(
                f"`feedback_rank` must be at most the backbone's hidden size {self.hidden_size}, got "
                f"{self.feedback_rank}; choose a smaller rank ({hint})."
            )

    def _check_layers(self) -> None:
        layers = self.backbone_layers
        if layers is None:
            return
        if (
            not isinstance(layers, list | tuple)
            or not layers
            or not all(is_integer(i) and i >= 0 for i in layers)
            or sorted(set(layers)) != list(layers)
        ):
            raise ValueError(
                f"`backbone_layers` must be a list of layer numbers, ascending and counted from 0, got {layers!r}."
            )
        total = self.num_backbone_layers
        if total is not None and layers[-1] >= total:
            raise ValueError(f"`backbone_layers` must be below the backbone's {total} layers, got {layers!r}.")

    def _check_edges(self) -> None:
        if self.num_hidden_layers is not None:
            self.edges()
        else:  # the number of layers is open: check whatever does not depend on it, with as many as are mentioned
            mentioned = [i for edge in self.feedback_edges or [] if isinstance(edge, list | tuple) for i in edge]
            mentioned += self.feedback_layers or []
            self.edges(2 + max((i for i in mentioned if is_integer(i)), default=0))

    def _check_backbone_facts(self, facts: Keywords) -> None:
        """Refuses facts that contradict the backbone; those of `to_dict` are what follows from it anyway."""
        for name, value in facts.items():
            follows = getattr(self, name, None)
            if value == follows:
                continue
            if name == "tie_word_embeddings" and self.head == "new":
                self.tie_word_embeddings = value
                continue
            raise ValueError(
                f"`{name}` follows from `backbone_config`, where it is {follows!r}, got {value!r}; change it there, or "
                "leave it out."
            )

    def _check_unknown_keys(self, kwargs: dict) -> dict:
        """Refuses near-misses of our names; drops, with a warning, what a newer hf_feedback wrote."""
        ours = self.option_names() | {"backbone_config", "num_labels"}
        refuse_attributes(type(self), kwargs, "FeedbackConfig")
        unknown = [key for key in kwargs if key not in TRANSFORMERS_KEYS and not key.startswith("_")]
        if is_newer(self.hf_feedback_version):
            if unknown:
                logger.warning(
                    f"This config was written by hf_feedback {self.hf_feedback_version}, newer than the installed "
                    f"{HF_FEEDBACK_VERSION}. Ignored: {', '.join(sorted(unknown))}. Upgrade hf_feedback to use them."
                )
            return {key: value for key, value in kwargs.items() if key not in unknown}
        for key in unknown:
            if near := nearest_option(key):
                raise ValueError(f"`{key}` is not an option of FeedbackConfig; did you mean `{near}`?")
            if key.startswith("feedback_"):
                valid = ", ".join(sorted(name for name in ours if name.startswith("feedback_")))
                raise ValueError(f"`{key}` is not an option of FeedbackConfig; the feedback options are: {valid}.")
        return kwargs

    def to_dict(self) -> dict:
        """As in transformers, with the version of hf_feedback that writes it, and what follows from the backbone."""
        facts = {name: value for name in BACKBONE_FACTS if (value := getattr(self, name, None)) is not None}
        return {**super().to_dict(), **facts}

    def to_diff_dict(self) -> dict:
        """As in transformers, for files: what follows from the backbone stands in `backbone_config` alone."""
        follows = {*BACKBONE_FACTS} - {*self.__dict__}
        return {key: value for key, value in super().to_diff_dict().items() if key not in follows}


def nearest_option(key: str) -> str | None:
    """The option that a misspelt or shortened name (`num_iteration`, `rank`) seems to mean, if any."""
    names = {name: name for name in FeedbackConfig.option_names() | {"backbone_config", "num_labels"}}
    short = {name.removeprefix("feedback_"): name for name in names if name.startswith("feedback_")}
    near = get_close_matches(key, names, n=1, cutoff=0.85)
    return near[0] if near else {**short, "iterations": "num_iterations"}.get(key)


class BuiltOptions:
    """The options that a model was built with, some of which its modules are made of.

    Args:
        config: of the model.
    """

    def __init__(self, config: FeedbackConfig) -> None:
        self.edges = config.edges()
        self.built_in = {name: copy.deepcopy(getattr(config, name)) for name in BUILT_IN}
        self.checked = copy.deepcopy(config.options())

    def check(self, config: FeedbackConfig) -> None:
        """Checks the options that were set on the config since the last check.

        Raises:
            ValueError: one has a value that is not allowed, or that the modules were not made for.
        """
        options = config.options()
        if options == self.checked:
            return
        config.check_options()
        same_edges = config.edges() == self.edges
        for name, built in self.built_in.items():
            now = getattr(config, name)
            if now != built and not (same_edges and name in EDGE_OPTIONS):
                raise ValueError(
                    f"`{name}` was {built!r} when the model was built, which cannot become {now!r} now; set it back, "
                    "or build another model with it."
                )
        self.checked = copy.deepcopy(options)
