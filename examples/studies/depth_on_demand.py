"""Can a shallow backbone with feedback follow longer chains of facts than it was trained on, by more iterations?

    python examples/studies/depth_on_demand.py --work FOLDER --seeds 0 1 2 3 4

A text holds N keys, one after the other, and then N facts "a → b" in any order, which form chains. For every key it is
asked where its chain ends: that takes as many look-ups as there are facts from there on, its hops. A small ModernBERT
of two layers, the first of which sees one token on either side, first learns to look up one fact. Every arm starts from
it and trains on the same texts, whose chains have 1 to 4 hops; test texts have chains of up to 12:

- "feedback": messages from the last layer to the first, K = 4 iterations; iteration k has as its target what k look-ups
  find, so that an iteration learns to look up one fact and to stay where a chain ends;
- "feedback, answer last": the end of the chain is the only target, of the last iteration, K drawn from a Poisson
  distribution of mean 4 (1 to 8), or K = 4; "feedback, answer always": the target of all of four iterations;
- "feedback, tanh", "swish", "sigmoid": as "feedback", whose messages have no activation, with that one; "feedback,
  gated": with gates;
- "carried state": the state of the last layer enters the first one again, without messages, targets as in "feedback";
  "carried state, normed": it does so through the norms after the last layer and before the first;
- "eight layers": as many layers as four iterations pass, with weights of their own that start as those of the backbone,
  and the targets of "feedback" at every second; "eight layers, answer last": with the answer alone; "sixteen layers":
  as many as eight iterations pass;
- "pause tokens": K = 1, three learned tokens after every key (arXiv 2310.02226), the last of which answers;
- "two layers": the backbone, K = 1.

The rate is chosen on validation texts of 1 to 4 hops with the first seed. Finished runs stay in FOLDER/results.jsonl
and are not run again.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmark_parts import add_arms, add_device, interval, runs_of_arms, take_step
from look_ups import learn_look_ups, make_backbone
from study_card import add_card, check_card, write_card
from torch import nn
from torch.nn import functional as F
from transformers import ModernBertModel, set_seed

from hf_feedback import FeedbackForTokenClassification
from hf_feedback.evaluation.machine import machine_and_versions
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.summary import count_parameters
from hf_feedback.training.train_iterations import IterationRange, draw_iterations

PAD, CLS, SEP, END, PAUSE, FIRST_SYMBOL = range(6)
TRAINED, LONGEST = 4, 12  # hops
ITERATIONS = (4, 6, 8, 12)  # in tests
GROUPS = {"1 to 4 hops": range(1, 5), "5 to 6": range(5, 7), "7 to 8": range(7, 9), "9 to 12": range(9, 13)}
DRAWN = IterationRange(1, TRAINED, 2 * TRAINED)
SETTINGS = "num_facts num_symbols hidden_size pretraining_steps steps batch_size test_texts".split()
LIMITS = (
    "What limits this: with K = 8 the two layers with feedback are passed eight times, which costs as much as sixteen "
    "layers. “Carried state, normed” is the same loop without a message: it follows longer chains as well, and loses "
    "the answers to shorter ones as K grows."
)
Chains = list[list[torch.Tensor]]


@dataclass(frozen=True)
class Arm:
    """One way to follow chains.

    Args:
        target: "hops": each answer has its own; "last": the end of the chain, of the last answer; "always": of all.
        options: feedback options; none are an arm without feedback.
        has_messages: whether messages are trained.
        drawn: whether K is drawn.
        loops: whether the whole backbone reads its own output again, norms included, without feedback.
        depth: factor on the layers of the backbone.
        pauses: learned tokens after every key.
    """

    target: str = "last"
    options: dict[str, Any] | None = None
    has_messages: bool = True
    drawn: bool = False
    loops: bool = False
    depth: int = 1
    pauses: int = 0

    @property
    def iterates(self) -> bool:
        """Whether it can be run with any K."""
        return self.options is not None or self.loops


TOP = dict(feedback_edges=[[1, 0]], feedback_rank=None, feedback_activation="linear")
ARMS = {
    "feedback": Arm("hops", TOP),
    "feedback, answer last": Arm("last", TOP, drawn=True),
    "feedback, answer last, K = 4": Arm("last", TOP),
    "feedback, answer always": Arm("always", TOP),
    "feedback, tanh": Arm("hops", {**TOP, "feedback_activation": "tanh"}),
    "feedback, swish": Arm("hops", {**TOP, "feedback_activation": "swish"}),
    "feedback, sigmoid": Arm("hops", {**TOP, "feedback_activation": "sigmoid"}),
    "feedback, gated": Arm("hops", {**TOP, "feedback_type": "gated"}),
    "carried state": Arm("hops", {**TOP, "feedback_state": "carry"}, has_messages=False),
    "carried state, normed": Arm("hops", loops=True),
    "eight layers": Arm("hops", depth=4),
    "eight layers, answer last": Arm("last", depth=4),
    "sixteen layers": Arm("hops", depth=8),
    "pause tokens": Arm("last", pauses=3),
    "two layers": Arm("last"),
}


# Texts


def draw_lengths(num_facts: int, longest: int, generator: torch.Generator) -> list[int]:
    """The hops of chains that have N facts together."""
    lengths: list[int] = []
    while (rest := num_facts - sum(lengths)) > 0:
        lengths.append(min(rest, int(torch.randint(1, longest + 1, (), generator=generator))))
    return lengths


def draw(
    args: argparse.Namespace, batch_size: int, longest: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Texts `(B, T)`, what 1, 2, … look-ups find for each key `(B, longest, N)`, and the hops of each key `(B, N)`.

    Args:
        args: options of the study.
        batch_size: B.
        longest: most hops of a chain.
        generator: of everything; it draws on the CPU, so that texts are the same everywhere.
    """
    n, lengths = args.num_facts, draw_lengths(args.num_facts, longest, generator)
    symbols = FIRST_SYMBOL + torch.rand(batch_size, args.num_symbols, generator=generator).argsort(1)
    starts = [i + sum(lengths[:i]) for i in range(len(lengths))]  # chain i has one thing more than facts
    keys = torch.tensor([start + hop for start, length in zip(starts, lengths, strict=True) for hop in range(length)])
    hops = torch.tensor([length - hop for length in lengths for hop in range(length)])
    found = keys[None] + torch.minimum(torch.arange(1, longest + 1)[:, None], hops)  # (longest, N)
    facts = torch.stack((symbols[:, keys], symbols[:, keys + 1], torch.full((batch_size, n), END)), -1)
    order = torch.rand(batch_size, n, generator=generator).argsort(1)
    facts = facts.gather(1, order[..., None].expand(-1, -1, 3)).flatten(1)
    asked = torch.rand(batch_size, n, generator=generator).argsort(1)
    column = torch.full((batch_size, 1), CLS)
    ids = torch.cat((column, symbols[:, keys].gather(1, asked), torch.full_like(column, SEP), facts), 1)
    answers = symbols[:, found].gather(2, asked[:, None].expand(-1, longest, -1))
    hops = hops.expand(batch_size, -1).gather(1, asked)
    return ids.to(args.device), (answers - FIRST_SYMBOL).to(args.device), hops.to(args.device)


