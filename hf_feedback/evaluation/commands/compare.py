"""`hf-feedback compare`."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...configuration_feedback import FeedbackConfig, nearest_option
from ...training.arguments import read_json
from ...training.commands.options import OptionParser, options_from_file
from ...training.commands.train import training_parser
from ...training.data.splits import FileArguments
from ...training.model_card import is_hub_id
from ...training.starting_model.model_sources import check_source
from ...training.tasks import TASK_NAMES
from ...validation import check_choice, check_integer, option
from ..comparison.arm_registry import ARMS
from ..comparison.arm_runs import CONTROLS
from ..comparison.arms import Arm, CombinedArm, Feedback
from ..comparison.card import write_comparison_card
from ..comparison.compare import compare, hide_progress_bars
from ..comparison.joined_results import join_results, read_results
from ..comparison.plan import format_plan, make_plan
from ..comparison.plots import plot_comparison
from ..comparison.settings import Comparison, name_of_test_file

DESCRIPTION = """Find out whether feedback helps: train matched alternatives over several seeds, with the same order of
data, epochs, batch size and head, each with its own sweep of learning rates on validation data, and report their
differences on test data with confidence intervals. Options of the model, data and training are those of `hf-feedback
train`; `--learning-rate` is the rate of parts that start at random (head, feedback, adapters), `--backbone-lr` that of
the backbone. `hf-feedback compare --join FOLDER …` shows finished comparisons side by side."""
FEEDBACK = "feedback"
QUICK_ARMS = ("head-only", "plain", "lora", "bottom-up")
QUICK_STEPS = 40
# Options of training that a comparison sets itself.
WITHOUT_EFFECT = {
    "seed": "its runs have the seeds of `seeds`",
    "data_seed": "its runs have the seeds of `seeds`",
    "eval_strategy": "every arm is measured after its last step",
    "save_strategy": "the models of its runs are not kept",
    "early_stopping_patience": "every arm is measured after its last step",
    "load_best_model_at_end": "every arm is measured after its last step",
    "lora_rank": "LoRA is among its `arms`, with as many parameters as the messages",
    "lora_alpha": "LoRA is among its `arms`",
    "push_to_hub": "the models of its runs are not kept",
    "report_to": "the output of its runs is in the folder `runs`",
    "resume_from_checkpoint": "finished runs are found in `output_dir`",
    "overwrite_output_dir": "it goes on in a folder of its own, and refuses others",
    "prompt_file": "nothing is generated",
}


@dataclass
class CompareArguments:
    """Comparison."""

    task: str = option("text-classification", "Task to train for.", choices=TASK_NAMES)
    arms: list[str] | None = option(
        None,
        f"Alternatives to compare with: {', '.join(ARMS)}; several in one, with a plus, as in lora+unmasked (default: "
        "all that apply, lora-double if it is named; r-drop with `--agreement-weight`).",
    )
    variants: str | None = option(
        None,
        'Feedback with other options, by name, as JSON: {"attention": {"feedback_type": "attention"}} (default: one '
        "variant, with the options of the command); a name with a plus and an arm, as in attention+lora, is both.",
    )
    seeds: list[int] | None = option(None, "Seeds; every alternative is trained once per seed (default: 0 1 2 3 4).")
    rate_factors: list[float] | None = option(
        None,
        "Factors on all learning rates; each alternative uses the one that is best on validation (default: 0.3 1 3).",
    )
    margin: float = option(1.0, "Differences of fewer points of the metric count as none.")
    processes: int = option(1, "Number of runs at a time; they take turns on the available GPUs.")
    also_test: list[str] | None = option(
        None, "Further files on which every trained model is tested, such as noisy or adversarial ones."
    )
    quick: bool = option(
        False,
        f"First result within minutes: {', '.join(QUICK_ARMS)} and feedback, 3 seeds, one rate factor, at most "
        f"{QUICK_STEPS} steps.",
    )
    dry_run: bool = option(False, "Print the plan with its cost, then exit.")

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASK_NAMES)
        check_integer("processes", self.processes, 1, "runs at a time")
        for name in self.arms or ():
            for part in name.split("+"):
                check_choice("arms", part, ARMS)
        for name in ("seeds", "rate_factors"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"`{name}` must be different values, got {' '.join(map(str, values)) or 'none'}.")
        for seed in self.seeds or ():
            check_integer("seeds", seed, 0, "numbers of a generator", 2**32 - 1)
        for name, values in {"rate_factors": self.rate_factors or [], "margin": [self.margin]}.items():
            for value in values:
                if not 0 < value < math.inf:
                    raise ValueError(f"`{name}` must be above 0, got {value}.")
        names = [name_of_test_file(file) for file in self.also_test or ()]
        reserved = ("own", *CONTROLS, "train", "validation", "test")
        if len(set(names)) < len(names) or {*names} & {*reserved}:
            raise ValueError(
                f"`also_test` must be files of different names, none of them {', '.join(reserved)}, got "
                f"{', '.join(names)}."
            )


@dataclass
class JoinArguments:
    """Finished comparisons."""

    join: list[str] = field(metadata={"help": "Folders of finished comparisons, to show side by side."})
    card: str | None = option(None, "File for a model card about them (default: none).")
    base_model: str | None = option(
        None, "Hub id of the backbone, for the card, where it was read from a folder (default: the model's)."
    )
    force: bool = option(False, "Overwrite an existing card.")

    def __post_init__(self) -> None:
        if self.base_model is not None and not is_hub_id(self.base_model):
            raise ValueError(f"`base_model` must be the id of a repository on the Hub, got {self.base_model!r}.")
        if self.card is not None and Path(self.card).exists() and not self.force:
            raise ValueError(f"`card`: {self.card} already exists; name another, or overwrite it (`--force`).")


def read_variants(text: str | None) -> dict[str, Arm]:
    """Reads the option `variants`.

    Raises:
        ValueError: it is no JSON of names and options, or a name or an option is not allowed.

    Example:

    ```python
    >>> read_variants('{"attention": {"feedback_type": "attention"}}')
    {'attention': Feedback(options={'feedback_type': 'attention'})}

    ```
    """
    example = '{"attention": {"feedback_type": "attention"}}'
    if text is None:
        return {FEEDBACK: Feedback()}
    variants: Mapping[str, Mapping[str, Any]] = read_json("variants", text, example)
    if not isinstance(variants, dict) or not variants or not all(isinstance(one, dict) for one in variants.values()):
        raise ValueError(f"`variants` must be JSON such as {example}, got {text!r:.60}.")
    for name, options in variants.items():
        own, *others = name.split("+")
        if own in (*ARMS, *CONTROLS) or not own.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"`variants`: {own!r} must be letters, digits and dashes, and not the name of an arm or of a check "
                f"({', '.join(CONTROLS)})."
            )
        for other in others:
            check_choice("variants", other, ARMS)
        if unknown := sorted(options.keys() - FeedbackConfig.declared_options().keys()):
            near = nearest_option(unknown[0])
            hint = f"; did you mean {near!r}?" if near else "."
            raise ValueError(f"`variants`: {unknown[0]!r} of {name!r} is not an option of FeedbackConfig{hint}")
        if options.get("num_iterations") == 1:
            raise ValueError(
                f"`variants`: {name!r} has `num_iterations`=1, the plain backbone; give 2 or more, or compare with the "
                "arm 'plain'."
            )
    none_as_text = {n: {o: "none" if v is None else v for o, v in options.items()} for n, options in variants.items()}
    return {
        name: combine_arms([Feedback(options), *(ARMS[part] for part in name.split("+")[1:])])
        for name, options in none_as_text.items()
    }


def combine_arms(parts: Sequence[Arm]) -> Arm:
    """Returns the only arm, or one that combines several."""
    return parts[0] if len(parts) == 1 else CombinedArm(parts)


def find_arms(args: CompareArguments, uses_agreement: bool) -> dict[str, Arm]:
    """The arms by name, those with feedback last.

    Args:
        args: which are named.
        uses_agreement: whether iterations are trained to agree, so that R-Drop is an alternative.
    """
    applicable = [name for name, arm in ARMS.items() if arm.is_default or (name == "r-drop" and uses_agreement)]
    default = QUICK_ARMS if args.quick else applicable
    names = args.arms or default
    return {
        **{name: combine_arms([ARMS[part] for part in name.split("+")]) for name in names},
        **read_variants(args.variants),
    }


def make_parser(arguments: Sequence[str]) -> OptionParser:
    """Returns the parser of the command.

    Args:
        arguments: as on the command line, without a file of options; `--task` and `--join` decide which there are.
    """
    if _joins(arguments):
        return OptionParser((JoinArguments,), "hf-feedback compare", DESCRIPTION)
    task = TASK_NAMES[_task_of(arguments)]
    parser = training_parser(arguments, task, "hf-feedback compare", DESCRIPTION, (CompareArguments,))
    parser.set_defaults(logging_strategy="no", eval_strategy="no")
    parser.set_defaults(load_best_model_at_end=False)  # every arm is measured after its last step
    return parser


def _joins(arguments: Sequence[str]) -> bool:
    return any(argument.split("=")[0] == "--join" for argument in arguments)


def parse_comparison(arguments: Sequence[str]) -> tuple[Comparison, CompareArguments]:
    """Parses the options of a comparison.

    Args:
        arguments: as on the command line, without a file of options.

    Raises:
        ValueError: an option is unknown, missing or has a wrong value.
    """
    parser = make_parser(arguments)
    model_args, data_args, args, compare_args = parser.parse(arguments)
    given = parser.parse_known_args(arguments)[0]
    for name, reason in WITHOUT_EFFECT.items():
        if getattr(given, name, default := parser.get_default(name)) != default:
            raise ValueError(f"`{name}` has no effect on a comparison: {reason}; leave it out.")
    if model_args.num_iterations == 1:
        raise ValueError(
            "`num_iterations`=1 is the plain backbone, of which there is nothing to compare; give 2 or more."
        )
    return (
        Comparison(
            task=TASK_NAMES[_task_of(arguments)],
            model_args=model_args,
            data_args=data_args,
            args=args,
            arms=find_arms(compare_args, args.agreement_weight > 0),
            seeds=tuple(compare_args.seeds or ((0, 1, 2) if compare_args.quick else (0, 1, 2, 3, 4))),
            rate_factors=tuple(compare_args.rate_factors or ((1.0,) if compare_args.quick else (0.3, 1.0, 3.0))),
            margin=compare_args.margin,
            also_test=tuple(compare_args.also_test or ()),
            most_steps=QUICK_STEPS if compare_args.quick else None,
        ),
        compare_args,
    )


def check_files(data_args: FileArguments) -> None:
    """Refuses data without validation or test rows, before anything is loaded.

    Args:
        data_args: options of the data.

    Raises:
        ValueError: there is no file for one of them, and no option that stands for it.
    """
    if getattr(data_args, "dataset_name", None) is not None:
        return  # whose splits are known when it is loaded
    for split, other in (("validation", data_args.validation_split), ("test", None)):
        if getattr(data_args, f"{split}_file") is None and other is None:
            raise ValueError(f"Rates are chosen on validation and results are read on test: give `{split}_file` too.")


def _task_of(arguments: Sequence[str]) -> str:
    """The value of `--task`, which decides what other options there are."""
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("--task=")]
    given += [value for name, value in pairwise(arguments) if name == "--task"]
    name = given[-1] if given else next(iter(TASK_NAMES))
    check_choice("task", name, TASK_NAMES)
    return name


def run(arguments: Sequence[str]) -> int:
    """Runs `hf-feedback compare` and returns the exit status.

    Args:
        arguments: those after the name of the command.
    """
    arguments = options_from_file(arguments)
    if _joins(arguments):
        (joined,) = make_parser(arguments).parse(arguments)
        results = read_results(joined.join)
        print(join_results(results))
        if joined.card is not None:
            write_comparison_card(Path(joined.card), results, joined.base_model)
        return 0
    comparison, args = parse_comparison(arguments)
    check_source(comparison.model_args.model, comparison.model_args.revision)
    check_files(comparison.data_args)
    hide_progress_bars()
    print(f"Counting the cost of {len(comparison.arms)} arms.", flush=True)
    plan = make_plan(comparison)
    print(format_plan(comparison, plan), flush=True)
    if args.dry_run:
        return 0
    result = compare(comparison, plan, args.processes)
    files = result.save()
    print(f"\n{result.as_markdown()}\n{result.verdict()}")
    try:
        files.append(plot_comparison(result))
    except ImportError:
        print("The figures need matplotlib: pip install -e '.[plots]'", file=sys.stderr)
    print(f"More is in {', '.join(map(str, files))}")
    return 0
