"""Checks of the options of a `FeedbackConfig`, each alone and together, by subject."""

from typing import TYPE_CHECKING

from .activations import check_activation
from .connections import CONNECTIONS
from .halting import HALTING_RULES, parse_halting
from .segment_connections import SEGMENT_CONNECTIONS
from .stored_config import check_class_references, check_place
from .validation import MAX_ITERATIONS, check_choice, check_integer, check_problem, is_integer, is_number

if TYPE_CHECKING:
    from .configuration_feedback import FeedbackConfig


def check_feedback_options(config: "FeedbackConfig") -> None:
    """Checks all options of a config.

    Raises:
        ValueError: an option has a value that is not allowed, or contradicts another.
    """
    check_place(config.backbone_source)
    check_class_references("custom_operators", config.custom_operators)
    hint = "1 is the plain backbone, 2 reads feedback once"
    check_integer("num_iterations", config.num_iterations, 1, hint, MAX_ITERATIONS)
    check_operators(config)
    check_segments(config)
    check_dynamics(config)
    check_halting(config)
    check_shift(config)
    check_activation(config.feedback_activation)
    check_numbers(config)
    check_problem(config)
    check_rank(config)
    check_layers(config)
    check_edges(config)


def check_numbers(config: "FeedbackConfig") -> None:
    """Checks probabilities of dropout, and numbers that must be finite."""
    for name in ("feedback_dropout", "classifier_dropout"):
        value = getattr(config, name)
        if value is None and name == "classifier_dropout":
            continue
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f"`{name}` must be a probability in [0, 1), got {value!r}.")
    if not is_number(config.feedback_scale):
        raise ValueError(f"`feedback_scale` must be a finite number, got {config.feedback_scale!r}.")
    if not is_number(config.initializer_range) or config.initializer_range <= 0:
        raise ValueError(f"`initializer_range` must be a finite number above 0, got {config.initializer_range!r}.")


def check_operators(config: "FeedbackConfig") -> None:
    """Checks the operators that compute the messages, and their options."""
    names = config.operator_names
    for name in names:
        check_choice(
            "feedback_type",
            name,
            [*dict.fromkeys((*CONNECTIONS, *SEGMENT_CONNECTIONS, *(config.custom_operators or {})))],
        )
    if len(set(names)) < len(names):
        raise ValueError(f"`feedback_type` names an operator twice: {config.feedback_type!r}; name each once.")
    reads_classes = any(CONNECTIONS[name].may_read_classes for name in names if name in CONNECTIONS)
    if config.feedback_context == "classes" and not reads_classes and config.feedback_span == "token":
        raise ValueError(
            f"`feedback_context`='classes' is for `feedback_type='context'`, got {config.feedback_type!r}; leave one "
            "out."
        )
    check_integer("feedback_heads", config.feedback_heads, 1, "the heads share the rank")
    hint = "one sweep reads no neighbours: use 'additive'"
    check_integer("feedback_sweeps", config.feedback_sweeps, 2, hint, MAX_ITERATIONS)
    for name in names:
        registry = CONNECTIONS if config.feedback_span == "token" else SEGMENT_CONNECTIONS
        if name in registry:
            registry[name].check_options(config)


def check_shift(config: "FeedbackConfig") -> None:
    """One pass a token is the limit of many iterations only where nothing but the messages moves on."""
    check_integer("feedback_shift", config.feedback_shift, 0, "0: each token's own messages; 1: those before", 1)
    if config.feedback_shift == 0:
        return
    others = ("feedback_state", "feedback_damping", "learn_damping", "halting", "feedback_span")
    for name in others:
        if getattr(config, name) != getattr(type(config), name):
            raise ValueError(
                f"`feedback_shift`=1 carries a state from token to token and excludes `{name}`, got "
                f"{getattr(config, name)!r}; leave one out."
            )
    names = [name for name in config.operator_names if name in CONNECTIONS]
    if mixing := [name for name in names if CONNECTIONS[name].mixes_tokens]:
        raise ValueError(
            f"`feedback_shift`=1 is for messages of single tokens, got `feedback_type`={config.feedback_type!r}, "
            f"where {mixing[0]!r} reads several; use 'gated', 'additive' or 'joint'."
        )


def check_dynamics(config: "FeedbackConfig") -> None:
    """Checks the iterations and their gradient."""
    if not is_number(config.feedback_damping) or not 0 < config.feedback_damping <= 1:
        raise ValueError(f"`feedback_damping` must be in (0, 1], got {config.feedback_damping!r}; 1 damps nothing.")
    if not is_number(config.jacobian_penalty) or config.jacobian_penalty < 0:
        raise ValueError(f"`jacobian_penalty` must be a number of at least 0, got {config.jacobian_penalty!r}.")
    if not is_number(config.fixed_point_tolerance) or config.fixed_point_tolerance <= 0:
        raise ValueError(f"`fixed_point_tolerance` must be above 0, got {config.fixed_point_tolerance!r}.")
    if config.iteration_loss != "last" and config.gradient != "full":
        raise ValueError(
            f"`iteration_loss`={config.iteration_loss!r} needs a gradient of every iteration, and "
            f"`gradient`={config.gradient!r} drops that of the earlier ones; use 'full', or `iteration_loss='last'`."
        )
    if config.fixed_point_solver != "iteration" and config.gradient != "implicit":
        raise ValueError(
            f"`fixed_point_solver`={config.fixed_point_solver!r} is for `gradient='implicit'`, got "
            f"{config.gradient!r}; leave one out."
        )
    truncated = config.gradient == "truncated"
    if truncated:
        check_integer("gradient_iterations", config.gradient_iterations, 1, "for `gradient='truncated'`")
    elif config.gradient_iterations is not None:
        raise ValueError(
            f"`gradient_iterations` is for `gradient='truncated'`, got {config.gradient_iterations!r} with "
            f"`gradient`={config.gradient!r}; leave one out."
        )


