"""Can segments that exchange messages answer what none of them can answer alone?

    python examples/studies/segment_memory.py --work FOLDER --seeds 0 1 2

A pointer chase (`pointer_chase.py`): the question stands at the start of a text, the facts that it takes in different
segments after it, among N facts a segment. A small ModernBERT whose first layer sees one token on either side is first
trained to look up values in a single segment; every arm starts from that backbone and trains on the same curriculum:

- "memory": `feedback_type="memory"` with K = hops + 1 iterations; and with the question in every segment, K = hops;
- "neighbours": the messages of `feedback_span="segment"` before it, K = hops + 1, from as many segments away;
- "windows", and "windows, question in every one": no messages, the answer a mean that is weighted by attention;
- "ToBERT": a transformer of two layers over the windows' vectors (arXiv 1910.10781), the question in every one;
- "RMT": memory tokens that pass from segment to segment (arXiv 2304.11062), as many as "memory" has summaries, the
  question in every segment; and "RMT, one pass per hop", where they pass through the text as often as there are hops;
- "whole text": one window, K = 1; "whole text, one stack per hop", copies of the layers with weights of their own; and
  "whole text, feedback", the same layers with a message from the last to the first, K = hops.

Controls that cannot answer by construction: "windows" with the question in the first alone; "neighbours", for facts
that are further away; at two hops also whatever looks up once, "windows" and "whole text".

Feedback over segments answers with the mean of each, the others at the token of the question that names the key, where
the backbone has learned to answer. An arm that passes through the text several times is told the number of hops, and
has the fact of each as a target: with the answer alone as the target of the last pass, what an earlier one finds is a
wrong answer, which the same weights unlearn to find. The others read the number of hops from the question. New parts
train at 2.5 times the rate of the pretrained ones. All of this was developed on "memory".

Training starts with few facts, two segments and one hop; it goes on to the next of `stages_of` as soon as an arm has
80% of the questions with the most hops right. The last quarter of the steps is spent on the last stage in any case:
texts of up to 8 segments, of 1 to the most hops, drawn evenly; batches hold fewer texts the longer they are. So an arm
that does not learn the most hops sees many facts late, and its columns of fewer hops understate it; `--hops 1`
measures those. The rate is chosen with the first seed, by the mean over hops and over validation texts of 8 and of 64
segments. Test texts, others for each seed, have 2 to 64: more than 8 are longer than any of training, and for the
whole text its positions are new. A seed whose backbone has not learned to look up values is refused. Finished runs
stay in FOLDER/results.jsonl and are not run again.
"""

import argparse
import copy
import statistics
import sys
import time
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import torch
from benchmark_parts import add_arms, add_device, interval, runs_of_arms, take_step
from look_ups import learn_look_ups, make_backbone
from pointer_chase import MAX_HOPS, PAD, Chase, test_name
from study_card import add_card, check_card, write_card
from torch import nn
from torch.nn import functional as F
from transformers import ModernBertModel, set_seed

from hf_feedback import FeedbackForSequenceClassification, FeedbackForTokenClassification
from hf_feedback.cutting import Cutting, PairOption
from hf_feedback.evaluation.machine import machine_and_versions
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.summary import count_parameters
from hf_feedback.training.flops import count_flops

SEGMENTS = (2, 4, 8, 16, 32, 64)
FEEDBACK: dict[str, dict[str, Any]] = {
    "memory": dict(feedback_type="memory"),
    "memory, question in every one": dict(feedback_type="memory", segment_pair="every"),
    "neighbours": dict(),
}
WINDOWS: dict[str, PairOption] = {"windows": "first", "windows, question in every one": "every"}
WHOLE = ("whole text", "whole text, one stack per hop", "whole text, feedback")
ARMS = (*FEEDBACK, *WINDOWS, "ToBERT", "RMT", "RMT, one pass per hop", *WHOLE)
PROTOCOL = 4  # of training and testing; runs of another one are not comparable
SETTINGS = (
    "num_facts num_symbols hops hidden_size num_layers summaries pretraining_steps steps batch_size test_texts".split()
)
LIMITS = (
    "What limits this: curriculum and rates were developed on “memory”, and the rate is chosen on validation texts "
    "of 8 and of 64 segments. Arms that pass through the text several times are told the number of hops, and have a "
    "target for each; the others read the number from the question, and whatever looks up once cannot answer two hops."
)


