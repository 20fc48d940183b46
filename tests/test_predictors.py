"""`model.predict`: the answers of every head to examples of any length, in their order."""

import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from builders import character_tokenizer, fnn_model, labelled_model, task_model, tiny_tokenizer
from families import tiny_config
from PIL import Image
from transformers import (
    AutoTokenizer,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from hf_feedback import (
    FeedbackForCausalLM,
    FeedbackForQuestionAnswering,
    FeedbackForSequenceClassification,
    FeedbackModel,
)
from hf_feedback.class_predictors import TextPredictor, classify
from hf_feedback.passage_predictors import MaskPredictor
from hf_feedback.predictor import BATCHES_AT_ONCE
from hf_feedback.windows import best_span, span_scores

TEXTS = ["where is my parcel", "help", "the refund has not come please help it", "a parcel"]


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def plainly(model, *texts, tokenizer):
    """The output of a model for one text or pair of texts alone."""
    with torch.no_grad():
        return model.eval()(**tokenizer(*texts, return_tensors="pt"))


@pytest.mark.parametrize("model", [labelled_model(), fnn_model(head=True, dtype=torch.float32)], ids=["bert", "fnn"])
def test_texts_in_batches_of_one_length(model, tokenizer):
    model.train()
    answers = model.predict(TEXTS, tokenizer, batch_size=2)
    assert model.training
    for text, answer in zip(TEXTS, answers, strict=True):
        logits = plainly(model, text, tokenizer=tokenizer).logits[0]
        names = model.config.id2label
        expected = {names[i]: p for i, p in enumerate(logits.softmax(-1).tolist())}
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert answer["label"] == names[int(logits.argmax())]
        assert answer["score"] == max(answer["probabilities"].values())


def test_lengths_share_batches(tokenizer, monkeypatch):
    model, seen = labelled_model(), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **batch: seen.append(batch["input_ids"].shape) or forward(**batch))
    model.predict(TEXTS, tokenizer, batch_size=2)
    assert seen == [(2, 4), (2, 10)]


