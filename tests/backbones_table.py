"""Writes the compatibility table of backbones from the outcomes of a test run."""

import torch
import transformers
from families import FAMILIES, tiny_backbone, tiny_config

from hf_feedback.modeling_feedback import HEADS

READS = {"tokens": "text", "pixels": "images", "wave": "audio", "spectrum": "audio"}
OWN = {
    "FeedbackForSequenceClassification": "sequence",
    "FeedbackForTokenClassification": "token",
    "FeedbackForQuestionAnswering": "question",
    "FeedbackForMultipleChoice": "choice",
    "FeedbackForMaskedLM": "masked LM",
    "FeedbackForCausalLM": "causal LM",
    "FeedbackForImageClassification": "image",
    "FeedbackForAudioClassification": "audio",
}
HEAD = """# Backbones

Written by a run of the tests, which compare tiny random models of each family in float32 and float64, with explicit
and default attention masks, left and right padding, `sdpa` and `eager` attention:

    python -m pytest tests/test_{equality,refusals,heads}.py --write-backbones examples/guides/backbones.md

**Exact** means: with zero messages the model equals its backbone to the last bit, whatever K, edges, rank and
activation; with other messages, outputs, hidden states and the gradients of all parameters for K = 3 equal an
independent reference that runs the whole backbone K times and adds the messages by hand: in float64 to 1e-12 of the
largest, and in float32 they are as near to the float64 result as the reference's own.

**Own heads** are the kinds of task models that transformers has of the family, for `add_feedback` and
`head="backbone"`; with fresh feedback the logits of each are exactly what they were before. Any backbone can get a new
head.

The package has no code for any family. A family that is not listed works if the probe that runs when a model is built
finds no reason against it; otherwise the model is refused with that reason.

"""


def write_table(file, outcomes, reasons):
    """`outcomes`: (kind, row, outcome) → number of tests; `reasons`: row of the refusals → the message."""
    lines = [HEAD + f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}\n"]
    lines += ["| family | class | reads | direction | exact | own heads | tests |", "|---|---|---|---|---|---|---|"]
    for name, family in FAMILIES.items():
        passed, failed = (outcomes["family", name, outcome] for outcome in ("passed", "failed"))
        exact = "not tested" if not passed + failed else "yes" if not failed else "**no**"
        direction = "left to right" if family.decoder else "both"
        kind = type(tiny_backbone(name)).__name__
        own = [head.__name__ for head in HEADS if head.traits.task_models(tiny_config(name))]
        tested = [OWN[head] for head in own if head != "FeedbackForCausalLM" or family.decoder]
        heads = ", ".join(tested) or "none"
        tests = f"{passed} of {passed + failed}"
        lines.append(f"| {name} | {kind} | {READS[family.reads]} | {direction} | {exact} | {heads} | {tests} |")
    failing = sum(outcomes["family", name, "failed"] > 0 for name in FAMILIES)
    lines += ["", f"{len(FAMILIES)} families tested: {len(FAMILIES) - failing} exact, {failing} failing."]
    lines += ["", "## Refused", "", "| what | why, and what to do |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for name, reason in sorted(reasons.items())]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
