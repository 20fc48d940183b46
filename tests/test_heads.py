"""Every head on every family that has one: exact at the start, right losses, saved equal to loaded."""

import copy

import pytest
import torch
from builders import NAMES, REPRESENTATIVE, answers, batch_for, headed, targets_for, task_model
from closeness import assert_exact, in_float64
from families import FAMILIES, randomize_messages, tiny_backbone, tiny_batch, tiny_config
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BertForMaskedLM,
    T5Config,
    T5EncoderModel,
    T5ForSequenceClassification,
)

from hf_feedback import (
    FeedbackConfig,
    FeedbackForAudioClassification,
    FeedbackForMaskedLM,
    FeedbackForMultipleChoice,
    FeedbackForQuestionAnswering,
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
    FeedbackModel,
    add_feedback,
)
from hf_feedback.backbone_layout import without_cache

READS = {"ImageClassification": ("pixels",), "AudioClassification": ("wave", "spectrum")}
PAIRS = [
    (name, family, kind)
    for name, head in NAMES.items()
    for family, row in FAMILIES.items()
    if row.reads in READS.get(name, ("tokens",))
    for kind in head.traits.task_models(tiny_config(family))
    if name != "CausalLM" or row.decoder  # others read later tokens too
]
SMALL = FeedbackConfig(num_iterations=3, feedback_rank=8, num_labels=3)


@pytest.mark.parametrize(("name", "family", "kind"), PAIRS, ids=[f"{n}-{f}" for n, f, _ in PAIRS])
def test_a_tuned_model_starts_out_as_it_was(name, family, kind):
    torch.manual_seed(0)
    tuned = kind(tiny_config(family, **({"num_labels": 3} if NAMES[name].traits.predicts_config_labels else {}))).eval()
    batch = batch_for(name, family)
    expected = answers(tuned(**batch, **without_cache(tuned)))  # a cache has another layout, and so other bits
    model = add_feedback(tuned, SMALL)
    assert type(model) is NAMES[name]
    found = answers(model(**batch))
    assert found.keys() == expected.keys()
    for key in expected:
        assert torch.equal(found[key], expected[key])
    assert randomize_messages(model).check_equivalence(batch) > 1e-5
    with model.feedback_disabled():
        again = answers(model(**batch))
    for key in expected:
        assert torch.equal(again[key], expected[key])


@headed
@in_float64(files=True)
def test_saved_equals_loaded(name, head, tmp_path):
    model, batch = randomize_messages(task_model(name, head)), batch_for(name, REPRESENTATIVE.get(name, "bert"))
    model.save_pretrained(tmp_path)
    auto = NAMES[name].traits.auto_class
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is NAMES[name]
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert_exact(answers(loaded(**batch)), answers(model(**batch)))
    made = auto.from_config(copy.deepcopy(model.config)).eval()
    assert made.check_equivalence(batch) == 0.0


@headed
@in_float64(files=True)
def test_the_plain_model_reads_the_folder_of_every_head(name, head, tmp_path, caplog):
    model, batch = randomize_messages(task_model(name, head)), batch_for(name, REPRESENTATIVE.get(name, "bert"))
    model.save_pretrained(tmp_path / "head")
    base, info = AutoModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert type(base) is FeedbackModel
    assert not info["missing_keys"]
    flat = {key: value.flatten(0, 1) for key, value in batch.items()} if name == "MultipleChoice" else batch
    expected = model(**batch, output_hidden_states=True).hidden_states[-1]
    assert_exact(base(**flat, output_hidden_states=True).hidden_states[-1], expected)
    base.save_pretrained(tmp_path / "base")
    again, info = AutoModel.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_exact(again(**flat).last_hidden_state, base(**flat).last_hidden_state)
    back = NAMES[name].from_pretrained(tmp_path / "base")
    assert_exact(back(**batch, output_hidden_states=True).hidden_states[-1], expected)