def check_segments(config: "FeedbackConfig") -> None:
    """Checks how long texts are cut."""
    if config.segment_overlap is not None:
        check_integer("segment_overlap", config.segment_overlap, 0, "0: segments share no tokens")
    check_integer("max_segments", config.max_segments, 1, "of a text")
    check_integer("segment_summaries", config.segment_summaries, 1, "vectors of a segment")
    around = config.segment_special_tokens
    if around is not None and not (
        isinstance(around, list | tuple) and len(around) == 2 and all(is_integer(n) and n >= 0 for n in around)
    ):
        raise ValueError(
            "`segment_special_tokens` must be how many tokens stand at the start and at the end of a text, such "
            f"as [1, 1], got {around!r}."
        )
    if config.segment_length is not None:
        least = 1 + (config.segment_overlap or 0) + sum(around or ())
        check_integer("segment_length", config.segment_length, least, "overlap and special tokens need as many")
    if config.feedback_span == "token":
        for name in sorted(name for name in config.option_names() if "segment" in name):
            if getattr(config, name) != getattr(type(config), name):
                raise ValueError(
                    f"`{name}` is for `feedback_span='segment'`, got {getattr(config, name)!r} with 'token'; leave "
                    "one out."
                )
        if only := [name for name in config.operator_names if name in SEGMENT_CONNECTIONS.keys() - CONNECTIONS.keys()]:
            raise ValueError(
                f"`feedback_type`={only[0]!r} is for `feedback_span='segment'`, got 'token'; give both, or use "
                "'attention'."
            )
    else:
        check_segment_messages(config)


def check_segment_messages(config: "FeedbackConfig") -> None:
    """Checks the messages between segments."""
    if config.feedback_context != "state":
        raise ValueError(
            f"`feedback_span='segment'` reads the segments' states; leave out `feedback_context`, got "
            f"{config.feedback_context!r}."
        )
    if not {*config.operator_names} <= SEGMENT_CONNECTIONS.keys():
        raise ValueError(
            f"`feedback_span='segment'` has messages of its own, {', '.join(SEGMENT_CONNECTIONS)}; use one of them "
            f"as `feedback_type`, got {config.feedback_type!r}."
        )


def check_halting(config: "FeedbackConfig") -> None:
    """Checks halting, which may be changed after training."""
    for rules in parse_halting(config.halting):
        for rule in rules:
            check_choice("halting", rule, ("none", *HALTING_RULES))
    if config.halting != "none" and "none" in config.halting.replace("+", "|").split("|"):
        raise ValueError(f"`halting`: 'none' cannot be joined with others, got {config.halting!r}.")
    if config.predicts_values and config.halting not in ("none", "convergence"):
        raise ValueError(f"`halting`={config.halting!r} needs classes, not one value; use 'convergence'.")
    if not is_number(config.halting_threshold) or config.halting_threshold < 0:
        raise ValueError(f"`halting_threshold` must be a number of at least 0, got {config.halting_threshold!r}.")
    if not is_number(config.halting_confidence) or not 0 < config.halting_confidence <= 1:
        raise ValueError(f"`halting_confidence` must be in (0, 1], got {config.halting_confidence!r}.")
    check_integer("halting_patience", config.halting_patience, 1, "the same answer so many times in a row")
    check_integer("min_iterations", config.min_iterations, 1, "no example stops before")


def check_rank(config: "FeedbackConfig") -> None:
    """Checks the rank of the messages."""
    if config.feedback_rank is None:
        return
    hint = "`None` means full rank"
    check_integer("feedback_rank", config.feedback_rank, 1, hint)
    if config.hidden_size is not None and config.feedback_rank > config.hidden_size:
        raise ValueError(
            f"`feedback_rank` must be at most the backbone's hidden size {config.hidden_size}, got "
            f"{config.feedback_rank}; choose a smaller rank ({hint})."
        )


def check_layers(config: "FeedbackConfig") -> None:
    """Checks which layers of the backbone are kept."""
    layers = config.backbone_layers
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
    total = config.num_backbone_layers
    if total is not None and layers[-1] >= total:
        raise ValueError(f"`backbone_layers` must be below the backbone's {total} layers, got {layers!r}.")


def check_edges(config: "FeedbackConfig") -> None:
    """Checks the edges, as far as the number of layers is known."""
    if config.num_hidden_layers is not None:
        config.edges()
    else:  # the number of layers is open: check whatever does not depend on it, with as many as are mentioned
        mentioned = [i for edge in config.feedback_edges or [] if isinstance(edge, list | tuple) for i in edge]
        mentioned += config.feedback_layers or []
        config.edges(2 + max((i for i in mentioned if is_integer(i)), default=0))
