"""A model card from the facts of a training run."""

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import transformers
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .configuration_feedback import FeedbackConfig
from .configuration_fnn import FNNConfig
from .feedback_checkpoint import whole_file
from .version import HF_FEEDBACK_VERSION

if TYPE_CHECKING:
    from .training.arguments import FeedbackTrainingArguments


@dataclass(frozen=True)
class TaskCard:
    """A task in words.

    Args:
        pipeline_tag: its name on the Hub.
        model: what a model of it is called.
        inputs: what it reads, in the plural.
        dataset_type: kind of a data set of such inputs, where it has no id on the Hub.
        usage: Python lines that use a model; `{model}` stands for its place.
        pooled: whether a new head reads one pooled vector an input.
        labelled: whether the labels are classes with names.
    """

    pipeline_tag: str
    model: str
    inputs: str = "texts"
    dataset_type: str = "text"
    usage: str = ""
    pooled: bool = False
    labelled: bool = False


def _with_pipeline(tag: str, call: str, more: str = "") -> str:
    return f"""from transformers import pipeline

answer = pipeline("{tag}", "{{model}}", trust_remote_code=True{more})
{call}"""


# transformers has no pipeline for these two
QUESTIONS = """from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{model}")
model = AutoModelForQuestionAnswering.from_pretrained("{model}", trust_remote_code=True)
question, text = "Where is the parcel?", "The parcel is at the depot."
batch = tokenizer(question, text, return_tensors="pt")
output = model(**batch)
start, end = output.start_logits.argmax(), output.end_logits.argmax()
print(tokenizer.decode(batch["input_ids"][0, start : end + 1]))"""

CHOICES = """from transformers import AutoModelForMultipleChoice, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{model}")
model = AutoModelForMultipleChoice.from_pretrained("{model}", trust_remote_code=True)
context, choices = "Where is my parcel?", ["It comes on Monday.", "The lamp is blue."]
batch = tokenizer([context] * len(choices), choices, padding=True, return_tensors="pt")
batch = {{name: tensor.unsqueeze(0) for name, tensor in batch.items()}}  # (1, choices, tokens)
print(choices[model(**batch).logits.argmax()])"""

WAVE = """rate = answer.feature_extractor.sampling_rate
print(answer({{"raw": np.zeros(rate, dtype=np.float32), "sampling_rate": rate}}))  # or the name of a file"""

TASKS = {
    "FeedbackForSequenceClassification": TaskCard(
        "text-classification",
        "text classifier",
        usage=_with_pipeline("text-classification", 'print(answer("Where is my parcel?"))'),
        pooled=True,
        labelled=True,
    ),
    "FNNForSequenceClassification": TaskCard(
        "text-classification",
        "text classifier",
        usage=_with_pipeline("text-classification", 'print(answer("Where is my parcel?"))'),
        labelled=True,
    ),
    "FeedbackForTokenClassification": TaskCard(
        "token-classification",
        "token classifier",
        usage=_with_pipeline(
            "token-classification", 'print(answer("Where is my parcel?"))', ', aggregation_strategy="simple"'
        ),
        labelled=True,
    ),
    "FeedbackForQuestionAnswering": TaskCard(
        "question-answering", "model that finds answers in texts", usage=QUESTIONS
    ),
    "FeedbackForMultipleChoice": TaskCard(
        "multiple-choice", "model that chooses one of several texts", usage=CHOICES, pooled=True
    ),
    "FeedbackForMaskedLM": TaskCard(
        "fill-mask",
        "masked language model",
        usage=_with_pipeline("fill-mask", 'print(answer(f"Where is my {{answer.tokenizer.mask_token}}?"))'),
    ),
    "FeedbackForImageClassification": TaskCard(
        "image-classification",
        "image classifier",
        "images",
        "image",
        "from PIL import Image\n"
        + _with_pipeline("image-classification", 'print(answer(Image.new("RGB", (32, 32))))  # or the name of a file'),
        pooled=True,
        labelled=True,
    ),
    "FeedbackForAudioClassification": TaskCard(
        "audio-classification",
        "audio classifier",
        "recordings",
        "audio",
        "import numpy as np\n" + _with_pipeline("audio-classification", WAVE),
        pooled=True,
        labelled=True,
    ),
}


