"""Options for caching the states of frozen layers, which are the same in every epoch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer

from ...modeling_base import FeedbackPreTrainedModel
from ...validation import is_number, option
from ..parameters.freezing import lowest_layers
from ..parameters.model_parts import any_model_in, parts_of
from ..resuming.fingerprints import fingerprint_config, fingerprint_weights
from .frozen_norms import frozen_norms
from .frozen_prefix import FrozenPrefix
from .prefix_cache import TEXT_INPUTS, PrefixCache

if TYPE_CHECKING:
    from ..arguments import FeedbackTrainingArguments
    from ..trainer import FeedbackTrainer


@dataclass
class PrefixArguments:
    """Caching states of frozen layers.

    Args:
        cache_prefix: whether to store the states of layers without trained parameters below in memory-mapped files in
            the output folder, and to read them from the second epoch on; see `FrozenPrefix`. `run_task` removes them at
            the end, `FeedbackTrainer` keeps them for its next training.
        cache_prefix_gigabytes: maximum size of these files in gigabytes.
    """

    cache_prefix: bool = option(
        False, "Compute the states of frozen layers in the first epoch only, and read them from disk in later ones."
    )
    cache_prefix_gigabytes: float = option(10.0, "Maximum size of these files in gigabytes.")


PREFIX_FOLDER = "_prefix_states"  # in the output folder; names that begin with _ are not pushed to the Hub


def check_prefix(args: "FeedbackTrainingArguments") -> None:
    """Raises `ValueError` where states cannot be cached during training, or are not and their size is limited."""
    gigabytes = args.cache_prefix_gigabytes
    if not is_number(gigabytes) or gigabytes <= 0:
        raise ValueError(f"`cache_prefix_gigabytes` must be a number above 0, got {gigabytes!r}.")
    if not args.cache_prefix and gigabytes != PrefixArguments.cache_prefix_gigabytes:
        raise ValueError(
            f"`cache_prefix_gigabytes`={gigabytes:g} has no effect without `cache_prefix`; give both, or leave it out."
        )
    changes = {
        "adversarial": args.adversarial != "none",
        "neftune_noise_alpha": args.neftune_noise_alpha is not None,
        "unfreeze_every": args.unfreezes,
        "torch_compile": args.torch_compile,
        "fsdp": bool(args.fsdp),
        "deepspeed": args.deepspeed is not None,
    }
    if args.cache_prefix and (found := [name for name, is_set in changes.items() if is_set]):
        raise ValueError(
            f"`cache_prefix` needs layers that always make the same of a text; it does not go with `{found[0]}`: leave "
            "one out."
        )


def make_frozen_prefix(trainer: "FeedbackTrainer") -> AbstractContextManager[object]:
    """Returns the context of one training in which frozen layers run without dropout, or are read from a cache, and
    frozen batch norms keep their running statistics.

    Raises:
        ValueError: states cannot be cached: no layers are frozen, texts are cut into segments, or the files are too
            large.
    """
    model, core = cast(nn.Module, trainer.model), any_model_in(cast(nn.Module, trainer.model))[1]
    args = trainer.args
    if not isinstance(core, FeedbackPreTrainedModel):
        if args.cache_prefix:
            raise ValueError(f"`cache_prefix` needs a backbone, which {type(core).__name__} has not; leave it out.")
        return nullcontext()
    if args.torch_compile or args.neftune_noise_alpha is not None:
        return frozen_norms(model)
    depth = FrozenPrefix(model).depth()
    if not args.cache_prefix:
        return frozen_norms(model) if depth is None and not args.unfreezes else FrozenPrefix(model)
    if not depth or core.layout.batch_dim != 0 or core.config.feedback_span == "segment":
        raise ValueError(
            "`cache_prefix` stores the states of frozen layers for texts that are not cut into segments; freeze "
            f"'embeddings' and the lowest layers ({lowest_layers(parts_of(model).values())!r}) or the 'backbone', or "
            "leave it out."
        )
    return FrozenPrefix(model, _make_cache(trainer, core, model, depth, args.cache_prefix_gigabytes))


def _make_cache(
    trainer: Trainer, core: FeedbackPreTrainedModel, model: nn.Module, depth: int, gigabytes: float
) -> PrefixCache:
    kept = {depth - 1, core.layout.looped_range[0] - 1, *core.feedback.source_layers}
    layers = sorted(layer for layer in kept if 0 <= layer < depth)
    parts = parts_of(model)
    below = {"embeddings", *(f"layer {layer}" for layer in range(depth))}
    weights = fingerprint_weights((name, p) for name, p in model.named_parameters() if parts[name] in below)
    config = fingerprint_config(core.backbone.config)  # the same weights with other heads give other states
    name = f"{weights}-{config}-{'-'.join(map(str, layers))}-{trainer.accelerator.mixed_precision}"
    folder = Path(str(trainer.args.output_dir)) / PREFIX_FOLDER / name
    names = TEXT_INPUTS & core.layout.arguments
    rows = ({name: row[name] for name in names & row.keys()} for row in _rows_of(trainer))
    return PrefixCache(folder, rows, depth, layers, core.config.hidden_size, gigabytes)


def _rows_of(trainer: Trainer) -> Iterator[Mapping[str, Any]]:
    """The training and validation rows."""
    others = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"eval": trainer.eval_dataset}
    for data in (trainer.train_dataset, *others.values()):
        if isinstance(data, IterableDataset) or type(data).__name__ == "IterableDataset":
            raise ValueError("`cache_prefix` keeps states of rows that are known before training; leave out streaming.")
        if data is not None:
            yield from cast(Iterable[Mapping[str, Any]], cast(Dataset, data))
