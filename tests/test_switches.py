"""What is switched or asked for on a built model: K and other options, feedback on and off, states by number."""

import re
import threading

import pytest
import torch
from families import randomize_messages, tiny_backbone, tiny_batch

from hf_feedback import FeedbackConfig, FeedbackForSequenceClassification, FeedbackModel, FNNConfig, FNNModel


def model_with_messages(model_class=FeedbackModel, **options):
    return randomize_messages(model_class.from_backbone(tiny_backbone("bert"), feedback_rank=8, **options)).eval()


SET_LATER = {
    # option, value → words of the message at the next call
    "K of zero": ("num_iterations", 0, "`num_iterations` must be an integer of at least 1, got 0"),
    "K as text": ("num_iterations", "2", "`num_iterations` must be an integer, got '2'"),
    "K without end": ("num_iterations", 10**9, "`num_iterations` must be at most 1000"),
    "no such gradient": ("gradient", "half", "`gradient` must be one of 'full'"),
    "another operator": ("feedback_type", "gated", "`feedback_type` was 'additive' when the model was built"),
    "another rank": ("feedback_rank", 4, "`feedback_rank` was 8 when the model was built, which cannot become 4 now"),
    "another topology": ("feedback_topology", "dense", "`feedback_topology` was None when the model was built"),
    "scale as text": ("feedback_scale", "1", "`feedback_scale` must be a finite number, got '1'"),
}


@pytest.mark.parametrize("case", SET_LATER)
def test_options_set_on_a_built_model_are_checked_at_the_next_call_and_when_it_is_saved(case, tmp_path):
    option, value, words = SET_LATER[case]
    model = model_with_messages()
    expected, before = model(**tiny_batch()).last_hidden_state, getattr(model.config, option)
    setattr(model.config, option, value)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        model(**tiny_batch())
    assert words in str(caught.value)
    for save in (model.save_pretrained, model.save_feedback):
        with pytest.raises(ValueError, match=re.escape(words)):
            save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    setattr(model.config, option, before)
    assert torch.equal(model(**tiny_batch()).last_hidden_state, expected)  # the same call once more


@pytest.mark.parametrize(("option", "value"), [("num_iterations", "2"), ("gradient", "half"), ("tolerance", -1.0)])
def test_options_set_on_a_network_from_scratch_are_checked_too(option, value):
    model = FNNModel(FNNConfig(vocab_size=99, hidden_size=8))
    setattr(model.config, option, value)
    with pytest.raises(ValueError, match=f"`{option}` must be"):
        model(input_ids=torch.tensor([[5, 6]]))


def test_renamed_labels_go_together(tmp_path):
    model = model_with_messages(FeedbackForSequenceClassification, id2label={0: "a", 1: "b"})
    model.config.id2label = {0: "no", 1: "yes"}
    model(**tiny_batch())
    model.save_pretrained(tmp_path)
    again = FeedbackForSequenceClassification.from_pretrained(tmp_path).config
    assert (again.id2label, again.label2id) == ({0: "no", 1: "yes"}, {"no": 0, "yes": 1})
    model.config.label2id = {"never": 0, "always": 1}
    with pytest.raises(ValueError, match="`label2id` contradicts `id2label`; set `id2label` alone"):
        model(**tiny_batch())


def test_edges_may_be_spelled_out():
    model, batch = model_with_messages(), tiny_batch()
    before = model(**batch).last_hidden_state
    model.config.feedback_edges = [list(edge) for edge in model.config.edges()]
    assert torch.equal(model(**batch).last_hidden_state, before)


def test_options_that_may_change_do():
    model, batch = model_with_messages(), tiny_batch()
    before = model(**batch).last_hidden_state
    model.config.feedback_scale = 2.0
    assert not torch.equal(model(**batch).last_hidden_state, before)
    model.config.num_iterations = 1
    with model.feedback_disabled():
        assert torch.equal(model(**batch).last_hidden_state, model.backbone(**batch).last_hidden_state)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_feedback_is_disabled_for_one_thread_of_a_compiled_model(fullgraph):
    model, batch = model_with_messages(backbone_layers=[0, 1]), tiny_batch()  # fewer are compiled sooner
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=fullgraph, backend="eager")
    wrong: list[str] = []

    @torch.no_grad()
    def check(disabled: bool) -> None:
        expected = model(**batch, num_iterations=1 if disabled else 2).last_hidden_state
        if (compiled(**batch).last_hidden_state - expected).abs().max() > 1e-5 * expected.abs().max():
            wrong.append("disabled" if disabled else "enabled")

    def in_another_thread(*states: bool) -> None:
        def run() -> None:
            for disabled in states:
                if disabled:
                    with model.feedback_disabled():
                        check(True)
                else:
                    check(False)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    check(False)
    with model.feedback_disabled():
        check(True)
        in_another_thread(False, True, False)
        check(True)
        in_another_thread(True, False)
    check(False)
    assert not wrong


@pytest.mark.parametrize("selected", [[0, 2], 2, -1, (1,), [9], True])
def test_states_are_selected_as_transformers_does(selected):
    backbone, batch = tiny_backbone("bert"), tiny_batch()
    model = FeedbackModel.from_backbone(backbone, feedback_rank=8, num_iterations=3)
    states = model(**batch, output_hidden_states=selected).hidden_states
    expected = backbone(**batch, output_hidden_states=selected).hidden_states
    assert [state is None for state in states] == [state is None for state in expected]
    assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=True) if a is not None)


def test_networks_from_scratch_select_states_too():
    model = FNNModel(FNNConfig(vocab_size=99, hidden_size=8, fnn_type="layered"))
    every = model(input_ids=torch.tensor([[5, 6]]), output_hidden_states=True).hidden_states
    states = model(input_ids=torch.tensor([[5, 6]]), output_hidden_states=[0, -1]).hidden_states
    assert [state is not None for state in states] == [True, *[False] * (len(every) - 2), True]


@pytest.mark.parametrize("config_class", [FeedbackConfig, FNNConfig])
def test_one_label_is_nothing_to_choose_from(config_class):
    with pytest.raises(ValueError, match="single_label_classification"):
        config_class(num_labels=1, problem_type="single_label_classification")
    config = config_class(num_labels=1)
    config.problem_type = "single_label_classification"
    with pytest.raises(ValueError, match="`problem_type`='single_label_classification' needs at least two labels"):
        config.check_options()


@pytest.mark.parametrize("make", ["saved by a model without a head", "config alone"])
def test_weights_that_a_folder_lacks_start_as_the_family_starts_them(make, tmp_path):
    """ModernBERT's classifier starts with a standard deviation of `hidden_size^-0.5` and its other maps smaller than
    0.02 as the model is deeper; 0.02 is what transformers gives to whatever it does not know."""
    backbone = tiny_backbone("modernbert", hidden_size=256, intermediate_size=64, head_dim=64)
    torch.manual_seed(0)
    if make == "config alone":
        config = FeedbackConfig(backbone_config=backbone.config, head="backbone", num_labels=3)
        model = FeedbackForSequenceClassification(config)
    else:
        FeedbackModel.from_backbone(backbone).save_pretrained(tmp_path)
        model = FeedbackForSequenceClassification.from_pretrained(tmp_path, head="backbone", num_labels=3)
    task_model = model.backbone
    expected = {"classifier": 256**-0.5, "head.dense": 0.02 / (2 * 4) ** 0.5}
    for name, deviation in expected.items():
        found = task_model.get_submodule(name).weight.std().item()
        assert abs(found / deviation - 1) < 0.15, name  # 768 draws: a standard error of 3%
