"""A small backbone that looks up facts "a → b", from which the studies of chains start."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from benchmark_parts import take_step
from torch import nn
from torch.nn import functional as F
from transformers import ModernBertConfig, ModernBertModel

# The number of facts and a generator → texts (B, T) that start with [CLS] and the keys, and their values (B, N)
DrawLookUps: TypeAlias = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


def make_backbone(vocab_size: int, hidden_size: int, sees_all: Sequence[bool]) -> ModernBertModel:
    """A ModernBERT with weights drawn at random.

    Args:
        vocab_size: symbols and special tokens, of which 0 is padding, 1 [CLS] and 2 [SEP].
        hidden_size: d.
        sees_all: of each layer, whether it sees all tokens; the others see one on either side.
    """
    config = ModernBertConfig(
        vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=hidden_size,
        num_hidden_layers=len(sees_all), num_attention_heads=2, local_attention=2, initializer_range=0.1,
        layer_types=["full_attention" if one else "sliding_attention" for one in sees_all],
        initializer_cutoff_factor=3.0,
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1000.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 2.0}},
        max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    return ModernBertModel(config)


def learn_look_ups(
    backbone: ModernBertModel,
    classifier: nn.Linear,
    draw: DrawLookUps,
    num_facts: int,
    *,
    seed: int,
    steps: int,
    enough: float,
    file: Path,
) -> None:
    """Trains a backbone to look up one fact, at first among four; the weights are kept in a file, and read from it.

    In the end what it has found is answered by the embeddings of the symbols, as in masked-language models: what it has
    found looks like what it can look up next.

    Args:
        backbone: of `make_backbone`.
        classifier: of the symbols, the last tokens of the vocabulary.
        draw: draws texts.
        num_facts: N, facts of a text.
        seed: of the texts.
        steps: most steps.
        enough: share of right answers from which on it goes on to more facts.
        file: of the weights.
    """
    modules = nn.ModuleList([backbone, classifier])
    if file.is_file():
        modules.load_state_dict(torch.load(file, map_location=classifier.weight.device))
        return
    optimizer = torch.optim.AdamW(modules.parameters(), lr=5e-3, betas=(0.9, 0.98), weight_decay=0.01)
    generator, facts, correct, is_tied = torch.Generator().manual_seed(seed), min(4, num_facts), 0.0, False
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, (step + 1) / 50)
        ids, values = draw(facts, generator)
        states = backbone(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 1 : 1 + facts]
        symbols = backbone.embeddings.tok_embeddings.weight[-classifier.out_features :]
        logits = F.linear(states, symbols if is_tied else classifier.weight).flatten(0, 1)
        take_step(F.cross_entropy(logits, values.flatten()), modules, optimizer)
        correct = 0.9 * correct + 0.1 * (logits.argmax(-1) == values.flatten()).float().mean().item()
        if correct > enough:
            if is_tied:
                break
            is_tied, facts, correct = facts == num_facts, min(2 * facts, num_facts), 0.0
    with torch.no_grad():
        classifier.weight.copy_(symbols)
        classifier.bias.zero_()
    print(f"  look-ups: {step + 1} steps, {facts} facts, {100 * correct:.0f}%{', tied' * is_tied}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(modules.state_dict(), file)
