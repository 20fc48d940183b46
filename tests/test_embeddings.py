"""A feedback model is a module of a `SentenceTransformer`: embeddings as of its backbone, training, saving, loading."""

import pytest
import torch
from builders import tiny_tokenizer
from datasets import Dataset
from families import randomize_messages, tiny_backbone
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from hf_feedback import FeedbackModel

TEXTS = ["where is my parcel", "the refund has not come", "please", "help it please where is the refund"]
OPTIONS = {"num_iterations": 2, "feedback_rank": 8}


@pytest.fixture(scope="module")
def plain(minilm):
    """An embedding model without feedback."""
    return SentenceTransformer(minilm, device="cpu")


@pytest.fixture
def folder(tmp_path):
    """A tiny feedback model, whose messages are not zero, with its tokenizer."""
    model = randomize_messages(FeedbackModel.from_backbone(tiny_backbone("bert"), **OPTIONS))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_fresh_feedback_gives_the_embeddings_of_the_backbone(plain, minilm):
    before = plain.encode(TEXTS)
    model = SentenceTransformer(minilm, device="cpu")
    model[0].model = FeedbackModel.from_backbone(model[0].model, **OPTIONS)
    assert (model.encode(TEXTS) == before).all()
    randomize_messages(model[0].model)
    assert abs(model.encode(TEXTS) - before).max() > 1e-3
    model[0].model.set_num_iterations(1)
    assert (model.encode(TEXTS) == before).all()
    model[0].model.set_num_iterations(2)
    with model[0].model.feedback_disabled():
        assert (model.encode(TEXTS) == before).all()


def test_a_saved_feedback_model_is_a_module(folder):
    transformer = Transformer(folder)
    assert isinstance(transformer.model, FeedbackModel)
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")])
    batch = tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = FeedbackModel.from_pretrained(folder).eval()(**batch).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1)
    expected = (states * weights).sum(1) / weights.sum(1)
    torch.testing.assert_close(model.encode(TEXTS, convert_to_tensor=True).cpu(), expected)


def test_it_trains_and_comes_back(folder, tmp_path):
    model = SentenceTransformer(folder, device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = Dataset.from_dict({"anchor": TEXTS, "positive": TEXTS[::-1]})
    args = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate_mapping={r"\.feedback\.": 1e-2},
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    loss = MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=pairs, loss=loss)
    result = trainer.train()
    assert result.training_loss > 0
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(".feedback." in name for name in moved)
    assert any(".backbone." in name for name in moved)
    model.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert isinstance(again[0].model, FeedbackModel)
    assert (again.encode(TEXTS) == model.encode(TEXTS)).all()
