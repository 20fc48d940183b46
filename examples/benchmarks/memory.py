"""Memory held by the graph of a training step, by gradient mode and number of iterations.

    python examples/benchmarks/memory.py [--model BACKBONE] [--output memory.svg]

Counts the bytes of all tensors that autograd still holds after the forward pass, each storage once, parameters left
out. Without `--model`, a random BERT of 6 layers and width 64 reads 8 texts of 64 tokens. The plot needs matplotlib
(the extra `plots`).
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from hf_feedback import FeedbackModel

MODES: dict[str, dict[str, Any]] = {
    "full": dict(gradient="full"),
    "full, checkpointed": dict(gradient="full"),
    "truncated to 2": dict(gradient="truncated", gradient_iterations=2),
    "one step": dict(gradient="one_step"),
    "implicit": dict(gradient="implicit", fixed_point_tolerance=1e-6),
}


def held_bytes(model: FeedbackModel, batch: dict[str, torch.Tensor], num_iterations: int) -> int:
    """Bytes that the graph of one forward pass holds when it is over."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive: dict[int, tuple[int, int]] = {}  # number of a saved tensor → its storage and size

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor, storage = tensor.detach(), tensor.untyped_storage()  # else the graph holds itself
            alive[id(self)] = (storage.data_ptr(), storage.nbytes())

        def __del__(self) -> None:
            alive.pop(id(self), None)

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        output = model(**batch, num_iterations=num_iterations).last_hidden_state
    total = sum({place: size for place, size in alive.values() if place not in parameters}.values())
    del output
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder")
    parser.add_argument("--iterations", type=int, nargs="+", default=[1, 2, 3, 4, 8, 16])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--output", type=Path, help="also draw the table")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=256
    )
    ids = torch.randint(5, 1000, (args.batch_size, args.length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    figures: dict[str, list[float]] = {}
    for mode, options in MODES.items():
        backbone = args.model or BertModel(config)
        model = FeedbackModel.from_backbone(backbone, feedback_rank=32, **options).train()
        if mode == "full, checkpointed":
            model.activation_checkpointing_enable()
        with warnings.catch_warnings():  # fresh messages are silent: the fixed point is reached at once
            warnings.simplefilter("ignore")
            figures[mode] = [held_bytes(model, batch, k) / 1e6 for k in args.iterations]
    print("| MB at K = | " + " | ".join(map(str, args.iterations)) + " |")
    print("|---" * (1 + len(args.iterations)) + "|")
    for mode, row in figures.items():
        print(f"| {mode} | " + " | ".join(f"{value:.1f}" for value in row) + " |")
    if args.output:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for (mode, row), line in zip(figures.items(), ("-", "-", "-", "-", "--"), strict=True):
            axes.loglog(args.iterations, row, line, marker="o", label=mode)
        axes.set(xlabel="iterations K", ylabel="MB held for the backward pass")
        axes.set_xticks(args.iterations, map(str, args.iterations))
        axes.legend()
        figure.savefig(args.output)


if __name__ == "__main__":
    main()