@dataclass(frozen=True)
class RunFacts:
    """What a training run knows about itself.

    Args:
        backbone: hub id or folder that it started from; `None`: random weights.
        data: split → (source, number of examples).
        dataset: hub id or folder of the data, if they came from there and not from files.
        metrics: what the Trainer measured, `eval_…` and `test_…`.
        arguments: the training arguments.
        head: name of the model's class, a key of `TASKS`.
    """

    backbone: str | None
    data: dict[str, tuple[str, int]]
    dataset: str | None
    metrics: dict[str, float]
    arguments: "FeedbackTrainingArguments"
    head: str = "FeedbackForSequenceClassification"

    @property
    def hub_dataset(self) -> str | None:
        """The data's hub id; `None` for files and folders, which mean nothing there."""
        return self.dataset if is_hub_id(self.dataset) else None

    @property
    def name(self) -> str:
        """What the model is called: its repository, or its folder."""
        return Path(self.arguments.hub_model_id or self.arguments.output_dir or "model").name

    @property
    def task(self) -> TaskCard:
        """What the card says about the task."""
        return TASKS[self.head]


SPLITS = {"eval": "validation", "test": "test"}
# Ours → its name on the Hub, where that is another.
HUB_METRICS = {
    "macro_f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "entity_f1": "f1",
    "entity_precision": "precision",
    "entity_recall": "recall",
    "token_accuracy": "accuracy",
}
NO_FIGURES = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def _figures(facts: RunFacts) -> dict[tuple[str, str], float]:
    """(split, metric) → value, without losses and times."""
    found = {}
    for key, value in facts.metrics.items():
        prefix, _, metric = key.partition("_")
        if prefix in SPLITS and metric not in NO_FIGURES:
            found[SPLITS[prefix], metric] = value
    return found


def is_hub_id(name: str | None) -> bool:
    """Whether a name can be one of a repository on the Hub, and not that of a file or folder."""
    if name is None:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not os.path.exists(name)


LONGEST_NAME = 80
MOST_NAMES = 100


def short_name(name: object) -> str:
    """A name as it may stand in metadata: one line without control characters, of `LONGEST_NAME` letters at most."""
    visible = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(name)[: 2 * LONGEST_NAME])
    line = " ".join(visible.split())
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"


def as_text(name: object) -> str:
    """A name as it may stand in the card: nothing of it is read as HTML or Markdown, or becomes a link."""
    signs = r"[&<>|`\[\]!*~#$\\\"@]|\b_|_\b|:(?=//)|(?<=\bwww)\."
    text = re.sub(signs, lambda sign: f"&#{ord(sign[0])};", short_name(name), flags=re.IGNORECASE)
    return text.replace("&#64;", "&#64;&#8288;")  # GitHub reads entities before it looks for mail: a word joiner


def _list_of(names: Iterable[object]) -> str:
    texts = [as_text(name) for name in names]
    more = f" and {len(texts) - MOST_NAMES} more" if len(texts) > MOST_NAMES else ""
    return ", ".join(texts[:MOST_NAMES]) + more


def card_data(facts: RunFacts) -> ModelCardData:
    """The card's metadata, as the Hub understands it."""
    results = [
        EvalResult(
            task_type=facts.task.pipeline_tag,
            dataset_type=facts.hub_dataset or facts.task.dataset_type,
            dataset_name=short_name(facts.hub_dataset or Path(facts.data[split][0]).name),
            dataset_split=split,
            metric_type=HUB_METRICS.get(metric, short_name(metric)),
            metric_name=short_name(metric),
            metric_value=round(value, 4),
        )
        for (split, metric), value in _figures(facts).items()
    ]
    return ModelCardData(
        base_model=facts.backbone if is_hub_id(facts.backbone) else None,
        library_name="transformers",
        datasets=facts.hub_dataset,
        pipeline_tag=facts.task.pipeline_tag,
        tags=["hf_feedback", "feedback"],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=short_name(facts.name),
        eval_results=results or None,
    )


