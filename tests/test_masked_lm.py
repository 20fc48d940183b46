"""Masked language modelling: which tokens are masked, when masks change, and the perplexity."""

import numpy as np
import pytest
import torch
from builders import letter_tokenizer
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import EvalPrediction

from hf_feedback.training.tasks import masked_lm
from hf_feedback.training.tasks.masked_lm import MaskingCollator, PieceEncoder, with_fixed_masks
from hf_feedback.training.tasks.plain_texts import perplexity_of_losses, token_losses


def test_evaluation_masks_stay_and_training_masks_change(monkeypatch):
    tokenizer = letter_tokenizer()
    texts = ["where is my red fan", "it is late", "a"]
    data = Dataset.from_dict(dict(tokenizer(texts, return_special_tokens_mask=True)))
    once, again = (with_fixed_masks(data, tokenizer, 0.3) for _ in range(2))
    assert once[:] == again[:]
    monkeypatch.setattr(masked_lm, "MOST_DRAWS", 9)
    with pytest.raises(ValueError, match=r"`mlm_probability`=1e-09 masks nothing in 9 draws"):
        with_fixed_masks(data, tokenizer, 1e-9)
    for row, plain in zip(once, data, strict=True):
        chosen = [label != -100 for label in row["labels"]]
        assert any(chosen)
        assert not any(yes and special for yes, special in zip(chosen, plain["special_tokens_mask"], strict=True))
        assert [i for i, yes in zip(row["labels"], chosen, strict=True) if yes] == [
            i for i, yes in zip(plain["input_ids"], chosen, strict=True) if yes
        ]
    collator = MaskingCollator(tokenizer, 0.3)
    together = collator(list(once))
    assert together["labels"][1].tolist()[: len(once[1]["labels"])] == once[1]["labels"]
    assert (together["labels"][2, 3:] == -100).all()
    assert (MaskingCollator(tokenizer, 0.01)([data[2]])["labels"] != -100).any()


def test_training_masks_depend_on_text_seed_and_epoch_alone():
    tokenizer = letter_tokenizer()
    texts = ["where is my red fan", "it is late", "a fan is red and late"]
    data = Dataset.from_dict(dict(tokenizer(texts, return_special_tokens_mask=True)))
    collator, state = MaskingCollator(tokenizer, 0.5), torch.random.get_rng_state()

    def masked(seed, epoch, rows):
        collator.start_epoch(seed, epoch)
        batch = collator([data[row] for row in rows])
        return {row: (ids[:8].tolist(), labels[:8].tolist()) for row, ids, labels in zip(
            rows, batch["input_ids"], batch["labels"], strict=True
        )}  # fmt: skip

    first = masked(3, 0, [0, 1, 2])
    assert masked(3, 0, [2, 0]) == {row: first[row] for row in (2, 0)}
    assert masked(3, 1, [0, 1, 2]) != first
    assert masked(4, 0, [0, 1, 2]) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_workers_that_outlive_an_epoch_mask_anew():
    tokenizer = letter_tokenizer()
    texts = ["where is my red fan", "it is late", "a fan is red and late"] * 3
    data = Dataset.from_dict(dict(tokenizer(texts, return_special_tokens_mask=True))).to_list()
    collator = MaskingCollator(tokenizer, 0.5)
    loader = DataLoader(data, 3, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        collator.start_epoch(0, epoch)
        found = torch.cat([batch["labels"].flatten() for batch in loader])
        expected = torch.cat([collator(data[i : i + 3])["labels"].flatten() for i in range(0, 9, 3)])
        assert torch.equal(found, expected)


def test_whole_words_are_masked():
    tokenizer = letter_tokenizer()
    encoder = PieceEncoder(tokenizer, 16, whole_words=True)
    texts = ["where is my red fan", "it is late"]
    pieces = Dataset.from_dict(encoder(texts))
    words = [tokenizer(text, truncation=True, max_length=16).word_ids() for text in texts]
    collator, seen = MaskingCollator(tokenizer, 0.5, whole_words=True), set()
    for epoch in range(4):
        collator.start_epoch(0, epoch)
        batch = collator([pieces[0], pieces[-1]])
        for ids, labels, word_ids in zip(batch["input_ids"], batch["labels"], words, strict=True):
            masked = (labels != -100).tolist()[: len(word_ids)]
            assert all(token == tokenizer.mask_token_id for token, yes in zip(ids, masked, strict=False) if yes)
            for word in set(word_ids) - {None}:
                seen.add(tuple({yes for yes, one in zip(masked, word_ids, strict=True) if one == word}))
            assert not any(yes for yes, word in zip(masked, word_ids, strict=True) if word is None)
    assert seen == {(True,), (False,)}


def test_perplexity_weighs_every_masked_token_the_same():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, -100, 2], [-100, 4, -100]])
    losses = token_losses(logits, labels)
    by_hand = [-logits[i, j].log_softmax(-1)[labels[i, j]].item() for i, j in ((0, 0), (0, 2), (1, 1))]
    found = perplexity_of_losses(EvalPrediction(losses.numpy(), labels.numpy()))
    assert found["loss"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(by_hand)), rel=1e-5)
