"""A pretrained language model with feedback: perplexity after fine-tuning, samples, and the speed of generation.

    python examples/benchmarks/language_model.py --model SMOLLM2 --data DIR/ag_news --work FOLDER --seeds 0 1 2

The backbone stays frozen (`examples/data/get_smollm2.py` writes one). Trained are, on the same texts in the same order
with as many steps: feedback with K = 2; LoRA with as many parameters; both beside the model as it is. Each has its rate
chosen on the validation texts with the first seed; perplexity by token on the test texts is reported for that rate.
`--speed` measures tokens per second of greedy generation at K = 1, 2, 3 and of the plain model, which take turns,
beside what the matrix products (FLOPs) and the memory that is read (weights and cache) predict. Finished runs stay in
FOLDER/results.jsonl and are not run again.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import Finished, interval
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed

from hf_feedback import FeedbackForCausalLM
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.training.data.files import read_file
from hf_feedback.training.flops import count_flops

ARMS = ("plain", "lora", "feedback")
Blocks = torch.Tensor  # (N, T) token ids


def blocks_of(folder: Path, split: str, tokenizer: Any, length: int, number: int) -> Blocks:
    """The first texts of a split, each followed by the end-of-text token, cut into blocks: `(number, length)`."""
    data = read_file(folder / f"{split}.csv")
    ids: list[int] = []
    for text in data["text"]:
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= length * number:
            break
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)[:number]


def build(arm: str, args: argparse.Namespace) -> PreTrainedModel:
    """A model whose backbone is frozen; LoRA has the rank that comes closest to the parameters of feedback."""
    bare = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    if arm == "plain":
        return bare
    source = bare.config.num_hidden_layers - 1
    edges = [[source, target] for target in range(args.lowest_target, source)]
    options = {"feedback_type": args.feedback_type, "feedback_edges": edges, "feedback_rank": args.feedback_rank}
    model = FeedbackForCausalLM.from_backbone(bare, num_iterations=2, **options)
    size = sum(parameter.numel() for parameter in model.feedback.parameters())
    if arm == "feedback":
        model.backbone.requires_grad_(False)
        return model
    layers = range(args.lowest_target, source + 1)
    maps = [m for n, m in bare.named_modules() if n.endswith(("q_proj", "v_proj")) and int(n.split(".")[2]) in layers]
    rank = round(size / sum(one.in_features + one.out_features for one in maps))
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], layers_to_transform=[*layers])
    return get_peft_model(AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), lora)


def batches(blocks: Blocks, size: int, epochs: int, seed: int) -> Iterator[Blocks]:
    """Batches of all blocks, in an order that the seed draws anew for each epoch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from blocks[torch.randperm(len(blocks), generator=generator)].split(size)


@torch.no_grad()
def perplexity(model: PreTrainedModel, blocks: Blocks) -> float:
    """By token, over all blocks."""
    model.eval()
    losses = []
    for block in blocks.split(4):
        logits = model(input_ids=block).logits[:, :-1]
        losses.append(F.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten(), reduction="none"))
    return math.exp(torch.cat(losses).mean().item())


def train(model: PreTrainedModel, blocks: Blocks, rate: float, args: argparse.Namespace, seed: int) -> float:
    """Trains what is not frozen with a linear warm-up and decay of the rate; returns seconds per step."""
    set_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.0)
    all_batches = list(batches(blocks, args.batch_size, args.epochs, seed))
    warm_up, steps = max(1, len(all_batches) // 10), len(all_batches)

    def factor(step: int) -> float:
        return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    started = time.perf_counter()
    for block in all_batches:
        model(input_ids=block, labels=block).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started) / steps


def run_arm(arm: str, seed: int, rate: float, args: argparse.Namespace, splits: dict[str, Blocks]) -> dict[str, Any]:
    """One training run: validation perplexity, size, seconds per step; test perplexity where it is asked for."""
    set_seed(seed)
    model = build(arm, args)
    seconds = 0.0 if arm == "plain" else train(model, splits["train"], rate, args, seed)
    size = 0 if arm == "plain" else sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = {"parameters": size, "seconds": seconds, "validation": perplexity(model, splits["validation"])}
    found["test"] = perplexity(model, splits["test"])
    if arm == "feedback":
        model.set_num_iterations(1)
        found["test at K = 1"] = perplexity(model, splits["test"])
        model.set_num_iterations(2)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompt = tokenizer(args.prompt, return_tensors="pt")
    sample = model.eval().generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return {**found, "sample": tokenizer.decode(sample[0], skip_special_tokens=True)}


