"""Shared parts of the benchmarks: data, training, steps, results of finished runs, and intervals."""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedModel, set_seed

from hf_feedback.evaluation.markdown_tables import format_values
from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments
from hf_feedback.training.data.columns import find_columns
from hf_feedback.training.data.files import read_file
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.data.splits import SPLITS, Split
from hf_feedback.training.data.texts import encode_texts
from hf_feedback.training.metrics import make_compute_metrics
from hf_feedback.training.run import bf16_is_fast


def fine_tuning_parser(description: str | None, many_folders: bool = False, **defaults: Any) -> argparse.ArgumentParser:
    """The options of a benchmark that fine-tunes a backbone on a folder of data.

    Args:
        description: docstring of the benchmark.
        many_folders: whether it takes several folders.
        **defaults: other defaults than these.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    nargs, words = ("+", "folders") if many_folders else (None, "folder")
    made.add_argument(
        "--data", type=Path, nargs=nargs, required=True, help=f"{words} with train.csv, validation.csv and test.csv"
    )
    made.add_argument("--model", required=True, help="hub id or folder of a backbone")
    made.add_argument("--work", type=Path, required=True, help="folder of the results")
    made.add_argument("--backbone-layers", type=int, nargs="+", help="layers of the backbone to keep")
    made.add_argument("--num-train-epochs", type=float, default=4)
    made.add_argument("--learning-rate", type=float, default=2e-4)
    made.add_argument("--feedback-lr", type=float, default=1e-3)
    made.add_argument("--max-length", type=int, default=64)
    made.set_defaults(**defaults)
    return made


def read(folder: Path, tokenizer: Any, max_length: int) -> tuple[dict[str, Dataset], LabelSet]:
    """The encoded splits of a folder with train.csv, validation.csv and test.csv, and their labels."""
    return read_files({split: folder / f"{split}.csv" for split in SPLITS}, folder, tokenizer, max_length)


def read_files(
    files: Mapping[str, Path | str], folder: Path, tokenizer: Any, max_length: int
) -> tuple[dict[str, Dataset], LabelSet]:
    """Encoded splits, and their labels.

    Args:
        files: by split.
        folder: of the data set, which messages name.
        tokenizer: encodes the texts.
        max_length: texts are cut at so many tokens.
    """
    data = {split: read_file(file) for split, file in files.items()}
    columns = find_columns(data["train"].column_names, str(folder))
    labels = LabelSet.of(data["train"], columns.label or "", str(folder))
    splits = {name: Split(rows, f"{folder.name}/{name}") for name, rows in data.items()}
    encoded = {s: encode_texts(split, columns, tokenizer, max_length, labels) for s, split in splits.items()}
    return encoded, labels


def fit(
    model: PreTrainedModel,
    data: dict[str, Dataset],
    labels: LabelSet,
    tokenizer: Any,
    seed: int,
    metrics: Sequence[str] = ("accuracy", "macro_f1"),
    compute_loss: Callable[..., torch.Tensor] | None = None,
    **options: Any,
) -> FeedbackTrainer:
    """Fine-tunes a model; the epoch with the best first metric on the validation split is kept.

    Args:
        model: as it starts.
        data: encoded splits.
        labels: of the data.
        tokenizer: pads the batches.
        seed: of the order of the texts and of dropout, whatever building the model drew.
        metrics: the first one chooses.
        compute_loss: another loss than that of the model, of its output and the labels.
        **options: of `FeedbackTrainingArguments`.
    """
    set_seed(seed)
    defaults: dict[str, Any] = dict(
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        weight_decay=0.01,
        warmup_steps=0.1,
        bf16=bf16_is_fast(),
        use_cpu=not torch.accelerator.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=metrics[0],
        report_to=[],
        disable_tqdm=True,
        logging_steps=200,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = FeedbackTrainer(
            model=model,
            args=FeedbackTrainingArguments(output_dir=folder, seed=seed, **{**defaults, **options}),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=make_compute_metrics(labels.problem_type, list(metrics)),
            compute_loss_func=compute_loss,
        )
        trainer.train()
    return trainer


def measure(trainer: FeedbackTrainer, data: dict[str, Dataset], splits: Sequence[str], metrics: Sequence[str]) -> dict:
    """`{"validation_accuracy": …}` of the model that was kept."""
    found = {}
    for split in splits:
        values = trainer.evaluate(data[split], metric_key_prefix=split)
        found.update({f"{split}_{name}": values[f"{split}_{name}"] for name in metrics})
    return found


def is_made(folder: Path, args: argparse.Namespace, names: Sequence[str]) -> bool:
    """Whether a folder holds the model of these options, so that it need not be trained again.

    Args:
        folder: of a model; the options are noted in a file beside it.
        args: options of the benchmark.
        names: those that the model depends on.

    Raises:
        SystemExit: it holds the model of other options.
    """
    options, file = {name: str(getattr(args, name)) for name in names}, folder.with_suffix(".json")
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(options))
        return False
    if not file.is_file() or json.loads(file.read_text()) != options:
        raise SystemExit(f"--work: {folder} was made with other options; name another folder.")
    return True


class Finished:
    """Finished runs, one JSON line each, so that a benchmark that was stopped goes on where it was.

    Args:
        file: where they are.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
        if lines and not lines[-1].endswith("\n"):  # it was stopped while it wrote
            file.write_text("".join(lines := lines[:-1]))
        self.runs = [json.loads(line) for line in lines]

    def find(self, settings: dict[str, Any], wanted: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The run of these settings that measured what is wanted; made now if there is none."""
        for found in self.runs:
            if wanted in found and all(found.get(name) == value for name, value in settings.items()):
                return found
        found = {**settings, **run()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as stream:
            stream.write(json.dumps(found) + "\n")
        self.runs.append(found)
        print(found, flush=True)
        return found

    def of_arm(
        self,
        arm: str,
        args: argparse.Namespace,
        settings: dict[str, Any],
        wanted: str,
        run: Callable[[str, float, int, argparse.Namespace], dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """The runs of an arm, one a seed, with the rate that is best on validation texts with the first seed.

        Args:
            arm: its name.
            args: has `learning_rates` and `seeds`.
            settings: what else makes a run the one that it is.
            wanted: name of something that a finished run has measured.
            run: trains and measures an arm with a rate and a seed.
        """

        def one(rate: float, seed: int) -> dict[str, Any]:
            print(arm, rate, seed, flush=True)
            return self.find(
                {**settings, "arm": arm, "rate": rate, "seed": seed}, wanted, lambda: run(arm, rate, seed, args)
            )

        first = max((one(rate, args.seeds[0]) for rate in args.learning_rates), key=itemgetter("validation"))
        return [first, *(one(first["rate"], seed) for seed in args.seeds[1:])]


def runs_of_arms(
    args: argparse.Namespace,
    settings: Sequence[str],
    wanted: str,
    run: Callable[[str, float, int, argparse.Namespace], dict[str, Any]],
    **more: Any,
) -> dict[str, list[dict[str, Any]]]:
    """The runs of each arm, one a seed, which stay in the work folder; see `Finished.of_arm`.

    Args:
        args: has `work`, `arms`, `learning_rates`, `seeds` and the settings.
        settings: options that make a run the one that it is.
        wanted: name of something that a finished run has measured.
        run: trains and measures an arm with a rate and a seed.
        **more: what else makes a run the one that it is.
    """
    finished = Finished(args.work / "results.jsonl")
    values = {**more, **{name: getattr(args, name) for name in settings}}
    return {arm: finished.of_arm(arm, args, values, wanted, run) for arm in args.arms}


def add_arms(parser: argparse.ArgumentParser, arms: Sequence[str], option: str = "--arms") -> None:
    """Adds the option that names arms, which the end of the help lists.

    Args:
        parser: of the script.
        arms: all names, some of which have commas.
        option: name of the option.
    """
    word = option.strip("-").removesuffix("s")
    parser.add_argument(
        option, nargs="+", metavar=word.upper(), default=list(arms), choices=arms, help="default: all, listed below"
    )
    parser.epilog = "\n".join([f"each {word} is one of:", *(f'  "{arm}"' for arm in arms)])


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says where models and texts go."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    parser.add_argument("--device", default=accelerator.type if accelerator else "cpu", help="default: %(default)s")


def take_step(loss: torch.Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One clipped step of gradient descent."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean with the half-width of a 95% interval (Student's t), and how many there are."""
    return f"{format_values(values, digits)} ({len(values)})" if values else ""
