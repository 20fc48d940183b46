"""Every model type that transformers has, made tiny: is feedback exact on it, is it refused, or does it fail?

    python tests/sweep_backbones.py examples/guides/backbones_sweep.md

It takes a quarter of an hour on two cores. What can be made tiny by the usual options of its config, and reads one
tensor of tokens, pixels or sound, is compared with the independent reference of the tests: in float64 to 1e-10 of the
largest, in float32 to 1e-5 where the model runs in nothing wider. Of a model that reads more than text, its text model
is tried.
"""

import copy
import json
import subprocess
import sys
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from closeness import in_float64
from families import randomize_messages
from reference import run_reference
from tiny_models import NoTinyModelError, tiny_model
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import logging

from hf_feedback import FeedbackModel, UnsupportedBackboneError
from hf_feedback.backbone_layout import forward_arguments, without_cache
from hf_feedback.probe_inputs import probe_inputs

Verdict = tuple[str, str]  # one of VERDICTS, and why
EXACT, INSIDE, REFUSED, FAILING, LEFT_OUT = VERDICTS = "exact", "text model", "refused", "failing", "left out"
COUNTED = {
    EXACT: "exact",
    INSIDE: "exact in the text model inside",
    REFUSED: "refused",
    FAILING: "failing",
    LEFT_OUT: "never tried",
}
INSIDE_NOTE = (
    "A model that reads more than text is refused as a whole: how its layers treat pictures or sound is not tried out. "
    "Its text model can be the backbone, with `backbone_part='decoder'` or by itself (`model.language_model`)."
)
OPTIONS = dict(num_iterations=3, feedback_rank=8, feedback_topology="dense")
DECODER = "backbone_part='decoder'"  # in the message that names it as the cure


def outcome(model_type: str) -> tuple[str, str, str]:
    """(model type, verdict, why)."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    with in_float64():
        verdict, why = judge(model_type, 1e-10)
    if "Error: " in why:  # maybe of a kernel that takes no float64
        verdict, why = judge(model_type, 1e-5)
    return model_type, verdict, why


def judge(model_type: str, bound: float) -> Verdict:
    """The verdict in the current default dtype.

    Args:
        model_type: in transformers.
        bound: largest relative error that counts as rounding.
    """
    try:
        backbone = tiny_model(model_type)
    except NoTinyModelError as error:
        return LEFT_OUT, str(error)
    exact: Verdict = EXACT, ""
    try:
        try:
            model = FeedbackModel.from_backbone(backbone, **OPTIONS)
        except UnsupportedBackboneError as error:
            if DECODER not in str(error):
                raise
            model = FeedbackModel.from_backbone(backbone, backbone_part="decoder", **OPTIONS)
            exact = INSIDE, type(model.backbone).__name__
        return compare(model, bound) or exact
    except UnsupportedBackboneError as error:
        return REFUSED, str(error).split("feedback backbone: ")[-1]
    except Exception as error:
        return FAILING, f"{type(error).__name__}: {error}"


def compare(model: FeedbackModel, bound: float) -> Verdict | None:
    """What is wrong with a fresh model, if anything, beside its backbone, the reference, and its copy by its config."""
    backbone: PreTrainedModel = copy.deepcopy(model.backbone)
    batch = probe_inputs(backbone)
    if "attention_mask" not in forward_arguments(backbone):
        batch.pop("attention_mask", None)
    inputs = {**batch, **without_cache(backbone)}
    plain = backbone(**inputs).last_hidden_state
    if not torch.equal(model(**batch).last_hidden_state, plain):
        return FAILING, "a fresh model is not its backbone"
    found = randomize_messages(model, scale=0.1)(**batch).last_hidden_state
    passes = model.config.num_hidden_layers // len(backbone.get_submodule(model.layout.stack))
    feedback = dict(model.feedback.named_parameters())
    output, _ = run_reference(backbone, model.layout.stack, passes, feedback, model.config.edges(), inputs, 3)
    expected = output.last_hidden_state
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    if not error < bound:
        return FAILING, f"messages are off by {error:.1e}"
    if torch.equal(found, plain):
        return FAILING, "messages change nothing"
    found.square().mean().backward()
    again = FeedbackModel(copy.deepcopy(model.config))
    if again.state_dict().keys() != model.state_dict().keys():
        return FAILING, "made from its config, it is another model"
    return None


def write(file: Path, rows: list[tuple[str, str, str]]) -> None:
    """The outcomes as a guide."""
    by: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for model_type, verdict, why in sorted(rows):
        by[verdict].append((model_type, " ".join(why.split())[:240].replace("|", "/")))
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    counts = ", ".join(f"{len(by[verdict])} {COUNTED[verdict]}" for verdict in VERDICTS)
    lines = ["# Every model type of transformers", "", versions, "", __doc__.strip(), "", f"{counts}.", ""]
    lines += ["## Exact", "", ", ".join(model_type for model_type, _ in by[EXACT]), ""]
    lines += ["## Exact in the text model inside", "", INSIDE_NOTE, ""]
    lines += [", ".join(f"{model_type} ({inner})" for model_type, inner in by[INSIDE]), ""]
    for verdict in (FAILING, REFUSED):
        lines += [f"## {verdict.capitalize()}", "", "| model type | why |", "|---|---|"]
        lines += [f"| {model_type} | {why} |" for model_type, why in by[verdict]] + [""]
    never: dict[str, list[str]] = defaultdict(list)
    for model_type, why in by[LEFT_OUT]:
        never[why].append(model_type)
    lines += ["## Never tried", "", "| why | model types |", "|---|---|"]
    lines += [f"| {why} | {', '.join(never[why])} |" for why in sorted(never)] + [""]
    file.write_text("\n".join(lines), encoding="utf-8")


def in_a_process(model_types: list[str]) -> list[tuple[str, str, str]]:
    """The outcomes of a few model types; one that takes the process with it is left out, the others are not."""
    command = [sys.executable, __file__, "--types", *model_types]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=900).stdout
    except subprocess.TimeoutExpired as error:
        found = (error.stdout or b"").decode()
    outcomes = [tuple(json.loads(line)) for line in found.splitlines() if line.startswith("[")]
    missing = model_types[len(outcomes) :]
    if not missing:
        return outcomes
    return [*outcomes, (missing[0], LEFT_OUT, "takes too long or too much"), *in_a_process(missing[1:])]


if __name__ == "__main__":
    if sys.argv[1] == "--types":
        for name in sys.argv[2:]:
            print(json.dumps(outcome(name)), flush=True)
    else:
        names = list(CONFIG_MAPPING_NAMES)
        with ThreadPoolExecutor(2) as pool:
            batches = pool.map(in_a_process, [names[i : i + 20] for i in range(0, len(names), 20)])
            write(Path(sys.argv[1]), [row for batch in batches for row in batch])
