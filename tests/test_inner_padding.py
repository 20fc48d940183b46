"""Backbones whose layers see other tokens than the mask has: texts padded inside, recordings shortened."""

import pytest
import torch
from families import randomize_messages
from transformers import (
    BigBirdConfig,
    BigBirdModel,
    LongformerConfig,
    LongformerModel,
    MoonshineConfig,
    MoonshineModel,
    SEWConfig,
    SEWModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from hf_feedback import FeedbackForAudioClassification, FeedbackForTokenClassification, FeedbackModel
from hf_feedback.forward_context import token_mask

TINY = dict(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48)
WAVES = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, conv_dim=(16, 32), vocab_size=32,
    conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2, layerdrop=0.0,
)  # fmt: skip


@pytest.mark.parametrize("operator", ["context", "attention", "temporal"])
def test_messages_do_not_read_what_a_backbone_pads_inside(operator):
    backbone = LongformerModel(LongformerConfig(**TINY, attention_window=8, pad_token_id=1))
    options = dict(num_labels=3, feedback_type=operator, feedback_rank=8, num_iterations=3)
    model = randomize_messages(FeedbackForTokenClassification.from_backbone(backbone, **options)).eval()
    ids = torch.randint(5, 99, (2, 11))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"has 11 tokens, and the layers of .* read 16, .*`pad_to_multiple_of`"):
            model(ids, attention_mask=mask)
        padded, real = ids.new_ones(2, 16), ids.new_zeros(2, 16)
        padded[:, :11], real[:, :11] = ids, mask
        other = padded.masked_fill(real == 0, 7)
        one, two = (model(some, attention_mask=real).logits[1, :6] for some in (padded, other))
        silent = model(padded, attention_mask=real, num_iterations=1).logits[1, :6]
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert (one - silent).abs().max() > 1e-2


def test_recordings_that_are_shortened_further_are_refused():
    model = FeedbackForAudioClassification.from_backbone(
        SEWModel(SEWConfig(**WAVES, squeeze_factor=2, feat_extract_norm="layer")), num_labels=3, feedback_type="context"
    )
    mask = torch.ones(2, 400, dtype=torch.long)
    mask[1, 205:] = 0
    with pytest.raises(ValueError, match=r"has 400 tokens, and the layers of .* read 19"):
        model.eval()(input_values=torch.randn(2, 400), attention_mask=mask)


def test_the_mask_of_frames_is_that_of_transformers():
    backbone = Wav2Vec2Model(Wav2Vec2Config(**WAVES))
    mask = torch.ones(3, 400, dtype=torch.long)
    mask[1, 205:] = mask[2, 20:] = 0
    length = int(backbone._get_feat_extract_output_lengths(torch.tensor(400)))
    expected = backbone._get_feature_vector_attention_mask(length, mask)
    assert torch.equal(token_mask(backbone, mask, length), expected)


def test_a_mean_is_over_the_frames_of_the_recording():
    sizes = dict(hidden_size=32, intermediate_size=48, encoder_num_hidden_layers=3, decoder_num_hidden_layers=3)
    heads = {
        f"{half}_num_{kind}": 2 for half in ("encoder", "decoder") for kind in ("attention_heads", "key_value_heads")
    }
    model = FeedbackForAudioClassification.from_backbone(
        MoonshineModel(MoonshineConfig(vocab_size=99, **sizes, **heads)), num_labels=3, pooling="mean"
    ).eval()
    waves, mask = torch.randn(2, 6000), torch.ones(2, 6000, dtype=torch.long)
    mask[1, 3000:] = 0
    with torch.no_grad():
        frames = model.backbone(input_values=waves, attention_mask=mask).last_hidden_state[1]
        number = int(model.backbone._get_feat_extract_output_lengths(torch.tensor(3000)))
        logits = model(input_values=waves, attention_mask=mask).logits[1]
        expected = model.classifier(frames[:number].mean(0))
    assert 0 < number < len(frames)
    torch.testing.assert_close(logits, expected)


def test_a_backbone_that_changes_itself_for_short_texts_stays_as_it_was():
    sparse = BigBirdConfig(
        **TINY, max_position_embeddings=256, block_size=4, num_random_blocks=1, initializer_range=0.2
    )
    backbone, ids = BigBirdModel(sparse).eval(), torch.randint(5, 99, (1, 64))
    with torch.no_grad():
        expected = backbone(ids).last_hidden_state
        model = randomize_messages(FeedbackModel.from_backbone(backbone, num_iterations=2)).eval()
        assert torch.equal(model(ids, num_iterations=1).last_hidden_state, expected)
        assert not torch.allclose(model(ids).last_hidden_state, expected, atol=1e-3)
    assert model.backbone.attention_type == "block_sparse"
    assert model.backbone.encoder.layer[0].attention.attention_type == "block_sparse"
