"""Named sets of options, each measured on the texts that it is for."""

from dataclasses import dataclass

from .validation import Keywords, check_choice


@dataclass(frozen=True)
class Recipe:
    """A set of options.

    Args:
        purpose: a short description of the purpose.
        options: options of `FeedbackConfig`.
    """

    purpose: str
    options: Keywords


RECIPES = {
    "carried-state": Recipe(
        "a language model from scratch that carries a state from token to token",
        {
            "num_iterations": 2,
            "feedback_shift": 1,
            "feedback_type": "gated",
            "feedback_topology": "top",
            "feedback_layers": [0, 0],
            "feedback_rank": None,
            "feedback_activation": "linear",
        },
    ),
    "decoder-tagging": Recipe(
        "a decoder that is trained as a whole to tag words, and whose causal mask has to stay",
        {
            "num_iterations": 2,
            "feedback_type": "temporal",
            "feedback_topology": "top",
            "feedback_rank": 64,
        },
    ),
    "depth-on-demand": Recipe(
        "a shallow model that takes as many steps as K has iterations; K = 4 in every step of training",
        {
            "num_iterations": 4,
            "feedback_type": "additive",
            "feedback_topology": "top",
            "feedback_layers": [0, 0],
            "feedback_rank": None,
            "feedback_activation": "linear",
        },
    ),
    "segment-memory": Recipe(
        "classes of long texts in segments that have to know of each other: a question in one, its facts in others",
        {
            "num_iterations": 3,
            "feedback_span": "segment",
            "feedback_type": "memory",
            "feedback_topology": "top",
            "feedback_rank": None,
            "segment_summaries": 4,
            "segment_pooling": "attention",
        },
    ),
}


def options_of_recipe(name: str) -> Keywords:
    """The options of a recipe.

    Args:
        name: name of the recipe.

    Raises:
        ValueError: there is none of that name.

    Example:

    ```python
    >>> options_of_recipe("depth-on-demand")["num_iterations"]
    4

    ```
    """
    check_choice("recipe", name, RECIPES)
    return {option: list(v) if isinstance(v, list) else v for option, v in RECIPES[name].options.items()}
