"""What distributed training has to know about a model."""

from typing import cast

import datasets
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer


def idle_parameters(trainer: Trainer) -> list[str]:
    """The names of the trained parameters that the loss of a batch does not depend on.

    Nothing is changed by it but a data set that can be read only once.
    """
    model = cast(nn.Module, trainer.model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    was_training = model.training
    with torch.random.fork_rng(devices=[]):
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model.train(), inputs)
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    model.train(was_training)
    return [name for name, gradient in zip(trained, found, strict=True) if gradient is None]


def spare_the_search(trainer: Trainer) -> None:
    """Where the loss depends on every parameter, DDP need not look for others in each step, nor warn that it did.

    Only where all steps use the same parameters, the data can be read again, and the user did not say it.
    """
    handler = trainer.accelerator.ddp_handler
    fixed = getattr(trainer.args, "train_iterations", "fixed") == "fixed"
    experts = any("expert" in name for name, _ in cast(nn.Module, trainer.model).named_parameters())
    once = isinstance(trainer.train_dataset, IterableDataset | datasets.IterableDataset)
    if handler is None or once or trainer.args.ddp_find_unused_parameters is not None or not fixed or experts:
        return
    if handler.find_unused_parameters:
        idle = torch.tensor(len(idle_parameters(trainer)), device=trainer.args.device)
        torch.distributed.all_reduce(idle)  # all processes have to do the same
        handler.find_unused_parameters = bool(idle)
