"""Loading a trained model for the commands, with its task and processor."""

from dataclasses import dataclass, field

import torch

from ..configuration_feedback import FeedbackConfig
from ..configuration_fnn import FNNConfig
from ..training.starting_model.model_arguments import HaltingArguments, Options
from ..training.starting_model.model_setup import load_tokenizer, set_options
from ..training.starting_model.model_sources import check_source, hub_options
from ..training.tasks import TASKS, NetworkTextClassification, Task, TextClassification
from ..training.tasks.task import Model, Processor, TextTask
from ..validation import check_integer, option

HEADLESS = ("FeedbackModel", "FNNModel")


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and the options to run it with.

    Args:
        name: folder or hub id.
        revision: branch, tag or commit of the hub repository.
        num_iterations: K; the model's own by default.
        halting: options of halting by name; the model's own by default.
        batch_size: examples per batch.
        bf16: whether to compute in bfloat16.

    Example:

    ```python
    >>> TrainedModel("out", batch_size=0)
    Traceback (most recent call last):
    ValueError: `batch_size` must be an integer of at least 1, got 0 (examples per batch).

    ```
    """

    name: str
    revision: str | None = None
    num_iterations: int | None = None
    halting: Options = field(default_factory=dict)
    batch_size: int = 32
    bf16: bool = False

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1, "examples per batch")

    def task(self) -> type[Task]:
        """Returns the task that the model was trained for.

        Raises:
            ValueError: it is missing or damaged, is not a feedback model, or has no head.
        """
        config = check_source(self.name, self.revision)
        if config.get("model_type") not in (FeedbackConfig.model_type, FNNConfig.model_type):
            raise ValueError(f"`model`: {self.name} is not a feedback model; train one with `hf-feedback train`.")
        architectures = config.get("architectures") or ()
        if headless := next((one for one in architectures if one in HEADLESS), None):
            raise ValueError(
                f"`model`: {self.name} was saved as a model without a head ({headless}), which answers nothing; train "
                "it for a task."
            )
        is_network = config["model_type"] == FNNConfig.model_type
        own = NetworkTextClassification if is_network else TextClassification  # of a user's own class
        return next((TASKS[one] for one in architectures if one in TASKS), own)

    def load(self) -> tuple[type[Task], Model, Processor]:
        """Returns the task, the model on the accelerator, if there is one, and its processor.

        Raises:
            ValueError: as `task`; or the model does not have an option.
        """
        task, hub = self.task(), hub_options(self.revision)
        model = task.model_class.from_pretrained(self.name, **hub)
        if self.num_iterations is not None:
            model.set_num_iterations(self.num_iterations)
        if self.halting:
            set_options(model, self.name, self.halting)
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        if issubclass(task, TextTask):
            return task, model, load_tokenizer(self.name, self.revision, of_words=task.reads_words)
        return task, model, model.predictor.auto_class.from_pretrained(self.name, **hub)


@dataclass
class TrainedModelArguments:
    """Trained model."""

    model: str = field(metadata={"help": "Folder or hub id of a trained model; also as the first argument."})
    revision: str | None = option(None, "Branch, tag or commit of the hub repository.")
    batch_size: int = option(32, "Number of examples per batch.")
    num_iterations: int | None = option(None, "K, number of iterations (default: the model's own).")
    bf16: bool = option(False, "Compute in bfloat16.")

    def trained(self, halting: HaltingArguments) -> TrainedModel:
        """Returns the model that these options and those of halting describe."""
        options = halting.config_options()
        return TrainedModel(self.model, self.revision, self.num_iterations, options, self.batch_size, self.bf16)
