"""Train the temporal and the layered feedback network from scratch, beside an LSTM of equal size.

    python examples/benchmarks/fnn.py --data DIR --tokenizer FOLDER [--num-iterations 4] [--seeds 0 1 2]

DIR holds train.csv, validation.csv and test.csv with the columns text and label; of a label such as NUM:dist the part
before the colon counts. All systems have embeddings of the same size, and hidden sizes for which the rest of their
parameters comes closest to that of the temporal network. The LSTM is torch's, in both directions, with the mean over
the tokens' states for its classifier, like the temporal network. Rate and epoch are chosen on the validation split for
each system and seed; the test split is read once a run, with what was chosen.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import interval
from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_feedback import FNNConfig, FNNForSequenceClassification
from hf_feedback.evaluation.markdown_tables import markdown_table
from hf_feedback.pooling import pool
from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments
from hf_feedback.training.data.columns import Columns
from hf_feedback.training.data.files import read_file
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.data.splits import Split
from hf_feedback.training.data.texts import encode_texts
from hf_feedback.training.metrics import make_compute_metrics


class LSTMClassifier(nn.Module):
    """Embeddings, a bidirectional LSTM, the mean over the real tokens, a classifier."""

    def __init__(self, sizes: dict[str, Any], hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(sizes["vocab_size"], sizes["embedding_size"], sizes["pad_token_id"])
        self.dropout = nn.Dropout(sizes["embedding_dropout"])
        self.lstm = nn.LSTM(sizes["embedding_size"], hidden_size, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(2 * hidden_size, num_labels)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        x = self.dropout(self.embeddings(input_ids))
        lengths = attention_mask.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        logits = self.classifier(pool(hidden, attention_mask, "mean"))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits} if labels is not None else logits


def rest_of(model: nn.Module) -> int:
    """Parameters without the embeddings."""
    return sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name)


def systems(args: argparse.Namespace, sizes: dict[str, Any], num_labels: int) -> dict[str, Callable[[], nn.Module]]:
    """Name → how to build it, with the hidden size that makes it as large as the temporal network."""

    def network(hidden_size: int, **options: Any) -> nn.Module:
        config = FNNConfig(
            hidden_size=hidden_size, activation=args.activation, num_labels=num_labels, **sizes, **options
        )
        return FNNForSequenceClassification(config)

    builders: dict[str, Callable[[int], nn.Module]] = {}
    for k in (args.num_iterations, 1):
        builders[f"temporal, K = {k}"] = lambda d, k=k: network(d, fnn_type="temporal", num_iterations=k)
        builders[f"layered, K = {k}"] = lambda d, k=k: network(d, fnn_type="layered", num_iterations=k)
    builders["LSTM"] = lambda d: LSTMClassifier(sizes, d, num_labels)

    def rest(build: Callable[[int], nn.Module], hidden_size: int) -> int:
        with torch.device("meta"):  # no memory, no numbers: only sizes
            return rest_of(build(hidden_size))

    budget = rest(builders[f"temporal, K = {args.num_iterations}"], args.hidden_size)
    found = {}
    for name, build in builders.items():
        size = min(range(8, 2 * args.hidden_size), key=lambda d, build=build: abs(rest(build, d) - budget))
        found[name] = lambda build=build, size=size: build(size)
    return found


def read(folder: Path, tokenizer: Any) -> tuple[dict[str, Dataset], LabelSet]:
    """The encoded splits and the first-level labels."""
    splits = {split: read_file(folder / f"{split}.csv") for split in ("train", "validation", "test")}
    splits = {s: data.map(lambda row: {"label": row["label"].split(":")[0]}) for s, data in splits.items()}
    labels = LabelSet.of(splits["train"], "label", str(folder))
    columns = Columns("text", None, "label")
    named = {s: Split(data, f"{folder.name}/{s}") for s, data in splits.items()}
    return {s: encode_texts(split, columns, tokenizer, 64, labels) for s, split in named.items()}, labels


def train(model: nn.Module, rate: float, seed: int, args: argparse.Namespace, data: dict, tokenizer: Any) -> Trainer:
    """Trains and goes back to the best epoch."""
    kind, arguments = Trainer, TrainingArguments
    if isinstance(model, FNNForSequenceClassification):
        kind, arguments = FeedbackTrainer, FeedbackTrainingArguments
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            model=model,
            args=arguments(
                output_dir=folder,
                num_train_epochs=args.num_train_epochs,
                learning_rate=rate,
                per_device_train_batch_size=args.batch_size,
                per_device_eval_batch_size=128,
                weight_decay=0.01,
                seed=seed,
                use_cpu=not torch.accelerator.is_available(),
                eval_strategy="epoch",
                save_strategy="epoch",
                save_total_limit=1,
                load_best_model_at_end=True,
                metric_for_best_model="accuracy",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
            ),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=make_compute_metrics("single_label_classification", ["accuracy"]),
        )
        trainer.train()
    return trainer


def run(build: Callable[[], nn.Module], seed: int, args: argparse.Namespace, data: dict, tokenizer: Any) -> dict:
    """One system with one seed: every rate, the best of them by validation, one look at the test split."""
    candidates, started = [], time.perf_counter()
    for rate in args.learning_rates:
        set_seed(seed)
        model = build()
        set_seed(seed)  # the same order of texts, whatever building the model drew
        trainer = train(model, rate, seed, args, data, tokenizer)
        candidates.append((trainer.state.best_metric, rate, trainer))
    seconds = (time.perf_counter() - started) / len(candidates)
    best, rate, trainer = max(candidates, key=lambda candidate: candidate[0])
    test = trainer.evaluate(data["test"], metric_key_prefix="test")["test_accuracy"]
    return {"validation": best, "test": test, "rate": rate, "seconds": seconds, "rest": rest_of(trainer.model)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--embedding-size", type=int, default=64)
    parser.add_argument("--embedding-dropout", type=float, default=0.3)
    parser.add_argument("--activation", default="tanh")
    parser.add_argument("--num-iterations", type=int, default=4)
    parser.add_argument("--num-train-epochs", type=float, default=8)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[2e-3, 5e-3])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", help="only these, such as 'LSTM' 'temporal, K = 4'")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    data, labels = read(args.data, tokenizer)
    sizes = dict(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        embedding_size=args.embedding_size,
        embedding_dropout=args.embedding_dropout,
    )
    rows = []
    for name, build in systems(args, sizes, labels.num_labels).items():
        if args.systems and name not in args.systems:
            continue
        found = []
        for seed in args.seeds:
            found.append(run(build, seed, args, data, tokenizer))
            print(name, seed, found[-1], flush=True)
        columns = [interval([result[key] for result in found], 3) for key in ("validation", "test")]
        seconds = f"{statistics.mean(result['seconds'] for result in found):.0f}"
        rows.append((name, f"{found[0]['rest']:,}", *columns, seconds))
    print(markdown_table(("system", "parameters beside embeddings", "validation", "test", "seconds a run"), rows))


if __name__ == "__main__":
    main()
