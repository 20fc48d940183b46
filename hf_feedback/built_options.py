"""The options that a built model is made of, which cannot become others."""

import copy

from .configuration_feedback import EDGE_OPTIONS, FeedbackConfig

# What the modules of a model are made of; every other option may be set on the config of a built one.
BUILT_IN = (
    *EDGE_OPTIONS,
    *(
        "feedback_type feedback_heads feedback_sweeps feedback_context feedback_signal feedback_sharing "
        "feedback_future feedback_span feedback_rank feedback_activation segment_summaries segment_pooling "
        "feedback_dropout learn_damping backbone_layers backbone_part head classifier_dropout num_labels"
    ).split(),
)


class BuiltOptions:
    """The options that a model was built with, some of which its modules are made of.

    Args:
        config: config of the model.
    """

    def __init__(self, config: FeedbackConfig) -> None:
        self.edges = config.edges()
        learned = ("feedback_damping",) if config.learn_damping else ()  # a parameter that starts there
        self.built_in = {name: copy.deepcopy(getattr(config, name)) for name in (*BUILT_IN, *learned)}
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