# Models: texts (B, T) → the logits of every answer (B, N, symbols), the last one last


def backbone_of(args: argparse.Namespace, depth: int = 1) -> ModernBertModel:
    """Two layers, the first of which sees one token on either side, so many times."""
    return make_backbone(FIRST_SYMBOL + args.num_symbols, args.hidden_size, [False, True] * depth)


class Follower(nn.Module):
    """A backbone with feedback, or more layers, or pauses.

    Args:
        backbone: of two layers.
        classifier: of the symbols.
        arm: what is added.
        args: options of the study.
    """

    def __init__(self, backbone: ModernBertModel, classifier: nn.Linear, arm: Arm, args: argparse.Namespace) -> None:
        super().__init__()
        self.arm, self.n, self.classifier = arm, args.num_facts, classifier
        if arm.depth > 1:
            deep = backbone_of(args, arm.depth)
            deep.load_state_dict(backbone.state_dict(), strict=False)
            for i in range(2, 2 * arm.depth):
                deep.layers[i].load_state_dict(backbone.layers[i % 2].state_dict(), strict=False)
            backbone = deep
        if arm.options is None:
            self.backbone = backbone
        else:
            self.model = FeedbackForTokenClassification.from_backbone(
                backbone, num_labels=args.num_symbols, num_iterations=TRAINED, **arm.options
            )
            self.model.classifier = classifier
            self.model.feedback.requires_grad_(arm.has_messages)

    def forward(self, ids: torch.Tensor, num_iterations: int = TRAINED) -> Sequence[torch.Tensor]:
        ids, answers = self.with_pauses(ids)
        mask = torch.ones_like(ids)
        if self.arm.options is not None:
            output = self.model(ids, attention_mask=mask, num_iterations=num_iterations, output_iterations=True)
            return [logits[:, answers] for logits in output.iteration_logits]
        if self.arm.loops:
            h, logits = self.backbone.embeddings.tok_embeddings(ids), []
            for _ in range(num_iterations):
                h = self.backbone(inputs_embeds=h, attention_mask=mask).last_hidden_state
                logits.append(self.classifier(h[:, answers]))
            return logits
        states = self.backbone(ids, attention_mask=mask, output_hidden_states=True)
        between = [self.backbone.final_norm(h) for h in states.hidden_states[2:-1:2]]  # after every second layer
        return [self.classifier(h[:, answers]) for h in (*between, states.last_hidden_state)]

    def with_pauses(self, ids: torch.Tensor) -> tuple[torch.Tensor, slice]:
        """The texts with pauses after their keys, and where the answers are."""
        size = 1 + self.arm.pauses
        if self.arm.pauses:
            keys = ids[:, 1 : 1 + self.n, None]
            paused = torch.cat((keys, torch.full_like(keys, PAUSE).expand(-1, -1, self.arm.pauses)), -1).flatten(1)
            ids = torch.cat((ids[:, :1], paused, ids[:, 1 + self.n :]), 1)
        return ids, slice(size, 1 + size * self.n, size)


