"""One model in several threads at the same time, compiled as a whole and not."""

from concurrent.futures import ThreadPoolExecutor

import torch
from families import randomize_messages, tiny_backbone, tiny_batch

from hf_feedback import FeedbackForSequenceClassification


def test_compiled_and_plain_calls_at_the_same_time():
    torch._dynamo.reset()
    backbone = tiny_backbone("bert", num_hidden_layers=2)
    model = randomize_messages(
        FeedbackForSequenceClassification.from_backbone(backbone, num_iterations=3, num_labels=3)
    )
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batches = [tiny_batch(seed) for seed in range(4)]

    @torch.no_grad()
    def answer(task):
        kind, k, batch = task
        return (compiled if kind == "compiled" else model)(**batches[batch], num_iterations=k).logits

    kinds = [("compiled", 2), ("plain", 2), ("plain", 3), ("plain", 1)]
    tasks = [(kind, k, batch) for kind, k in kinds for batch in range(len(batches))]
    serial = [answer(task) for task in tasks]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, tasks * 8))
    for logits, expected in zip(found, serial * 8, strict=True):
        torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(serial[0], serial[4])  # compiled, and not
    assert (serial[4] - serial[12]).abs().max() > 1e-2  # messages were spoken
