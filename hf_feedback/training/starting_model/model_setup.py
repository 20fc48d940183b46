"""The tokenizer and the model that training starts from, with new or trained feedback."""

from typing import TypeVar, cast

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ...configuration_feedback import EDGE_OPTIONS, FeedbackConfig
from ...configuration_fnn import FNNConfig
from ...cutting import special_tokens_of
from ...feedback_checkpoint import is_feedback_only
from ...modeling_base import FeedbackPreTrainedModel
from ...modeling_fnn import FNNForSequenceClassification
from ...predictor import give_padding_token
from ...stored_config import place_keywords
from ...topology import resolve_edges
from ...validation import check_choice
from ..data.labels import LabelSet
from .model_arguments import DTYPES, HALTING_OPTIONS, FNNArguments, ModelArguments, Options
from .model_sources import hub_options, read_config

Head = TypeVar("Head", bound=FeedbackPreTrainedModel)
SEGMENT_SIZES = ("segment_length", "segment_overlap", "max_segments")
# Options of a trained model that may change without new weights.
CHANGEABLE_OPTIONS = (
    *HALTING_OPTIONS,
    *SEGMENT_SIZES,
    "iteration_loss",
    "jacobian_penalty",
    "gradient",
    "gradient_iterations",
    "fixed_point_solver",
    "fixed_point_tolerance",
    "label_piece",
)


