"""LoRA as an option of training: adapters in the frozen backbone, which are merged into it at the end of a run."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel, Trainer
from transformers.utils import is_peft_available

from ..modeling_base import FeedbackPreTrainedModel
from ..validation import check_integer, is_number, option
from .parameters.freezing import freeze_parameters
from .parameters.model_parts import any_model_in, feedback_model_in
from .peft import peft_options
from .resuming.fingerprints import fingerprint_weights

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from .arguments import FeedbackTrainingArguments
    from .resuming.checkpoints import Record


@dataclass
class LoraArguments:
    """LoRA.

    `FeedbackTrainer` adds the adapters to its model, where `peft_options` says. Feedback and head are trained in full.
    Names of parts mean what is trained of them: `backbone_lr` is the rate of the adapters, and `freeze=["layers:0-3"]`
    freezes those of these layers. Checkpoints are PEFT's, with adapters, feedback and head. `run_task` merges the
    adapters into the backbone at the end; of another `FeedbackTrainer`, `trainer.model.merge_and_unload()` does.

    Args:
        lora_rank: rank of the adapters; `None`: there are none, and the backbone is trained itself.
        lora_alpha: what the adapters add is scaled by `lora_alpha / lora_rank`; twice the rank by default.

    Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.

    Example:

    ```python
    >>> from hf_feedback.training import FeedbackTrainingArguments
    >>> FeedbackTrainingArguments("out", lora_rank=8).scale_of_lora
    16

    ```
    """

    lora_rank: int | None = option(
        None,
        "Train low-rank adapters of this rank in the layers of the backbone, whose own weights stay frozen, beside "
        "feedback and head. Their rate is --backbone-lr (default with this option: --learning-rate). At the end they "
        "are merged into the backbone: the saved folder is a whole model like any other. Needs hf-feedback[peft].",
    )
    lora_alpha: float | None = option(
        None, "What these adapters add is scaled by this over their rank (default: twice the rank)."
    )

    @property
    def scale_of_lora(self) -> float:
        """The value of `lora_alpha`, or its default."""
        return 2 * (self.lora_rank or 0) if self.lora_alpha is None else self.lora_alpha

    def check_lora(self) -> None:
        """Raises `ValueError` where an option has a value that is not allowed, or contradicts another."""
        if self.lora_rank is None:
            if self.lora_alpha is not None:
                raise ValueError(
                    f"`lora_alpha`={self.lora_alpha!r} scales adapters; give `lora_rank`, or leave it out."
                )
            return
        check_integer("lora_rank", self.lora_rank, 1, "rank of the adapters")
        if self.lora_alpha is not None and (not is_number(self.lora_alpha) or self.lora_alpha <= 0):
            raise ValueError(f"`lora_alpha` must be a finite number above 0, got {self.lora_alpha!r}.")
        args = cast("FeedbackTrainingArguments", self)
        for name in ("fsdp", "deepspeed"):  # also of `accelerate launch`
            if getattr(args, name, None) or parse_flag_from_env(f"ACCELERATE_USE_{name.upper()}"):
                raise ValueError(
                    f"`lora_rank`={self.lora_rank} cannot merge the adapters of a model that `{name}` divides; use "
                    "DDP, or train with PEFT itself."
                )
        strategy = getattr(args.hub_strategy, "value", args.hub_strategy)
        if args.push_to_hub and strategy != "end":
            raise ValueError(
                f"`hub_strategy`={strategy!r} pushes checkpoints, which are adapters with `lora_rank`="
                f"{self.lora_rank}; set it to 'end', and the whole model is pushed."
            )


def with_adapters(model: nn.Module, args: "FeedbackTrainingArguments") -> nn.Module:
    """Returns the model that is trained: with LoRA adapters, if `args` asks for them, and parts frozen.

    Args:
        model: A feedback model; adapters are added in place.
        args: the training arguments.

    Raises:
        ValueError: the model cannot have adapters that are merged, or none of them would train.
        ImportError: PEFT is not installed.
    """
    if args.lora_rank is None:
        return model
    core = _check_adaptable(model, args.lora_rank)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=args.lora_rank, lora_alpha=cast(int, args.scale_of_lora), **peft_options(core))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # which PEFT reads
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT sets it as the maps of the family need
        tuned = get_peft_model(cast(PreTrainedModel, core), config)
    cast(Any, config).merged_after_training = True  # an attribute that PEFT does not save
    freeze_parameters(tuned, args.freeze)
    if not any(parameter.requires_grad for parameter in _adapters(tuned).values()):
        raise ValueError(
            f"`freeze`={args.freeze} freezes all adapters of `lora_rank`={args.lora_rank}, which would stay without "
            "effect. The backbone's own weights are frozen already; leave the backbone out of `freeze`, or `lora_rank`."
        )
    return tuned


def merge_adapters(trainer: Trainer, args: "FeedbackTrainingArguments") -> None:
    """Merges the adapters of `args`, if any, into the backbone of a trainer's model, which is a plain one then."""
    if args.lora_rank is not None:
        trainer.model = trainer.model_wrapped = cast("PeftModel", trainer.model).merge_and_unload()