def chase_of(args: argparse.Namespace, num_facts: int | None = None) -> Chase:
    return Chase(args.num_symbols, num_facts or args.num_facts, args.device)


KEY = 1  # where the question names its key

# The arms: token ids (B, T) and the number of hops → logits (B, symbols) of the last facts, the answer last

Answers: TypeAlias = tuple[torch.Tensor, ...]


class Segmented(nn.Module):
    """Feedback over segments."""

    def __init__(self, backbone: ModernBertModel, classifier: nn.Linear, args: argparse.Namespace, **options: Any):
        super().__init__()
        self.in_every = options.get("segment_pair") == "every"
        if options.get("feedback_type") == "memory":
            options["segment_summaries"] = args.summaries
        self.model = FeedbackForSequenceClassification.from_backbone(
            backbone, num_labels=args.num_symbols, feedback_span="segment", feedback_rank=None, pooling="mean",
            segment_pooling="attention", segment_length=chase_of(args).segment_length, segment_overlap=0,
            segment_special_tokens=[1, 1], max_segments=2 * SEGMENTS[-1], **options,
        )  # fmt: skip
        self.model.classifier = classifier

    def forward(self, ids: torch.Tensor, hops: int, length: int) -> Answers:
        self.model.config.segment_length = length
        # an iteration for each fact, and one that passes on the question where it stands in the first segment alone
        output = self.model(
            ids,
            attention_mask=torch.ones_like(ids),
            num_iterations=hops + (not self.in_every),
            output_iterations=True,
        )
        return output.iteration_logits[-hops:]


class Windows(nn.Module):
    """Segments that do not know of each other; the mean of their logits, weighted by attention, answers."""

    def __init__(self, backbone: ModernBertModel, classifier: nn.Linear, args: argparse.Namespace, pair: PairOption):
        super().__init__()
        self.backbone, self.classifier, self.pair = backbone, classifier, pair
        self.query = nn.Linear(args.hidden_size, 1)

    def forward(self, ids: torch.Tensor, hops: int, length: int) -> Answers:
        vectors = self.backbone(**windows(ids, length, self.pair)).last_hidden_state[:, KEY]
        vectors = vectors.view(len(ids), -1, vectors.shape[-1])
        return ((self.query(vectors).softmax(1) * self.classifier(vectors)).sum(1),)


class WholeText(nn.Module):
    """The backbone over all tokens at once; with several stacks of its layers, one after the other, as many as hops."""

    def __init__(self, backbone: ModernBertModel, classifier: nn.Linear, args: argparse.Namespace, stacks: int = 1):
        super().__init__()
        self.stacks = nn.ModuleList([backbone, *(copy.deepcopy(backbone) for _ in range(stacks - 1))])
        self.classifier = classifier
        for stack in self.stacks[1:]:
            stack.embeddings.tok_embeddings = None  # it reads the states of the one before

    def forward(self, ids: torch.Tensor, hops: int, length: int) -> Answers:
        states, answers = self.stacks[0].embeddings.tok_embeddings(ids), []
        for stack in self.stacks[:hops]:
            states = stack(inputs_embeds=states, attention_mask=torch.ones_like(ids)).last_hidden_state
            answers.append(self.classifier(states[:, KEY]))
        return tuple(answers)


class LoopedWholeText(nn.Module):
    """Feedback over all tokens at once."""

    def __init__(self, backbone: ModernBertModel, classifier: nn.Linear, args: argparse.Namespace):
        super().__init__()
        self.model = FeedbackForTokenClassification.from_backbone(
            backbone, num_labels=args.num_symbols, feedback_edges=[[args.num_layers - 1, 0]], feedback_rank=None,
            feedback_activation="linear",
        )  # fmt: skip
        self.model.classifier = classifier

    def forward(self, ids: torch.Tensor, hops: int, length: int) -> Answers:
        output = self.model(ids, attention_mask=torch.ones_like(ids), num_iterations=hops, output_iterations=True)
        return tuple(logits[:, KEY] for logits in output.iteration_logits)


