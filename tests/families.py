"""Tiny random backbones: one table, one row a family, that drives every test over families."""

from dataclasses import dataclass, field

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

SIZES = dict(
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=37,
    max_position_embeddings=64,
    pad_token_id=1,
    bos_token_id=2,
    eos_token_id=3,
)
GROUPED = {**SIZES, "num_key_value_heads": 2}
SLIDING = {**GROUPED, "sliding_window": 4}


@dataclass(frozen=True)
class Family:
    """A tiny model of a family.

    Args:
        config: options of its config.
        stack: where its layers are, for the independent reference.
        model_type: in transformers, where it is not the row's name.
        reads: kind of input: tokens, pixels, wave or spectrum.
        decoder: whether it reads from left to right.
        passes: how many calls each layer of the stack gets in one pass.
    """

    config: dict = field(default_factory=lambda: SIZES)
    stack: str = "encoder.layer"
    model_type: str | None = None
    reads: str = "tokens"
    decoder: bool = False
    passes: int = 1


DEBERTA = {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
DEBERTA_V2 = {**DEBERTA, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}
ALBERT = {**SIZES, "embedding_size": 16, "inner_group_num": 1}
LLAMA_LIKE = dict(stack="layers", decoder=True)
# experts need rows of a multiple of 16 bytes, and only the plain kernel takes float64
EXPERTS = dict(intermediate_size=32, moe_intermediate_size=32, num_experts_per_tok=2, experts_implementation="eager")
LATENT = dict(
    num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8
)
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)

FAMILIES: dict[str, Family] = {
    "bert": Family(),
    "roberta": Family(),
    "xlm-roberta": Family(),
    "camembert": Family(),
    "distilbert": Family(
        dict(vocab_size=99, dim=32, n_layers=4, n_heads=4, hidden_dim=37, max_position_embeddings=64, pad_token_id=1),
        "transformer.layer",
    ),
    "electra": Family({**SIZES, "embedding_size": 16}),
    "mpnet": Family(),
    "deberta": Family({**DEBERTA, "max_relative_positions": 16}),
    "deberta-v2": Family(DEBERTA_V2),
    "albert": Family({**ALBERT, "num_hidden_groups": 1}, "encoder.albert_layer_groups", passes=4),
    "albert, two groups": Family(
        {**ALBERT, "num_hidden_groups": 2}, "encoder.albert_layer_groups", model_type="albert", passes=2
    ),
    "modernbert": Family(
        {**SIZES, "global_attn_every_n_layers": 3, "local_attention": 4, "cls_token_id": 2, "sep_token_id": 3},
        "layers",
    ),
    "nomic_bert": Family(stack="layers"),
    "eurobert": Family({**GROUPED, "mask_token_id": 4}, "layers"),
    "xlnet": Family(dict(vocab_size=99, d_model=32, n_layer=4, n_head=4, d_inner=37, pad_token_id=1), "layer"),
    "t5": Family(
        dict(
            vocab_size=99,
            d_model=32,
            d_kv=8,
            d_ff=37,
            num_layers=4,
            num_heads=4,
            pad_token_id=1,
            eos_token_id=3,
            decoder_start_token_id=1,
        ),
        "block",
    ),
    "openai-gpt": Family(
        dict(vocab_size=99, n_positions=64, n_embd=32, n_layer=4, n_head=4, pad_token_id=1), "h", decoder=True
    ),
    "gpt2": Family(
        dict(vocab_size=99, n_positions=64, n_embd=32, n_layer=4, n_head=4, pad_token_id=1), "h", decoder=True
    ),
    "gpt_neox": Family(stack="layers", decoder=True),
    "opt": Family(
        {**SIZES, "ffn_dim": 37, "word_embed_proj_dim": 32, "layerdrop": 0.0}, "decoder.layers", decoder=True
    ),
    "bloom": Family(dict(vocab_size=99, hidden_size=32, n_layer=4, n_head=4, pad_token_id=1), "h", decoder=True),
    "llama": Family(GROUPED, **LLAMA_LIKE),
    "mistral": Family(SLIDING, **LLAMA_LIKE),
    "qwen2": Family({**SLIDING, "use_sliding_window": True, "max_window_layers": 2}, **LLAMA_LIKE),
    "qwen3": Family({**SLIDING, "head_dim": 8, "use_sliding_window": True, "max_window_layers": 2}, **LLAMA_LIKE),
    "gemma2": Family({**SLIDING, "head_dim": 8}, **LLAMA_LIKE),
    "gemma3": Family({**SLIDING, "head_dim": 8, "sliding_window_pattern": 2}, **LLAMA_LIKE, model_type="gemma3_text"),
    "phi3": Family(GROUPED, **LLAMA_LIKE),
    # norms after each block only: with tiny embeddings their gradient is mostly rounding
    "olmo2": Family({**GROUPED, "initializer_range": 1.0}, **LLAMA_LIKE),
    "smollm3": Family({**GROUPED, "no_rope_layer_interval": 2}, **LLAMA_LIKE),
    "mixtral": Family({**GROUPED, **EXPERTS, "num_local_experts": 4}, **LLAMA_LIKE),
    "gpt_oss": Family({**SLIDING, **EXPERTS, "head_dim": 8, "num_local_experts": 4}, **LLAMA_LIKE),
    "deepseek_v3": Family(
        {
            **SIZES,
            **EXPERTS,
            **LATENT,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 2,
        },
        **LLAMA_LIKE,
    ),
    "qwen3_5": Family({**GROUPED, **LINEAR, "head_dim": 8}, **LLAMA_LIKE, model_type="qwen3_5_text"),
    "lfm2": Family({**GROUPED, "layer_types": ["conv", "full_attention"] * 2}, **LLAMA_LIKE),
    "vit": Family(
        dict(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37, image_size=8, patch_size=4
        ),
        "layers",
        reads="pixels",
    ),
    "wav2vec2": Family(
        dict(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=37,
            conv_dim=(8, 8),
            conv_stride=(5, 4),
            conv_kernel=(10, 4),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            layerdrop=0.0,
            vocab_size=30,
        ),
        "encoder.layers",
        reads="wave",
    ),
    "whisper": Family(
        dict(
            vocab_size=99,
            d_model=32,
            encoder_layers=4,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=37,
            decoder_ffn_dim=37,
            num_mel_bins=8,
            max_source_positions=16,
            max_target_positions=20,
            pad_token_id=1,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=2,
        ),
        "layers",
        reads="spectrum",
    ),
}
TEXT_FAMILIES = [name for name, family in FAMILIES.items() if family.reads == "tokens"]


