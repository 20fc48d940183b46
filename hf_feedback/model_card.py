"""A model card from the facts of a training run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import transformers
from huggingface_hub import EvalResult, ModelCardData

from .configuration_feedback import HF_FEEDBACK_VERSION, FeedbackConfig

if TYPE_CHECKING:
    from .training.arguments import FeedbackTrainingArguments


@dataclass(frozen=True)
class RunFacts:
    """What a training run knows about itself.

    Args:
        backbone: hub id or folder that it started from.
        data: split → (source, number of texts).
        dataset: hub id of the data, if they came from there.
        metrics: what the Trainer measured, `eval_…` and `test_…`.
        arguments: the training arguments.
    """

    backbone: str
    data: dict[str, tuple[str, int]]
    dataset: str | None
    metrics: dict[str, float]
    arguments: "FeedbackTrainingArguments"


SPLITS = {"eval": "validation", "test": "test"}
NO_FIGURES = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def _figures(facts: RunFacts) -> dict[tuple[str, str], float]:
    """(split, metric) → value, without losses and times."""
    found = {}
    for key, value in facts.metrics.items():
        prefix, _, metric = key.partition("_")
        if prefix in SPLITS and metric not in NO_FIGURES:
            found[SPLITS[prefix], metric] = value
    return found


def card_data(facts: RunFacts) -> ModelCardData:
    """The card's metadata, as the Hub understands it."""
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=facts.dataset or "text",
            dataset_name=facts.dataset or Path(facts.data[split][0]).name,
            dataset_split=split,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for (split, metric), value in _figures(facts).items()
    ]
    is_hub_id = not Path(facts.backbone).exists() and facts.backbone.count("/") <= 1
    return ModelCardData(
        base_model=facts.backbone if is_hub_id else None,
        library_name="transformers",
        datasets=facts.dataset,
        pipeline_tag="text-classification",
        tags=["hf_feedback", "feedback"],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=Path(facts.arguments.output_dir or "model").name,
        eval_results=results or None,
    )


def _model_rows(config: FeedbackConfig, facts: RunFacts) -> dict[str, object]:
    rank = "full rank" if config.feedback_rank is None else f"rank {config.feedback_rank}"
    return {
        "backbone": "/".join(Path(facts.backbone).parts[-2:]),  # a hub id, or the end of a folder's path
        "iterations (K)": config.num_iterations,
        "edges (source → target)": ", ".join(f"{source} → {target}" for source, target in config.edges()),
        "message": f"{config.feedback_type}, {config.feedback_activation}, {rank}",
        "head": "the backbone's own" if config.head == "backbone" else f"linear, pooling: {config.pooling}",
        "labels": ", ".join(map(str, (config.id2label or {}).values())),
    }


def _training_rows(args: "FeedbackTrainingArguments") -> dict[str, object]:
    return {
        "epochs": args.num_train_epochs,
        "batch size": args.train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size),
        "learning rate": args.learning_rate,
        **{
            f"rate of the {part}": rate
            for part, rate in (("backbone", args.backbone_lr), ("feedback", args.feedback_lr), ("head", args.head_lr))
            if rate is not None
        },
        "layer-wise decay of the rate": args.layer_lr_decay,
        "frozen": ", ".join([args.freeze] if isinstance(args.freeze, str) else args.freeze or []) or "nothing",
        "schedule": f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}, warm-up {args.warmup_steps}",
        "weight decay": args.weight_decay,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }


def _table(rows: dict[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


BODY = """# {name}

A text classifier with top-down feedback, made with hf_feedback {version} and transformers {transformers}.
{reading}

```python
from transformers import pipeline

classify = pipeline("text-classification", "path/or/id", trust_remote_code=True)
```

## Model

{model}

## Data

{data}

## Training

{training}

## Results

{results}

One run with one seed: these figures say nothing about whether feedback helped. That takes the same run with
`num_iterations=1`, several seeds and an interval.
"""


def write_model_card(folder: Path, config: FeedbackConfig, facts: RunFacts) -> Path:
    """Writes `README.md` beside the model."""
    body = BODY.format(
        name=Path(facts.arguments.output_dir or "model").name,
        version=HF_FEEDBACK_VERSION,
        transformers=transformers.__version__,
        reading="With one iteration nothing is fed back: this is the plain backbone."
        if config.num_iterations == 1
        else f"From the second of its {config.num_iterations} iterations on, lower layers read what higher ones said.",
        model=_table(_model_rows(config, facts)),
        data=_table(
            {split: f"{count} texts from {Path(source).name}" for split, (source, count) in facts.data.items()}
        ),
        training=_table(_training_rows(facts.arguments)),
        results=_table({f"{split} {metric}": f"{value:.4f}" for (split, metric), value in _figures(facts).items()}),
    )
    file = folder / "README.md"
    file.write_text(f"---\n{card_data(facts).to_yaml()}\n---\n\n{body}", encoding="utf-8")
    return file