@headed
@in_float64()
def test_losses_and_gradients(name, head):
    model, batch = randomize_messages(task_model(name, head)).train(), batch_for(name, REPRESENTATIVE.get(name, "bert"))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    targets = targets_for(name)
    output = model(**batch, **targets)
    if name == "QuestionAnswering":
        start, end = (F.cross_entropy(output[f"{k}_logits"], targets[f"{k}_positions"]) for k in ("start", "end"))
        expected = (start + end) / 2
    elif name == "CausalLM":
        labels = targets["labels"][:, 1:]
        expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels.flatten())
    else:
        labels = targets["labels"]
        expected = F.cross_entropy(output.logits.view(-1, output.logits.shape[-1]), labels.view(-1))
    assert_exact(output.loss, expected)
    output.loss.backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None]
    assert [key for key in idle if not key.endswith("masked_spec_embed")] == []  # SpecAugment needs longer sounds


@headed
@in_float64()
def test_answers_of_every_iteration(name, head):
    model, batch = randomize_messages(task_model(name, head)), batch_for(name, REPRESENTATIVE.get(name, "bert"))
    found = model(**batch, output_iterations=True)
    assert len(found.iteration_logits) == 3
    for k, logits in enumerate(found.iteration_logits, 1):
        expected = list(answers(model(**batch, num_iterations=k)).values())
        expected = expected[0] if len(expected) == 1 else torch.stack(expected, -1)
        assert_exact(logits, expected)
    texts = 4 if name == "MultipleChoice" else 2
    assert found.residuals.shape == (texts, 2)
    assert found.iterations.tolist() == [3] * texts


@in_float64()
def test_choices_are_read_one_by_one():
    model = randomize_messages(task_model("MultipleChoice"))
    batch = batch_for("MultipleChoice")
    logits = model(**batch).logits
    for choice in range(2):
        alone = {key: value[:, choice : choice + 1] for key, value in batch.items()}
        assert_exact(model(**alone).logits, logits[:, choice : choice + 1])
    embeds = model.get_input_embeddings()(batch["input_ids"])
    found = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    assert_exact(found, logits)
    residuals = model(**batch, output_iterations=True).residuals
    short = {key: value[1:, :1, :6] for key, value in batch.items()}  # the same text without its padding
    assert_exact(model(**short, output_iterations=True).residuals[0], residuals[2])


# The masked-LM head


def test_the_backbones_own_lm_head_stays_tied(tmp_path):
    torch.manual_seed(0)
    tuned = BertForMaskedLM(tiny_config("bert")).eval()
    model = randomize_messages(add_feedback(tuned, SMALL))
    weight = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is weight
    model.save_pretrained(tmp_path)
    loaded = FeedbackForMaskedLM.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("family", ["llama", "xlnet", "t5"])
def test_a_family_without_an_lm_head_gets_a_new_one(family, tmp_path, caplog):
    tiny_backbone(family).save_pretrained(tmp_path / "plain")
    with caplog.at_level("WARNING", logger="hf_feedback"):
        model = FeedbackForMaskedLM.from_backbone(tiny_backbone(family), num_iterations=3, feedback_rank=8)
    assert "has no masked-LM head: a new one is made, tied to the input embeddings" in caplog.text
    assert model.config.head == "new"
    batch = batch_for("MaskedLM")
    assert model.check_equivalence(batch) == 0.0
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    randomize_messages(model)
    model.save_pretrained(tmp_path / "ours")
    loaded, info = FeedbackForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    with in_float64():
        assert_exact(loaded.double()(**batch).logits, model.double()(**batch).logits)


def test_an_electra_gets_a_head_of_the_width_of_its_embeddings():
    model = FeedbackForMaskedLM.from_backbone(tiny_backbone("electra"), num_iterations=2, feedback_rank=8)
    assert model(**batch_for("MaskedLM")).logits.shape == (2, 9, 99)


def test_a_folder_without_the_heads_weights_says_so(tmp_path, caplog):
    tiny_backbone("bert").save_pretrained(tmp_path)
    with caplog.at_level("WARNING", logger="hf_feedback"):
        model = FeedbackForMaskedLM.from_backbone(tmp_path, num_iterations=2, feedback_rank=8)
    assert "a new one is made, tied to the input embeddings (cls.predictions" in caplog.text
    assert model.config.head == "backbone"
    assert type(model.backbone) is BertForMaskedLM
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.check_equivalence(batch_for("MaskedLM")) == 0.0


