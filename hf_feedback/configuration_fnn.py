"""`FNNConfig`: every option of the two feedback networks that are trained from scratch."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any, ClassVar

from transformers import PreTrainedConfig

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
    is_newer,
    is_number,
)
from .labels import normalize_labels_of, numbers_by_name, replace_labels
from .stored_config import refuse_attributes, without_switches

# The classes that a saved folder offers to `trust_remote_code=True`, whichever of them saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_fnn.FNNConfig",
    "AutoModel": "modeling_fnn.FNNModel",
    "AutoModelForSequenceClassification": "modeling_fnn.FNNForSequenceClassification",
}

CHOICES: dict[str, tuple[str | None, ...]] = {
    "problem_type": (None, "regression", "single_label_classification", "multi_label_classification"),
    "fnn_type": ("temporal", "layered"),
    "sweep": (None, "sequential", "parallel"),
    "gradient": ("full", "truncated", "implicit"),
    "solver": ("iteration", "anderson"),
    "pooling": ("mean", "cls", "last"),
}


# How options start that only backbones with feedback have.
FEEDBACK_ALONE = ("feedback_", "fixed_point_", "halting", "iteration_loss", "jacobian_", "min_iterations", "segment_")


class FNNConfig(PreTrainedConfig):
    """Configuration of a feedback neural network (FNN).

    Args:
        fnn_type (`str`, defaults to `"temporal"`):
            `"temporal"`: `h_t = f(U x_t + W h_{t-1} + V h_{t+1} + b)` over the tokens of a text; `"layered"`:
            `h^(l) = σ(W^(l) h^(l-1) + b^(l) + U^(l) h^(l+1))` over the layers, for the mean of the text's embeddings.
        vocab_size (`int`, defaults to 30522):
            How many tokens there are.
        hidden_size (`int`, defaults to 128):
            d, the size of every state h.
        embedding_size (`int`, *optional*):
            Size of the token embeddings x; the hidden size if left out.
        num_layers (`int`, *optional*):
            L; 3 for the layered network if left out. The temporal network has one layer.
        activation (`str`, defaults to `"tanh"`):
            f and σ: `"swish"` (with one learnable β a layer) or any activation that transformers knows by name.
        num_iterations (`int`, defaults to 4):
            K ≥ 1, how many sweeps; with a `tolerance`, at most so many.
        tolerance (`float`, *optional*):
            A text's sweeps end once the relative residual `‖h^(k) − h^(k−1)‖ / ‖h^(k)‖` is not above this. Left out,
            there are always K.
        sweep (`str`, *optional*):
            For the temporal network. `"sequential"` (the default): `h_{t-1}` is of the same sweep, so that news from
            the left arrives in one; `"parallel"`: of the sweep before, like `h_{t+1}`, so that all tokens are one
            matrix product. The fixed point is the same.
        gradient (`str`, defaults to `"full"`):
            `"full"`: through all sweeps; `"truncated"`: through the last `gradient_iterations`; `"implicit"`: of the
            fixed point, which needs a `tolerance`.
        gradient_iterations (`int`, *optional*):
            How many sweeps the truncated gradient goes through.
        solver (`str`, defaults to `"iteration"`):
            How the implicit gradient's fixed point is found: by plain sweeps or with `"anderson"` acceleration.
        pooling (`str`, defaults to `"mean"`):
            What a classifier reads of the temporal network's states: `"mean"`, `"cls"` (first) or `"last"`.
        embedding_dropout, classifier_dropout (`float`, default to 0.0):
            Dropout probabilities of the embeddings and of what the classifier reads.
        initializer_range (`float`, defaults to 1.0):
            Standard deviation of new embeddings. The maps start so that they keep the variance of their input, and the
            feedback so that sweeps contract.
        pad_token_id (`int`, *optional*):
            Its embedding is zero, and stays so.
        num_labels, id2label, label2id, problem_type:
            As in every transformers configuration.

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

    fnn_type: str = "temporal"
    vocab_size: int = 30522
    hidden_size: int = 128
    embedding_size: int | None = None
    num_layers: int | None = None
    activation: str = "tanh"
    num_iterations: int = 4
    tolerance: float | None = None
    sweep: str | None = None
    gradient: str = "full"
    gradient_iterations: int | None = None
    solver: str = "iteration"
    pooling: str = "mean"
    embedding_dropout: float = 0.0
    classifier_dropout: float = 0.0
    initializer_range: float = 1.0
    pad_token_id: int | None = None
    hf_feedback_version: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for key in () if is_newer(self.hf_feedback_version) else kwargs:
            self.refuse_misspelt(key)
        refuse_attributes(type(self), kwargs, "FNNConfig")
        check_types(self)
        check_shared_options(self, kwargs)
        normalize_labels_of(self, kwargs)
        super().__post_init__(**kwargs)
        check_choice("fnn_type", self.fnn_type, CHOICES["fnn_type"])
        if self.num_layers is None:
            self.num_layers = 3 if self.fnn_type == "layered" else 1
        if self.sweep is None and self.fnn_type == "temporal":
            self.sweep = "sequential"
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
        """The names of all options that are ours or about labels."""
        ours = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        return (ours | {"id2label", "label2id", "problem_type"}) - {"hf_feedback_version"}

    def options(self) -> dict[str, Any]:
        """The values of all options in `option_names`."""
        return {name: getattr(self, name) for name in sorted(self.option_names())}

    def to_dict(self) -> dict:
        """As in transformers, with the version of hf_feedback that writes it."""
        return {**super().to_dict(), "hf_feedback_version": HF_FEEDBACK_VERSION}

    @classmethod
    def refuse_misspelt(cls, key: str) -> None:
        """Raises `ValueError` where a name that is no option looks like one."""
        if key in TRANSFORMERS_KEYS or key.startswith("_"):
            return
        shorter = {"iterations": "num_iterations", "layers": "num_layers", "dropout": "classifier_dropout"}
        if key.startswith(FEEDBACK_ALONE):
            raise ValueError(f"`{key}` is not an option of FNNConfig but of FeedbackConfig; leave it out.")
        near = get_close_matches(key, cls.option_names() | {"num_labels"}, n=1, cutoff=0.8)
        if meant := shorter.get(key) or (near[0] if near else None):
            raise ValueError(f"`{key}` is not an option of FNNConfig; did you mean `{meant}`?")

    # Validation

    def check_options(self) -> None:
        """Raises `ValueError` naming the option, its value, what is allowed and what to do."""
        check_types(self)
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        check_activation(self.activation, "activation")
        sizes = {"vocab_size": "the tokenizer's length", "hidden_size": "d", "num_layers": "L"}
        for name, meaning in sizes.items():
            check_integer(name, getattr(self, name), 1, meaning)
        if self.embedding_size is not None:
            check_integer("embedding_size", self.embedding_size, 1, "`None` means the hidden size")
        hint = "in the first sweep nothing is fed back yet"
        check_integer("num_iterations", self.num_iterations, 1, hint, MOST_ITERATIONS)
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
        """What only one of the two networks has."""
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
