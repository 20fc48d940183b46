"""What `tests/test_sharded.py` runs in two processes: loads models sharded over the processes, and writes how far they
are from the same models in one process.

    torchrun --nproc_per_node 2 sharded.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from families import tiny_batch
from torch.distributed.tensor import DTensor
from transformers import AutoModel
from transformers.distributed import DistributedConfig

import hf_feedback


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradients(model, seed):
    model(**tiny_batch(seed)).logits.square().mean().backward()
    return {name: whole(parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None}


def compare(folder, cls, size):
    """A model that is sharded as `size` says beside the same model whole."""
    alone = cls.from_pretrained(folder, dtype=torch.float64)
    model = cls.from_pretrained(folder, dtype=torch.float64, distributed_config=DistributedConfig(**{size: 2}))
    sharded = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
    batch = tiny_batch(7)
    with torch.no_grad():
        expected, bare = alone(**batch).logits, alone(**batch, num_iterations=1).logits
        output = (model(**batch).logits - expected).abs().max() / expected.abs().max()
    rank = dist.get_rank() if size == "fsdp_size" else 0  # FSDP: each reads data of its own, and means are taken
    found = gradients(model, rank)
    expected_gradients = gradients(alone, 0)
    if size == "fsdp_size":
        both = gradients(alone, 1)  # added up
        expected_gradients = {name: gradient / 2 for name, gradient in both.items()}
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    model.save_pretrained(f"{folder}-{size}")
    return {
        "sharded": sharded,
        "messages": (expected - bare).abs().max().item(),
        "output": output.item(),
        "gradients": sorted(found) == sorted(expected_gradients),
        "gradient": max((found[n] - g).abs().max() / largest for n, g in expected_gradients.items()).item(),
        "layer": next(type(layer).__name__ for layer in model.layers),
    }


def message_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


def refusals(folder, plain):
    cls, config = hf_feedback.FeedbackForSequenceClassification, DistributedConfig(fsdp_size=2)
    model = cls.from_pretrained(folder, distributed_config=config, jacobian_penalty=0.1)
    kind = {"distributed_config": config}
    return {
        "from_backbone": message_of(lambda: cls.from_backbone(plain, backbone_kwargs=kind)),
        "load_feedback": message_of(lambda: hf_feedback.load_feedback(f"{folder}-feedback", plain, **kind)),
        "a model": message_of(lambda: cls.from_backbone(AutoModel.from_pretrained(plain, **kind))),
        "save_feedback": message_of(lambda: model.save_feedback(f"{folder}-again")),
        "estimate_contraction": message_of(lambda: model.estimate_contraction(tiny_batch())),
        "jacobian_penalty": message_of(lambda: model.train()(**tiny_batch())),
    }


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cases = json.loads((folder / "cases.json").read_text())
    results = {f"{name}, {size}": compare(folder / name, getattr(hf_feedback, cls), size) for name, cls, size in cases}
    results["refusals"] = refusals(folder / "bert", folder / "plain")
    results["world_size"] = dist.get_world_size()
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
