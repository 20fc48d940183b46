"""`FNNConfig`: every option of the two feedback networks that are trained from scratch."""

from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from .activations import check_activation
from .configuration_base import OptionsConfig, document_options
from .label_options import normalize_labels_of
from .solvers import SOLVERS
from .stored_config import refuse_attributes
from .validation import (
    MAX_ITERATIONS,
    TRANSFORMERS_KEYS,
    check_integer,
    check_problem,
    check_shared_options,
    check_types,
    is_newer,
    is_number,
    option,
)

# The classes that a saved folder offers to `trust_remote_code=True`, whichever of them saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_fnn.FNNConfig",
    "AutoModel": "modeling_fnn.FNNModel",
    "AutoModelForSequenceClassification": "modeling_fnn.FNNForSequenceClassification",
}

# How options start that only backbones with feedback have.
FEEDBACK_ALONE = ("feedback_", "fixed_point_", "halting", "iteration_loss", "jacobian_", "min_iterations", "segment_")


@document_options
class FNNConfig(OptionsConfig):
    """Configuration of a feedback neural network (FNN).

    `num_labels`, `id2label`, `label2id` and `problem_type` are as in every configuration of transformers.

    Raises:
        ValueError: an option has a value that is not allowed, contradicts another, or looks misspelt.

    Example:

    ```python
    >>> from hf_feedback import FNNConfig, FNNForSequenceClassification
    >>> config = FNNConfig(fnn_type="layered", vocab_size=99, hidden_size=16, num_labels=3)
    >>> FNNForSequenceClassification(config).config.num_layers
    3

    ```
    """

    model_type = "hf_feedback_fnn"
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_layers"}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["hidden_states", "iteration_logits", "residuals", "iterations"]

    fnn_type: Literal["temporal", "layered"] = option(
        "temporal",
        "'temporal': h_t = f(U x_t + W h_{t-1} + V h_{t+1} + b) over the tokens of a text; 'layered': h^(l) = "
        "σ(W^(l) h^(l-1) + b^(l) + U^(l) h^(l+1)) over layers, for the mean of the text's embeddings.",
    )
    vocab_size: int = option(30522, "Number of tokens in the vocabulary.")
    hidden_size: int = option(128, "d, the size of every state h.")
    embedding_size: int | None = option(None, "Size of the token embeddings x; the hidden size by default.")
    num_layers: int | None = option(
        None, "L, number of layers: 3 by default for the layered network; the temporal network has one."
    )
    activation: str = option(
        "tanh", "f and σ: swish (one learnable β per layer) or an activation of transformers by name."
    )
    num_iterations: int = option(4, "K ≥ 1, number of sweeps; with a `tolerance`, the maximum number.")
    tolerance: float | None = option(
        None, "Relative residual at which the sweeps of a text end; always K sweeps by default."
    )
    sweep: Literal["sequential", "parallel"] | None = option(
        None,
        "Order of the temporal network: h_{t-1} is that of the same sweep ('sequential', the default) or of the "
        "previous one ('parallel': all tokens in one matrix product). The fixed point is the same.",
    )
    gradient: Literal["full", "truncated", "implicit"] = option(
        "full",
        "Gradient through all sweeps ('full'), the last `gradient_iterations` ('truncated'), or of the fixed point "
        "('implicit', which needs a `tolerance`).",
    )
    gradient_iterations: int | None = option(None, "n ≥ 1, last sweeps that 'truncated' differentiates.")
    solver: str = option(
        "iteration",
        "Solver of 'implicit': plain 'iteration' or 'anderson' acceleration.",
        choices=SOLVERS,
    )
    pooling: Literal["mean", "cls", "last"] = option(
        "mean", "Pooling of the temporal network's states for a classifier; 'cls' is the first token."
    )
    embedding_dropout: float = option(0.0, "Dropout probability of the embeddings.")
    classifier_dropout: float = option(0.0, "Dropout probability of the classifier's input.")
    initializer_range: float = option(1.0, "Standard deviation of new embeddings.")
    pad_token_id: int | None = option(None, "Id of the padding token, whose embedding stays zero.")

    def __post_init__(self, **kwargs: Any) -> None:
        for key in () if is_newer(self.hf_feedback_version) else kwargs:
            self.refuse_misspelt(key)
        refuse_attributes(type(self), kwargs, "FNNConfig")
        check_types(self)
        check_shared_options(self, kwargs)
        normalize_labels_of(self, kwargs)
        super().__post_init__(**kwargs)
        if self.num_layers is None:
            self.num_layers = 3 if self.fnn_type == "layered" else 1
        if self.sweep is None and self.fnn_type == "temporal":
            self.sweep = "sequential"
        self.check_options()

    @classmethod
    def refuse_misspelt(cls, key: str) -> None:
        """Raises `ValueError` where a name that is not an option looks like one."""
        if key in TRANSFORMERS_KEYS or key.startswith("_"):
            return
        shorter = {"iterations": "num_iterations", "layers": "num_layers", "dropout": "classifier_dropout"}
        own = key.removeprefix("feedback_").removeprefix("fixed_point_")  # such as `feedback_activation`
        if key.startswith(FEEDBACK_ALONE) and own in cls.option_names():
            raise ValueError(f"`{key}` is an option of FeedbackConfig; that of FNNConfig is `{own}`.")
        if key.startswith(FEEDBACK_ALONE):
            raise ValueError(f"`{key}` is not an option of FNNConfig but of FeedbackConfig; leave it out.")
        near = get_close_matches(key, cls.accepted_keywords(), n=1, cutoff=0.8)
        if meant := shorter.get(key) or (near[0] if near else None):
            raise ValueError(f"`{key}` is not an option of FNNConfig; did you mean `{meant}`?")

    # Validation

    def check_options(self) -> None:
        """Raises `ValueError` naming the option, its value, what is allowed and what to do."""
        super().check_options()
        check_activation(self.activation, "activation")
        sizes = {"vocab_size": "the tokenizer's length", "hidden_size": "d", "num_layers": "L"}
        for name, meaning in sizes.items():
            check_integer(name, getattr(self, name), 1, meaning)
        if self.pad_token_id is not None:
            check_integer("pad_token_id", self.pad_token_id, 0, "a number of the vocabulary", self.vocab_size - 1)
        if self.embedding_size is not None:
            check_integer("embedding_size", self.embedding_size, 1, "`None` means the hidden size")
        hint = "in the first sweep nothing is fed back yet"
        check_integer("num_iterations", self.num_iterations, 1, hint, MAX_ITERATIONS)
        for name in ("embedding_dropout", "classifier_dropout"):
            if not is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be a probability in [0, 1), got {getattr(self, name)!r}.")
        for name in ("initializer_range", "tolerance"):
            value = getattr(self, name)
            if not (value is None and name == "tolerance") and not (is_number(value) and value > 0):
                raise ValueError(f"`{name}` must be a finite number above 0, got {value!r}.")
        check_problem(self)
        self._check_kind()
        self._check_gradient()

    def _check_kind(self) -> None:
        """Checks the options that only one of the two networks has."""
        if self.fnn_type == "temporal" and self.num_layers != 1:
            raise ValueError(
                f"`num_layers` must be 1 for the temporal network, whose depth is its sweeps, got {self.num_layers}; "
                "raise `num_iterations`, or use fnn_type='layered'."
            )
        if self.fnn_type == "layered" and self.sweep is not None:
            raise ValueError(
                f"`sweep` is an option of the temporal network, got {self.sweep!r} with fnn_type='layered', which "
                "sweeps upwards; leave it out."
            )
        if self.fnn_type == "layered" and self.pooling != "mean":
            raise ValueError(
                f"`pooling` must be 'mean' for the layered network, which reads the mean of the embeddings, got "
                f"{self.pooling!r}; leave it out."
            )

    def _check_gradient(self) -> None:
        n = self.gradient_iterations
        if self.gradient == "truncated":
            check_integer("gradient_iterations", n, 1, "how many sweeps gradient='truncated' goes through")
        elif n is not None:
            raise ValueError(
                f"`gradient_iterations` is for gradient='truncated', got {n!r} with gradient={self.gradient!r}; leave "
                "it out."
            )
        if self.gradient == "implicit" and self.tolerance is None:
            raise ValueError(
                "`tolerance` is needed with gradient='implicit', got None: set what counts as converged, such as 1e-6, "
                "and `num_iterations` to the most sweeps that may be taken, such as 50."
            )
        if self.solver == "anderson" and self.gradient != "implicit":
            raise ValueError(
                f"`solver`='anderson' is for gradient='implicit', got gradient={self.gradient!r}: its steps have no "
                "gradient of their own. Leave it out, or use the implicit gradient."
            )
