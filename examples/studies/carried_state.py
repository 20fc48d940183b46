"""Does a state that is carried from token to token (`feedback_shift=1`) reach further than the training texts?

    python examples/studies/carried_state.py --task parity --steps 200 --hidden-size 64 --work FOLDER --seeds 0 1 2 3 4
    python examples/studies/carried_state.py --task swaps --work FOLDER --seeds 0 1 2 3 4

Two tasks in which a state changes with every token and is asked for at every token: the parity of bits, and words of
swaps of two neighbours among five things, whose state is the order so far, one of the 120 elements of S5 (`--task
"all swaps"`: any two). Transformers of fixed depth and precision are believed unable to track the latter through texts
of any length (Merrill, Petty and Sabharwal 2024, arXiv 2404.08819).

A small Llama is trained from scratch on texts of 16 to 24 tokens and tested at 1, 2, 4 and 8 times that length: with
the last layer's state carried to the next token, and once more with attention to the last four tokens alone, so that
nothing but the state reaches far; with K iterations, gated or attention messages; plain, as wide as gives it the same
number of parameters, or as deep as costs the same as K iterations; and a GRU beside them. Training starts with texts of
two tokens and adds one whenever a batch has most of its last states right; the second half of the steps has texts of
the full lengths in any case. The carried state runs token by token in training too, with exact gradients: the limit of
many parallel iterations at the cost of one pass. Rates are chosen with the first seed on validation texts of the
training length. Finished runs stay in FOLDER/results.jsonl and are not run again.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from benchmark_parts import add_arms, add_device, interval, runs_of_arms, take_step
from study_card import add_card, check_card, write_card
from torch import nn
from torch.nn import functional as F
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel, get_linear_schedule_with_warmup, set_seed

from hf_feedback import FeedbackConfig, FeedbackForCausalLM
from hf_feedback.evaluation.machine import machine_and_versions
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.summary import count_parameters
from hf_feedback.training.flops import count_flops

# The last layer to the first, by full matrices, without a nonlinearity of its own.
TOP = dict(feedback_topology="top", feedback_layers=[0, 0], feedback_rank=None, feedback_activation="linear")
CARRIED = FeedbackConfig.recipe("carried-state")
FEEDBACK: dict[str, dict[str, Any]] = {
    "carried state": CARRIED,
    "carried state, window of 4": CARRIED,
    "K = 4, gated": dict(num_iterations=4, feedback_type="gated", **TOP),
    "K = 4, attention": dict(num_iterations=4, feedback_type="attention", **TOP),
}
WINDOWS = {"carried state, window of 4": 4}
OTHERS = ("plain, equal parameters", "plain, FLOPs of K = 4", "GRU")
FACTORS = (1, 2, 4, 8)
# Options that make a run the one that it is.
SETTINGS = "task steps batch_size threshold lengths hidden_size num_layers num_heads test_texts".split()
LIMITS = (
    "What limits this: a carried state is trained and read token by token, one after the other, and a GRU learns the "
    "same. The gain is over layers without a state."
)


def parity_transitions() -> torch.Tensor:
    """`(2, 2)`: the parity before, and a bit → the parity after it."""
    return torch.tensor([[0, 1], [1, 0]])


def swap_transitions(size: int, adjacent: bool = False) -> torch.Tensor:
    """`(size!, swaps)`: the number of a permutation, and a swap of two positions → the number of the permutation after.

    Args:
        size: number of things, in order at the start, which is permutation 0.
        adjacent: whether only neighbours are swapped.
    """
    permutations = list(itertools.permutations(range(size)))
    swaps = [(i, j) for i, j in itertools.combinations(range(size), 2) if not adjacent or j == i + 1]

    def after(permutation: tuple[int, ...], i: int, j: int) -> tuple[int, ...]:
        things = list(permutation)
        things[i], things[j] = things[j], things[i]
        return tuple(things)

    return torch.tensor([[permutations.index(after(p, i, j)) for i, j in swaps] for p in permutations])


TASKS: dict[str, Callable[[], torch.Tensor]] = {
    "parity": parity_transitions,
    "swaps": lambda: swap_transitions(5, adjacent=True),
    "all swaps": lambda: swap_transitions(5),
}


def draw(
    transitions: torch.Tensor, batch_size: int, length: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens `(B, T)`, and the state after each of them, `(B, T)`.

    Args:
        transitions: `(states, tokens)`, state before and token → state after; state 0 is the first.
        batch_size: B.
        length: T.
        generator: of the tokens.
    """
    tokens = torch.randint(transitions.shape[1], (batch_size, length), generator=generator)
    state, states = torch.zeros(batch_size, dtype=torch.long), []
    for t in range(length):
        state = transitions[state, tokens[:, t]]
        states.append(state)
    return tokens, torch.stack(states, 1)