class ToBERT(nn.Module):
    """A transformer over the vectors of the windows, each with the question; the mean of its outputs answers."""

    def __init__(self, backbone: ModernBertModel, classifier: nn.Linear, args: argparse.Namespace):
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        d = args.hidden_size
        layer = nn.TransformerEncoderLayer(d, 4, 2 * d, dropout=0.0, batch_first=True, norm_first=True)
        self.upper = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: torch.Tensor, hops: int, length: int) -> Answers:
        vectors = self.backbone(**windows(ids, length, "every")).last_hidden_state[:, KEY]
        return (self.classifier(self.upper(vectors.view(len(ids), -1, vectors.shape[-1])).mean(1)),)


class RMT(nn.Module):
    """Memory tokens in front of each segment, which leave it for the next, and after the last for the first again."""

    def __init__(self, backbone: ModernBertModel, classifier: nn.Linear, args: argparse.Namespace, passes: int = 1):
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        self.start = nn.Parameter(torch.randn(args.summaries, args.hidden_size))
        self.starts = nn.Parameter(torch.zeros(passes, args.hidden_size))  # tells the passes apart

    def forward(self, ids: torch.Tensor, hops: int, length: int) -> Answers:
        inputs = windows(ids, length, "every")
        tokens, mask = (inputs[n].view(len(ids), -1, inputs[n].shape[1]) for n in ("input_ids", "attention_mask"))
        embed = self.backbone.embeddings.tok_embeddings
        memory, size, answers = self.start.expand(len(ids), -1, -1), len(self.start), []
        for start in self.starts[:hops]:
            memory = memory + start
            for t in range(tokens.shape[1]):
                embeds = torch.cat((memory, embed(tokens[:, t])), 1)
                real = torch.cat((mask.new_ones(len(ids), size), mask[:, t]), 1)
                states = self.backbone(inputs_embeds=embeds, attention_mask=real).last_hidden_state
                memory = states[:, :size]
            answers.append(self.classifier(states[:, size + KEY]))
        return tuple(answers)


