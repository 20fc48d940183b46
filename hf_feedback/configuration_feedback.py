"""`FeedbackConfig`: every option of a feedback model, validated when it is built and when it is loaded."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

from .activations import check_activation
from .checks import (
    HF_FEEDBACK_VERSION,
    MOST_ITERATIONS,
    TRANSFORMERS_KEYS,
    check_choice,
    check_integer,
    check_problem,
    check_shared_options,
    check_types,
    is_integer,
    is_newer,
    is_number,
)
from .labels import normalize_labels_of, numbers_by_name, replace_labels
from .stored_config import backbone_config_from_dict, check_place, refuse_attributes, without_switches
from .topology import TOPOLOGIES, resolve_edges

logger = logging.get_logger(__name__)

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
            "ForImageClassification",
            "ForAudioClassification",
        )
    },
}

HALTING_RULES = ("convergence", "confidence", "patience")
FEEDBACK_TYPES = ("additive", "gated", "attention", "temporal", "context", "joint")
CHOICES: dict[str, tuple[str | None, ...]] = {
    "problem_type": (None, "regression", "single_label_classification", "multi_label_classification"),
    "feedback_context": ("state", "classes"),
    "feedback_state": ("reentry", "carry"),
    "halting_measure": ("probability", "margin"),
    "feedback_span": ("token", "segment"),
    "iteration_loss": ("last", "uniform", "linear"),
    "gradient": ("full", "truncated", "one_step", "implicit"),
    "fixed_point_solver": ("iteration", "anderson"),
    "feedback_signal": ("state", "error"),
    "feedback_sharing": ("edge", "targets"),
    "pooling": ("auto", "cls", "mean", "last"),
    "head": ("new", "backbone"),
    "backbone_part": ("auto", "encoder", "decoder"),
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
    *("feedback_dropout", "learn_damping", "backbone_layers", "backbone_part", "head", "classifier_dropout"),
    "num_labels",
)


class FeedbackConfig(PreTrainedConfig):
    """Configuration of a pretrained backbone with top-down feedback.

    Layers are counted from 0. An edge `[source, target]` carries a message from the output of layer `source` of one
    iteration to the input of layer `target` of the next, so `target < source`.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the backbone. Left out, it is filled in by `from_backbone` and `add_feedback`.
        num_iterations (`int`, defaults to 2):
            K ≥ 1, the number of passes through the looped layers. K = 1 is the plain backbone (with `"joint"` messages
            the adapted one).
        feedback_topology (`str`, *optional*):
            `"top"`: the last layer speaks to every lower one; `"adjacent"`: layer l + 1 to layer l; `"dense"`: every
            higher layer to every lower one. Left out together with `feedback_edges`, it means `"top"`.
        feedback_edges (`list[list[int]]`, *optional*):
            Explicit edges `[[source, target], …]`; excludes `feedback_topology`.
        feedback_layers (`list[int]`, *optional*):
            `[lowest, highest]`, both included: confines a topology to targets in that range.
        feedback_type (`str`, defaults to `"additive"`):
            How a message is made: `"additive"` is `up(activation(down(LayerNorm(h_source))))`; `"gated"`,
            `"attention"`, `"temporal"`, `"context"` and `"joint"` stand in `connections.py` with their equations.
            Several are joined by a plus, as in `"additive+context"`.
        feedback_heads (`int`, defaults to 4):
            Heads of `"attention"`; they share the rank.
        feedback_sweeps (`int`, defaults to 3):
            Sweeps of `"temporal"`, at least 2: news travels so many tokens less one in each iteration.
        feedback_context (`str`, defaults to `"state"`):
            What `"context"` reads: the mean of the source's states, or the probabilities of the `"classes"`.
        feedback_signal (`str`, defaults to `"state"`):
            A message reads the source's `"state"`, or the `"error"`: source minus receiver.
        feedback_sharing (`str`, defaults to `"edge"`):
            Weights of their own for every `"edge"`, or one set for all `"targets"` of a source.
        feedback_future (`bool` or `"auto"`, defaults to `"auto"`):
            Whether messages may tell a token about later ones. Auto: yes for models that answer for a whole text or
            its tokens, and where the backbone reads in both directions; no for the `FeedbackModel` of a backbone that
            reads from left to right, whose states may serve to predict the next token. `from_backbone` finds out, and
            writes down True or False.
        feedback_span (`str`, defaults to `"token"`):
            `"segment"`: texts are cut into segments, each a row of the batch, and what is fed back is
            `f(U h_t + W h_{t−1} + V h_{t+1} + b)` of the segments' mean states; the answer is the mean over the
            segments. K = 1 answers for each window by itself. For `FeedbackForSequenceClassification`.
        segment_length (`int`, *optional*):
            Tokens of a segment, special ones included; what the backbone reads at most, if left out.
        segment_overlap (`int`, *optional*):
            Tokens that a segment shares with the one before; an eighth of a segment, if left out.
        segment_special_tokens (`list[int]`, *optional*):
            How many tokens at the start and at the end of a text stand around every segment of it: `[1, 1]` for
            `[CLS] … [SEP]`. `from_backbone` asks the tokenizer in the backbone's folder.
        max_segments (`int`, defaults to 64):
            The most that a text may have; a longer one is refused.
        feedback_damping (`float`, defaults to 1.0):
            α in (0, 1]: messages read `lerp(previous, new, α)` of the states; 1 damps nothing.
        learn_damping (`bool`, defaults to `False`):
            Learn α, one per source, from that start.
        feedback_state (`str`, defaults to `"reentry"`):
            In each iteration the segment reads what entered it first (`"reentry"`), or its own end of the iteration
            before (`"carry"`, as models with looped layers do; with K > 1 the model is then not its backbone, even with
            silent messages).
        halting (`str`, defaults to `"none"`):
            In evaluation, when an example stops, after K iterations at most: at `"convergence"` of its states, at
            `"confidence"` in its answer, or with `"patience"`, when the same answer has come several times. Joined by a
            plus, both must hold; by a bar, one is enough: `"convergence|confidence+patience"`. Stopped examples leave
            the batch.
        halting_threshold (`float`, defaults to 0.01):
            `"convergence"`: the last iteration moved the states by no more, `‖h^(k) − h^(k−1)‖ / ‖h^(k)‖`.
        halting_confidence (`float`, defaults to 0.9):
            `"confidence"`: that sure is the answer.
        halting_measure (`str`, defaults to `"probability"`):
            What confidence is: the `"probability"` of the answer, or its `"margin"` over the next.
        halting_patience (`int`, defaults to 2):
            `"patience"`: the same answer so many times in a row.
        min_iterations (`int`, defaults to 2):
            No example stops before this iteration.
        iteration_loss (`str`, defaults to `"last"`):
            In training, the loss of the `"last"` iteration; or a weighted mean over all, `"uniform"` or `"linear"`:
            rising with k. A loss at every iteration makes K a dial after training; it needs `gradient="full"`.
        jacobian_penalty (`float`, defaults to 0.0):
            In training, weight of a penalty on the loop's Jacobian, `‖J‖²_F` per entry, which makes further iterations
            settle (Bai et al. 2021, arXiv 2106.14342). Costs one more iteration, differentiated twice.
        gradient (`str`, defaults to `"full"`):
            Through all iterations; `"truncated"`: through the last `gradient_iterations` alone, the memory of the
            others is free; `"one_step"`: through the last one (Fung et al. 2022, Jacobian-free backpropagation, arXiv
            2103.12803); `"implicit"`: of the fixed point, at which the iterations stop (K at most, so give it many),
            with one dropout mask for all of them; where it is not reached, a warning says so and the gradient is the
            full one.
        fixed_point_solver (`str`, defaults to `"iteration"`):
            How `"implicit"` finds the fixed point: plain `"iteration"`, or `"anderson"` acceleration.
        fixed_point_tolerance (`float`, defaults to 1e-4):
            The relative residual within which it counts as found.
        gradient_iterations (`int`, *optional*):
            n ≥ 1, for `"truncated"`; n ≥ K is the full gradient.
        feedback_activation (`str`, defaults to `"swish"`):
            `"swish"` (`x·sigmoid(βx)` with one learnable β per edge, 1 at the start) or any activation that
            transformers knows by name: `"sigmoid"`, `"tanh"`, `"relu"`, `"gelu"`, `"mish"`, …
        feedback_rank (`int`, *optional*, defaults to 32):
            Width of a message's inner projection, at most the hidden size; `None`: two full d × d maps.
        feedback_dropout (`float`, defaults to 0.0):
            Dropout probability inside a message, after the activation.
        feedback_scale (`float`, defaults to 1.0):
            Factor on every message.
        backbone_layers (`list[int]`, *optional*):
            Layers of the backbone to keep, ascending; the others are left out when the model is built. The other
            options count the layers that are kept.
        backbone_part (`str`, defaults to `"auto"`):
            Which half of an encoder–decoder backbone is used: `"encoder"` (also `"auto"`) or `"decoder"`.
        head (`str`, defaults to `"new"`):
            `"new"`: pooling and a linear `classifier` over the last hidden state; `"backbone"`: the task head of the
            backbone's own family.
        pooling (`str`, defaults to `"auto"`):
            For the new head: `"cls"` (first token), `"mean"` or `"last"`, padding left out. `"auto"`: last for
            decoders, first otherwise (`from_backbone` also reads the pooling file of a sentence-transformers folder).
        classifier_dropout (`float`, *optional*):
            Dropout before the new classifier; `None`: the backbone's own classifier or hidden dropout.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of a new classifier's initial weights.
        backbone_source (`dict`, *optional*):
            Where the backbone came from (`name_or_path`, `revision`, `subfolder`); written by `from_backbone`. A
            feedback-only checkpoint also has the `fingerprint` of its weights there.
        num_labels, id2label, label2id, problem_type:
            As in every transformers configuration.

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
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    num_iterations: int = 2
    feedback_topology: str | None = None
    feedback_edges: list[list[int]] | None = None
    feedback_layers: list[int] | None = None
    feedback_type: str = "additive"
    feedback_heads: int = 4
    feedback_sweeps: int = 3
    feedback_context: str = "state"
    feedback_signal: str = "state"
    feedback_sharing: str = "edge"
    feedback_future: bool | str = "auto"
    feedback_span: str = "token"
    segment_length: int | None = None
    segment_overlap: int | None = None
    segment_special_tokens: list[int] | None = None
    max_segments: int = 64
    feedback_activation: str = "swish"
    feedback_rank: int | None = 32
    feedback_damping: float = 1.0
    learn_damping: bool = False
    feedback_state: str = "reentry"
    halting: str = "none"
    halting_threshold: float = 0.01
    halting_confidence: float = 0.9
    halting_measure: str = "probability"
    halting_patience: int = 2
    min_iterations: int = 2
    iteration_loss: str = "last"
    jacobian_penalty: float = 0.0
    gradient: str = "full"
    gradient_iterations: int | None = None
    fixed_point_solver: str = "iteration"
    fixed_point_tolerance: float = 1e-4
    feedback_dropout: float = 0.0
    feedback_scale: float = 1.0
    backbone_layers: list[int] | None = None
    backbone_part: str = "auto"
    head: str = "new"
    pooling: str = "auto"
    classifier_dropout: float | None = None
    initializer_range: float = 0.02
    backbone_source: dict | None = None
    hf_feedback_version: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        facts = {name: kwargs.pop(name) for name in BACKBONE_FACTS if name in kwargs}
        kwargs = self._check_unknown_keys(kwargs)
        check_types(self)
        check_shared_options(self, kwargs)
        if isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_config_from_dict(self.backbone_config)
        normalize_labels_of(self, kwargs)
        super().__post_init__(**kwargs)
        self._check_backbone_facts(facts)
        self.check_options()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, for what stands in a file: nothing there switches on code, and options that are given
        take the place of those in the file before anything is checked."""
        config_dict = replace_labels(without_switches(config_dict), kwargs)
        given = {name: kwargs.pop(name) for name in cls.option_names() & kwargs.keys()}
        return super().from_dict({**config_dict, **given}, **kwargs)

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        if key == "id2label" and getattr(self, "_post_init_done", False):  # other names, set on a built model's config
            self.label2id = numbers_by_name(value)

    @classmethod
    def option_names(cls) -> set[str]:
        """The names of all options that are ours or about labels; `backbone_config` is not among them."""
        ours = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        return (ours | {"id2label", "label2id", "problem_type"}) - {
            "backbone_config",
            "backbone_source",
            "hf_feedback_version",
        }

    def options(self) -> dict[str, Any]:
        """The values of all options in `option_names`, as `from_backbone` takes them."""
        return {name: getattr(self, name) for name in sorted(self.option_names())}

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
        return getattr(config, "num_hidden_layers", None)

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
        check_types(self)
        check_place(self.backbone_source)
        hint = "1 is the plain backbone, 2 reads feedback once"
        check_integer("num_iterations", self.num_iterations, 1, hint, MOST_ITERATIONS)
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        self._check_type()
        self._check_segments()
        self.check_dynamics()
        self.check_halting()
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
            check_choice("feedback_type", name, FEEDBACK_TYPES)
        if len(set(names)) < len(names):
            raise ValueError(f"`feedback_type` names an operator twice: {self.feedback_type!r}; name each once.")
        if self.feedback_context == "classes" and "context" not in names and self.feedback_span == "token":
            raise ValueError(
                f"`feedback_context`='classes' is for `feedback_type='context'`, got {self.feedback_type!r}; leave one "
                "out."
            )
        if self.feedback_context == "classes" and names == ["context"] and self.feedback_signal == "error":
            raise ValueError(
                "`feedback_signal`='error' compares states, and `feedback_context='classes'` reads none; leave one out."
            )
        check_integer("feedback_heads", self.feedback_heads, 1, "the heads share the rank")
        hint = "one sweep reads no neighbours: use 'additive'"
        check_integer("feedback_sweeps", self.feedback_sweeps, 2, hint, MOST_ITERATIONS)
        if self.feedback_future not in ("auto", True, False) or type(self.feedback_future) not in (bool, str):
            raise ValueError(f"`feedback_future` must be 'auto', True or False, got {self.feedback_future!r}.")
        rank = self.hidden_size if self.feedback_rank is None else self.feedback_rank
        if "attention" in names and is_integer(rank) and rank % self.feedback_heads:
            raise ValueError(
                f"`feedback_heads` must divide the rank of the messages, {rank}, got {self.feedback_heads}; change it "
                "or `feedback_rank`."
            )

    def check_dynamics(self) -> None:
        """The part of `check_options` about iterations and their gradient, which may be changed after building."""
        for name in ("iteration_loss", "gradient", "fixed_point_solver", "feedback_state"):
            check_choice(name, getattr(self, name), CHOICES[name])
        if not is_number(self.feedback_damping) or not 0 < self.feedback_damping <= 1:
            raise ValueError(f"`feedback_damping` must be in (0, 1], got {self.feedback_damping!r}; 1 damps nothing.")
        if not is_number(self.jacobian_penalty) or self.jacobian_penalty < 0:
            raise ValueError(f"`jacobian_penalty` must be a number of at least 0, got {self.jacobian_penalty!r}.")
        if not isinstance(self.learn_damping, bool):
            raise ValueError(f"`learn_damping` must be True or False, got {self.learn_damping!r}.")
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
            for name in ("segment_length", "segment_overlap", "segment_special_tokens", "max_segments"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(
                        f"`{name}` is for `feedback_span='segment'`, got {getattr(self, name)!r} with 'token'; leave "
                        "one out."
                    )
            return
        if self.feedback_context != "state":
            raise ValueError(
                f"`feedback_span='segment'` reads the segments' states; leave out `feedback_context`, got "
                f"{self.feedback_context!r}."
            )
        if self.feedback_type != "additive":
            raise ValueError(
                f"`feedback_span='segment'` has a message of its own; leave out `feedback_type`, got "
                f"{self.feedback_type!r}."
            )

    def check_halting(self) -> None:
        """The part of `check_options` about halting, which may be changed after training."""
        for rules in rules_of(self.halting) if isinstance(self.halting, str) else [[self.halting]]:
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
        if self.feedback_topology is not None:
            check_choice("feedback_topology", self.feedback_topology, tuple(TOPOLOGIES))
        if self.num_hidden_layers is not None:
            self.edges()
        else:  # the number of layers is open: check whatever does not depend on it, with as many as are mentioned
            mentioned = [i for edge in self.feedback_edges or [] if isinstance(edge, list | tuple) for i in edge]
            mentioned += self.feedback_layers or []
            self.edges(2 + max((i for i in mentioned if is_integer(i)), default=0))

    def _check_backbone_facts(self, facts: dict[str, Any]) -> None:
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
        return {**super().to_dict(), **facts, "hf_feedback_version": HF_FEEDBACK_VERSION}

    def to_diff_dict(self) -> dict:
        """As in transformers, for files: what follows from the backbone stands in `backbone_config` alone."""
        follows = {*BACKBONE_FACTS} - {*self.__dict__}
        return {key: value for key, value in super().to_diff_dict().items() if key not in follows}


def nearest_option(key: str) -> str | None:
    """The option that a misspelt or shortened name (`num_iteration`, `rank`) seems to mean, if any."""
    names = {name: name for name in FeedbackConfig.option_names() | {"backbone_config", "num_labels"}}
    short = {name.removeprefix("feedback_"): name for name in names if name.startswith("feedback_")}
    found = get_close_matches(key, names, n=1, cutoff=0.85)
    return found[0] if found else {**short, "iterations": "num_iterations"}.get(key)


def rules_of(halting: str) -> list[list[str]]:
    """`"convergence|confidence+patience"` → `[["convergence"], ["confidence", "patience"]]`: one group is enough, all
    of it are needed."""
    return [group.split("+") for group in halting.split("|")]
