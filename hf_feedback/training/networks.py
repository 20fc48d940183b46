"""Feedback networks from scratch behind the same commands: their options, and the models they start as."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from ..configuration_fnn import FNNConfig
from ..modeling_fnn import FNNForSequenceClassification
from .arguments import ModelArguments
from .labels import LabelSet
from .sources import hub_options
from .starting import check_labels, label_options, load_tokenizer


@dataclass
class FNNArguments:
    """The tokenizer and the options of `FNNConfig`."""

    # There is no pretrained model, and what starts at random learns at another rate than what is fine-tuned.
    model: ClassVar[str | None] = None
    learning_rate: ClassVar[float] = 2e-3

    fnn: str = field(metadata={"help": "Kind of network.", "choices": ["temporal", "layered"]})
    tokenizer: str = field(metadata={"help": "Hub id or folder of a tokenizer."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the hub repository."})
    hidden_size: int | None = field(default=None, metadata={"help": "d, size of every state (128)."})
    embedding_size: int | None = field(default=None, metadata={"help": "Size of the embeddings (the hidden size)."})
    num_layers: int | None = field(default=None, metadata={"help": "L, of the layered network (3)."})
    activation: str | None = field(default=None, metadata={"help": "Activation (tanh)."})
    num_iterations: int | None = field(default=None, metadata={"help": "K, sweeps, or the most of them (4)."})
    tolerance: float | None = field(default=None, metadata={"help": "Residual at which sweeps end (never)."})
    sweep: str | None = field(default=None, metadata={"help": "sequential (the default) or parallel."})
    gradient: str | None = field(default=None, metadata={"help": "full (the default), truncated or implicit."})
    gradient_iterations: int | None = field(default=None, metadata={"help": "Sweeps of the truncated gradient."})
    solver: str | None = field(default=None, metadata={"help": "iteration (the default) or anderson."})
    pooling: str | None = field(default=None, metadata={"help": "mean (the default), cls or last."})
    embedding_dropout: float | None = field(default=None, metadata={"help": "Dropout of the embeddings (0)."})
    classifier_dropout: float | None = field(default=None, metadata={"help": "Dropout before the classifier (0)."})
    initializer_range: float | None = field(default=None, metadata={"help": "Spread of new embeddings (1)."})

    def options(self) -> dict[str, Any]:
        """The options that were given, as `FNNConfig` takes them."""
        given = {name: getattr(self, name, None) for name in FNNConfig.option_names() - {"fnn_type"}}
        return {"fnn_type": self.fnn, **{name: value for name, value in given.items() if value is not None}}


def new_fnn(args: FNNArguments, labels: LabelSet) -> tuple[FNNForSequenceClassification, PreTrainedTokenizerBase]:
    """A network to train, with random weights, and its tokenizer.

    Raises:
        ValueError: an option is not as it must be, or the tokenizer is missing.
    """
    try:
        tokenizer = load_tokenizer(args.tokenizer, args.revision, option="tokenizer")
    except OSError as error:
        raise ValueError(
            f"`tokenizer`: {args.tokenizer} is no folder with a tokenizer, and none by that name could be loaded from "
            f"the Hub ({str(error).splitlines()[0]})."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return FNNForSequenceClassification(FNNConfig(**sizes, **label_options(labels), **args.options())), tokenizer


def trained_fnn(args: ModelArguments, labels: LabelSet) -> tuple[FNNForSequenceClassification, PreTrainedTokenizerBase]:
    """A network to train further, and its tokenizer; only its K can be changed.

    Raises:
        ValueError: another option was given, or the labels are others; OSError: the model is damaged.
    """
    model = FNNForSequenceClassification.from_pretrained(args.model, **hub_options(args.revision))
    for option, value in args.feedback_options().items():
        if option != "num_iterations":
            raise ValueError(f"`{option}`: {args.model} is a trained feedback network; leave the option out.")
        model.set_num_iterations(value)
    check_labels(model, args.model, labels)
    return model, load_tokenizer(args.model, args.revision)
