"""Recipes are options that a backbone of their kind takes; what is given beside one counts."""

import pytest
from families import tiny_config
from transformers import AutoModelForCausalLM

from hf_feedback import (
    FeedbackConfig,
    FeedbackForCausalLM,
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
)
from hf_feedback.configuration_feedback import EDGE_OPTIONS
from hf_feedback.recipes import RECIPES
from hf_feedback.training.starting_model.model_arguments import ModelArguments

FITTING = {
    "carried-state": FeedbackForCausalLM,
    "decoder-tagging": FeedbackForTokenClassification,
    "depth-on-demand": FeedbackForTokenClassification,
    "segment-memory": FeedbackForSequenceClassification,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_has_the_options_of_its_recipe(name):
    options = FeedbackConfig.recipe(name)
    if options["feedback_rank"] is not None:
        options["feedback_rank"] = 8  # the backbone is tiny
    decoder = AutoModelForCausalLM.from_config(tiny_config("llama"))
    backbone = decoder if name == "carried-state" else decoder.model
    # no folder with a tokenizer says which tokens stand around a text
    tokens = {"segment_special_tokens": [1, 1]} if name == "segment-memory" else {}
    model = FITTING[name].from_backbone(backbone, **options, **tokens)
    assert {option: getattr(model.config, option) for option in options} == options


def test_the_command_line_takes_a_recipe_and_options_beside_it():
    recipe = FeedbackConfig.recipe("depth-on-demand")
    assert ModelArguments(model="m", recipe="depth-on-demand").config_options() == recipe
    given = ModelArguments(model="m", recipe="depth-on-demand", feedback_rank="16").config_options()
    assert given == {**recipe, "feedback_rank": 16}
    edges = ModelArguments(model="m", recipe="depth-on-demand", feedback_edges="[[3,1]]").config_options()
    assert edges["feedback_edges"] == [[3, 1]]
    assert edges.keys() & {*EDGE_OPTIONS} == {"feedback_edges"}
    assert edges["feedback_type"] == recipe["feedback_type"]
    known = "'carried-state', 'decoder-tagging', 'depth-on-demand', 'segment-memory'"
    with pytest.raises(ValueError, match=f"`recipe` must be one of {known}, got 'magic'"):
        ModelArguments(model="m", recipe="magic").config_options()


def test_a_recipe_is_not_changed_by_those_who_use_it():
    FeedbackConfig.recipe("carried-state")["feedback_layers"].append(1)
    assert FeedbackConfig.recipe("carried-state")["feedback_layers"] == [0, 0]
