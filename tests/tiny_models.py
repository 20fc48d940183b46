"""A tiny model of any model type that transformers has, by the names that sizes have in its config."""

from dataclasses import fields
from typing import Any

import torch
from families import SIZES
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

WIDE = {**SIZES, "hidden_size": 64, "intermediate_size": 64}  # experts need rows of a multiple of 16 bytes
ALIASES = {
    "hidden_size": "d_model n_embd dim emb_dim embed_dim text_hidden_size out_hidden_size",
    "num_hidden_layers": (
        "n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers depth "
        "encoder_num_layers encoder_num_hidden_layers decoder_num_hidden_layers"
    ),
    "num_attention_heads": (
        "n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_encoder_attention_heads "
        "num_decoder_attention_heads encoder_num_attention_heads decoder_num_attention_heads swa_num_attention_heads"
    ),
    "intermediate_size": (
        "ffn_dim d_ff d_inner n_inner hidden_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size moe_intermediate_size "
        "expert_ffn_hidden_size shared_expert_intermediate_size moe_shared_expert_intermediate_size moe_hidden_size "
        "shared_experts_intermediate_size shared_intermediate_size"
    ),
    "max_position_embeddings": "n_positions max_source_positions max_target_positions",
    "vocab_size": "vocab_size_per_layer_input entity_vocab_size",
}
# heads are 16 wide, also where their rotated and other parts have sizes of their own, as in multi-head latent attention
SMALL = {
    **{alias: WIDE[name] for name, aliases in ALIASES.items() for alias in aliases.split()},
    **WIDE,
    **dict(
        num_key_value_heads=2, swa_num_key_value_heads=2, encoder_num_key_value_heads=4, decoder_num_key_value_heads=4
    ),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels", "attention_head_dim", "swa_head_dim", "v_head_dim"), 16),
    **dict(qk_rope_head_dim=16, qk_nope_head_dim=16, qk_head_dim=32, q_lora_rank=16, kv_lora_rank=16, rotary_dim=8),
    **dict(index_n_heads=4, index_head_dim=32, index_topk=4, index_kpool=2),
    **dict(num_experts=4, num_local_experts=4, n_routed_experts=4, moe_num_experts=4, zero_expert_num=2),
    **dict(num_experts_per_tok=2, num_experts_per_token=2, moe_topk=2, moe_k=2, n_shared_experts=1),
    **dict(n_groups=2, n_group=1, topk_group=1, first_k_dense_replace=1, num_nextn_predict_layers=0),
    **dict(linear_head_dim=16, linear_key_head_dim=16, linear_value_head_dim=16),
    **dict(linear_num_heads=4, linear_num_key_heads=2, linear_num_value_heads=4),
    **dict(mamba_expand=2, expand=2, mamba_n_heads=8, mamba_num_heads=8, n_mamba_heads=8, mamba_d_ssm=128),
    **dict(mamba_d_head=16, mamba_head_dim=16, mamba_headdim=16, mamba_dt_rank=8, time_step_rank=8),
    **dict(mamba_d_state=16, state_size=16, ssm_state_size=16, mamba_chunk_size=4, chunk_size=4, context_size=8),
    **dict(image_size=16, patch_size=8, num_mel_bins=8, sliding_window=4, attention_window=4, type_vocab_size=2),
    **dict(layerdrop=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0, embedding_size=16, word_embed_proj_dim=64),
    **dict(hidden_size_per_layer_input=16),
}


def rotated(*sections: int, **options: Any) -> dict[str, Any]:
    """Rotary position embeddings that divide the pairs of a head between time, height and width."""
    return {"rope_parameters": dict(rope_type="default", rope_theta=1e4, mrope_section=list(sections), **options)}


# By model type, the options that none of the sizes above fit.
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("cosmos3_edge_text", "glm4v_text", "glm_image_text", "glm_ocr_text", "paddleocr_vl_text", "qwen2_vl_text"),
        rotated(2, 3, 3),
    ),
    "qwen2_5_vl_text": rotated(2, 3, 3),
    "glm4v_moe_text": rotated(1, 1, 2, partial_rotary_factor=0.5),
    "hunyuan_vl_text": rotated(2, 2, 2, 2),
    "chameleon": dict(vocabulary_map={}, vq_config=dict(base_channels=32, channel_multiplier=[1, 1], resolution=16)),
    "cohere_compass_text": dict(rope_parameters={"full_attention": dict(rope_type="default", rope_theta=1e4)}),
    "dots3_note_text": dict(head_dim=32, per_layer_config={}),
    "esmc": dict(num_key_value_heads=4),
    "gemma3n_text": dict(intermediate_size=64, num_kv_shared_layers=0),
    "glm5_next_text": dict(qk_rope_head_dim=0),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "layoutlmv3": dict(coordinate_size=10, shape_size=12),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2, num_dense_layers=1),
    "lilt": dict(hidden_size=96),
    "mamba2": dict(num_heads=8),
    "qwen4_exp_text": dict(
        indexer_n_heads=4, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=4, indexer_compress_ratio=2
    ),
    "reformer": dict(axial_pos_embds_dim=[32, 32], axial_pos_shape=[8, 8]),
    "squeezebert": dict(embedding_size=64),
    "vit_mae": dict(image_size=32),  # enough patches for two draws to differ
    "xmod": dict(default_language="en_XX"),
    "zamba": dict(layers_block_type=["mamba", "hybrid"] * 2, num_key_value_heads=4, attention_head_dim=32),
    "zamba2": dict(layers_block_type=["mamba", "hybrid"] * 2, num_key_value_heads=4),
    "zaya": dict(num_experts_per_tok=1),
}
MOST = 20_000_000  # parameters; what stays larger is left out


class NoTinyModelError(Exception):
    """There is no tiny model of that type; the message says why."""


def tiny_options(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """The options that make a config tiny, those of the configs inside it included."""
    plain = vars(kind())
    names = {field.name for field in fields(kind)}
    options = {name: value for name, value in SMALL.items() if name in names}
    if "kv_lora_rank" in names and "num_key_value_heads" in names:  # each head has keys and values of its own
        options["num_key_value_heads"] = options["num_attention_heads"]
    for name, value in options.items():
        if isinstance(plain.get(name), list | tuple):
            options[name] = [value] * len(plain[name])
    for name in kind.sub_configs:
        if isinstance(inner := plain.get(name), PreTrainedConfig):
            options[name] = {**tiny_options(type(inner)), "model_type": inner.model_type}
    return {**options, **OVERRIDES.get(kind.model_type, {})}


def tiny_model(model_type: str, **changes: Any) -> PreTrainedModel:
    """A tiny random model whose layers all matter.

    Args:
        model_type: in transformers.
        **changes: options of its config, instead of the usual ones.

    Raises:
        NoTinyModelError: there is none; the message says why.
    """
    kind = CONFIG_MAPPING[model_type]
    if kind not in MODEL_MAPPING:
        raise NoTinyModelError("AutoModel has none")
    try:
        config = kind(**{**tiny_options(kind), **changes})
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
        if count > MOST:
            raise NoTinyModelError("stays large")
        torch.manual_seed(0)
        kernels = {"experts_implementation": "eager"} if torch.get_default_dtype() == torch.float64 else {}
        model = AutoModel.from_config(config, **kernels).eval()
    except ImportError as error:
        raise NoTinyModelError("needs another package") from error
    except NoTinyModelError:
        raise
    except Exception as error:  # whatever its config says about these sizes
        raise NoTinyModelError("does not take these sizes") from error
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
