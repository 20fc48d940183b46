r"""Does a decoder profit from a second reading in which its early tokens are informed about later ones?

    python examples/benchmarks/decoder_classification.py --corpus DIR --data DIR/sst2 DIR/trec50 --work FOLDER \
        --seeds 0 1 2

A small Llama is trained from scratch to predict the next token of all texts in the training files under DIR (once; it
stays in FOLDER). Then it is fine-tuned as a classifier in five ways: K = 1; K = 2 with messages that stay causal; K = 2
with messages that may carry information about later tokens; with the input repeated (echo: the classifier reads the
second copy); with the causal mask lifted. All see the same texts in the same order with the same rates; the epoch is
chosen on validation and the test split is read once. Finished runs stay in FOLDER/results.jsonl and are not run again.

With `--model ENCODER` a pretrained encoder that reads through a causal mask takes the place of the decoder, which shows
the possible gain for a backbone that has learned to use later tokens.

Source of the echo: Springer et al. 2024, Repetition Improves Language Model Embeddings, arXiv 2402.15449.
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import Finished, add_arms, fit, interval, is_made, measure, read
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.evaluation.comparison.decoder_arms import lift_causal_mask, repeat_texts
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.forward_context import ForwardContext
from hf_feedback.training.data.labels import LabelSet

SIZES = dict(hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4)
METRICS = ("accuracy", "macro_f1")
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

    def _pooling_mask(self, hidden: torch.Tensor, context: ForwardContext) -> torch.Tensor | None:
        mask = super()._pooling_mask(hidden, context)
        return mask * (mask.cumsum(1) > mask.sum(1, keepdim=True) // 2)


ROWS: dict[str, dict[str, Any]] = {
    "K = 1": dict(num_iterations=1),
    "K = 2, causal messages": dict(num_iterations=2, feedback_type="attention", feedback_future=False),
    "K = 2, messages of later tokens": dict(num_iterations=2, feedback_type="attention", feedback_future=True),
    "input repeated": dict(num_iterations=1),
    "causal mask lifted": dict(num_iterations=1),
}


def read_twice(folder: Path, tokenizer: Any, max_length: int) -> tuple[dict[str, Dataset], LabelSet]:
    """The encoded splits with each text repeated, and their labels."""
    data, labels = read(folder, tokenizer, max_length)
    return {split: repeat_texts(rows, tokenizer.model_input_names) for split, rows in data.items()}, labels


def backbone_of(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Location of the backbone, and how it is made causal."""
    if args.model is None:
        return str(args.work / "decoder"), {}
    return args.model, dict(config_overrides=dict(is_decoder=True))


def settings(row: str, folder: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The settings that identify a run."""
    options = {**ROWS[row], **(args.options if "K = 2" in row else {})}
    names = ("model", "backbone_layers", "pooling", "num_train_epochs", "learning_rate", "feedback_lr", "max_length")
    return dict(row=row, data=folder.name, seed=seed, options=options, **{name: getattr(args, name) for name in names})


def run(row: str, folder: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tunes one way and measures it."""
    backbone, causal = backbone_of(args)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    echo = row == "input repeated"
    data, labels = (read_twice if echo else read)(folder, tokenizer, args.max_length)
    set_seed(seed)
    kind = Echo if echo else FeedbackForSequenceClassification
    options = settings(row, folder, seed, args)["options"]
    model = kind.from_backbone(
        backbone, num_labels=labels.num_labels, pooling=args.pooling, backbone_layers=args.backbone_layers,
        **causal, **options,
    )  # fmt: skip
    if row == "causal mask lifted":
        lift_causal_mask(model)
    trainer = fit(
        model, data, labels, tokenizer, seed, METRICS,
        num_train_epochs=args.num_train_epochs, learning_rate=args.learning_rate, feedback_lr=args.feedback_lr,
    )  # fmt: skip
    return measure(trainer, data, ("validation", "test") if args.test else ("validation",), METRICS)


def summary(results: list[dict[str, Any]]) -> str:
    """Accuracies of the ways, means over seeds with intervals."""
    columns = [
        (data, split)
        for data in dict.fromkeys(found["data"] for found in results)
        for split in ("validation", "test")
        if any(f"{split}_accuracy" in found for found in results)
    ]
    rows = []
    for row in dict.fromkeys(found["row"] for found in results):
        cells = []
        for data, split in columns:
            mine = [found for found in results if (found["row"], found["data"]) == (row, data)]
            cells.append(interval([100 * f[f"{split}_accuracy"] for f in mine if f"{split}_accuracy" in f]))
        rows.append((row, *cells))
    return markdown_table(("accuracy (%)", *(f"{data}, {split}" for data, split in columns)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of folders with a train.csv, to train the decoder on")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders to classify")
    parser.add_argument("--work", type=Path, required=True, help="folder of the decoder and the results")
    parser.add_argument("--model", help="hub id or folder of an encoder, in the place of the decoder")
    parser.add_argument("--backbone-layers", type=int, nargs="+", help="layers of the backbone to keep")
    parser.add_argument("--pretraining-epochs", type=float, default=3)
    parser.add_argument("--num-train-epochs", type=float, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--feedback-lr", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--options", type=json.loads, default={}, help="feedback options of K = 2, as JSON")
    add_arms(parser, list(ROWS), "--rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test", action="store_true", help="read the test split too, once all is chosen")
    args = parser.parse_args()
    if not (args.corpus or args.model):
        parser.error("give --corpus, to train a decoder on, or --model, an encoder to read with a causal mask")
    decoder, finished = args.work / "decoder", Finished(args.work / "results.jsonl")
    if args.model is None and not is_made(decoder, args, ["corpus", "pretraining_epochs"]):
        pretrain(args, decoder)
    wanted, mine = f"{'test' if args.test else 'validation'}_accuracy", []
    for seed in args.seeds:
        for folder in args.data:
            for row in args.rows:
                known = settings(row, folder, seed, args)
                mine.append(finished.find(known, wanted, lambda r=row, f=folder, s=seed: run(r, f, s, args)))
    print(summary(mine))


if __name__ == "__main__":
    main()
