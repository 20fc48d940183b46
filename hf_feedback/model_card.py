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
        metrics: `eval_…` and `test_…` figures.
        arguments: the training arguments.
    """

    backbone: str
    data: dict[str, tuple[str, int]]
    dataset: str | None
    metrics: dict[str, float]
    arguments: "FeedbackTrainingArguments"


def card_data(config: FeedbackConfig, facts: RunFacts) -> ModelCardData:
    """The card's metadata, as the Hub understands it."""
    name = Path(facts.arguments.output_dir or "model").name
    splits = {"eval": "validation", "test": "test"}
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=facts.dataset or "text",
            dataset_name=facts.dataset or Path(facts.data[splits[key.split("_", 1)[0]]][0]).name,
            dataset_split=splits[key.split("_", 1)[0]],
            metric_type=key.split("_", 1)[1],
            metric_value=round(value, 4),
        )
        for key, value in facts.metrics.items()
    ]
    is_hub_id = not Path(facts.backbone).exists() and facts.backbone.count("/") <= 1
    return ModelCardData(
        base_model=facts.backbone if is_hub_id else None,
        library_name="transformers",
        datasets=facts.dataset,
        pipeline_tag="text-classification",
        tags=["hf_feedback", "feedback"],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name,
        eval_results=results or None,
    )


def write_model_card(folder: Path, config: FeedbackConfig, facts: RunFacts) -> Path:
    """Writes `README.md` beside the model."""
    args = facts.arguments
    options = {
        "backbone": Path(facts.backbone).name if Path(facts.backbone).exists() else facts.backbone,
        "iterations (K)": config.num_iterations,
        "edges (source → target)": ", ".join(f"{s} → {t}" for s, t in config.edges()),
        "message": f"{config.feedback_type}, {config.feedback_activation}, "
        + ("full rank" if config.feedback_rank is None else f"rank {config.feedback_rank}"),
        "head": "the backbone's own" if config.head == "backbone" else f"linear over {config.pooling} pooling",
        "labels": ", ".join(map(str, (config.id2label or {}).values())),
    }
    training = {
        "epochs": args.num_train_epochs,
        "batch size": args.train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size),
        "learning rate": args.learning_rate,
        "backbone, feedback, head rate": (args.backbone_lr, args.feedback_lr, args.head_lr),
        "layer-wise decay of the rate": args.layer_lr_decay,
        "frozen": ", ".join([args.freeze] if isinstance(args.freeze, str) else args.freeze or []) or "nothing",
        "schedule": f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}, warm-up {args.warmup_steps}",
        "weight decay": args.weight_decay,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }
    data = {split: f"{count} texts from {Path(source).name}" for split, (source, count) in facts.data.items()}
    figures = {
        key.replace("eval_", "validation ").replace("test_", "test "): f"{value:.4f}"
        for key, value in facts.metrics.items()
    }

    def table(values: dict) -> str:
        return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in values.items())])

    body = f"""# {Path(args.output_dir or "model").name}

A text classifier with top-down feedback, made with hf_feedback {HF_FEEDBACK_VERSION} and transformers
{transformers.__version__}. From the second of its {config.num_iterations} iterations on, lower layers read what higher
layers said in the one before.

```python
from transformers import pipeline

classify = pipeline("text-classification", "path/or/id", trust_remote_code=True)
```

## Model

{table(options)}

## Data

{table(data)}

## Training

{table(training)}

## Results

{table(figures)}

One run with one seed: these figures say nothing about whether feedback helped. That takes the same run with
`num_iterations=1`, several seeds and an interval.
"""
    file = folder / "README.md"
    file.write_text(f"---\n{card_data(config, facts).to_yaml()}\n---\n\n{body}", encoding="utf-8")
    return file