def describe_adapters(model: nn.Module | None, args: "FeedbackTrainingArguments") -> list[str]:
    """Returns a line about the adapters of `args`; none without adapters."""
    if args.lora_rank is None or model is None:
        return []
    (config,) = cast(dict[str, "LoraConfig"], model.peft_config).values()
    adapters = _adapters(model)
    count = sum(parameter.numel() for parameter in adapters.values())
    tensors = feedback_model_in(model)[1].backbone.named_parameters()
    backbone = sum(p.numel() for name, p in tensors if "lora_" not in name and ".modules_to_save." not in name)
    return [
        f"LoRA: rank {config.r}, alpha {config.lora_alpha:g}, in {len(adapters) // 2} modules of the backbone, "
        f"frozen otherwise: {count:,} parameters, {count / backbone:.2%} of the backbone's; merged into it at the end"
    ]


def adapter_record(model: nn.Module, args: "FeedbackTrainingArguments") -> "Record":
    """Returns what a run with adapters depends on too: the weights of the backbone, which no checkpoint holds."""
    if args.lora_rank is None:
        return {}
    frozen = ((name, p) for name, p in feedback_model_in(model)[1].backbone.named_parameters() if "lora_" not in name)
    return {"weights of the backbone": fingerprint_weights(frozen)}


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def _check_adaptable(model: nn.Module, rank: int) -> FeedbackPreTrainedModel:
    """Returns the model, if adapters can be trained in it and merged."""
    core = any_model_in(model)[1]
    if not isinstance(core, FeedbackPreTrainedModel):
        raise ValueError(f"`lora_rank`={rank} needs a pretrained backbone, which {type(core).__name__} has not.")
    if model is not core or hasattr(core, "peft_config"):
        raise ValueError(
            f"`lora_rank`={rank} adds adapters to a plain feedback model, and this {type(model).__name__} has some or "
            "is wrapped already; leave the option out."
        )
    if not is_peft_available():
        raise ImportError("`lora_rank` needs PEFT; pip install -e '.[peft]'.", name="peft")
    backbone = core.backbone
    if getattr(backbone, "hf_quantizer", None) is not None:
        raise ValueError(
            f"`lora_rank`={rank}: the weights of this {type(backbone).__name__} are quantized, and adapters merged "
            "into them would be rounded; train with PEFT itself, and keep the adapters beside it."
        )
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not all(module.affine for module in norms):  # others are frozen, see `frozen_norms`
        raise ValueError(
            f"`lora_rank`={rank}: {type(backbone).__name__} has batch norms without weights, whose running statistics "
            "change with the layer around them, and are not part of the adapters; train the backbone itself."
        )
    return core
