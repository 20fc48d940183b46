"""Cost of iterations: time relative to the bare backbone, compared with the ratio of FLOPs.

    python examples/benchmarks/cost.py --model BACKBONE [--feedback-topology top] [--feedback-rank 32]

Forward runs without gradients; forward + backward with them. The systems take turns in an order drawn anew each round,
so that a change in the machine's speed affects all of them. The ratio is that of the best times, since whatever else
runs on the machine only ever adds to a time; the ratio of the medians stands beside it.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModel

from hf_feedback import FeedbackModel
from hf_feedback.training.flops import count_flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--feedback-topology", default="top")
    parser.add_argument("--feedback-rank", type=int, default=32)
    parser.add_argument("--feedback-activation", default="swish")
    parser.add_argument("--iterations", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    torch.manual_seed(0)
    bare = AutoModel.from_pretrained(args.model).to(args.device).eval()
    bare.pooler = None
    model = FeedbackModel.from_backbone(
        args.model,
        feedback_topology=args.feedback_topology,
        feedback_rank=args.feedback_rank,
        feedback_activation=args.feedback_activation,
    ).to(args.device)
    ids = torch.randint(
        bare.config.vocab_size // 2, bare.config.vocab_size, (args.batch_size, args.tokens), device=args.device
    )
    mask = torch.ones_like(ids)

    def forward(module: torch.nn.Module, **options: int) -> None:
        with torch.no_grad():
            module(input_ids=ids, attention_mask=mask, **options)

    def both(module: torch.nn.Module, **options: int) -> None:
        module(input_ids=ids, attention_mask=mask, **options).last_hidden_state.square().mean().backward()
        module.zero_grad()

    for name, step in (("forward", forward), ("forward + backward", both)):
        systems: dict[str, Callable[[], None]] = {"bare": lambda step=step: step(bare)}
        for k in args.iterations:
            systems[f"K = {k}"] = lambda step=step, k=k: step(model, num_iterations=k)
        flops = {system: count_flops(run) for system, run in systems.items()}
        times: dict[str, list[float]] = {system: [] for system in systems}
        for round_ in range(args.rounds + 2):
            for system, run in random.sample(list(systems.items()), len(systems)):
                started = time.perf_counter()
                run()
                if args.device != "cpu":
                    torch.accelerator.synchronize()
                if round_ >= 2:  # the first two warm up
                    times[system].append(time.perf_counter() - started)
        print(
            f"\n{name}, {args.batch_size} × {args.tokens} tokens, {args.feedback_topology}, rank {args.feedback_rank}"
        )
        print(f"{'':8}{'best ms':>9}{'ratio':>9}{'FLOPs':>9}{'ratio / FLOPs':>16}{'by medians':>13}")
        for system in systems:
            predicted = flops[system] / flops["bare"]
            best = min(times[system])
            ratio = best / min(times["bare"])
            medians = statistics.median(times[system]) / statistics.median(times["bare"])
            print(f"{system:8}{1000 * best:9.1f}{ratio:9.3f}{predicted:9.3f}", end="")
            print(f"{ratio / predicted:16.3f}{medians / predicted:13.3f}")


if __name__ == "__main__":
    main()
