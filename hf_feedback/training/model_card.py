"""The model card of a training run."""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..configuration_feedback import FeedbackConfig
from ..configuration_fnn import FNNConfig
from ..model_connections import operators_of
from ..version import HF_FEEDBACK_VERSION
from ..whole_files import whole_file
from .arguments import FeedbackTrainingArguments
from .task_card import TaskCard

TEMPLATE = Path(__file__).with_name("model_card_template.md")
SPLITS = {"eval": "validation", "test": "test"}
NOT_IN_RESULTS = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
MAX_NAME_LENGTH = 80
MAX_NAMES = 100


@dataclass(frozen=True)
class RunFacts:
    """The facts of a training run, for its model card.

    Args:
        backbone: Hub id or folder that the run started from; `None` for random weights.
        data: split → source and number of examples; `None` if they were streamed.
        dataset: Hub id or folder of the data; `None` for files.
        metrics: metrics of the run, `eval_…` and `test_…`.
        arguments: the training arguments.
        task: the task in words.
        hub_metrics: metric → its name on the Hub, if it differs.
    """

    backbone: str | None
    data: Mapping[str, tuple[str, int | None]]
    dataset: str | None
    metrics: Mapping[str, float]
    arguments: FeedbackTrainingArguments
    task: TaskCard
    hub_metrics: Mapping[str, str] = field(default_factory=dict)

    @property
    def hub_dataset(self) -> str | None:
        """Hub id of the data; `None` for local files and folders."""
        return self.dataset if is_hub_id(self.dataset) else None

    @property
    def name(self) -> str:
        """Name of the model: that of its repository or folder."""
        return Path(self.arguments.hub_model_id or self.arguments.output_dir or "model").name

    @property
    def results(self) -> dict[tuple[str, str], float]:
        """(split, metric) → value, without losses and times."""
        keys = {key: key.partition("_") for key in self.metrics}
        return {
            (SPLITS[prefix], metric): self.metrics[key]
            for key, (prefix, _, metric) in keys.items()
            if prefix in SPLITS and metric not in NOT_IN_RESULTS
        }


def is_hub_id(name: str | None) -> bool:
    """Whether a name can be a repository on the Hub, and is not a local file or folder.

    Example:

    ```python
    >>> is_hub_id("sentence-transformers/all-MiniLM-L6-v2"), is_hub_id("runs/one/out"), is_hub_id(None)
    (True, False, False)

    ```
    """
    if name is None:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not os.path.exists(name)


def short_name(name: object) -> str:
    """Returns a name for metadata: one line without control characters, of at most `MAX_NAME_LENGTH` characters.

    Example:

    ```python
    >>> short_name("late\\n# Heading")
    'late # Heading'

    ```
    """
    visible = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(name)[: 2 * MAX_NAME_LENGTH])
    line = " ".join(visible.split())
    return line if len(line) <= MAX_NAME_LENGTH else f"{line[: MAX_NAME_LENGTH - 1]}…"


def escape_name(name: object) -> str:
    """Escapes a name for the text of the card, so that it is neither HTML nor Markdown nor a link.

    Example:

    ```python
    >>> escape_name("a|b"), escape_name("train.csv")
    ('a&#124;b', 'train.csv')

    ```
    """
    signs = r"[&<>|`\[\]!*~#$\\\"@]|\b_|_\b|:(?=//)|(?<=\bwww)\."
    text = re.sub(signs, lambda sign: f"&#{ord(sign[0])};", short_name(name), flags=re.IGNORECASE)
    # GitHub resolves entities before it searches for mail addresses, hence a word joiner.
    return text.replace("&#64;", "&#64;&#8288;")


def _list_names(names: Iterable[object]) -> str:
    texts = [escape_name(name) for name in names]
    more = f" and {len(texts) - MAX_NAMES} more" if len(texts) > MAX_NAMES else ""
    return ", ".join(texts[:MAX_NAMES]) + more


