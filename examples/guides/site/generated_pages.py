"""The pages of the site that follow from the code: the options, and one for each public class and function."""

from dataclasses import MISSING, Field, fields
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

import hf_feedback
import hf_feedback.training
from hf_feedback import FeedbackConfig
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGES: tuple[ModuleType, ...] = (hf_feedback, hf_feedback.training)


def public_objects() -> dict[str, str]:
    """The public classes and functions: name → full path."""
    found = {}
    for package in PACKAGES:
        for name in package.__all__:
            thing = getattr(package, name)
            if not isinstance(thing, str):  # the version
                found[name] = f"{thing.__module__}.{name}"
    return found


def type_words(annotation: Any) -> str:
    """A type as it stands in the table of options."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice!r}`" for choice in get_args(annotation))
    words = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return f"`{words}`".replace("|", "\\|")


def option_row(option: Field) -> str:
    """One option as a row of a table."""
    default = "" if option.default in (None, MISSING) else f"`{option.default!r}`"
    meaning = str(option.metadata.get("help", "")).replace("|", "\\|")
    return f"| `{option.name}` | {type_words(option.type)} | {default} | {meaning} |"


def options_page() -> str:
    """The page of all options of `FeedbackConfig`."""
    names = FeedbackConfig.option_names()
    rows = [option_row(option) for option in fields(FeedbackConfig) if option.name in names]
    return "\n".join(
        [
            "# Options of `FeedbackConfig`",
            "",
            "They are keywords of `from_backbone` and `FeedbackConfig`, and options of the commands with dashes "
            "(`--feedback-rank 16`). Misspelt and contradictory options are refused with the valid spelling.",
            "",
            "| option | type | default | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
            "`num_labels`, `id2label`, `label2id` and `problem_type` are those of every transformers configuration.",
            "",
        ]
    )


def object_page(name: str, path: str) -> str:
    """The page of one public class or function."""
    return f"# {name}\n\n::: {path}\n    options: {{show_root_heading: false, show_root_toc_entry: false}}\n"


def pages() -> dict[str, tuple[str, str]]:
    """All generated pages: path → title and Markdown."""
    found = {"reference/options.md": ("Options", options_page())}
    for name, path in public_objects().items():
        found[f"reference/{name}.md"] = (name, object_page(name, path))
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills the last part of the navigation."""
    config.nav[-1]["Reference"] = [{title: path} for path, (title, _) in pages().items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for path, (_, text) in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
