"""PEFT on feedback models: options for an adapter config, and feedback for a backbone with adapters."""

import copy
import re
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..backbone_fingerprint import share_weights
from ..modeling_base import FeedbackPreTrainedModel
from ..modeling_feedback import FeedbackModel
from .parameters.model_parts import feedback_model_in, parts_of

if TYPE_CHECKING:
    from peft import PeftModel


def peft_options(model: nn.Module) -> dict[str, Any]:
    """Returns the options that any PEFT config for a feedback model needs.

    Adapters are added to the layers of the backbone, at the modules that PEFT chooses for its family, or else at all
    linear maps. Feedback and head are trained in full and saved with the adapter; a masked-LM head that is tied to the
    embeddings is not.

    Args:
        model: A feedback model.

    Returns:
        `target_modules`, `modules_to_save` and `task_type`.

    Example:

    ```python
    >>> from peft import LoraConfig, get_peft_model
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> from hf_feedback.training import peft_options
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> model = FeedbackForSequenceClassification.from_backbone(BertModel(tiny))
    >>> config = LoraConfig(r=8, **peft_options(model))
    >>> config.modules_to_save
    ['feedback', 'classifier']
    >>> tuned = get_peft_model(model, config)

    ```

    Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL_TARGETS

    from .tasks import TASKS  # with the modules that read data and compute metrics

    _, core = feedback_model_in(model)
    targets = USUAL_TARGETS.get(core.backbone.config.get_text_config().model_type) or _linear_maps(core.layers)
    names, task = "|".join(map(re.escape, targets)), TASKS.get(type(core).__name__)
    return {
        "target_modules": rf"backbone\.{re.escape(core.layout.stack)}\.(.*\.)?({names})",
        "modules_to_save": ["feedback", *_head_modules(core)],
        "task_type": None if task is None else task.peft_task_type,
    }


def _linear_maps(layers: list[nn.Module]) -> list[str]:
    """The names of all linear maps inside layers."""
    modules = nn.ModuleList(layers).named_modules()
    return sorted({name.split(".", 1)[1] for name, module in modules if isinstance(module, nn.Linear | Conv1D)})


def _head_modules(model: nn.Module) -> list[str]:
    """The modules that own parameters of the head, and none that is tied to the backbone."""
    head = {name for name, part in parts_of(model).items() if part == "head"}
    names = [(id(parameter), name) for name, parameter in model.named_parameters(remove_duplicate=False)]
    tied = {number for number, name in names if name not in head}
    own = {name for number, name in names if number not in tied}
    modules: list[str] = []
    # Parents come first: the largest modules that hold only parameters of the head.
    for name, module in model.named_modules():
        inside = {key for key, _ in module.named_parameters(name)}
        if name and inside and inside <= own and not any(name.startswith(f"{outer}.") for outer in modules):
            modules.append(name)
    return modules


def from_peft(
    feedback_class: type[FeedbackPreTrainedModel] | type[FeedbackModel], peft_model: "PeftModel", **options: Any
) -> "PeftModel":
    """Adds new feedback to a backbone with PEFT adapters, which keep their values and are trained too.

    Args:
        feedback_class: class of the feedback model to make.
        peft_model: a backbone or task model with one adapter, such as LoRA. The result shares its weights but those of
            the adapters: use the result instead.
        **options: as in `from_backbone`.

    Returns:
        The feedback model, wrapped by PEFT again: PEFT's own methods train, save, load and merge it. In evaluation mode
        it equals the adapted backbone before training.

    Raises:
        ValueError: the adapters are prompts or prefixes, there are several of them, they changed the backbone's own
            weights (such as PiSSA), or an option is not allowed; `peft_model` keeps its adapters then.

    Example:

    ```python
    >>> from peft import LoraConfig, get_peft_model
    >>> from transformers import BertConfig, BertModel
    >>> from hf_feedback import FeedbackForSequenceClassification
    >>> tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> adapted = get_peft_model(BertModel(tiny), LoraConfig(target_modules=["query"]))
    >>> model = from_peft(FeedbackForSequenceClassification, adapted, num_iterations=3)
    >>> model.base_model.model.config.num_iterations
    3

    ```
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    adapter, config = _only_adapter(peft_model)
    _check_convertible(config)
    if any(getattr(module, "merged", False) for module in peft_model.modules()):
        cast(Any, peft_model.base_model).unmerge_adapter()
    peft_model = share_weights(peft_model)  # taken apart here, and whole where an option is refused
    inner = cast(nn.Module, peft_model.base_model.model)
    saved = {id(m.modules_to_save[adapter]) for m in inner.modules() if isinstance(m, ModulesToSaveWrapper)}
    old_names = {id(m.get_base_layer()): n for n, m in inner.named_modules() if isinstance(m, BaseTunerLayer)}
    state = get_peft_model_state_dict(peft_model, adapter_name=adapter)
    model = feedback_class.from_backbone(_settle_ties(peft_model.unload()), **options)
    new_names = {old_names[id(m)]: n for n, m in model.named_modules() if id(m) in old_names}
    saved_names = [name for name, module in model.named_modules() if id(module) in saved]
    config = _adapt_config(config, new_names, peft_options(model), saved_names)
    wrapped = get_peft_model(model, config, adapter_name=adapter)
    moved = get_peft_model_state_dict(wrapped, adapter_name=adapter)
    for key, tensor in state.items():
        old = next((name for name in new_names if key.startswith(f"base_model.model.{name}.")), None)
        if old is not None:
            moved[key.replace(old, new_names[old], 1)] = tensor
        elif key in moved and not key.startswith("base_model.model."):  # what all layers share, as a vector bank
            moved[key] = tensor
    set_peft_model_state_dict(wrapped, moved, adapter_name=adapter)
    return wrapped.eval()


