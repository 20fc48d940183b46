"""Every model type that transformers has, made tiny: is feedback exact on it, is it refused, or does it fail?

    python tests/sweep_backbones.py examples/guides/backbones_sweep.md

It takes a quarter of an hour on two cores. What can be made tiny by the usual options of its config, and reads one
tensor of tokens, pixels or sound, is compared with the independent reference of the tests.
"""

import copy
import json
import subprocess
import sys
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from families import SIZES, speak
from reference import run_reference
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel
from transformers.utils import logging

from hf_feedback import FeedbackModel, UnsupportedBackboneError
from hf_feedback.backbone_layout import forward_arguments, without_cache
from hf_feedback.probe_inputs import PROBE_INPUTS

ALIASES = {
    "hidden_size": "d_model n_embd dim emb_dim",
    "num_hidden_layers": (
        "n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers encoder_num_layers"
    ),
    "num_attention_heads": "n_head n_heads num_heads encoder_attention_heads decoder_attention_heads",
    "intermediate_size": (
        "ffn_dim d_ff n_inner hidden_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size moe_intermediate_size"
    ),
    "max_position_embeddings": "n_positions max_source_positions max_target_positions",
}
SMALL = {
    **{alias: SIZES[name] for name, aliases in ALIASES.items() for alias in aliases.split()},
    **SIZES,
    **dict(num_key_value_heads=2, head_dim=8, d_kv=8, kv_channels=8, attention_head_dim=8, rotary_dim=4),
    **dict(image_size=16, patch_size=8, num_mel_bins=8, sliding_window=4, attention_window=4, type_vocab_size=2),
    **dict(layerdrop=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0, embedding_size=16, word_embed_proj_dim=32),
    **dict(num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, num_experts_per_token=2),
    **dict(n_groups=2, n_group=1, topk_group=1, first_k_dense_replace=1, shared_expert_intermediate_size=16),
    **dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, qk_head_dim=8),
}
MOST = 20_000_000  # parameters; what stays larger is left out


def tiny(model_type: str):
    """A tiny model, or why there is none."""
    kind = CONFIG_MAPPING[model_type]
    if kind not in MODEL_MAPPING:
        return "is no model by itself"
    try:
        config = kind(**{key: value for key, value in SMALL.items() if hasattr(kind(), key)})
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
        if count > MOST:
            return "stays large"
        torch.manual_seed(0)
        backbone = AutoModel.from_config(config).eval()
    except Exception:  # whatever its config says about these sizes
        return "cannot be made tiny this way"
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return backbone


def outcome(model_type: str) -> tuple[str, str, str]:
    """(model type, "exact", "refused", "failing" or "left out", why)."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    backbone = tiny(model_type)
    if isinstance(backbone, str):
        return model_type, "left out", backbone
    options = dict(num_iterations=3, feedback_rank=8, feedback_topology="dense")
    try:
        try:
            model = FeedbackModel.from_backbone(backbone, **options)
        except UnsupportedBackboneError as error:
            return model_type, "refused", str(error).split("feedback backbone: ")[-1]
        generator = torch.Generator().manual_seed(3)
        batch = PROBE_INPUTS[model.main_input_name](model.backbone.config.get_text_config(), generator)
        if "attention_mask" not in forward_arguments(model.backbone):
            batch.pop("attention_mask", None)
        backbone = copy.deepcopy(model.backbone)
        plain = backbone(**batch, **without_cache(backbone)).last_hidden_state
        if not torch.equal(model(**batch).last_hidden_state, plain):
            return model_type, "failing", "a fresh model is not its backbone"
        found = speak(model, scale=0.1)(**batch).last_hidden_state
        passes = model.config.num_hidden_layers // len(backbone.get_submodule(model.layout.stack))
        feedback = dict(model.feedback.named_parameters())
        inputs = {**batch, **without_cache(backbone)}
        output, _ = run_reference(backbone, model.layout.stack, passes, feedback, model.config.edges(), inputs, 3)
        expected = output.last_hidden_state
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if not error < 1e-5:
            return model_type, "failing", f"messages are off by {error:.1e}"
        if torch.equal(found, plain):
            return model_type, "failing", "messages change nothing"
        found.square().mean().backward()
        return model_type, "exact", ""
    except Exception as error:
        return model_type, "failing", f"{type(error).__name__}: {error}"


def write(file: Path, rows: list[tuple[str, str, str]]) -> None:
    """The outcomes as a guide."""
    by: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for model_type, kind, why in sorted(rows):
        by[kind].append((model_type, " ".join(why.split())[:240].replace("|", "/")))
    left_out: dict[str, int] = defaultdict(int)
    for _, why in by["left out"]:
        left_out[why] += 1
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    lines = ["# Every model type of transformers", "", versions, "", __doc__.strip(), ""]
    lines += [f"{len(by['exact'])} exact, {len(by['refused'])} refused, {len(by['failing'])} failing; left out:"]
    lines += [f"{', '.join(f'{count} {why}' for why, count in sorted(left_out.items()))}."]
    lines += ["A refusal can be the fault of the tiny config; the reason given is the message that a user gets.", ""]
    lines += ["## Exact", "", ", ".join(model_type for model_type, _ in by["exact"]), ""]
    for kind in ("failing", "refused"):
        lines += [f"## {kind.capitalize()}", "", "| model type | why |", "|---|---|"]
        lines += [f"| {model_type} | {why} |" for model_type, why in by[kind]] + [""]
    file.write_text("\n".join(lines), encoding="utf-8")


def in_a_process(model_types: list[str]) -> list[tuple[str, str, str]]:
    """The outcomes of a few model types; one that takes the process with it is left out, the others are not."""
    command = [sys.executable, __file__, "--types", *model_types]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    except subprocess.TimeoutExpired as error:
        found = (error.stdout or b"").decode()
    outcomes = [tuple(json.loads(line)) for line in found.splitlines() if line.startswith("[")]
    missing = model_types[len(outcomes) :]
    if not missing:
        return outcomes
    return [*outcomes, (missing[0], "left out", "takes too long or too much"), *in_a_process(missing[1:])]


if __name__ == "__main__":
    if sys.argv[1] == "--types":
        for name in sys.argv[2:]:
            print(json.dumps(outcome(name)), flush=True)
    else:
        names = list(CONFIG_MAPPING)
        with ThreadPoolExecutor(2) as pool:
            batches = pool.map(in_a_process, [names[i : i + 20] for i in range(0, len(names), 20)])
            write(Path(sys.argv[1]), [row for batch in batches for row in batch])