@pytest.mark.parametrize("family", ["bert", "llama"])
@in_float64(files=True)
def test_resized_vocabulary_of_a_masked_lm(family, tmp_path):
    model = randomize_messages(task_model("MaskedLM", "backbone" if family == "bert" else "new", family))
    batch = batch_for("MaskedLM")
    expected = model(**batch).logits
    model.resize_token_embeddings(120)
    found = model(**batch).logits
    assert found.shape == (2, 9, 120)
    assert_exact(found[..., :99], expected)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert_exact(FeedbackForMaskedLM.from_pretrained(tmp_path)(**batch).logits, found)


@in_float64(files=True)
def test_pretrained_with_feedback_then_fine_tuned(tmp_path):
    """The folder of a masked-LM feedback model is where a classifier starts; layers and feedback come along."""
    model = randomize_messages(task_model("MaskedLM", "backbone"))
    model.save_pretrained(tmp_path)
    batch = batch_for("SequenceClassification")
    states = model(**batch, output_hidden_states=True).hidden_states[-1]
    for head in ("new", "backbone"):
        tuned = FeedbackForSequenceClassification.from_pretrained(tmp_path, head=head, num_labels=5)
        assert_exact(tuned(**batch, output_hidden_states=True).hidden_states[-1], states)
        assert tuned(**batch).logits.shape == (2, 5)
        tuned.save_pretrained(tmp_path / head)
        loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / head, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert_exact(loaded(**batch).logits, tuned(**batch).logits)
    assert FeedbackForTokenClassification.from_pretrained(tmp_path).config.head == "new"
    back = FeedbackForMaskedLM.from_pretrained(tmp_path / "new")
    assert back.config.head == "backbone"
    assert_exact(back(**batch, output_hidden_states=True).hidden_states[-1], states)


# Whole encoder–decoders with a head


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_either_half_of_a_whole_encoder_decoder(part):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=99, d_model=32, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=37, decoder_ffn_dim=37, max_position_embeddings=64, pad_token_id=1,
        eos_token_id=3, num_labels=3,
    )  # fmt: skip
    tuned, batch = BartForSequenceClassification(config).eval(), batch_for("SequenceClassification")
    expected = tuned(**batch, **without_cache(tuned), output_hidden_states=True)
    model = add_feedback(tuned, FeedbackConfig(num_iterations=3, feedback_rank=8, backbone_part=part))
    assert model.layout.stack == f"model.{part}.layers"
    assert torch.equal(model(**batch).logits, expected.logits)
    assert randomize_messages(model).check_equivalence(batch) > 1e-6
    states = model(**batch, output_hidden_states=True).hidden_states
    plain = expected[f"{part}_hidden_states"]
    assert len(states) == len(plain) == 4
    assert torch.equal(states[0], plain[0])
    assert not torch.equal(states[-1], plain[-1])


# Sound


