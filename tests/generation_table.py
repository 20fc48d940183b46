"""Writes the table of families that generate: a cache against the whole text read at once, on tiny random models.

python tests/generation_table.py examples/guides/generation_by_family.md
"""

import sys
from pathlib import Path

import torch
import transformers
from families import randomize_messages
from test_generation import DECODERS, GREEDY, causal_lm, generate, prompts
from transformers.utils import logging

from hf_feedback import FeedbackConfig, add_feedback

HEAD = """# Generation by family

transformers {transformers}, torch {torch}

Tiny random language models of each family with `gated+attention` messages, in float32. **Greedy** is the largest
difference of a logit between what is generated with a cache and one call for the whole text without one, at K = 1, 2
and 3 (logits are of the order of 1; the tokens are the same). **Beams** and **static cache**: at all three, three beams
with a cache of either kind give the tokens of three beams without one. **Fresh**: before any training it generates what
the plain model does. The tests compare the same in float64, to 1e-12.

    python tests/generation_table.py examples/guides/generation_by_family.md

| family | fresh | K = 1 | K = 2 | K = 3 | beams | static cache |
|---|---|---|---|---|---|---|
"""


@torch.no_grad()
def row_of(family: str) -> list[str]:
    """What was found for one family."""
    bare = causal_lm(family)
    expected = bare.generate(prompts(), **GREEDY)
    model = add_feedback(bare, FeedbackConfig(feedback_type="gated+attention", num_iterations=3, feedback_rank=8))
    fresh = torch.equal(model.generate(prompts(), **GREEDY), expected)
    randomize_messages(model)
    differences, beams, static = [], True, True
    for k in (1, 2, 3):
        sequences, logits = generate(model, num_iterations=k)
        whole = model(sequences, num_iterations=k).logits[:, 6:-1]
        same = torch.equal(sequences[:, 7:], whole.argmax(-1))
        differences.append(f"{(logits - whole).abs().max():.0e}" if same else "**other tokens**")
        options = dict(num_iterations=k, num_beams=3)
        uncached = generate(model, **options, use_cache=False)[0]
        beams &= torch.equal(generate(model, **options)[0], uncached)
        static &= torch.equal(generate(model, **options, cache_implementation="static")[0], uncached)
    words = {True: "same", False: "**different**"}
    cached = model._supports_default_dynamic_cache()
    return [family, words[fresh], *differences, words[beams], words[static] if cached else "no cache"]


def main() -> None:
    logging.set_verbosity_error()
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    rows = "".join(f"| {' | '.join(row_of(family))} |\n" for family in DECODERS)
    note = (
        "\n`no cache`: the family keeps none of transformers' kind, so that the whole text is read for every token.\n"
    )
    Path(sys.argv[1]).write_text(HEAD.format(**versions) + rows + note, encoding="utf-8")


if __name__ == "__main__":
    main()
