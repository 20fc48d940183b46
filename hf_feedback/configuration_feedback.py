"""`FeedbackConfig`: every option of a feedback model, validated when it is built and when it is loaded."""

from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

from .configuration_base import OptionsConfig, document_options
from .cutting import PairOption
from .gradients import GRADIENTS
from .iteration_losses import ITERATION_LOSSES
from .label_options import normalize_labels_of, predicts_values
from .option_checks import check_feedback_options
from .pooling import Pooling
from .recipes import options_of_recipe
from .solvers import SOLVERS
from .stored_config import backbone_config_from_dict, refuse_attributes
from .topology import TOPOLOGIES, resolve_edges
from .validation import (
    TRANSFORMERS_KEYS,
    Keywords,
    check_shared_options,
    check_types,
    is_newer,
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
        None,
        "Explicit edges [[source, target], …], layers counted from 0, on the command line as in '[[5, 3], [5, 4]]'; "
        "excludes a topology.",
    )
    feedback_layers: list[int] | None = option(
        None,
        "Two numbers, the lowest and the highest target layer of a topology, both included: [4, 5], on the command "
        "line `--feedback-layers 4 5`; all layers by default.",
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
        "edge", "Weights per 'edge', or one set shared by all 'targets' of a source layer."
    )
    feedback_future: Literal["auto"] | bool = option(
        "auto",
        "Whether messages to a token may depend on later tokens; auto: true, except for `FeedbackForCausalLM`, and for "
        "`FeedbackModel` over a causal backbone, whose states may serve to predict the next token.",
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
        "'token': each text is one row; 'segment': texts are cut into segments, each a row of the batch, which "
        "exchange messages; for text classification, token classification and question answering.",
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
        "Combination of the outputs of the segments of a text: their 'mean', or weighted by 'attention' with a "
        "learned query.",
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
    min_iterations: int = option(2, "Minimum number of iterations of every example, with halting.")

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
    fixed_point_tolerance: float = option(
        1e-4,
        "Relative residual at which 'implicit' accepts a fixed point; of a text in segments, that of the segment that "
        "moves most.",
    )

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
        """Options that were measured to help on the texts that they are for, as keywords of `from_backbone`.

        Args:
            name: `"carried-state"`, `"decoder-tagging"`, `"depth-on-demand"` or `"segment-memory"`; `hf-feedback train
                --help` says what each is for.

        Raises:
            ValueError: there is no recipe of that name.

        Example:

        ```python
        >>> FeedbackConfig.recipe("depth-on-demand")["num_iterations"]
        4

        ```
        """
        return options_of_recipe(name)

    # Properties that follow from the options

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
        """The number of layers with which the backbone (or its half in use) was pretrained."""
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
    def operator_names(self) -> list[str]:
        """The names of the operators whose messages are added: those in `feedback_type`."""
        return self.feedback_type.split("+")

    @property
    def predicts_values(self) -> bool:
        """Whether labels are values, and not classes."""
        return predicts_values(self.problem_type, len(self.id2label or {}))

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
        check_feedback_options(self)

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
        ours = self.accepted_keywords() | {"backbone_config"}
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
    names = {name: name for name in FeedbackConfig.accepted_keywords() | {"backbone_config"}}
    short = {name.removeprefix("feedback_"): name for name in names if name.startswith("feedback_")}
    near = get_close_matches(key, names, n=1, cutoff=0.85)
    return near[0] if near else {**short, "iterations": "num_iterations"}.get(key)