def _network_rows(config: FNNConfig) -> dict[str, object]:
    until = "" if config.tolerance is None else f", or a residual of {config.tolerance:g}"
    rows: dict[str, object] = {
        "network": f"{config.fnn_type}, trained from scratch",
        "iterations (K)": f"{config.num_iterations}{until}",
        "layers": config.num_layers,
        "hidden size": config.hidden_size,
        "activation": config.activation,
        "gradient": config.gradient,
    }
    if config.sweep is not None:
        rows["sweep"] = config.sweep
    return {**rows, "labels": _list_of((config.id2label or {}).values())}


def _model_rows(config: FeedbackConfig | FNNConfig, facts: RunFacts) -> dict[str, object]:
    if isinstance(config, FNNConfig):
        return _network_rows(config)
    rank = "full rank" if config.feedback_rank is None else f"rank {config.feedback_rank}"
    head = f"linear, pooling: {config.pooling}" if facts.task.pooled else "new"
    rows: dict[str, object] = {
        # a hub id, or the end of a folder's path
        "backbone": as_text("/".join(Path(facts.backbone or "").parts[-2:])),
        "iterations (K)": config.num_iterations,
        "edges (source → target)": ", ".join(f"{source} → {target}" for source, target in config.edges()),
        "message": f"{config.feedback_type}, {config.feedback_activation}, {rank}",
        "head": "the backbone's own" if config.head == "backbone" else head,
    }
    if facts.task.labelled:
        rows["labels"] = _list_of((config.id2label or {}).values())
    return rows


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
        "frozen": _list_of([args.freeze] if isinstance(args.freeze, str) else args.freeze or []) or "nothing",
        "schedule": f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}, warm-up {args.warmup_steps}",
        "weight decay": args.weight_decay,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }


def _table(rows: dict[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


BODY = """# {name}

{what} with top-down feedback, made with hf_feedback {version} and transformers {transformers}.
{reading}

```python
{usage}
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


def _reading(config: FeedbackConfig | FNNConfig) -> str:
    of_a_network = isinstance(config, FNNConfig)
    if config.num_iterations == 1:
        plain = "a plain recurrent or layered network" if of_a_network else "the plain backbone"
        return f"With one iteration nothing is fed back: this is {plain}."
    if of_a_network:
        return f"States are refined in {config.num_iterations} iterations; each reads those of the one before."
    return f"From the second of its {config.num_iterations} iterations on, lower layers read what higher ones said."


def write_model_card(folder: Path, config: FeedbackConfig | FNNConfig, facts: RunFacts) -> Path:
    """Writes `README.md` beside the model."""
    repository = facts.arguments.hub_model_id
    body = BODY.format(
        name=as_text(facts.name),
        what=f"{'An' if facts.task.model[0] in 'aeiou' else 'A'} {facts.task.model}",
        usage=facts.task.usage.format(model=repository if is_hub_id(repository) else "path/or/id"),
        version=HF_FEEDBACK_VERSION,
        transformers=transformers.__version__,
        reading=_reading(config),
        model=_table(_model_rows(config, facts)),
        data=_table(
            {
                split: f"{count} {facts.task.inputs} from {as_text(facts.hub_dataset or Path(source).name)}"
                for split, (source, count) in facts.data.items()
            }
        ),
        training=_table(_training_rows(facts.arguments)),
        results=_table(
            {f"{split} {as_text(metric)}": f"{value:.4f}" for (split, metric), value in _figures(facts).items()}
        ),
    )
    file = folder / "README.md"
    with whole_file(file) as partial:
        partial.write_text(f"---\n{card_data(facts).to_yaml()}\n---\n\n{body}", encoding="utf-8")
    return file
