"""Effect of the activation on the loop: contraction, cost, and norm of gradients.

    python examples/benchmarks/activations.py --model BACKBONE [--output activations.png]

Fresh messages are silent, so each model gets the same random up-projections, of standard deviation `--scale`/√rank, and
reads the texts in examples/data. Measured are the contraction of the loop at K = 8 (mean over texts, and the largest);
the time of an iteration per token (best of `--repeats`); and the norm of the gradient of a random projection of the
last hidden states with respect to the source's state of each iteration: what is left of it at iteration 1, as a share
of that at iteration 7. The plot needs matplotlib (the extra `plots`).
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from hf_feedback import FeedbackModel
from hf_feedback.evaluation.markdown_tables import markdown_table

ACTIVATIONS = ("linear", "sigmoid", "tanh", "relu", "gelu", "swish", "mish")
TEXTS = Path(__file__).parent.parent / "data" / "support_messages" / "train.csv"
K = 8


def with_random_messages(args: argparse.Namespace, activation: str) -> FeedbackModel:
    """The model with messages that are not zero."""
    torch.manual_seed(0)
    model = FeedbackModel.from_backbone(args.model, feedback_activation=activation, num_iterations=K)
    for connection in model.feedback.sources.values():
        up = connection.up.weight
        with torch.no_grad():
            up.normal_(std=args.scale / up.shape[-1] ** 0.5, generator=torch.Generator().manual_seed(0))
    return model


def gradient_norms(model: FeedbackModel, batch: dict[str, torch.Tensor]) -> list[float]:
    """Of the source's state at iterations 1 … K − 1."""
    states: list[torch.Tensor] = []

    def note(module: Any, args: tuple) -> None:
        args[0].retain_grad()
        states.append(args[0])

    (source,) = model.feedback.sources.values()
    hook = source.register_forward_pre_hook(note)
    end = model(**batch).last_hidden_state
    hook.remove()
    direction = torch.randn(end.shape, generator=torch.Generator().manual_seed(0)).to(end)
    (end * direction * batch["attention_mask"][..., None]).sum().backward()
    return [state.grad.norm().item() for state in states if state.grad is not None]


@torch.no_grad()
def seconds(model: FeedbackModel, batch: dict[str, torch.Tensor], repeats: int) -> float:
    """Of one iteration after the first."""
    times: dict[int, float] = {}
    for k in (1, K):
        model(**batch, num_iterations=k)
        for _ in range(repeats):
            started = time.perf_counter()
            model(**batch, num_iterations=k)
            times[k] = min(times.get(k, float("inf")), time.perf_counter() - started)
    return (times[K] - times[1]) / (K - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub id or folder of a backbone")
    parser.add_argument("--activations", nargs="+", default=list(ACTIVATIONS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also draw the gradients")
    args = parser.parse_args()
    with TEXTS.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)][: args.texts]
    batch = AutoTokenizer.from_pretrained(args.model)(texts, padding=True, return_tensors="pt")
    tokens, rows, curves = batch["input_ids"].numel(), [], {}
    for activation in args.activations:
        model = with_random_messages(args, activation)
        found = model.estimate_contraction(dict(batch))
        norms = gradient_norms(model, dict(batch))
        curves[activation] = [norm / norms[-1] for norm in norms]
        cost = 1e6 * seconds(model, dict(batch), args.repeats) / tokens
        rows.append(
            (activation, f"{found.mean():.3f}", f"{found.max():.3f}", f"{cost:.1f}", f"{curves[activation][0]:.1e}")
        )
    head = ("activation", "contraction", "largest", "µs a token and iteration", "gradient left at iteration 1")
    print(markdown_table(head, rows))
    if args.output:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for activation, values in curves.items():
            axes.semilogy(range(1, K), values, marker="o", label=activation)
        axes.set(xlabel="iteration k", ylabel="‖∂/∂h^(k)‖, as a share of k = 7", title=f"Gradients through K = {K}")
        axes.legend(fontsize="small")
        figure.savefig(args.output, dpi=120)


if __name__ == "__main__":
    main()
