"""The chase of `segment_memory.py` with `hf-feedback train`: three runs, each from the model of the one before.

    python examples/studies/chase_by_command.py --work FOLDER --seeds 0 1 2

Texts of one or two hops are written to files, with a column for what the second iteration is to find. The first run has
segments of 4 facts and texts of up to 3 segments, the second segments of 16 facts, the third texts of up to 8 segments.
Two arms:

- "targets": `--iteration-target-columns none first_step`: iteration 1, in which no segment knows of the others, has no
  target, iteration 2 the first fact's value, iteration 3 the answer;
- "label alone": the answer as the target of the last iteration.

The model starts from a small backbone that looks up facts in one segment, and answers with the embeddings of its
symbols. Rates are those of that study, the runs were chosen with one seed of "targets", by validation texts of 8
segments. Test texts have 8 segments, and 64, eight times as many as in training. Finished runs stay in
FOLDER/results.jsonl and are not run again.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmark_parts import Finished, interval
from look_ups import learn_look_ups, make_backbone
from pointer_chase import CLS, END, FIRST_HOPS, FIRST_SYMBOL, MAX_HOPS, PAD, SEP, Chase, test_name
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast, set_seed

from hf_feedback import FeedbackConfig, FeedbackForSequenceClassification, cli
from hf_feedback.evaluation.machine import machine_and_versions
from hf_feedback.evaluation.markdown_tables import markdown_table

NUM_SYMBOLS, NUM_FACTS, HIDDEN_SIZE, HOPS, PRETRAINING_STEPS = 64, 16, 64, 2, 1500
WORDS = {PAD: "[PAD]", CLS: "[CLS]", SEP: "[SEP]", END: ";"}
WORDS |= {FIRST_HOPS + i: f"?{i + 1}" for i in range(MAX_HOPS)}
WORDS |= {FIRST_SYMBOL + i: f"s{i}" for i in range(NUM_SYMBOLS)}
# Texts, epochs, facts a segment, most segments and batch size of each run
RUNS = ((12800, 2, 4, 3, 32), (9600, 1, NUM_FACTS, 3, 32), (12800, 1, NUM_FACTS, 8, 16))
RATES = "--learning-rate 5e-3 --backbone-lr 2e-3 --adam-beta2 0.98 --weight-decay 0.01 --warmup-steps 50"
TESTS = {test_name(hops, size): (hops, size) for hops in range(1, HOPS + 1) for size in (8, 64)}
TOKENS = 4096  # of a batch in evaluation, about
ARMS = {
    "targets": "--iteration-loss uniform --iteration-target-columns none first_step".split(),
    "label alone": "--iteration-loss last".split(),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word, [CLS] before and [SEP] after a text."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in sorted(WORDS.items())}, unk_token=WORDS[PAD]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special_tokens = [(WORDS[number], number) for number in (CLS, SEP)]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special_tokens)
    names = {"pad_token": WORDS[PAD], "cls_token": WORDS[CLS], "sep_token": WORDS[SEP]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def write_start(folder: Path, seed: int) -> None:
    """Saves the model that the first run starts from, with its tokenizer."""
    set_seed(seed)
    chase = Chase(NUM_SYMBOLS, NUM_FACTS)
    backbone = make_backbone(chase.vocab_size, HIDDEN_SIZE, [False, True])
    classifier = nn.Linear(HIDDEN_SIZE, NUM_SYMBOLS)

    def draw(num_facts: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return Chase(NUM_SYMBOLS, num_facts).look_ups(32, generator)

    file = folder / "backbone.pt"
    learn_look_ups(backbone, classifier, draw, NUM_FACTS, seed=seed, steps=PRETRAINING_STEPS, enough=0.9, file=file)
    names = sorted(f"s{i}" for i in range(NUM_SYMBOLS))  # in the order of the command
    options = {**FeedbackConfig.recipe("segment-memory"), "segment_length": chase.segment_length, "segment_overlap": 0}
    model = FeedbackForSequenceClassification.from_backbone(
        backbone, **options, segment_special_tokens=[1, 1], pooling="mean",
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    order = [int(name[1:]) for name in names]
    model.classifier.load_state_dict({name: value[order] for name, value in classifier.state_dict().items()})
    model.save_pretrained(folder / "start")
    make_tokenizer().save_pretrained(folder / "start")


def write_texts(
    file: Path, count: int, num_facts: int, segments: tuple[int, int], hops: tuple[int, int], seed: int
) -> None:
    """Writes texts with the answer and with what its first fact leads to.

    Args:
        file: JSON lines.
        count: number of texts.
        num_facts: facts of a segment.
        segments: fewest and most segments of a text.
        hops: fewest and most facts that lead to the answer.
        seed: of everything.
    """
    generator, chase = torch.Generator().manual_seed(seed), Chase(NUM_SYMBOLS, num_facts)

    def draw(fewest: int, most: int) -> int:
        return int(torch.randint(fewest, most + 1, (), generator=generator))

    with file.open("w") as stream:
        for _ in range(count):
            number = draw(*hops)
            ids, chain = chase.draw(1, draw(max(segments[0], number + 1), segments[1]), number, generator)
            text = " ".join(WORDS[token] for token in ids[0, 1:-1].tolist())
            row = {"text": text, "first_step": f"s{chain[0, 0]}", "label": f"s{chain[0, -1]}"}
            stream.write(json.dumps(row) + "\n")


def train(folder: Path, arm: str, seed: int) -> Path:
    """Trains an arm with the command, once for each of `RUNS`; returns the folder of the last model."""
    model = folder / "start"
    write_texts(folder / "validation.jsonl", 512, NUM_FACTS, (8, 8), (1, HOPS), 1_000_000 + seed)
    for number, (count, epochs, num_facts, segments, batch_size) in enumerate(RUNS, 1):
        file, output = folder / f"train-{number}.jsonl", folder / f"run-{number}"
        write_texts(file, count, num_facts, (2, segments), (1, HOPS), 10 * seed + number)
        length = Chase(NUM_SYMBOLS, num_facts).segment_length
        files = ["--model", model, "--train-file", file, "--output-dir", output]
        files += ["--validation-file", folder / "validation.jsonl"] if num_facts == NUM_FACTS else []
        sizes = f"--segment-length {length} --max-segments 128 --per-device-train-batch-size {batch_size}"
        run = f"--num-train-epochs {epochs} --seed {seed} --bf16 False --overwrite-output-dir True --disable-tqdm True"
        options = [*map(str, files), *sizes.split(), *RATES.split(), *run.split(), *ARMS[arm]]
        if cli.main(["train", *options]) != 0:
            sys.exit(f"run {number} of {arm!r} ended with an error")
        model = output
    return model


def measure(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Trains an arm and tests it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_start(folder, seed)
    model, accuracies = train(folder, arm, seed), {}
    segment_length = Chase(NUM_SYMBOLS, NUM_FACTS).segment_length
    for number, (name, (hops, segments)) in enumerate(TESTS.items()):
        file, output = folder / "test.jsonl", folder / "test.json"
        count = 512 if segments == 8 else 64
        write_texts(file, count, NUM_FACTS, (segments, segments), (hops, hops), 2_000_000 + 10 * seed + number)
        batch_size = TOKENS // ((segment_length - 2) * segments)
        files = ["--model", model, "--file", file, "--output", output, "--batch-size", batch_size, "--force"]
        if cli.main(["evaluate", *map(str, files)]) != 0:
            sys.exit(f"the test of {arm!r} ended with an error")
        accuracies[name] = 100 * json.loads(output.read_text())["metrics"]["eval_accuracy"]
    return {"machine": machine_and_versions(), **accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of files, models and results")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    finished, rows = Finished(args.work / "results.jsonl"), []
    for arm in args.arms:
        runs = []
        for seed in args.seeds:
            settings = {"arm": arm, "seed": seed, "runs": [list(run) for run in RUNS], "rates": RATES}
            settings["pretraining_steps"] = PRETRAINING_STEPS
            run = partial(measure, args.work / f"{arm} {seed}", arm, seed)
            runs.append(finished.find(settings, list(TESTS)[-1], run))
        rows.append((arm, *(interval([one[name] for one in runs]) for name in TESTS)))
    print(markdown_table(("accuracy (%)", *TESTS), rows))


if __name__ == "__main__":
    main()
