"""The ways to train that feedback is compared with, one class each.

Those of decoders are in `decoder_arms.py`, those of long texts in `long_text_arms.py`.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from ...backbone_layout import keep_layers, number_layers
from ...modeling_base import FeedbackPreTrainedModel
from ...training.data.splits import Row
from ...training.parameters.freezing import FREEZABLE_PARTS
from ...training.parameters.model_parts import parts_of
from ...training.peft import peft_options
from ...training.starting_model.model_arguments import Options
from .message_controls import read_bottom_up


@dataclass(frozen=True)
class Budget:
    """Resources of the feedback arm, which other arms match.

    Args:
        parameters: number of parameters of its messages.
        flops: FLOPs of a training step, relative to the same step without feedback, or of an arm that trains longer.
        num_iterations: K.
        segment_tokens: tokens of a segment, if texts are cut.
        text_tokens: tokens of the longest text, if texts are cut.
    """

    parameters: int
    flops: float = 1.0
    num_iterations: int = 2
    segment_tokens: int | None = None
    text_tokens: int | None = None


class Arm:
    """One of the compared ways to train.

    Attributes:
        description: a short description.
        is_feedback: whether it is a feedback arm, which the others are compared with.
        trains_new_parts_only: whether only parameters that start at random are trained, at their rate.
        is_default: whether it is compared by default.
        trains_longer: whether it trains for more epochs, with the compute of the feedback arm.
    """

    description: str
    is_feedback: bool = False
    trains_new_parts_only: bool = False
    is_default: bool = True
    trains_longer: bool = False

    def model_options(self) -> Options:
        """Feedback options of its model, in addition to those of the command."""
        return {"num_iterations": 1}

    def frozen_parts(self, freeze: list[str]) -> list[str]:
        """Frozen parts, given those that the command freezes."""
        return [*freeze, "feedback"]

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        """Returns the reason why the arm cannot be compared; `None` if it can.

        Args:
            model: the feedback model.
            row: the longest encoded example.
            freeze: parts that the command freezes.
        """
        return None

    def data_options(self, budget: Budget) -> Options:
        """Options of its data, in addition to those of the command."""
        return {}

    def training_options(self) -> Options:
        """Options of its training, in addition to those of the command."""
        return {}

    def adapt_model(self, model: FeedbackPreTrainedModel, budget: Budget) -> nn.Module:
        """Returns the model to train, given a fresh one with `model_options`."""
        return model

    def adapt_data(self, data: Dataset) -> Dataset:
        """Returns a split, given one as the task encodes it."""
        return data

    def training_factor(self, budget: Budget) -> float:
        """Factor on the number of epochs or steps of the command."""
        return budget.flops if self.trains_longer else 1.0


@dataclass(frozen=True)
class Feedback(Arm):
    """Feedback with certain options.

    Args:
        options: options of `FeedbackConfig`, in addition to those of the command.
    """

    options: Mapping[str, Any] = field(default_factory=dict)

    description = "feedback"
    is_feedback = True

    def model_options(self) -> Options:
        return dict(self.options)

    def frozen_parts(self, freeze: list[str]) -> list[str]:
        return freeze


def _freezes_backbone(freeze: list[str]) -> str | None:
    return "the backbone is frozen" if "backbone" in freeze else None


class Plain(Arm):
    """The backbone with its head, fine-tuned."""

    description = "plain fine-tuning"

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        return _freezes_backbone(freeze)


class PlainLonger(Plain):
    """Plain fine-tuning for more epochs, with the compute of the feedback arm."""

    description = "plain fine-tuning with the compute of feedback"
    trains_longer = True


class RDrop(Plain):
    """R-Drop: the predictions for a text under two dropout masks are trained to agree.

    Source: Liang et al. 2021, R-Drop: Regularized Dropout for Neural Networks, arXiv 2106.14448.
    """

    description = "plain fine-tuning with R-Drop"
    is_default = False

    def training_options(self) -> Options:
        return {"dropout_agreement_weight": 1.0}


class HeadOnly(Arm):
    """Only the head is trained."""

    description = "head only"
    trains_new_parts_only = True

    def frozen_parts(self, freeze: list[str]) -> list[str]:
        return ["backbone", "feedback"]

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        return None if _head_of(model) and "head" not in freeze else "the task has no new head to train"


@dataclass(frozen=True)
class LoRA(Arm):
    """Low-rank adapters in the frozen backbone, with as many parameters as the messages.

    Args:
        trains_feedback: whether the messages are trained too.

    Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
    """

    trains_feedback: bool = False

    description = "LoRA with as many parameters"
    trains_new_parts_only = True
    factor: ClassVar[int] = 1  # number of parameters, relative to those of the messages

    def frozen_parts(self, freeze: list[str]) -> list[str]:
        return []  # PEFT freezes

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        if not is_peft_available():
            return "PEFT is not installed (`pip install peft`)"
        return "the head is frozen, which PEFT trains" if "head" in freeze else None

    def adapt_model(self, model: FeedbackPreTrainedModel, budget: Budget) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        options = peft_options(model)
        if not self.trains_feedback:
            options["modules_to_save"].remove("feedback")
        adapted = [m for name, m in model.named_modules() if re.fullmatch(options["target_modules"], name)]
        per_rank = sum(sum(cast(nn.Linear, module).weight.shape) for module in adapted)
        rank = max(1, round(self.factor * budget.parameters / per_rank))
        return get_peft_model(cast(PreTrainedModel, model), LoraConfig(r=rank, lora_alpha=2 * rank, **options))


class DoubleLoRA(LoRA):
    """LoRA with as many parameters as messages and LoRA together, beside which it shows what the messages bring."""

    description = "LoRA with twice as many parameters"
    is_default = False
    factor = 2


class BottomUp(Arm):
    """The same messages, read from each layer's own input, with K = 1: adapters with as many parameters.

    Source: Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, arXiv 1902.00751, for adapters.
    """

    description = "the same messages, bottom-up"

    def frozen_parts(self, freeze: list[str]) -> list[str]:
        return freeze

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        if model.config.feedback_signal == "error":
            return "`feedback_signal='error'` would read the difference of a state to itself"
        if model.feedback.reads_classes or model.feedback.acts_in_first_iteration or model.config.feedback_shift:
            return "these messages read what there is only after an iteration, or are bottom-up already"
        return None

    def adapt_model(self, model: FeedbackPreTrainedModel, budget: Budget) -> nn.Module:
        read_bottom_up(model)
        return model


class Duplicated(Plain):
    """The layers that feedback repeats are copied K times in the stack, each with its own weights.

    Source: Kim et al. 2023, SOLAR 10.7B, arXiv 2312.15166, for stacks with doubled layers.
    """

    description = "repeated layers with their own weights"

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        if len({id(layer) for layer in model.layers}) < len(model.layers):
            return "the backbone's layers share their weights"
        if any(item not in FREEZABLE_PARTS for item in freeze):
            return "single layers are frozen, and their numbers would change"
        return super().why_not(model, row, freeze)

    def adapt_model(self, model: FeedbackPreTrainedModel, budget: Budget) -> nn.Module:
        first, last = model.layout.looped_range
        count = len(model.layers)
        again = [*range(first, last + 1)] * (budget.num_iterations - 1)
        keep_layers(model.backbone, model.layout.stack, [*range(last + 1), *again, *range(last + 1, count)])
        stack = model.backbone.get_submodule(model.layout.stack)
        for i in range(last + 1, last + 1 + len(again)):
            cast(nn.ModuleList, stack)[i] = copy.deepcopy(cast(nn.ModuleList, stack)[i])
        number_layers(list(stack.children()))
        model.layout = replace(model.layout, num_layers=count + len(again))
        return model


class LoopOnly(Arm):
    """The loop without messages: the layers read their own output, as often as with feedback."""

    description = "the loop without messages"

    def model_options(self) -> Options:
        return {"feedback_state": "carry"}

    def adapt_model(self, model: FeedbackPreTrainedModel, budget: Budget) -> nn.Module:
        model.set_num_iterations(budget.num_iterations)
        return model


def _head_of(model: FeedbackPreTrainedModel) -> list[str]:
    return [name for name, part in parts_of(model).items() if part == "head"]


class CombinedArm(Arm):
    """A combination of arms, such as LoRA in a backbone without its causal mask.

    Args:
        parts: the arms.
    """

    def __init__(self, parts: Sequence[Arm]) -> None:
        others = [part for part in parts if not isinstance(part, LoRA)]
        self.trains_feedback = any("feedback" not in part.frozen_parts([]) for part in others)
        self.parts = [type(part)(self.trains_feedback) if isinstance(part, LoRA) else part for part in parts]
        self.has_lora = any(isinstance(part, LoRA) for part in parts)
        self.description = ", ".join(part.description for part in parts)
        self.is_feedback = any(part.is_feedback for part in parts)
        self.trains_new_parts_only = any(part.trains_new_parts_only for part in parts)
        self.trains_longer = any(part.trains_longer for part in parts)

    def model_options(self) -> Options:
        options: Options = {}
        for part in sorted(self.parts, key=lambda part: part.is_feedback):  # the K of feedback counts
            options |= {} if self.is_feedback and not part.is_feedback else part.model_options()
        return options

    def frozen_parts(self, freeze: list[str]) -> list[str]:
        if self.has_lora:
            return []
        frozen = dict.fromkeys(item for part in self.parts for item in part.frozen_parts(freeze))
        return [item for item in frozen if item != "feedback" or item in freeze or not self.trains_feedback]

    def why_not(self, model: FeedbackPreTrainedModel, row: Row, freeze: list[str]) -> str | None:
        reasons = (
            part.why_not(model, row, [] if self.has_lora and not isinstance(part, LoRA) else freeze)
            for part in self.parts
        )
        return next((reason for reason in reasons if reason is not None), None)

    def data_options(self, budget: Budget) -> Options:
        return {name: value for part in self.parts for name, value in part.data_options(budget).items()}

    def training_options(self) -> Options:
        return {name: value for part in self.parts for name, value in part.training_options().items()}

    def adapt_model(self, model: FeedbackPreTrainedModel, budget: Budget) -> nn.Module:
        wrapped: nn.Module = model
        for part in sorted(self.parts, key=lambda part: isinstance(part, LoRA)):  # PEFT wraps the model at the end
            wrapped = part.adapt_model(model, budget)
        return wrapped

    def adapt_data(self, data: Dataset) -> Dataset:
        for part in self.parts:
            data = part.adapt_data(data)
        return data