class GRU(nn.Module):
    """Embeddings, one GRU, a classifier for every token: `(B, T)` → `(B, T, classes)`."""

    def __init__(self, num_tokens: int, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(num_tokens, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.classifier = nn.Linear(hidden_size, num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.gru(self.embeddings(tokens))[0])


def decoder(transitions: torch.Tensor, args: argparse.Namespace, **options: int | None) -> MistralForCausalLM:
    """A decoder whose vocabulary is the states, among which the tokens are the first ones.

    Args:
        transitions: of the task.
        args: of the command line.
        **options: other options of `MistralConfig` than these; without a window it is a Llama.
    """
    defaults: dict[str, Any] = dict(
        num_hidden_layers=args.num_layers, intermediate_size=2 * args.hidden_size, sliding_window=None
    )
    config = MistralConfig(
        vocab_size=len(transitions), hidden_size=args.hidden_size, num_attention_heads=args.num_heads,
        num_key_value_heads=args.num_heads, initializer_range=0.05, bos_token_id=None, eos_token_id=None,
        max_position_embeddings=FACTORS[-1] * args.lengths[1], **{**defaults, **options},
    )  # fmt: skip
    model = MistralForCausalLM(config)
    nn.init.normal_(model.get_input_embeddings().weight)  # as large as messages get
    return model


def build(arm: str, transitions: torch.Tensor, args: argparse.Namespace) -> nn.Module:
    """The fresh model of an arm."""
    if arm in FEEDBACK:
        return FeedbackForCausalLM.from_backbone(
            decoder(transitions, args, sliding_window=WINDOWS.get(arm)), **FEEDBACK[arm]
        )
    if arm == "plain, FLOPs of K = 4":
        return decoder(transitions, args, num_hidden_layers=4 * args.num_layers)
    builders: dict[str, Callable[[int], nn.Module]] = {
        "plain, equal parameters": lambda width: decoder(transitions, args, intermediate_size=width),
        "GRU": lambda width: GRU(transitions.shape[1], transitions.shape[0], width),
    }
    size, builder = count_parameters(build("carried state", transitions, args)), builders[arm]

    def distance(width: int) -> int:
        with torch.device("meta"):  # no memory, no numbers: only sizes
            return abs(count_parameters(builder(width)) - size)

    return builder(min(range(8, 4 * args.hidden_size + 1, 8), key=distance))


def logits_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """`(B, T)` → `(B, T, states)`; with `feedback_shift`, token by token, each with the state of the one before."""
    if not isinstance(model, PreTrainedModel):
        return model(tokens)
    return model(tokens, use_cache=getattr(model.config, "feedback_shift", 0) == 1).logits


def train(model: nn.Module, transitions: torch.Tensor, rate: float, seed: int, args: argparse.Namespace) -> None:
    """Cross-entropy of the state at every token; texts get longer as their last states are learned."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    scheduler = get_linear_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    generator, (shortest, longest), limit = torch.Generator().manual_seed(seed), args.lengths, 2
    model.train()
    for step in range(args.steps):
        if step >= args.steps // 2:
            limit = longest
        length = min(limit, int(torch.randint(shortest, longest + 1, (), generator=generator)))
        tokens, states = (one.to(args.device) for one in draw(transitions, args.batch_size, length, generator))
        logits = logits_of(model, tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), states.flatten())
        take_step(loss, model, optimizer)
        scheduler.step()
        last_correct = (logits[:, -1].argmax(-1) == states[:, -1]).float().mean().item()
        limit += length == limit and last_correct > args.threshold
        if step % 50 == 0:
            print(f"  {step}: {length} tokens, loss {loss.item():.3f}, last {100 * last_correct:.0f}%", flush=True)


@torch.no_grad()
def accuracies(
    model: nn.Module, transitions: torch.Tensor, length: int, seed: int, args: argparse.Namespace
) -> tuple[float, float]:
    """In percent: of the last token, and of all tokens of the second half."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    tokens, states = (one.to(args.device) for one in draw(transitions, args.test_texts, length, generator))
    correct = 100 * (logits_of(model, tokens).argmax(-1) == states).float()
    return correct[:, -1].mean().item(), correct[:, length // 2 :].mean().item()


@torch.no_grad()
def megaflops(model: nn.Module, length: int) -> float:
    """Floating-point operations of the forward pass per token, in millions."""
    tokens = torch.zeros(1, length, dtype=torch.long, device=next(model.parameters()).device)
    return count_flops(lambda: logits_of(model.eval(), tokens)) / length / 1e6


def run(arm: str, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one arm and measures it at every length."""
    transitions = TASKS[args.task]()
    set_seed(seed)
    model = build(arm, transitions, args).to(args.device)
    started = time.perf_counter()
    train(model, transitions, rate, 1000 + seed, args)
    found: dict[str, Any] = {"seconds": time.perf_counter() - started, "parameters": count_parameters(model)}
    found["machine"] = machine_and_versions()
    found["validation"] = accuracies(model, transitions, args.lengths[1], 1, args)[1]
    found["megaflops"] = megaflops(model, args.lengths[1])
    for factor in FACTORS:
        last, half = accuracies(model, transitions, factor * args.lengths[1], 2, args)
        found |= {f"last {factor}": last, f"half {factor}": half}
    return found


def summary(title: str, part: str, runs: dict[str, list[dict[str, Any]]]) -> str:
    """Accuracies by arm and length.

    Args:
        title: of the table.
        part: "last": of the last token; "half": of all tokens of the second half.
        runs: by arm, one a seed.
    """
    rows = []
    for arm, found in runs.items():
        size = (f"{found[0]['parameters']:,}", f"{found[0]['megaflops']:.2f}")
        cells = [interval([one[f"{part} {factor}"] for one in found]) for factor in FACTORS]
        seconds = f"{statistics.mean(one['seconds'] for one in found):.0f}"
        rows.append((arm, *size, f"{found[0]['rate']:g}", *cells, seconds))
    head = (title, "parameters", "MFLOP a token", "rate", *(f"{factor} ×" for factor in FACTORS), "seconds a run")
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    add_arms(parser, [*FEEDBACK, *OTHERS])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threshold", type=float, default=0.8, help="last states right, at which texts grow")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lengths", type=int, nargs=2, default=[16, 24], help="shortest and longest training text")
    parser.add_argument("--test-texts", type=int, default=128, help="number of test texts of each length")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    add_device(parser)
    add_card(parser)
    args = parser.parse_args()
    check_card(parser, args)
    runs = runs_of_arms(args, SETTINGS, f"half {FACTORS[-1]}", run)
    parts = {"last": "last token", "half": "second half"}
    tables = "\n\n".join(summary(f"{args.task}, {words} (%)", part, runs) for part, words in parts.items())
    print(tables)
    if args.card is not None:
        measures = {f"second half, {factor} × the trained length": itemgetter(f"half {factor}") for factor in (8, 1)}
        write_card(args.card, args.task, "text-generation", runs, measures, tables, SETTINGS, LIMITS)


if __name__ == "__main__":
    main()