def card_data(facts: RunFacts) -> ModelCardData:
    """Returns the metadata of the card, as the Hub reads it."""
    results = [
        EvalResult(
            task_type=facts.task.pipeline_tag,
            dataset_type=facts.hub_dataset or facts.task.dataset_type,
            dataset_name=short_name(facts.hub_dataset or Path(facts.data[split][0]).name),
            dataset_split=split,
            metric_type=facts.hub_metrics.get(metric, short_name(metric)),
            metric_name=short_name(metric),
            metric_value=round(value, 4),
        )
        for (split, metric), value in facts.results.items()
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
    return {**rows, "labels": _list_names((config.id2label or {}).values())}


def _backbone_rows(config: FeedbackConfig, facts: RunFacts) -> dict[str, object]:
    rank = "full rank" if config.feedback_rank is None else f"rank {config.feedback_rank}"
    head = f"linear, pooling: {config.pooling}" if facts.task.pooled else "new"
    rows: dict[str, object] = {
        # a hub id, or the end of a folder's path
        "backbone": escape_name("/".join(Path(facts.backbone or "").parts[-2:])),
        "iterations (K)": config.num_iterations,
        "edges (source → target)": ", ".join(f"{source} → {target}" for source, target in config.edges()),
        "message": f"{config.feedback_type}, {config.feedback_activation}, {rank}",
        "head": "the backbone's own" if config.head == "backbone" else head,
    }
    if config.iteration_loss != "last":
        rows["loss at every iteration"] = config.iteration_loss
    if facts.task.labelled:
        rows["labels"] = _list_names((config.id2label or {}).values())
    return rows


def _data_rows(facts: RunFacts) -> dict[str, object]:
    return {
        split: f"{count or 'streamed'} {facts.task.inputs} from {escape_name(facts.hub_dataset or Path(source).name)}"
        for split, (source, count) in facts.data.items()
    }


def _training_rows(args: FeedbackTrainingArguments) -> dict[str, object]:
    rates = {"backbone": args.backbone_lr, "feedback": args.feedback_lr, "head": args.head_lr}
    return {
        **({"steps": args.max_steps} if args.max_steps > 0 else {"epochs": args.num_train_epochs}),
        "batch size": args.train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size),
        "learning rate": args.learning_rate,
        **{f"rate of the {part}": rate for part, rate in rates.items() if rate is not None},
        "layer-wise decay of the rate": args.layer_lr_decay,
        **_lora_rows(args),
        "frozen": _list_names(_frozen_parts(args)) or "nothing",
        "schedule": f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}, warm-up {args.warmup_steps}",
        "weight decay": args.weight_decay,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }


def _frozen_parts(args: FeedbackTrainingArguments) -> list[str]:
    freeze = [args.freeze] if isinstance(args.freeze, str) else args.freeze or []
    return freeze if args.lora_rank is None else ["backbone", *freeze]


def _lora_rows(args: FeedbackTrainingArguments) -> dict[str, object]:
    if args.lora_rank is None:
        return {}
    return {"LoRA": f"rank {args.lora_rank}, alpha {args.scale_of_lora:g}; its adapters are merged into the backbone"}


def _describe_iterations(config: FeedbackConfig | FNNConfig) -> str:
    from_scratch = isinstance(config, FNNConfig)
    operators = operators_of(config) if isinstance(config, FeedbackConfig) else []
    acts_first = any(operator.acts_in_first_iteration for operator in operators)
    if config.num_iterations == 1:
        if acts_first:
            return "With one iteration nothing is fed back; joint messages read their own layer alone, as adapters do."
        plain = "a plain recurrent or layered network" if from_scratch else "the plain backbone"
        return f"With one iteration nothing is fed back: this is {plain}."
    if from_scratch:
        return f"States are refined in {config.num_iterations} iterations; each reads those of the one before."
    later = f"From the second of its {config.num_iterations} iterations on, lower layers read messages of higher ones."
    return f"{later} In the first, joint messages read their own layer alone, as adapters do." if acts_first else later


def write_model_card(folder: Path, config: FeedbackConfig | FNNConfig, facts: RunFacts) -> Path:
    """Writes the card as `README.md` into the folder of the model.

    Args:
        folder: folder of the model.
        config: config of the model.
        facts: the facts of its training run.

    Returns:
        The file.
    """
    repository, task = facts.arguments.hub_model_id, facts.task.model_with_article
    card = ModelCard.from_template(
        card_data(facts),
        template_path=str(TEMPLATE),
        name=escape_name(facts.name),
        task=f"{task[0].upper()}{task[1:]}",
        version=HF_FEEDBACK_VERSION,
        transformers_version=transformers.__version__,
        iterations=_describe_iterations(config),
        usage=facts.task.usage.format(model=repository if is_hub_id(repository) else "path/or/id"),
        model=_network_rows(config) if isinstance(config, FNNConfig) else _backbone_rows(config, facts),
        data=_data_rows(facts),
        training=_training_rows(facts.arguments),
        results={f"{split} {escape_name(metric)}": f"{value:.4f}" for (split, metric), value in facts.results.items()},
    )
    file = folder / "README.md"
    with whole_file(file) as partial:
        partial.write_text(str(card), encoding="utf-8")
    return file
