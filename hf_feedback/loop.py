"""The loop: K iterations over the recorded segment.

    iteration 1:      the plain backbone, recorded
    iteration k ≥ 2:  input of layer l = h_{l-1}^(k) + Σ_{s → l} message_{s→l}(h_s^(k-1), h_{l-1}^(k))

Layers below the segment have run once, before; layers above it run once, afterwards.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .connections import FeedbackConnections, Reading
from .recorder import Run, hidden_of

Observer = Callable[[int, dict[int, torch.Tensor]], None]
Believe = Callable[[torch.Tensor], torch.Tensor]


def iterate(
    run: Run,
    feedback: FeedbackConnections,
    num_iterations: int,
    reading: Reading,
    observe: Observer | None = None,
    believe: Believe | None = None,
) -> Any:
    """Iterations 2 … K over the record of iteration 1.

    Args:
        run: the record; its segment is complete.
        feedback: the connections.
        num_iterations: K.
        reading: what messages may know besides the states.
        observe: called after each iteration, the first included, with k and the states `{source: (B, T, d)}`; the
            highest source is the segment's last layer.
        believe: the end of the segment `(B, T, d)` → the model's answer `(B, C)`, for messages that read it.

    Returns:
        The output of the segment's last layer in iteration K, as the backbone expects it (tensor or tuple).
    """
    sources = [int(source) for source in feedback.sources]
    entry = run.entry  # (B, T, d), the same in every iteration
    h = {call.layer: hidden_of(call.output) for call in run.segment if call.layer in sources}
    output = run.segment[-1].output
    if observe:
        observe(1, h)
    for k in range(2, num_iterations + 1):
        if believe:
            reading = replace(reading, beliefs=believe(h[run.last]))
        said = feedback({source: h[source] for source in sources}, reading)  # by the sources, of iteration k − 1
        x, h = entry, {}
        for call in run.segment:
            output = call.replay(feedback.add(said, call.layer, x, reading), hooked=call.layer != run.last)
            x = hidden_of(output)
            if call.layer in sources:
                h[call.layer] = x
        if observe:
            observe(k, h)
    return output
