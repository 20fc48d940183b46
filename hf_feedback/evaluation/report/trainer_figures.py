"""Figures of the iterations after every evaluation of a training run, for TensorBoard and trackio."""

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback
from transformers.integrations.fsdp import is_fsdp_managed_module

from ...training.data.labels import SINGLE_LABEL, LabelSet
from ...training.iteration_logs.iteration_curves import evaluated_split
from ...training.parameters.model_parts import feedback_model_in
from ...training.tasks import MultipleChoice
from ..diagnostics import calibration, confusion, flips
from .building import FURTHER_ITERATIONS, summarize_edges
from .labelled_examples import SUPPORTED
from .observation import Observation, observe, without_halting
from .report import EdgeSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class IterationFigures(TrainerCallback):
    """Callback that sends figures of the iterations to TensorBoard and trackio after every evaluation.

    Curves over training: accuracy and calibration error of each iteration, up to two beyond the model's K; its
    residual, the shares of items that it fixes and breaks, and the contraction of the loop (median of the first batch,
    except in sharded models). A figure at each evaluation: accuracy and residuals by iteration, messages by edge and
    iteration, β of Swish, and what K iterations change in the confusion matrix of the first. (`FeedbackTrainer` itself
    logs the size of messages, β, and the accuracy of iterations 1 … K.) Several evaluation sets have curves of their
    own, `iterations/<data>/…`.

    Args:
        trainer: a trainer with `report_to` `"tensorboard"`, `"trackio"` or both.
        most_batches: maximum number of evaluation batches.

    Raises:
        ValueError: the trainer reports to neither, or its model does not predict one class per item.
        ImportError: matplotlib is missing (`pip install -e '.[plots]'`).

    Example:

    ```python
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny))
    >>> trainer = FeedbackTrainer(model, FeedbackTrainingArguments("out", report_to="none", use_cpu=True))
    >>> trainer.add_callback(IterationFigures(trainer))
    Traceback (most recent call last):
    ValueError: `report_to` must have 'tensorboard' or 'trackio' for figures, got [].

    ```
    """

    def __init__(self, trainer: Trainer, most_batches: int = 8) -> None:
        import matplotlib  # noqa: F401  # an extra, which is needed later

        self.trainer, self.most_batches = trainer, most_batches
        if not self._receivers():
            raise ValueError(
                f"`report_to` must have 'tensorboard' or 'trackio' for figures, got {trainer.args.report_to}."
            )
        model = feedback_model_in(cast(torch.nn.Module, trainer.model))[1]
        has_classes = isinstance(model, MultipleChoice.model_class) or (
            isinstance(model, tuple(task.model_class for task in SUPPORTED))
            and LabelSet.of_model(model).problem_type == SINGLE_LABEL
        )
        if not has_classes:
            raise ValueError(
                f"Figures of iterations are about models that answer with one class for each item; "
                f"{type(model).__name__} with `problem_type`={model.config.problem_type!r} does not."
            )

    def _receivers(self) -> list[TensorBoardCallback | TrackioCallback]:
        callbacks = self.trainer.callback_handler.callbacks
        return [one for one in callbacks if isinstance(one, TensorBoardCallback | TrackioCallback)]

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Sends curves and figure of an evaluation; every process observes its own batches, the first one sends."""
        model = feedback_model_in(cast(torch.nn.Module, self.trainer.model))[1]
        k = model.config.num_iterations
        split, _, name = evaluated_split(kwargs["metrics"]).partition("_")
        if split != "eval":
            return  # test, whose values would continue the curves of validation
        with torch.random.fork_rng(devices=[]), self.trainer.compute_loss_context_manager():
            batches = list(islice(kwargs["eval_dataloader"], self.most_batches))  # which draws random numbers too
            seen = observe(model, batches, k + FURTHER_ITERATIONS)
            values = curves(seen)
            if not is_fsdp_managed_module(model):
                with without_halting(model):
                    values["contraction"] = model.estimate_contraction(batches[0]).median().item()
        if state.is_world_process_zero:
            edges = summarize_edges(model, seen.messages, k + FURTHER_ITERATIONS)
            figure = draw_figure(seen, edges, k)
            for receiver in self._receivers():
                send(receiver, values, figure, state.global_step, name)


def curves(seen: Observation) -> dict[str, float]:
    """Returns the values of the curves by name.

    Args:
        seen: the observation.
    """
    values: dict[str, float] = {}
    for i, accuracy in enumerate(seen.answers.accuracy, 1):
        values[f"accuracy_{i}"] = accuracy
        values[f"calibration_error_{i}"] = calibration(seen.answers, i)["ece"]
    for i, residual in enumerate(seen.residuals.mean(0).tolist(), 2):
        fixed, broken, _ = flips(seen.answers, i - 1, i)
        values[f"residual_{i}"] = residual
        values[f"fixed_{i}"], values[f"broken_{i}"] = (
            len(items) / len(seen.answers.labels) for items in (fixed, broken)
        )
    return values


def draw_figure(seen: Observation, edges: list[EdgeSummary], num_iterations: int) -> "Figure":
    """Draws accuracy and residuals by iteration, the size of messages by edge and iteration, and what iteration K
    changes in the confusion matrix of the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 3.6), layout="constrained")
    left, middle, right, last = figure.subplots(1, 4)
    iterations = range(1, len(seen.answers.accuracy) + 1)
    left.plot(iterations, seen.answers.accuracy, marker="o", label="accuracy")
    left.plot(iterations, seen.answers.oracle_accuracy, "--", color="grey", label="best iteration so far")
    left.axvline(num_iterations, color="grey", linestyle=":", linewidth=1)
    left.set(xlabel=f"iteration (K = {num_iterations})", xticks=list(iterations), ylabel="accuracy")
    left.legend(frameon=False)
    middle.plot(iterations[1:], seen.residuals.mean(0), marker="o")
    middle.axvline(num_iterations, color="grey", linestyle=":", linewidth=1)
    middle.set(xlabel="iteration", xticks=list(iterations), ylabel="residual, mean", ylim=(0, None))
    shares = [[share or 0.0 for share in edge.shares] for edge in edges]
    image = right.imshow(shares, cmap="Blues", aspect="auto", vmin=0.0)
    names = [f"{edge.source} → {edge.target}" for edge in edges]
    right.set(
        xlabel="iteration",
        xticks=[i - 1 for i in iterations],
        xticklabels=list(map(str, iterations)),
        yticks=range(len(names)),
        yticklabels=[
            f"{name}  β {edge.beta:.2f}" if edge.beta is not None else name
            for name, edge in zip(names, edges, strict=True)
        ],
        title="size of messages / input",
    )
    figure.colorbar(image, ax=right)
    changes = confusion(seen.answers, num_iterations) - confusion(seen.answers, 1)
    most = max(1, abs(changes).max())
    image = last.imshow(changes, cmap="RdBu", vmin=-most, vmax=most)
    last.set(xlabel="predicted class", ylabel="class", title=f"iteration {num_iterations} minus iteration 1, items")
    figure.colorbar(image, ax=last)
    return figure


def send(
    receiver: TensorBoardCallback | TrackioCallback,
    values: Mapping[str, float],
    figure: "Figure",
    step: int,
    data: str = "",
) -> None:
    """Sends values and a figure to the run of a callback of transformers, as `iterations/<name>`.

    Args:
        receiver: the callback; nothing is sent before it has opened a run.
        values: values by name.
        figure: the figure, whose name is `figure`.
        step: the training step.
        data: name of the evaluation data where there are several, sent as `iterations/<data>/<name>`.
    """
    place = f"iterations/{data}/" if data else "iterations/"
    values = {place + name: value for name, value in values.items()}
    if isinstance(receiver, TensorBoardCallback):
        if receiver.tb_writer is not None:
            for name, value in values.items():
                receiver.tb_writer.add_scalar(name, value, step)
            receiver.tb_writer.add_figure(f"{place}figure", figure, step)
    elif receiver._initialized:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = receiver._trackio.Image(np.asarray(canvas.buffer_rgba())[..., :3])
        receiver._trackio.log({**values, f"{place}figure": picture, "train/global_step": step})