def tiny_config(family: str, **changes):
    """The family's tiny config."""
    row = FAMILIES[family]
    return AutoConfig.for_model(row.model_type or family, **{**row.config, **changes})


def tiny_backbone(family: str, seed: int = 0, attn_implementation: str | None = None, **changes) -> PreTrainedModel:
    """A tiny random backbone in evaluation mode, its weights large enough for every layer to matter; the encoder of an
    encoder–decoder."""
    torch.manual_seed(seed)
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    backbone = AutoModel.from_config(tiny_config(family, **changes), **options)
    if backbone.config.is_encoder_decoder:
        backbone = backbone.get_encoder()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return backbone.to(torch.get_default_dtype()).eval()  # some families make a parameter in float32


def tiny_batch(seed: int = 0, padding: str = "right", length: int = 9, family: str = "bert") -> dict[str, torch.Tensor]:
    """Two inputs; two texts have three padding tokens in the second."""
    generator = torch.Generator().manual_seed(seed)
    reads = FAMILIES[family].reads
    if reads == "pixels":
        return {"pixel_values": torch.randn((2, 3, 8, 8), generator=generator)}
    if reads == "wave":
        return {"input_values": torch.randn((2, 400), generator=generator)}
    if reads == "spectrum":
        return {"input_features": torch.randn((2, 8, 32), generator=generator)}
    input_ids = torch.randint(5, 99, (2, length), generator=generator)
    if padding == "none":
        return {"input_ids": input_ids}
    mask = torch.ones_like(input_ids)
    short = slice(-3, None) if padding == "right" else slice(0, 3)
    mask[1, short] = 0
    input_ids[1, short] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


def to(batch: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The batch with its floating-point tensors in that dtype."""
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}


def randomize_messages(model: torch.nn.Module, seed: int = 1, scale: float = 0.3) -> torch.nn.Module:
    """Gives `up` and the β of Swish random values, so that messages are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.feedback.named_parameters():
            if name.endswith("up.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif name.endswith("beta"):
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return model
