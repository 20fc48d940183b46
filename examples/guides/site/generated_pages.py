"""The pages of the site that follow from the code: options, public classes and functions, and the notebooks."""

import io
import os
from contextlib import redirect_stdout, suppress
from dataclasses import Field
from pathlib import Path
from unittest.mock import patch

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

import hf_feedback
import hf_feedback.evaluation
import hf_feedback.training
from hf_feedback import FeedbackConfig, FNNConfig
from hf_feedback.cli import COMMANDS, main
from hf_feedback.command_help.subjects import FIRST_OPTIONS
from hf_feedback.configuration_base import OptionsConfig
from hf_feedback.validation import choices_of, describe_type

GUIDES = Path(__file__).resolve().parent.parent
TITLES = {"reference/options.md": "Options", "reference/commands.md": "Commands"}
# The parts of the reference, in the order of the menu.
REFERENCE = ("Configuration, loading", "Models", "Outputs", "Training", "Evaluation", "Networks from scratch")


def option_row(option: Field) -> str:
    """One option as a row of a table."""
    allowed = ", ".join(f"`{choice!r}`" for choice in choices_of(option)) or describe_type(option.type)
    cells = f"`{option.name}`", allowed, f"`{option.default!r}`", str(option.metadata["help"])
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def options_table(config_class: type[OptionsConfig]) -> str:
    """The options of a config, in parts where it has any."""
    head = "| option | allowed | default | meaning |\n|---|---|---|---|\n"
    parts: list[str] = []
    for name, option in config_class.declared_options().items():
        if name in FIRST_OPTIONS and config_class is FeedbackConfig:
            parts.append(f"## {FIRST_OPTIONS[name]}\n\n{head}")
        parts = parts or [head]
        parts[-1] += option_row(option) + "\n"
    return '<div class="options" markdown>\n\n' + "\n".join(parts) + "\n</div>\n"


def options_page() -> str:
    """The page of all options of `FeedbackConfig`."""
    return (
        "# Options of `FeedbackConfig`\n\n"
        "They are keywords of `from_backbone` and `FeedbackConfig`, and options of the commands with dashes "
        "(`--feedback-rank 16`). Misspelt and contradictory options are refused with the valid spelling. "
        "`num_labels`, `id2label`, `label2id` and `problem_type` are those of every transformers configuration.\n\n"
        f"{options_table(FeedbackConfig)}"
    )


def help_of(command: str) -> str:
    """The help of `hf-feedback COMMAND`, without its usage."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit), patch.dict(os.environ, COLUMNS="100"):
        main([command, "--help"])
    return printed.getvalue().partition("\n\n")[2].rstrip()


def commands_page() -> str:
    """The page of the commands' options."""
    parts = [f"## hf-feedback {command}\n\n```text\n{help_of(command)}\n```\n" for command in COMMANDS]
    return "# Commands\n\n[How to use them](../how_to/fine_tune.md#from-the-shell).\n\n" + "\n".join(parts)


def object_page(name: str, thing: type) -> str:
    """The page of one public class or function."""
    text = f"::: {thing.__module__}.{name}\n    options: {{heading_level: 1}}\n"
    return f"{text}\n## Options\n\n{options_table(FNNConfig)}" if thing is FNNConfig else text


def part_of(name: str, thing: type) -> str:
    """The part of the reference that a public class or function belongs to."""
    if name in hf_feedback.training.__all__:
        return "Training"
    if name in hf_feedback.evaluation.__all__:
        return "Evaluation"
    if name.startswith("FNN"):
        return "Networks from scratch"
    if isinstance(thing, type) and issubclass(thing, ModelOutput):
        return "Outputs"
    return "Models" if isinstance(thing, type) and issubclass(thing, PreTrainedModel) else "Configuration, loading"


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text, code, printed output and pictures."""
    parts = [f"[Download this notebook]({path.name})"]
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![Output of the code above](data:image/png;base64,{data['image/png'].strip()})")
            elif text := output.get("text", data.get("text/plain", "")):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join([parts[1], parts[0], *parts[2:]]) + "\n"


def reference_pages() -> dict[str, dict[str, str]]:
    """The pages of the reference: part → path → Markdown."""
    parts: dict[str, dict[str, str]] = {name: {} for name in REFERENCE}
    parts["Configuration, loading"]["reference/options.md"] = options_page()
    parts["Training"]["reference/commands.md"] = commands_page()
    for package in (hf_feedback, hf_feedback.training, hf_feedback.evaluation):
        for name in package.__all__:
            thing = getattr(package, name)
            if not isinstance(thing, str):  # the version
                parts[part_of(name, thing)][f"reference/{name}.md"] = object_page(name, thing)
    return parts


def notebook_pages() -> dict[str, str]:
    """The pages of the notebooks: path → Markdown."""
    return {str(path.relative_to(GUIDES).with_suffix(".md")): notebook_page(path) for path in GUIDES.rglob("*.ipynb")}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills the last part of the navigation."""
    config.nav[-1]["Reference"] = [
        {part: [{TITLES.get(path, Path(path).stem): path} for path in pages]}
        for part, pages in reference_pages().items()
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for pages in (*reference_pages().values(), notebook_pages()):
        for path, text in pages.items():
            files.append(File.generated(config, path, content=text))
    return files
