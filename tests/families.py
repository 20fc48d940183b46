"""Tiny random backbones, one row a family."""

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
)
FAMILIES: dict[str, dict] = {
    "bert": SIZES,
    "roberta": SIZES,
    "distilbert": dict(
        vocab_size=99, dim=32, n_layers=4, n_heads=4, hidden_dim=37, max_position_embeddings=64, pad_token_id=1
    ),
    "electra": {**SIZES, "embedding_size": 16},
    "deberta-v2": {
        **SIZES,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "modernbert": {
        **SIZES,
        "global_attn_every_n_layers": 3,
        "local_attention": 4,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "llama": {**SIZES, "num_key_value_heads": 2},
    "qwen3": {
        **SIZES,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 2,
    },
}


def tiny_config(family: str, **changes):
    """The family's tiny config."""
    return AutoConfig.for_model(family, **{**FAMILIES[family], **changes})


def tiny_backbone(family: str, seed: int = 0, **changes) -> PreTrainedModel:
    """A tiny random backbone in evaluation mode, its weights large enough for every layer to matter."""
    torch.manual_seed(seed)
    backbone = AutoModel.from_config(tiny_config(family, **changes))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return backbone.eval()


def tiny_batch(seed: int = 0, padding: str = "right", length: int = 9) -> dict[str, torch.Tensor]:
    """Two texts, the second one with three padding tokens."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, 99, (2, length), generator=generator)
    mask = torch.ones_like(input_ids)
    short = slice(-3, None) if padding == "right" else slice(0, 3)
    mask[1, short] = 0
    input_ids[1, short] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


def speak(model: torch.nn.Module, seed: int = 1, scale: float = 0.3) -> torch.nn.Module:
    """Gives the feedback messages that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.feedback.named_parameters():
            if name.endswith("up.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif name.endswith("beta"):
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return model