def windows(ids: torch.Tensor, length: int, pair: PairOption) -> dict[str, torch.Tensor]:
    """The segments of texts that are all of the same length, `(B · S, n)`."""
    cutting = Cutting(length, 0, (1, 1), 2 * SEGMENTS[-1], PAD, pair)
    return cutting.cut({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0]


def build(arm: str, backbone: ModernBertModel, classifier: nn.Linear, args: argparse.Namespace) -> nn.Module:
    """The model of an arm, on a pretrained backbone."""
    if arm in FEEDBACK:
        return Segmented(backbone, classifier, args, **FEEDBACK[arm])
    if arm in WINDOWS:
        return Windows(backbone, classifier, args, WINDOWS[arm])
    if arm == "whole text, feedback":
        return LoopedWholeText(backbone, classifier, args)
    if arm.startswith("whole text"):
        return WholeText(backbone, classifier, args, args.hops if "stack" in arm else 1)
    if arm.startswith("RMT"):
        return RMT(backbone, classifier, args, args.hops if "pass" in arm else 1)
    return ToBERT(backbone, classifier, args)


# Training


def pretrain(seed: int, args: argparse.Namespace) -> tuple[ModernBertModel, nn.Linear]:
    """A backbone that looks up values in one segment; it is kept in the work folder."""
    set_seed(seed)
    # the first layer sees one token on either side, the others all
    sees_all = [False] + [True] * (args.num_layers - 1)
    backbone = make_backbone(chase_of(args).vocab_size, args.hidden_size, sees_all).to(args.device)
    classifier = nn.Linear(args.hidden_size, args.num_symbols).to(args.device)

    def draw(num_facts: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return chase_of(args, num_facts).look_ups(args.batch_size, generator)

    settings = (args.num_layers, args.hidden_size, args.num_symbols, args.num_facts, args.batch_size)
    file = args.work / f"backbone {' '.join(map(str, settings))} {args.pretraining_steps} {seed}.pt"
    learn_look_ups(
        backbone, classifier, draw, args.num_facts, seed=seed, steps=args.pretraining_steps, enough=0.9, file=file
    )
    ids, values = draw(args.num_facts, torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = backbone(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 1 : 1 + args.num_facts]
    right = (classifier(states).argmax(-1) == values).float().mean().item()
    if right < args.look_ups:
        sys.exit(
            f"The backbone of seed {seed} looks up {100 * right:.0f}% of the values in one segment, fewer than "
            f"--look-ups {args.look_ups}: no arm could learn from it. Train it longer (--pretraining-steps) or leave "
            "the seed out (--seeds)."
        )
    return backbone, classifier


def stages_of(args: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Facts a segment, most segments, most hops: what training passes through."""
    few, n = min(4, args.num_facts), args.num_facts
    return [
        *((few, 1 + hops, hops) for hops in range(1, args.hops + 1)),
        *((n, segments, args.hops) for segments in (1 + args.hops, 5, 8)),
    ]


# Parts that no pretraining has seen, and by what they multiply the rate
NEW = ("model.feedback.", "model.segment_pooling.", "query.", "upper.", "start")
RATES = ((False, 1.0), (True, 2.5))


def train(model: nn.Module, rate: float, seed: int, args: argparse.Namespace) -> None:
    """Cross-entropy of the answers; new parts train at a larger rate, and both fall to zero in the last third."""
    named = [(name.startswith(NEW), p) for name, p in model.named_parameters()]
    groups = [{"params": [p for new, p in named if new == group], "rate": times * rate} for group, times in RATES]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    generator, stages, stage, correct = torch.Generator().manual_seed(1000 + seed), stages_of(args), 0, 0.0
    model.train()
    started = time.perf_counter()
    for step in range(args.steps):
        if step >= 3 * args.steps // 4:
            stage = len(stages) - 1
        facts, max_segments, max_hops = stages[stage]
        hops = int(torch.randint(1, max_hops + 1, (), generator=generator))
        segments = int(torch.randint(hops + 1, max_segments + 1, (), generator=generator))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, (step + 1) / 50, 3 * (1 - step / args.steps))
        chase = chase_of(args, facts)
        ids, chain = chase.draw(args.batch_size * 3 // max(3, segments), segments, hops, generator)
        answers = model(ids, hops, chase.segment_length)
        targets = chain[:, -len(answers) :].unbind(1)
        loss = torch.stack([F.cross_entropy(*pair) for pair in zip(answers, targets, strict=True)]).mean()
        take_step(loss, model, optimizer)
        if hops == max_hops:
            correct = 0.9 * correct + 0.1 * (answers[-1].argmax(-1) == targets[-1]).float().mean().item()
        if step % 50 == 49:
            seconds = time.perf_counter() - started
            print(
                f"  {step + 1}: stage {stage}, loss {loss.item():.2f}, {100 * correct:.0f}%, {seconds:.0f} s",
                flush=True,
            )
        if correct > 0.8 and stage < len(stages) - 1:
            stage, correct = stage + 1, 0.0


@torch.no_grad()
def accuracy(model: nn.Module, segments: int, hops: int, seed: int, args: argparse.Namespace) -> float:
    """In percent, of texts of so many segments and hops."""
    chase, generator, correct = chase_of(args), torch.Generator().manual_seed(seed), 0
    model.eval()
    total, size = max(1, args.test_texts * 8 // max(8, segments)), max(1, 256 // segments)
    for start in range(0, total, size):
        ids, chain = chase.draw(min(size, total - start), segments, hops, generator)
        correct += int((model(ids, hops, chase.segment_length)[-1].argmax(-1) == chain[:, -1]).sum())
    return 100 * correct / total


def megaflops(model: nn.Module, segments: int, args: argparse.Namespace) -> float:
    """Operations of a text of so many segments and the most hops, in millions a token."""
    ids, _ = chase_of(args).draw(1, segments, args.hops, torch.Generator().manual_seed(0))
    uncounted = 0

    def see_three_tokens(layer: nn.Module, inputs: tuple[torch.Tensor, ...], _: Any) -> None:
        """What is counted as attention to all tokens, queries with keys and weights with values, is to three."""
        nonlocal uncounted
        uncounted += 4 * inputs[0].numel() * (inputs[0].shape[1] - 3)

    backbones = [module for module in model.modules() if isinstance(module, ModernBertModel)]
    hooks = [backbone.layers[0].register_forward_hook(see_three_tokens) for backbone in backbones]
    model.eval()
    # with gradients: without them torch's transformer layers take a path that is not counted
    counted = count_flops(lambda: model(ids, args.hops, chase_of(args).segment_length))
    for hook in hooks:
        hook.remove()
    return (counted - uncounted) / ids.numel() / 1e6


def run(arm: str, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one arm and measures it."""
    backbone, classifier = pretrain(seed, args)
    set_seed(seed)
    model = build(arm, backbone, classifier, args).to(args.device)
    started = time.perf_counter()
    train(model, rate, seed, args)
    found: dict[str, Any] = {"seconds": time.perf_counter() - started}
    found["parameters"] = count_parameters(model)
    found["machine"] = machine_and_versions()
    found["validation"] = statistics.mean(
        accuracy(model, segments, hops, 10 * seed + 1, args)
        for segments in (8, SEGMENTS[-1])
        for hops in range(1, args.hops + 1)
    )
    for hops in range(1, args.hops + 1):
        found |= {test_name(hops, s): accuracy(model, s, hops, 10 * seed + 2, args) for s in SEGMENTS if s > hops}
    return found | {f"megaflops {s}": megaflops(model, s, args) for s in (8, SEGMENTS[-1])}


def summary(hops: int, runs: dict[str, list[dict[str, Any]]]) -> str:
    """Accuracies by arm and number of segments."""
    sizes = [s for s in SEGMENTS if s > hops]
    rows = []
    for arm, found in runs.items():
        cells = [interval([one[test_name(hops, s)] for one in found]) for s in sizes]
        cost = [f"{found[0][f'megaflops {s}']:.2f}" for s in (8, SEGMENTS[-1])]
        rows.append((arm, f"{found[0]['rate']:g}", f"{found[0]['parameters']:,}", *cost, *cells))
    head = (
        f"hops: {hops}",
        "rate",
        "parameters",
        "MFLOP a token, 8 segments",
        f"{SEGMENTS[-1]}",
        *(f"{s} segments" for s in sizes),
    )
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    add_arms(parser, list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--num-facts", type=int, default=16, help="N, facts of a segment")
    parser.add_argument("--num-symbols", type=int, default=64)
    parser.add_argument(
        "--hops", type=int, default=2, choices=range(1, MAX_HOPS + 1), help="most facts that a question takes"
    )
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--summaries", type=int, default=4, help="m, vectors of a segment, or tokens of RMT's memory")
    parser.add_argument("--pretraining-steps", type=int, default=1500)
    parser.add_argument(
        "--look-ups", type=float, default=0.8, help="share of look-ups that a backbone must have right, 0 to 1"
    )
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--test-texts", type=int, default=512, help="number of test texts, of those of more than 8 segments fewer"
    )
    add_device(parser)
    add_card(parser)
    args = parser.parse_args()
    check_card(parser, args)
    runs = runs_of_arms(args, SETTINGS, f"megaflops {SEGMENTS[-1]}", run, protocol=PROTOCOL)
    tables = "\n\n".join(summary(hops, runs) for hops in range(1, args.hops + 1))
    print(tables)
    if args.card is not None:
        names = [test_name(hops, size) for hops in range(args.hops, 0, -1) for size in (8, SEGMENTS[-1])]
        measures = {name: itemgetter(name) for name in names}
        write_card(
            args.card, "a chase through segments", "text-classification", runs, measures, tables, SETTINGS, LIMITS
        )


if __name__ == "__main__":
    main()