def test_pairs_values_and_several_labels(tokenizer):
    pairs = [("where is", "my parcel"), ("help", "it")]
    model = labelled_model()
    for pair, answer in zip(pairs, model.predict(pairs, tokenizer), strict=True):
        probabilities = plainly(model, *pair, tokenizer=tokenizer).logits[0].softmax(-1)
        assert list(answer["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)
    model.config.problem_type = "multi_label_classification"
    for text, answer in zip(TEXTS, model.predict(TEXTS, tokenizer), strict=True):
        probabilities = plainly(model, text, tokenizer=tokenizer).logits[0].sigmoid()
        assert list(answer["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)
        assert answer["labels"] == [name for name, p in answer["probabilities"].items() if p > 0.5]
    value = task_model("SequenceClassification", num_labels=1)
    (answer,) = value.predict(["help"], tokenizer)
    assert answer == {"value": pytest.approx(float(plainly(value, "help", tokenizer=tokenizer).logits), abs=1e-6)}
    assert classify(torch.tensor([1.0, 2.0]), ["a", "b"], "regression") == {"values": [1.0, 2.0]}


@pytest.mark.parametrize("label_piece", ["first", "last"])
def test_tags_are_those_of_the_pipeline(tokenizer, label_piece):
    model = task_model("TokenClassification", label_piece=label_piece)
    answers = model.predict([*TEXTS, ["it", "is", "it"]], tokenizer, batch_size=3)
    assert answers[-1]["words"] == ["it", "is", "it"]
    tagger = pipeline("token-classification", model=model, tokenizer=tokenizer, pipeline_class=model.pipeline_class)
    for text, answer in zip(TEXTS, answers, strict=False):
        expected = tagger(text)
        assert answer["words"] == text.split()
        assert answer["tags"] == [entity["entity"] for entity in expected]
        assert answer["scores"] == pytest.approx([float(entity["score"]) for entity in expected], abs=1e-5)
    (cut,) = model.predict(["it is a help " * 20], tokenizer)
    assert len(cut["words"]) == len(cut["tags"]) == 80
    assert cut["tags"][29] is not None
    assert set(cut["tags"][30:]) == {None}  # 32 tokens, of which two are special
    assert model.predict(["  "], tokenizer) == [{"words": [], "tags": [], "scores": []}]


def test_spans(tokenizer):
    model = task_model("QuestionAnswering")
    question, context = "where is it", "the parcel has not come"
    answer, same = model.predict([(question, context), {"question": question, "context": context}], tokenizer)
    assert answer == same
    output = plainly(model, question, context, tokenizer=tokenizer)
    start, end = output.start_logits[0, 5:10], output.end_logits[0, 5:10]  # [CLS] where is it [SEP] … [SEP]
    scores = (start[:, None] + end[None]).masked_fill(torch.ones(5, 5).tril(-1).bool(), -torch.inf)
    first, last = divmod(int(scores.argmax()), 5)
    assert answer["answer"] == " ".join(context.split()[first : last + 1])
    assert context[answer["start"] : answer["end"]] == answer["answer"]
    assert answer["score"] == pytest.approx(float(scores.flatten().softmax(0).max()), abs=1e-5)

    long = f"{'it is a help ' * 12}{context}"
    (windows,) = model.predict([(question, long)], tokenizer, max_length=16, stride=3, max_answer_length=2)
    assert long[windows["start"] : windows["end"]] == windows["answer"]
    assert len(windows["answer"].split()) <= 2
    with pytest.raises(ValueError, match="leaves 0 of 8 tokens for its text, which must be more than the 2"):
        model.predict([("where is my parcel please help", context)], tokenizer, max_length=8)


def test_no_answer(tokenizer):
    model = task_model("QuestionAnswering")
    pair = ("where is it", "the parcel has not come")
    with torch.no_grad():
        model.qa_outputs.weight.zero_()
        model.qa_outputs.bias.zero_()
    assert model.predict([pair], tokenizer)[0]["answer"]
    (even,) = model.predict([pair], tokenizer, may_be_empty=True)
    assert even["score"] == pytest.approx(1 / 16, abs=1e-6)  # 15 spans of five tokens, and no answer


def test_a_span_is_one_of_the_text():
    offsets = [[-1, -1], [0, 3], [4, 6], [-1, -1]]
    scores = span_scores(np.array([9.0, 1, 2, 9]), np.array([9.0, 3, 1, 9]), offsets, 1)
    assert np.isfinite(scores).sum() == 2
    assert best_span(scores) == (4.0, 1, 1)


def test_choices_of_several_numbers(tokenizer):
    model = task_model("MultipleChoice")
    questions = [
        {"context": "where is it", "choices": ["it is my parcel", "help"]},
        {"context": "help", "choices": ["a", "the refund has not come", "it"]},
        {"context": "where is my parcel", "choices": ["please", "it has come"]},
    ]
    for question, answer in zip(questions, model.predict(questions, tokenizer), strict=True):
        batch = tokenizer([question["context"]] * len(question["choices"]), question["choices"], padding=True)
        with torch.no_grad():
            logits = model(**{name: torch.tensor([rows]) for name, rows in batch.items()}).logits[0]
        assert answer["probabilities"] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
        assert answer["text"] == question["choices"][answer["choice"]]
        assert answer["choice"] == int(logits.argmax())


def test_masks(tokenizer, monkeypatch):
    tokenizer.mask_token = "[UNK]"
    model, sizes = task_model("MaskedLM", head="backbone"), []
    run = MaskPredictor.run
    monkeypatch.setattr(
        MaskPredictor, "run", lambda *arguments: [sizes.append(one.numel()) or one for one in run(*arguments)]
    )
    answers = model.predict(["where is [UNK]", "[UNK] has not [UNK] please help"], tokenizer)
    probabilities = plainly(model, "where is [UNK]", tokenizer=tokenizer).logits[0, 3].softmax(-1)
    assert answers[0]["scores"] == pytest.approx([float(probabilities.max())], abs=1e-5)
    assert answers[0]["tokens"] == [tokenizer.decode([int(probabilities.argmax())])]
    assert len(answers[1]["tokens"]) == 2
    assert sizes == [2, 4]  # of each mask, the best token and its score are kept
    with pytest.raises(ValueError, match=r"'help' has no mask among its first 32 tokens; write \[UNK\]"):
        model.predict(["[UNK]", "help"], tokenizer)


def test_continuations():
    model, tokenizer = task_model("CausalLM"), character_tokenizer()
    texts = ["where is it", "a", "my parcel"]
    answers = model.predict(texts, tokenizer, max_new_tokens=3, max_length=20)
    assert tokenizer.pad_token is None  # that of the user
    for text, answer in zip(texts, answers, strict=True):
        prompt = tokenizer(text, return_tensors="pt")["input_ids"]
        tokens = model.generate(prompt, max_new_tokens=3, do_sample=False, eos_token_id=tokenizer.eos_token_id)
        assert answer["continuation"] == tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True)


def test_continuations_end_as_those_of_the_pipeline():
    """At any end token of the generation config; at the tokenizer's too, by which training ends a text."""
    tokenizer, prompt, options = character_tokenizer(), "where is it", {"max_new_tokens": 8}
    tokenizer.padding_side = "left"
    backbone = LlamaForCausalLM(tiny_config("llama", vocab_size=len(tokenizer), eos_token_id=None))
    model = FeedbackForCausalLM.from_backbone(backbone, feedback_rank=8).eval()
    answer = partial(model.predict, [prompt], tokenizer, **options)
    tokens = tokenizer(answer()[0]["continuation"])["input_ids"]
    end = next(i for i, token in enumerate(tokens) if i and token not in tokens[:i])
    for ends in (tokens[end], [tokenizer.eos_token_id, tokens[end], tokens[-1]]):
        model.generation_config.eos_token_id = ends
        generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
        (expected,) = generate(prompt, do_sample=False, return_full_text=False, **options)
        assert answer() == [{"continuation": expected["generated_text"]}]
        assert expected["generated_text"] == tokenizer.decode(tokens[: end + 1])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(tokens[0])
    assert answer() == [{"continuation": tokenizer.eos_token}]


def test_a_prompt_leaves_positions_for_its_continuation():
    """Learned positions end; the last tokens of a prompt are those that it goes on from."""
    backbone, tokenizer = GPT2LMHeadModel(tiny_config("gpt2", n_positions=32)), character_tokenizer()
    model = FeedbackForCausalLM.from_backbone(backbone, feedback_rank=8)
    prompt = "where is my parcel, it has not come"
    assert len(tokenizer(prompt)["input_ids"]) == 35
    answer, short = model.predict([prompt, "a"], tokenizer, max_new_tokens=8)
    assert [answer] == model.predict([prompt[-25:]], tokenizer, max_new_tokens=8)
    assert [short] == model.predict(["a"], tokenizer, max_new_tokens=8)
    assert tokenizer.truncation_side == "right"  # that of the user
    model.predict([prompt], tokenizer, max_new_tokens=32)
    with pytest.raises(ValueError, match=r"`max_new_tokens`=33 leaves 0 of the 32 positions .* takes 1; lower it\."):
        model.predict(["a"], tokenizer, max_new_tokens=33)
    with pytest.raises(ValueError, match=r"`max_new_tokens`=8 leaves 25 .* takes 26; lower it, or `max_length`"):
        model.predict(["a"], tokenizer, max_new_tokens=8, max_length=26)
    two_special = tiny_tokenizer()
    model.predict([prompt], two_special, max_new_tokens=30)
    with pytest.raises(ValueError, match=r"`max_new_tokens`=31 leaves 2 .* takes 3"):
        model.predict([prompt], two_special, max_new_tokens=31)
    rotary = task_model("CausalLM", family="llama")
    assert rotary.predict(["a"], character_tokenizer(), max_new_tokens=70)  # more than its config has positions for


def test_images_and_recordings(tmp_path):
    model, processor = task_model("ImageClassification"), ViTImageProcessorPil(size={"height": 8, "width": 8})
    image = Image.new("RGB", (20, 20), "red")
    image.save(tmp_path / "red.png")
    examples = [Image.new("L", (9, 9)), image, str(tmp_path / "red.png")]
    answers = model.predict(examples, processor, batch_size=2)
    assert answers[1] == answers[2] != answers[0]
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits[0]
    assert list(answers[1]["probabilities"].values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
    for problem_type in ("multi_label_classification", "regression"):
        model.config.problem_type = problem_type
        expected = classify(logits, ["LABEL_0", "LABEL_1", "LABEL_2"], problem_type)
        assert model.predict([image], processor)[0].keys() == expected.keys()

    model, extractor = task_model("AudioClassification"), Wav2Vec2FeatureExtractor(return_attention_mask=True)
    waves = [np.sin(np.arange(length) / 9).astype(np.float32) for length in (4000, 2000, 3000)]
    assert len(model.predict(waves, extractor)) == 3  # padding changes what this family's convolutions make of a wave
    for wave, answer in zip(waves, model.predict(waves, extractor, batch_size=1), strict=True):
        with torch.no_grad():
            logits = model(**extractor(wave, sampling_rate=16000, return_tensors="pt")).logits[0]
        assert list(answer["probabilities"].values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-4)


def test_few_examples_are_held_at_once(monkeypatch, tokenizer):
    model, held = labelled_model(), []
    encode = TextPredictor.encode
    monkeypatch.setattr(
        TextPredictor, "encode", lambda self, examples: held.append(len(examples)) or encode(self, examples)
    )
    answers = model.predict(["help"] * 5 + ["a"] * 16, tokenizer, batch_size=1)
    assert held == [BATCHES_AT_ONCE, 5]
    assert [answer["score"] for answer in answers[:5]] == [answers[0]["score"]] * 5
    with pytest.raises(ValueError, match="number 20 is 3"):
        model.predict([*["a"] * 19, 3], tokenizer, batch_size=1)
    assert held == [BATCHES_AT_ONCE, 5]  # nothing was encoded


def test_the_tokenizer_is_found_beside_the_model_or_its_backbone(tmp_path, tokenizer):
    labelled_model().save_pretrained(tmp_path / "model")
    loaded = FeedbackForSequenceClassification.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"`processor`: .*pass it, as in `model.predict\(examples, tokenizer\)`"):
        loaded.predict(TEXTS)
    tokenizer.save_pretrained(tmp_path / "model")
    assert loaded.predict(TEXTS) == loaded.predict(TEXTS, tokenizer)
    FeedbackModel.from_backbone(loaded.backbone).backbone.save_pretrained(tmp_path / "backbone")
    AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "backbone")
    fresh_head = FeedbackForQuestionAnswering.from_backbone(tmp_path / "backbone")
    assert fresh_head.predict([("where is it", "a parcel")])[0]["answer"] in "a parcel"
    fresh_head.save_pretrained(tmp_path / "without")
    without = FeedbackForQuestionAnswering.from_pretrained(tmp_path / "without")
    assert without.predict([("where is it", "a parcel")]) == fresh_head.predict([("where is it", "a parcel")])
    shutil.copytree(tmp_path / "backbone", tmp_path / "repository" / "inside")
    inside = FeedbackForQuestionAnswering.from_backbone(
        tmp_path / "repository", backbone_kwargs={"subfolder": "inside"}
    )
    assert inside.predict([("where is it", "a parcel")])[0]["answer"] in "a parcel"
    (nothing,) = inside.predict([("where is it", " ")])
    assert nothing == {"answer": "", "score": 0.0, "start": 0, "end": 0}
    with pytest.raises(ValueError, match="loaded from no folder that could hold its tokenizer"):
        labelled_model().predict(TEXTS)


def test_a_column_of_a_table(tokenizer):
    model, column = labelled_model(), pd.Series(TEXTS, index=[7, 5, 9, 2])
    assert model.predict(column, tokenizer) == model.predict(TEXTS, tokenizer)
    with pytest.raises(ValueError, match="must each be a text; number 2 is 3"):
        model.predict(pd.Series(["help", 3], index=[7, 5]), tokenizer)


WRONG = {
    "a single text": ("help", {}, "got a single text; put it in a list"),
    "no text": (["help", 3], {}, r"`examples` must each be a text; number 2 is 3"),
    "a pair among texts": (["help", ("a", "b")], {}, "must each be a text; number 2 is"),
    "a text among pairs": ([("a", "b"), "help"], {}, "must each be a pair of texts, as the first one is; number 2"),
    "no batch": (["help"], {"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
    "too long": (["help"], {"max_length": 999}, "`max_length` must be between 4 and the 64 tokens"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read(tokenizer, case):
    examples, options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        labelled_model().predict(examples, tokenizer, **options)


def test_nothing_is_answered_to_nothing_and_by_no_head(tokenizer):
    assert labelled_model().predict([], tokenizer) == []
    with pytest.raises(ValueError, match="needs a model with a head, and FeedbackModel has none"):
        FeedbackModel.from_backbone(labelled_model().backbone).predict(TEXTS, tokenizer)