@in_float64()
def test_padding_of_a_recording_is_left_out_of_the_mean():
    model = randomize_messages(task_model("AudioClassification", family="wav2vec2"))
    wave = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    mask = torch.cat([torch.ones(1, 400), torch.zeros(1, 100)], 1).long()
    padded = torch.cat([wave, torch.zeros(1, 100)], 1)
    hidden = model(padded, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    frames = int(model.backbone._get_feat_extract_output_lengths(400))
    assert frames < hidden.shape[1]
    expected = model.classifier(hidden[:, :frames].mean(1))
    assert_exact(model(padded, attention_mask=mask).logits, expected)
    assert not torch.allclose(model(padded).logits, expected)


def test_spectra_are_heard_too():
    model = FeedbackForAudioClassification.from_backbone(tiny_backbone("whisper"), num_labels=3, feedback_rank=8)
    assert model(**tiny_batch(family="whisper")).logits.shape == (2, 3)


# Errors


@pytest.mark.parametrize("name", ["TokenClassification", "ImageClassification"])
def test_a_trained_head_keeps_its_labels(name):
    model = task_model(name, "backbone")
    with pytest.raises(ValueError, match="was trained for the labels"):
        NAMES[name].from_backbone(model.backbone, head="backbone", num_labels=7, feedback_rank=8)


@pytest.mark.parametrize("head", [FeedbackForQuestionAnswering, FeedbackForMultipleChoice])
def test_a_backbone_without_the_head_is_refused(head):
    with pytest.raises(ValueError, match="takes a transformers model that has its task head, got BertModel"):
        head.from_backbone(tiny_backbone("bert"), head="backbone")


def test_options_of_a_new_head_are_nothing_to_the_backbones_own(caplog):
    backbone, options = task_model("SequenceClassification", "backbone").backbone, dict(pooling="mean")
    model = FeedbackForSequenceClassification.from_backbone(
        backbone, head="backbone", **options, classifier_dropout=0.3
    )
    assert (model.config.pooling, model.config.classifier_dropout) == ("auto", None)
    assert "`pooling`, `classifier_dropout`: for a new head; the backbone's own goes by its own config" in caplog.text


@pytest.mark.parametrize("head", ["new", "backbone"])
@in_float64()
def test_messages_leave_out_padding_that_is_found_by_its_token(head):
    """A decoder pools at the last token before the padding, mask or not; messages of the whole text read no further.
    The token may stand inside of a text, too."""
    model = randomize_messages(task_model("SequenceClassification", head, "llama", feedback_type="attention+context"))
    model.config.pad_token_id = model.backbone.config.pad_token_id = 0
    assert model.config.feedback_future
    padded, mask = torch.tensor([[5, 0, 7, 8, 9], [9, 10, 0, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    assert_exact(model(padded).logits, model(padded, attention_mask=mask).logits)


@in_float64()
def test_padding_of_choices_is_found_by_its_token():
    model = randomize_messages(task_model("MultipleChoice", "new", "llama", feedback_type="attention"))
    model.config.pad_token_id = 0
    padded = torch.tensor([[[5, 6, 7, 8], [9, 10, 0, 0]]])
    assert_exact(model(padded).logits, model(padded, attention_mask=(padded != 0).long()).logits)


# From one class to another


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
@in_float64(files=True)
def test_the_shared_embeddings_of_an_encoder_decoder_come_along(kind, part, tmp_path):
    torch.manual_seed(0)
    sizes = dict(vocab_size=99, d_model=32, pad_token_id=1, eos_token_id=3, decoder_start_token_id=1, num_labels=3)
    if kind == "t5":
        config = T5Config(d_kv=8, d_ff=37, num_layers=3, num_heads=4, **sizes)
        tuned = T5ForSequenceClassification(config).eval()
    else:
        heads = dict(encoder_attention_heads=4, decoder_attention_heads=4)
        config = BartConfig(
            encoder_layers=3, decoder_layers=3, encoder_ffn_dim=37, decoder_ffn_dim=37, **heads, **sizes
        )
        tuned = BartForSequenceClassification(config).eval()
    model = randomize_messages(add_feedback(tuned, FeedbackConfig(feedback_rank=8, backbone_part=part)))
    model.save_pretrained(tmp_path)
    base = FeedbackModel.from_pretrained(tmp_path)
    assert torch.equal(base.get_input_embeddings().weight, model.get_input_embeddings().weight)
    if part == "encoder":
        batch = batch_for("SequenceClassification")
        expected = model(**batch, output_hidden_states=True).hidden_states[-1]
        assert_exact(base(**batch, output_hidden_states=True).hidden_states[-1], expected)


@pytest.mark.parametrize("family", ["llama", "qwen3", "smollm3"])
@in_float64(files=True)
def test_between_task_models_that_keep_their_backbone_in_different_places(family, tmp_path):
    model = randomize_messages(task_model("SequenceClassification", "backbone", family))
    batch = batch_for("SequenceClassification")
    model.save_pretrained(tmp_path)
    answering = FeedbackForQuestionAnswering.from_pretrained(tmp_path, head="backbone")
    expected = model(**batch, output_hidden_states=True).hidden_states[-1]
    assert_exact(answering(**batch, output_hidden_states=True).hidden_states[-1], expected)
    assert answering(**batch).start_logits.shape == (2, 9)


@pytest.mark.parametrize("feedback_only", [False, True], ids=["whole", "feedback alone"])
@in_float64(files=True)
def test_a_head_of_another_class_is_not_kept_where_it_has_the_same_name(feedback_only, tmp_path):
    """Both classes call theirs `classifier`; it had three labels, and gets as many or others."""
    model, batch = randomize_messages(task_model("SequenceClassification", "new")), batch_for("SequenceClassification")
    states = model(**batch, output_hidden_states=True).hidden_states[-1]
    model.config.data_options = {"max_seconds": 3.0}  # as a model of another task might keep
    (model.save_feedback if feedback_only else model.save_pretrained)(tmp_path)
    options = {"backbone": copy.deepcopy(model.backbone)} if feedback_only else {}
    for num_labels in (3, 2):
        tagger, info = FeedbackForTokenClassification.from_pretrained(
            tmp_path, num_labels=num_labels, output_loading_info=True, **options
        )
        assert {"classifier.weight", "classifier.bias"} <= {*info["missing_keys"]}
        assert not info["mismatched_keys"]
        assert not hasattr(tagger.config, "data_options")
        assert tagger.classifier.weight.shape == (num_labels, 32)
        assert num_labels == 2 or not torch.equal(tagger.classifier.weight, model.classifier.weight)
        assert_exact(tagger(**batch, output_hidden_states=True).hidden_states[-1], states)
        tagger.save_pretrained(tmp_path / "tagger")
        assert_exact(
            FeedbackForTokenClassification.from_pretrained(tmp_path / "tagger")(**batch).logits, tagger(**batch).logits
        )

    class Subclass(FeedbackForSequenceClassification):
        """A user's own, which adds methods."""

    assert_exact(Subclass.from_pretrained(tmp_path, **options)(**batch).logits, model(**batch).logits)


@in_float64(files=True)
def test_an_encoder_alone_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    encoder = T5EncoderModel(tiny_config("t5")).eval()
    model = randomize_messages(FeedbackModel.from_backbone(encoder, feedback_rank=8))
    model.save_pretrained(tmp_path)
    batch = tiny_batch()
    assert_exact(FeedbackModel.from_pretrained(tmp_path)(**batch).last_hidden_state, model(**batch).last_hidden_state)


def test_what_heads_refuse():
    model = task_model("MultipleChoice")
    with pytest.raises(ValueError, match=r"dimension for the choices after the first, \(batch, choices, tokens\)"):
        model(**tiny_batch())
    with pytest.raises(TypeError, match="unexpected argument `labels`"):
        task_model("QuestionAnswering")(**tiny_batch(), labels=torch.tensor([0, 1]))
    classifier, classes = task_model("SequenceClassification"), torch.tensor([0, 1])
    with pytest.raises(TypeError, match="argument `label`; did you mean `labels`"):
        classifier(**tiny_batch(), label=classes)
    with pytest.raises(
        TypeError, match=r"`sentiment`; it takes: .*\blabels, .*; rename a column of labels to `labels`"
    ):
        classifier(**tiny_batch(), sentiment=classes)
    with pytest.raises(TypeError) as refusal:
        FeedbackModel.from_backbone(tiny_backbone("bert"))(**tiny_batch(), sentiment=classes)
    assert "labels" not in str(refusal.value)
    for batch in ("hello", ["hello"], tiny_batch()["input_ids"]):
        with pytest.raises(TypeError, match=r"`batch` must be a dict of tensors .* such as `tokenizer\(texts"):
            classifier.check_equivalence(batch)


@pytest.mark.parametrize("name", NAMES)
def test_a_subclass_of_any_name_has_the_same_loss(name):
    family = REPRESENTATIVE.get(name, "bert")
    batch, targets, losses = batch_for(name, family), targets_for(name), []
    for kind in (NAMES[name], type("Mine", (NAMES[name],), {})):
        backbone = task_model(name).backbone
        torch.manual_seed(0)
        options = {"num_labels": 3} if kind.traits.predicts_config_labels else {}
        losses.append(kind.from_backbone(backbone, feedback_rank=8, **options)(**batch, **targets).loss)
    assert torch.equal(*losses)
