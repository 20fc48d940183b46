"""What training starts from: the tokenizer, and a backbone with fresh feedback or a feedback model to go on with."""

from typing import Any, TypeVar, cast

from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..backbone_layout import max_positions
from ..configuration_feedback import EDGE_OPTIONS, FeedbackConfig
from ..modeling_base import FeedbackPreTrainedModel
from ..topology import resolve_edges
from .arguments import HaltingArguments, ModelArguments
from .labels import LabelSet
from .sources import hub_options, read_config

Head = TypeVar("Head", bound=FeedbackPreTrainedModel)
# What may be another than the model was made with: its weights mean the same.
LATER_OPTIONS = (
    *HaltingArguments.__dataclass_fields__,
    "iteration_loss",
    "jacobian_penalty",
    "gradient",
    "gradient_iterations",
    "fixed_point_solver",
    "fixed_point_tolerance",
)


def load_tokenizer(
    name: str, revision: str | None, of_words: bool = False, option: str = "model"
) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model; transformers makes up an empty one where there is none, which is refused.

    Args:
        name: folder or hub id.
        revision: of the hub repository.
        of_words: whether it is to read lists of words and say where in a text its tokens stand.
        option: that the name came with, for messages.

    Raises:
        ValueError: there is none, or it does not do that; OSError: the folder or repository is missing.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, **hub_options(revision))
    if of_words and getattr(tokenizer, "add_prefix_space", None) is False:  # else the first piece of a word is another
        tokenizer = AutoTokenizer.from_pretrained(name, **hub_options(revision), add_prefix_space=True)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(
            f"`{option}`: there is no tokenizer in {name}; save the one that the backbone was trained with."
        )
    if of_words and not tokenizer.is_fast:
        raise ValueError(f"`model`: the tokenizer of {name} does not say where its tokens stand; use a fast one.")
    return tokenizer


def max_length_of(asked: int | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """How many tokens a text may have: what was asked for, now or in training (which the tokenizer keeps), or what
    tokenizer and model read.

    Raises:
        ValueError: the model does not read so many, or nothing but special tokens would be left.
    """
    cutting = model.cutting if isinstance(model, FeedbackPreTrainedModel) else None
    longest = cutting.longest if cutting else max_positions(model, getattr(model.config, "text_config", None))
    least = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if asked is not None and not least <= asked <= longest:
        raise ValueError(
            f"`max_length` must be between {least} and the {longest} tokens that the model reads, got {asked}."
        )
    return int(min(asked or tokenizer.model_max_length, longest, 1_000_000))


def make_model(
    head: type[Head],
    args: ModelArguments,
    labels: LabelSet | None = None,
    config_overrides: dict[str, Any] | None = None,
) -> Head:
    """The model to train: a feedback model goes on (with its K, halting, loss and gradient as they are asked for), a
    backbone gets fresh feedback.

    Args:
        head: the class of the task.
        args: which model, and the feedback options.
        labels: of the data; a head that is trained already has to know them. `None` for tasks without labels.
        config_overrides: see `from_backbone`.

    Raises:
        ValueError: the model cannot be what is asked for; OSError: it is missing or damaged.
    """
    hub, config = hub_options(args.revision), read_config(args.model, args.revision)
    options = args.feedback_options()
    if config.get("model_type") == FeedbackConfig.model_type:
        architectures = config.get("architectures") or ()
        new_head = head.__name__ not in architectures  # pretrained with another head, say
        model = head.from_pretrained(args.model, **hub, **(label_options(labels) if new_head else {}))
        _go_on_with(model, args.model, options)
    else:
        trained_head = head.has_trained_head(AutoConfig.from_pretrained(args.model, **hub))
        if options.get("head") != "backbone" or not trained_head:
            options |= label_options(labels)
        model = head.from_backbone(args.model, backbone_kwargs=hub, config_overrides=config_overrides, **options)
    if labels is not None:
        check_labels(model, args.model, labels)
    return model


def label_options(labels: LabelSet | None) -> dict[str, Any]:
    """The labels of the data, as a config takes them."""
    if labels is None:
        return {}
    names = labels.names or ("value",)
    return {
        "problem_type": labels.problem_type,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def set_options(model: PreTrainedModel, source: str, options: dict[str, Any]) -> None:
    """Sets options that a trained model may still change.

    Raises:
        ValueError: it has no such options, or they contradict others.
    """
    if not isinstance(model.config, FeedbackConfig):
        raise ValueError(f"`{next(iter(options))}`: {source} has no pretrained backbone; leave the option out.")
    for option, value in options.items():
        setattr(model.config, option, value)
    model.config.check_options()


def _go_on_with(model: FeedbackPreTrainedModel, source: str, options: dict[str, Any]) -> None:
    """Sets what may be set later; any other option must be what it is already."""
    set_options(model, source, {name: value for name, value in options.items() if name in LATER_OPTIONS})
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
        elif option not in LATER_OPTIONS and value not in ("auto", there := getattr(model.config, option)):
            raise ValueError(
                f"`{option}`: {source} is a feedback model already, with {there!r}, and cannot be changed to "
                f"{value!r}; leave the option out, or start from its backbone."
            )


def check_labels(model: PreTrainedModel, source: str, labels: LabelSet) -> None:
    """Raises `ValueError` where the data has labels that a trained head does not know."""
    known = LabelSet.of_model(model)
    if known.problem_type != labels.problem_type or not labels.numbers.keys() <= known.numbers.keys():
        raise ValueError(
            f"`model`: {source} was trained for the labels {', '.join(known.names) or 'numbers'}, the data has "
            f"{', '.join(labels.names) or 'numbers'}; start from its backbone, or map the labels."
        )


def set_padding(model: FeedbackPreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Decoders often come without a padding token: the end of text serves. Model and tokenizer have to agree."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id != tokenizer.pad_token_id:
        model.config.pad_token_id = tokenizer.pad_token_id
        model.backbone.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the backbone only {rows}: they do not belong together."
        )