def load_tokenizer(
    name: str, revision: str | None, of_words: bool = False, option: str = "model"
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model: the one beside it, or that of the backbone of a feedback-only checkpoint.

    Where there is none, transformers returns an empty one, which is refused.

    Args:
        name: folder or hub id.
        revision: branch, tag or commit of the hub repository.
        of_words: whether it must read lists of words and return the positions of tokens in a text.
        option: option that the name comes from, for messages.

    Raises:
        ValueError: there is no tokenizer, or it lacks what `of_words` needs.
        OSError: the folder or repository is missing.
    """
    place: Options = {"pretrained_model_name_or_path": name, **hub_options(revision)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
    except (OSError, ValueError):
        if (backbone := _place_of_backbone(name, revision)) is None:
            raise
        place = {**place, **backbone}
        tokenizer = AutoTokenizer.from_pretrained(**place)
    if of_words and _may_prefix_words(tokenizer):  # otherwise the first piece of a word differs
        tokenizer = AutoTokenizer.from_pretrained(**place, add_prefix_space=True)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(
            f"`{option}`: there is no tokenizer in {name}; save the one that the backbone was trained with."
        )
    if of_words and not tokenizer.is_fast:
        raise ValueError(
            f"`model`: the tokenizer of {name} does not return the positions of its tokens; use a fast one."
        )
    return tokenizer


def _place_of_backbone(name: str, revision: str | None) -> Options | None:
    """The keywords by which the backbone of a feedback-only checkpoint is loaded; `None` of anything else."""
    try:
        stored = read_config(name, revision)
    except ValueError:
        return None
    config = FeedbackConfig.from_dict(stored) if stored.get("model_type") == FeedbackConfig.model_type else None
    source = config.backbone_source if config is not None and is_feedback_only(config) else None
    if source is None or "name_or_path" not in source:
        return None
    return {"revision": None, **place_keywords(source)}


def _may_prefix_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `add_prefix_space` can be switched on: where others split a text before the bytes are read, every digit
    would get a space of its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    is_byte_level = isinstance(getattr(backend, "pre_tokenizer", None), ByteLevel)
    return is_byte_level and getattr(tokenizer, "add_prefix_space", None) is False


def set_segments(model: FeedbackPreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: ModelArguments) -> None:
    """Tells a model that cuts texts into segments about special tokens, and its tokenizer how long texts may be.

    Args:
        model: the model.
        tokenizer: the model's; that of a trained feedback model keeps the length of its training, unless its segments
            have another size now.
        args: which model, and its options.
    """
    if model.config.feedback_span == "segment" and model.config.segment_special_tokens is None:
        model.config.segment_special_tokens = special_tokens_of(tokenizer)
    stored, options = read_config(args.model, args.revision), args.config_options()
    is_trained = stored.get("model_type") == FeedbackConfig.model_type
    is_resized = any(name in options and options[name] != stored.get(name) for name in SEGMENT_SIZES)
    if model.cutting is not None and (is_resized or not is_trained):
        tokenizer.model_max_length = model.cutting.longest  # not of one segment


def make_model(
    model_class: type[Head],
    args: ModelArguments,
    labels: LabelSet | None = None,
    config_overrides: Options | None = None,
) -> Head:
    """Returns the model to train: a feedback model to train further, or a backbone with fresh feedback.

    Args:
        model_class: class of the task.
        args: which model, and its options. A feedback model takes those that may change after training.
        labels: labels of the data, which a trained head must have; `None` for tasks without labels.
        config_overrides: as in `from_backbone`.

    Raises:
        ValueError: an option or a label does not fit the model.
        OSError: the model is missing or damaged.
    """
    config, options = read_config(args.model, args.revision), args.config_options()
    place = {**hub_options(args.revision), **_dtype_options(args, config)}
    if config.get("model_type") == FeedbackConfig.model_type:
        architectures = config.get("architectures") or ()
        new_head = model_class.__name__ not in architectures  # such as one that was pretrained with another head
        model = model_class.from_pretrained(args.model, **place, **(label_options(labels) if new_head else {}))
        _update_options(model, args.model, options)
    else:
        trained_head = model_class.has_trained_head(
            AutoConfig.from_pretrained(args.model, **hub_options(args.revision))
        )
        if options.get("head") != "backbone" or not trained_head:
            options |= label_options(labels)
        model = model_class.from_backbone(
            args.model, backbone_kwargs=place, config_overrides=config_overrides, **options
        )
    if labels is not None:
        check_head_has_labels(model, args.model, labels)
    return model


def _dtype_options(args: ModelArguments, config: Options) -> Options:
    """The precision in which a model is loaded; that of quantized weights is their own."""
    check_choice("dtype", args.dtype, DTYPES)
    backbone_config = config.get("backbone_config")
    configs = (config, backbone_config if isinstance(backbone_config, dict) else {})
    if any(one.get("quantization_config") for one in configs):
        return {}
    return {} if args.dtype == "auto" else {"dtype": getattr(torch, args.dtype)}


def new_network(args: FNNArguments, labels: LabelSet) -> tuple[PreTrainedTokenizerBase, FNNForSequenceClassification]:
    """Returns a tokenizer, and a feedback network with random weights.

    Args:
        args: the tokenizer and the options of the network.
        labels: labels of the data.

    Raises:
        ValueError: an option has a value that is not allowed, or the tokenizer is missing.
    """
    try:
        tokenizer = load_tokenizer(args.tokenizer, args.revision, option="tokenizer")
    except OSError as error:
        raise ValueError(
            f"`tokenizer`: {args.tokenizer} is not a folder with a tokenizer, and none of that name could be loaded "
            f"from the Hub ({str(error).splitlines()[0]})."
        ) from error
    give_padding_token(tokenizer)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = FNNConfig(**sizes, **label_options(labels), **args.config_options())
    return tokenizer, FNNForSequenceClassification(config)


def trained_network(
    args: ModelArguments, labels: LabelSet | None
) -> tuple[PreTrainedTokenizerBase, FNNForSequenceClassification]:
    """Returns a tokenizer, and its trained feedback network.

    Args:
        args: which model; only its K can be changed.
        labels: labels of the data, which the network has to have; `None` for any.

    Raises:
        ValueError: another option is given, or the labels differ.
        OSError: the model is damaged.
    """
    if args.dtype == "bfloat16":
        raise ValueError(f"`dtype`: {args.model} is a trained feedback network, of float32; leave the option out.")
    model = FNNForSequenceClassification.from_pretrained(args.model, **hub_options(args.revision))
    for option, value in args.config_options().items():
        if option != "num_iterations":
            raise ValueError(f"`{option}`: {args.model} is a trained feedback network; leave the option out.")
        model.set_num_iterations(value)
    if labels is not None:
        check_head_has_labels(model, args.model, labels)
    return load_tokenizer(args.model, args.revision), model


def label_options(labels: LabelSet | None) -> Options:
    """Returns the labels of the data, as a config takes them."""
    if labels is None:
        return {}
    names = labels.names or ("value",)
    return {
        "problem_type": labels.problem_type,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def set_options(model: PreTrainedModel, source: str, options: Options) -> None:
    """Sets options that a trained model may still change.

    Args:
        model: the model.
        source: its folder or hub id, for messages.
        options: values by name.

    Raises:
        ValueError: the model has no such options, or they contradict others.
    """
    if not isinstance(model.config, FeedbackConfig):
        raise ValueError(f"`{next(iter(options))}`: {source} has no pretrained backbone; leave the option out.")
    model.config.set_checked(**options)


def _update_options(model: FeedbackPreTrainedModel, source: str, options: Options) -> None:
    """Sets the options that may change; any other must have its present value."""
    changes = {name: options[name] for name in CHANGEABLE_OPTIONS if options.get(name, "auto") != "auto"}
    set_options(model, source, changes)
    for option, value in options.items():
        if option == "num_iterations":
            model.set_num_iterations(value)
        elif option in EDGE_OPTIONS:
            edges = resolve_edges(len(model.layers), *(options.get(name) for name in EDGE_OPTIONS))
            if edges != model.config.edges():
                raise ValueError(
                    f"`{option}`: {source} is a feedback model already, with the edges {model.config.edges()}, not "
                    f"{edges}; leave the option out, or start from its backbone."
                )
        elif option not in CHANGEABLE_OPTIONS and value not in ("auto", current := getattr(model.config, option)):
            raise ValueError(
                f"`{option}`: {source} is a feedback model already, with {current!r}, and cannot be changed to "
                f"{value!r}; leave the option out, or start from its backbone."
            )


def check_head_has_labels(model: PreTrainedModel, source: str, labels: LabelSet) -> None:
    """Refuses labels of the data that a trained head does not have.

    Args:
        model: the model.
        source: its folder or hub id, for the message.
        labels: labels of the data.

    Raises:
        ValueError: the head was trained for others.
    """
    trained = LabelSet.of_model(model)
    if trained.problem_type != labels.problem_type or not labels.numbers.keys() <= trained.numbers.keys():
        raise ValueError(
            f"`model`: {source} was trained for the labels {', '.join(trained.names) or 'numbers'}, the data has "
            f"{', '.join(labels.names) or 'numbers'}; start from its backbone, or map the labels."
        )


def set_padding(model: FeedbackPreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives model and tokenizer the same padding token: the end-of-text token if a decoder has none.

    Args:
        model: the model.
        tokenizer: its tokenizer.

    Raises:
        ValueError: the tokenizer has neither token, or more tokens than the model has embeddings.
    """
    give_padding_token(tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.backbone.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # a copy if layers are left out
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the backbone only {rows}: they do not belong together."
        )
