"""Parameters unused in a training step, for distributed data-parallel training."""

from typing import cast

import datasets
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer


def unused_parameters(trainer: Trainer) -> list[str]:
    """Returns the names of the trained parameters that the loss of a batch does not depend on.

    Model and random state are restored; a data set that can be read only once loses a batch.

    Args:
        trainer: trainer of the model, with its data.
    """
    model = cast(nn.Module, trainer.model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    was_training = model.training
    with torch.random.fork_rng(devices=[]):
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model.train(), inputs)
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    model.train(was_training)
    return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]


def searches_unused(accelerator: Accelerator) -> bool:
    """Whether DDP searches for unused parameters in each step; then none may be used outside the forward pass."""
    return accelerator.ddp_handler is not None and accelerator.ddp_handler.find_unused_parameters


def skip_unused_search(trainer: Trainer) -> None:
    """Disables the search of DDP for unused parameters if the loss depends on all of them.

    The setting is not changed if steps use different parameters, if the data can be read only once, or if
    `ddp_find_unused_parameters` is set.

    Args:
        trainer: trainer of the model, with its data.
    """
    handler = trainer.accelerator.ddp_handler
    experts = any("expert" in name for name, _ in cast(nn.Module, trainer.model).named_parameters())
    once = isinstance(trainer.train_dataset, IterableDataset | datasets.IterableDataset)
    if handler is None or once or trainer.args.ddp_find_unused_parameters is not None or experts:
        return
    if handler.find_unused_parameters:
        handler.find_unused_parameters = False  # as in the steps of training
        unused = torch.tensor(len(unused_parameters(trainer)), device=trainer.args.device)
        torch.distributed.all_reduce(unused)  # all processes must agree
        handler.find_unused_parameters = bool(unused)