# Training


def pretrain(seed: int, args: argparse.Namespace) -> tuple[ModernBertModel, nn.Linear]:
    """A backbone that looks up one fact; it is kept in the work folder."""
    set_seed(seed)
    backbone = backbone_of(args).to(args.device)
    classifier = nn.Linear(args.hidden_size, args.num_symbols).to(args.device)

    def draw_look_ups(num_facts: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        ids, answers, _ = draw(
            argparse.Namespace(**{**vars(args), "num_facts": num_facts}), args.batch_size, 1, generator
        )
        return ids, answers[:, 0]

    settings = (args.hidden_size, args.num_symbols, args.num_facts, args.batch_size, args.pretraining_steps, seed)
    file = args.work / f"backbone {' '.join(map(str, settings))}.pt"
    learn_look_ups(
        backbone,
        classifier,
        draw_look_ups,
        args.num_facts,
        seed=seed,
        steps=args.pretraining_steps,
        enough=0.95,
        file=file,
    )
    return backbone, classifier


def loss_of(logits: Sequence[torch.Tensor], answers: torch.Tensor, target: str) -> torch.Tensor:
    """Cross-entropy of the answers with the targets of an arm."""
    last = answers.shape[1] - 1
    if target == "last":
        logits = logits[-1:]
    targets = [answers[:, min(k, last) if target == "hops" else last].flatten() for k in range(len(logits))]
    losses = [F.cross_entropy(one.flatten(0, 1), right) for one, right in zip(logits, targets, strict=True)]
    return torch.stack(losses).mean()


def train(model: Follower, rate: float, seed: int, args: argparse.Namespace) -> None:
    """Chains grow by one hop with each tenth of the steps; the rate falls to zero in the last third."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(1000 + seed)
    for step in range(args.steps):
        longest = min(TRAINED, 1 + 10 * step // args.steps)
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50, 3 * (1 - step / args.steps))
        k = draw_iterations("poisson", DRAWN, seed, step, 0.0) if model.arm.drawn else TRAINED
        ids, answers, _ = draw(args, args.batch_size, longest, generator)
        logits = model.train()(ids, k)
        loss = loss_of(logits, answers, model.arm.target)
        take_step(loss, model, optimizer)
        if step % 100 == 99:
            right = (logits[-1].argmax(-1) == answers[:, -1]).float().mean().item()
            print(f"  {step + 1}: loss {loss.item():.3f}, {100 * right:.0f}%", flush=True)


@torch.no_grad()
def accuracies(model: Follower, longest: int, k: int, seed: int, args: argparse.Namespace) -> dict[int, float]:
    """Percent of right answers by hops, after K iterations."""
    generator, right, asked = torch.Generator().manual_seed(seed), defaultdict(int), defaultdict(int)
    model.eval()
    for _ in range(args.test_texts // 8):
        ids, answers, hops = draw(args, 8, longest, generator)
        correct = model(ids, k)[-1].argmax(-1) == answers[:, -1]
        for hop in range(1, longest + 1):
            right[hop] += int(correct[hops == hop].sum())
            asked[hop] += int((hops == hop).sum())
    return {hop: 100 * right[hop] / count for hop, count in asked.items() if count}


def run(name: str, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one arm and measures it."""
    backbone, classifier = pretrain(seed, args)
    set_seed(seed)
    model = Follower(backbone, classifier, ARMS[name], args).to(args.device)
    started = time.perf_counter()
    train(model, rate, seed, args)
    found: dict[str, Any] = {"seconds": time.perf_counter() - started, "machine": machine_and_versions()}
    found["parameters"] = count_parameters(model)
    validation = accuracies(model, TRAINED, TRAINED, 1, args)
    found["validation"] = sum(validation.values()) / len(validation)
    for k in ITERATIONS if ARMS[name].iterates else ITERATIONS[:1]:
        found[f"K = {k}"] = {str(hop): value for hop, value in accuracies(model, LONGEST, k, 2, args).items()}
    return found


def on_chains(run: dict[str, Any], k: int, hops: range) -> float:
    """Mean accuracy of a run, with K iterations where it iterates, on chains of so many hops."""
    values = run[f"K = {k}" if ARMS[run["arm"]].iterates else f"K = {ITERATIONS[0]}"]
    return sum(values[str(h)] for h in hops) / len(hops)


def summary(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Accuracy by arm and K on chains of the trained and of longer lengths."""
    rows = []
    for name, found in runs.items():
        for k in ITERATIONS:
            if f"K = {k}" in found[0]:
                cells = [interval([on_chains(one, k, hops) for one in found]) for hops in GROUPS.values()]
                shown = str(k) if ARMS[name].iterates else "1"
                rows.append((name, shown, f"{found[0]['rate']:g}", f"{found[0]['parameters']:,}", *cells))
    return markdown_table(("accuracy (%)", "K", "rate", "parameters", *GROUPS), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    add_arms(parser, list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--num-facts", type=int, default=16, help="N, facts of a text")
    parser.add_argument("--num-symbols", type=int, default=64)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--pretraining-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--test-texts", type=int, default=400)
    add_device(parser)
    add_card(parser)
    args = parser.parse_args()
    check_card(parser, args)
    runs = runs_of_arms(args, SETTINGS, f"K = {ITERATIONS[0]}", run)
    print(tables := summary(runs))
    if args.card is not None:
        measures = {
            "7 to 8 hops, K = 8": partial(on_chains, k=8, hops=GROUPS["7 to 8"]),
            "1 to 4 hops, K = 4": partial(on_chains, k=4, hops=GROUPS["1 to 4 hops"]),
        }
        write_card(args.card, "chains of facts", "token-classification", runs, measures, tables, SETTINGS, LIMITS)


if __name__ == "__main__":
    main()
