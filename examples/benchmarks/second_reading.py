"""Does a decoder profit from a second reading in which its early tokens are told what came after them?

    python examples/benchmarks/second_reading.py --corpus DIR --data DIR/sst2 DIR/trec50 --work FOLDER --seeds 0 1 2

A small Llama is trained from scratch to predict the next token of all texts in the training files under DIR (once; it
stays in FOLDER). Then it is fine-tuned as a classifier in five ways: K = 1; K = 2 with messages that stay causal; K = 2
with messages that may tell of later tokens; with the input repeated (echo: the classifier reads the second copy); with
the causal mask lifted. All see the same texts in the same order with the same rates; the epoch is chosen on validation
and the test split is read once. Finished runs stay in FOLDER/results.jsonl and are not run again.

Source of the echo: Springer et al. 2024, Repetition Improves Language Model Embeddings, arXiv 2402.15449.
"""

import argparse
import csv
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from scipy import stats
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments
from hf_feedback.training.data import encode, find_columns, read_file
from hf_feedback.training.labels import LabelSet
from hf_feedback.training.metrics import make_compute_metrics

SIZES = dict(hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4)
QUIET = dict(save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=200, warmup_steps=0.1)


def texts_of(corpus: Path) -> list[str]:
    """All texts of the training files, each once."""
    found: dict[str, None] = {}
    for file in sorted(corpus.glob("*/train.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                found.update({row[name]: None for name in ("text", "text_a", "text_b") if row.get(name)})
    return list(found)


def make_tokenizer(texts: list[str], folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 8,000 tokens; every text ends with the end-of-text token, where a classifier can read it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=8000, special_tokens=["<pad>", "<s>", "</s>"]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=256
    )
    made.save_pretrained(folder)
    return made


def pretrain(args: argparse.Namespace, folder: Path) -> None:
    """The decoder, by next-token prediction."""
    texts = texts_of(args.corpus)
    tokenizer = make_tokenizer(texts, folder)
    set_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, pad_token_id=0, bos_token_id=1,
                         eos_token_id=2, tie_word_embeddings=True, **SIZES)  # fmt: skip
    model = LlamaForCausalLM(config)
    print(f"{len(texts)} texts, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    rows = Dataset.from_dict({"text": texts}).map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=64), batched=True, remove_columns=["text"]
    )
    training = TrainingArguments(
        output_dir=tempfile.mkdtemp(), num_train_epochs=args.pretraining_epochs, learning_rate=1e-3,
        per_device_train_batch_size=64, train_sampling_strategy="group_by_length", lr_scheduler_type="cosine",
        use_cpu=not torch.accelerator.is_available(), **QUIET,
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(model=model, args=training, train_dataset=rows, data_collator=collator).train()
    model.save_pretrained(folder)


class Echo(FeedbackForSequenceClassification):
    """Reads texts that stand twice, and pools the second copy alone."""

    def _mask(self, hidden: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        mask = inputs["attention_mask"]
        return mask * (mask.cumsum(1) > mask.sum(1, keepdim=True) // 2)


def lift_the_mask(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of the backbone: every token sees every real one."""
    mask = kwargs["attention_mask"]
    seen = mask[:, None, None].bool().expand(-1, 1, mask.shape[1], -1)
    return args, {**kwargs, "attention_mask": seen}


ROWS: dict[str, dict[str, Any]] = {
    "K = 1": dict(num_iterations=1),
    "K = 2, causal messages": dict(num_iterations=2, feedback_type="attention", feedback_future=False),
    "K = 2, messages of later tokens": dict(num_iterations=2, feedback_type="attention", feedback_future=True),
    "input repeated": dict(num_iterations=1),
    "causal mask lifted": dict(num_iterations=1),
}


def read(folder: Path, tokenizer: Any, twice: bool, max_length: int) -> tuple[dict[str, Dataset], LabelSet]:
    """The encoded splits and their labels."""
    data = {split: read_file(folder / f"{split}.csv") for split in ("train", "validation", "test")}
    columns = find_columns(data["train"].column_names, str(folder))
    labels = LabelSet.of(data["train"], columns.label or "", str(folder))
    splits = {}
    for split, rows in data.items():
        found = encode(rows, columns, tokenizer, max_length, f"{folder.name}/{split}", labels)
        if twice:
            found = found.map(lambda row: {n: row[n] * 2 for n in ("input_ids", "attention_mask")})
        splits[split] = found
    return splits, labels


def settings(row: str, folder: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What makes a run the one that it is."""
    options = {**ROWS[row], **(args.options if "K = 2" in row else {})}
    names = ("pooling", "num_train_epochs", "learning_rate", "feedback_lr")
    return dict(row=row, data=folder.name, seed=seed, options=options, **{name: getattr(args, name) for name in names})


def run(row: str, folder: Path, seed: int, args: argparse.Namespace, backbone: Path) -> dict[str, Any]:
    """Fine-tunes one way and measures it."""
    found = settings(row, folder, seed, args)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    data, labels = read(folder, tokenizer, row == "input repeated", args.max_length)
    set_seed(seed)
    kind = Echo if row == "input repeated" else FeedbackForSequenceClassification
    model = kind.from_backbone(backbone, num_labels=labels.num_labels, pooling=args.pooling, **found["options"])
    if row == "causal mask lifted":
        model.backbone.register_forward_pre_hook(lift_the_mask, with_kwargs=True)
    set_seed(seed)  # the same order of texts, whatever building the model drew
    training = FeedbackTrainingArguments(
        output_dir=tempfile.mkdtemp(), num_train_epochs=args.num_train_epochs, learning_rate=args.learning_rate,
        feedback_lr=args.feedback_lr, per_device_train_batch_size=32, per_device_eval_batch_size=128, seed=seed,
        weight_decay=0.01, use_cpu=not torch.accelerator.is_available(), eval_strategy="epoch",
        **{**QUIET, "save_strategy": "epoch"}, load_best_model_at_end=True, save_total_limit=1,
        metric_for_best_model="accuracy",
    )  # fmt: skip
    trainer = FeedbackTrainer(
        model=model, args=training, train_dataset=data["train"], eval_dataset=data["validation"],
        processing_class=tokenizer, data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=make_compute_metrics(labels.problem_type, ["accuracy", "macro_f1"]),
    )  # fmt: skip
    trainer.train()
    for split in ("validation", "test") if args.test else ("validation",):
        metrics = trainer.evaluate(data[split], metric_key_prefix=split)
        found.update({f"{split}_{name}": metrics[f"{split}_{name}"] for name in ("accuracy", "macro_f1")})
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Means over seeds with the half-width of a 95% interval (Student's t)."""
    cells: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for found in results:
        for split in ("validation", "test"):
            if f"{split}_accuracy" in found:
                cells[found["row"], found["data"], split].append(100 * found[f"{split}_accuracy"])
    columns = sorted({key[1:] for key in cells})
    lines = ["| accuracy (%) | " + " | ".join(f"{data}, {split}" for data, split in columns) + " |"]
    lines += ["|---" * (1 + len(columns)) + "|"]
    for row in dict.fromkeys(key[0] for key in cells):
        shown = []
        for column in columns:
            values = cells.get((row, *column), [])
            half = 0.0
            if len(values) > 1:
                half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
            shown.append(f"{statistics.mean(values):.1f} ± {half:.1f} ({len(values)})" if values else "")
        lines.append(f"| {row} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of folders with a train.csv")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders to classify")
    parser.add_argument("--work", type=Path, required=True, help="folder of the decoder and the results")
    parser.add_argument("--pretraining-epochs", type=float, default=3)
    parser.add_argument("--num-train-epochs", type=float, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--feedback-lr", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--options", type=json.loads, default={}, help="feedback options of K = 2, as JSON")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test", action="store_true", help="read the test split too, once all is chosen")
    args = parser.parse_args()
    backbone, file = args.work / "decoder", args.work / "results.jsonl"
    if not (backbone / "config.json").is_file():
        pretrain(args, backbone)
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    mine = []
    for seed in args.seeds:
        for folder in args.data:
            for row in args.rows:
                known, wanted = settings(row, folder, seed, args), f"{'test' if args.test else 'validation'}_accuracy"
                found = next((r for r in done if wanted in r and all(r.get(k) == v for k, v in known.items())), None)
                if found is None:
                    found = run(row, folder, seed, args, backbone)
                    with file.open("a") as stream:
                        stream.write(json.dumps(found) + "\n")
                    print(found, flush=True)
                mine.append(found)
    print(table(mine))


if __name__ == "__main__":
    main()