def compare(args: argparse.Namespace) -> str:
    """The table of perplexities."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    numbers = {"train": args.train_blocks, "validation": args.test_blocks, "test": args.test_blocks}
    splits = {name: blocks_of(args.data, name, tokenizer, args.tokens, n) for name, n in numbers.items()}
    finished = Finished(args.work / "results.jsonl")
    sizes = ("tokens", "train_blocks", "test_blocks", "batch_size", "epochs", "lowest_target", "feedback_rank")
    shared = {name: getattr(args, name) for name in (*sizes, "feedback_type", "model", "prompt")}
    rows = []
    for arm in args.arms:

        def run(seed: int, rate: float, arm: str = arm) -> dict[str, Any]:
            settings = {"arm": arm, "seed": seed, "rate": rate, **shared, "data": args.data.name}
            return finished.find(settings, "test", lambda: run_arm(arm, seed, rate, args, splits))

        rates = [0.0] if arm == "plain" else args.rates
        chosen = min(rates, key=lambda rate: run(args.seeds[0], rate)["validation"])
        runs = [run(seed, chosen) for seed in (args.seeds[:1] if arm == "plain" else args.seeds)]
        first, tests = runs[0], interval([one["test"] for one in runs], 2)
        rows.append([arm, f"{first['parameters']:,}", chosen, tests, f"{first['seconds']:.2f}", first["sample"]])
    return markdown_table(["arm", "trained", "rate", "test perplexity", "seconds a step", "sample"], rows)


# Speed


def bytes_read(model: FeedbackForCausalLM, k: int, tokens: int) -> int:
    """Weights and cache that one new token reads with K iterations, in bytes; word embeddings are looked up."""
    config = model.backbone.config.get_text_config()
    first, last = model.layout.looped_range
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.layers]
    segment = sum(layers[first : last + 1])
    head = model.get_output_embeddings().weight.numel()
    feedback = sum(p.numel() for p in model.feedback.parameters())
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    slot = 2 * config.num_key_value_heads * head_dim * tokens
    numbers = sum(layers) + head + (k - 1) * (segment + feedback)
    return 4 * (numbers + slot * (len(layers) + (k - 1) * (last - first + 1)))


def speed(args: argparse.Namespace) -> str:
    """The table of tokens per second."""
    bare = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    model: Any = build("feedback", args)
    prompt = torch.randint(bare.config.vocab_size // 2, bare.config.vocab_size, (1, args.prompt_tokens))
    greedy = dict(max_new_tokens=args.new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    systems: dict[str, Callable[[], Any]] = {"plain": lambda: bare.generate(prompt, **greedy)}
    for k in (1, 2, 3):
        systems[f"K = {k}"] = lambda k=k: model.generate(prompt, num_iterations=k, **greedy)
    times: dict[str, list[float]] = {name: [] for name in systems}
    for round_ in range(args.rounds + 1):
        for name, run in random.sample(list(systems.items()), len(systems)):
            started = time.perf_counter()
            run()
            if round_:  # the first one warms up
                times[name].append(time.perf_counter() - started)
    one = prompt[:, :1]
    with torch.no_grad():
        flops = {f"K = {k}": count_flops(lambda k=k: model(one, num_iterations=k)) for k in (1, 2, 3)}
        flops["plain"] = count_flops(lambda: bare(one))
    middle = args.prompt_tokens + args.new_tokens // 2
    read = {f"K = {k}": bytes_read(model, k, middle) for k in (1, 2, 3)}
    read["plain"] = read["K = 1"]
    rows = [
        [
            name,
            f"{args.new_tokens / min(times[name]):.2f}",
            f"{min(times[name]) / min(times['plain']):.2f}",
            f"{flops[name] / flops['plain']:.2f}",
            f"{read[name] / read['plain']:.2f}",
        ]
        for name in systems
    ]
    return markdown_table(["", "tokens a second", "time, ratio", "FLOPs, ratio", "bytes read, ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--data", type=Path, help="folder with train.csv, validation.csv and test.csv")
    parser.add_argument("--work", type=Path, help="folder of the results")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--tokens", type=int, default=128, help="of a block")
    parser.add_argument("--train-blocks", type=int, default=256)
    parser.add_argument("--test-blocks", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lowest-target", type=int, default=20, help="lowest layer that gets messages")
    parser.add_argument("--feedback-type", default="gated+attention")
    parser.add_argument("--feedback-rank", type=int, default=32)
    parser.add_argument("--prompt", default="Shares of the company")
    parser.add_argument("--speed", action="store_true", help="measure the speed of generation instead")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not args.speed and (args.data is None or args.work is None):
        parser.error("`--data` and `--work` are needed, unless `--speed` is given.")
    print(speed(args) if args.speed else compare(args), flush=True)


if __name__ == "__main__":
    main()