def _only_adapter(peft_model: "PeftModel") -> tuple[str, Any]:
    """The name and the config of the adapter."""
    if len(peft_model.peft_config) != 1:
        raise ValueError(f"`peft_model` must have one adapter, got {', '.join(peft_model.peft_config)}.")
    adapter, config = next(iter(cast(dict[str, Any], peft_model.peft_config).items()))
    if config.is_prompt_learning:
        raise ValueError(
            f"`peft_model` has {config.peft_type.value} adapters, which are none of the layers' that are kept; use "
            "LoRA or another method that adapts the layers."
        )
    return adapter, config


def _adapt_config(config: Any, new_names: dict[str, str], options: dict[str, Any], saved_names: list[str]) -> Any:
    """A copy of an adapter's config for a feedback model.

    Args:
        config: config of the adapter.
        new_names: old name → new name of each layer with an adapter.
        options: those of `peft_options`.
        saved_names: new names of the modules that the adapter trains in full.
    """
    config = copy.deepcopy(config)
    for key in ("target_modules", "feedforward_modules"):
        if (chosen := getattr(config, key, None)) is not None:
            every = key == "target_modules"  # only layers that have an adapter are in `new_names`
            setattr(config, key, [new for old, new in new_names.items() if every or _targets(chosen, old)])
    for key in ("rank_pattern", "alpha_pattern"):
        if pattern := getattr(config, key, None):
            pairs = ((new, value) for p, value in pattern.items() for old, new in new_names.items()
                     if re.match(rf"(.*\.)?({p})$", old))  # fmt: skip
            setattr(config, key, dict(pairs))
    for key in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        if hasattr(config, key):
            setattr(config, key, None)
    config.modules_to_save = list(dict.fromkeys([*options["modules_to_save"], *saved_names]))
    config.task_type, config.inference_mode = options["task_type"], False
    return config


def _settle_ties(model: Any) -> Any:
    """Has the config say so where PEFT trained a copy of embeddings that the output embeddings were tied to."""
    output = model.get_output_embeddings()
    if output is not None and getattr(output, "weight", None) is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    return model


def _check_convertible(config: Any) -> None:
    """Refuses an adapter that cannot be moved."""
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start not in ("gaussian", "orthogonal"):
        raise ValueError(
            f"`peft_model`: `init_lora_weights`={start!r} changed the weights of the backbone itself; merge the "
            "adapters (`merge_and_unload`) and add feedback to the result."
        )
    if getattr(config, "trainable_token_indices", None):
        raise ValueError("`peft_model` trains single tokens (`trainable_token_indices`); merge the adapters first.")


def _targets(chosen: str | list[str], name: str) -> bool:
    """Whether an adapter config chooses a module, by a regular expression or by the ends of names."""
    if isinstance(chosen, str):
        return re.fullmatch(chosen, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in chosen)
