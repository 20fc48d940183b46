"""Every code block of the README and of the guides runs as it stands, and every page is in the site."""

import ast
import doctest
import importlib
import io
import os
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import yaml
from accelerate.state import AcceleratorState
from families import tiny_backbone, tiny_config
from nbclient import NotebookClient
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)

import hf_feedback
import hf_feedback.evaluation
import hf_feedback.training
from hf_feedback import FeedbackConfig, FNNConfig, cli
from hf_feedback.connections import CONNECTIONS

ROOT = Path(__file__).parent.parent
GUIDES = ROOT / "examples" / "guides"
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *GUIDES.rglob("*.md"))
}
NOTEBOOKS = sorted(GUIDES.rglob("*.ipynb"))
SHORT = ["--max-steps", "1", "--disable-tqdm", "True"]  # the one thing that is added to training commands


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        language: after the fence.
        title: of the file that it stands for, or "".
        text: its lines.
    """

    language: str
    title: str
    text: str


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = re.findall(r"^```(\w*)(?: title=\"(.*?)\")?\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert text.count("\n```") == 2 * len(found)
    return [Block(*parts) for parts in found]


def commands_of(text: str) -> list[list[str]]:
    """The commands of a shell block, continued lines joined and comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


WITH_BLOCKS = {name: blocks for name, text in PAGES.items() if (blocks := blocks_of(text))}


@pytest.fixture(scope="module")
def models(minilm, tmp_path_factory):
    """The hub ids of the pages with local folders that stand for them."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(minilm, model_max_length=64)
    tokenizer.eos_token = tokenizer.sep_token
    sizes = dict(vocab_size=len(tokenizer), num_hidden_layers=6, pad_token_id=0)
    tiny_backbone("bert", **sizes).save_pretrained(folder / "encoder")
    wide = tiny_config("qwen3", hidden_size=64, **sizes)  # the rank of the recipe
    AutoModelForCausalLM.from_config(wide).save_pretrained(folder / "decoder")
    for kind in ("encoder", "decoder"):
        tokenizer.save_pretrained(folder / kind)
    tiny_backbone("vit").save_pretrained(folder / "image")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "image")
    tiny_backbone("wav2vec2").save_pretrained(folder / "audio")
    Wav2Vec2FeatureExtractor(sampling_rate=4000).save_pretrained(folder / "audio")
    return {
        "sentence-transformers/all-MiniLM-L6-v2": str(folder / "encoder"),
        "Qwen/Qwen3-0.6B-Base": str(folder / "decoder"),
        "google/vit-base-patch16-224-in21k": str(folder / "image"),
        "facebook/wav2vec2-base": str(folder / "audio"),
    }


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that looks like a clone of the project, with what the pages expect of the reader beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(tmp_path))
    os.symlink(ROOT / "examples", tmp_path / "examples")
    tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    AutoModelForSequenceClassification.from_config(tiny).save_pretrained("my-tuned-bert")
    modules, operators = set(sys.modules), dict(CONNECTIONS)
    yield tmp_path
    for name in set(sys.modules) - modules:  # files of the pages
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    CONNECTIONS.clear()
    CONNECTIONS.update(operators)


def run_script(script: str, arguments: list[str], monkeypatch) -> object:
    """Runs a Python file as from the shell; returns its exit status."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


def run_command(command: list[str], monkeypatch) -> None:
    """Runs one shell command in this process; of several processes, one."""
    program, *arguments = command
    if program == "make":
        assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in arguments), command
    elif program == "pip":
        assert arguments == ["install", "-e", "."]
    elif program == "hf-feedback":
        assert cli.main(arguments + SHORT * (arguments[0] == "train")) == 0, command
    else:
        assert program in ("python", "torchrun", "accelerate"), command
        start = next(i for i, word in enumerate(arguments) if word.endswith(".py"))
        assert run_script(arguments[start], arguments[start + 1 :] + SHORT, monkeypatch) == 0, command


def with_prints(text: str) -> str:
    """Python in which an expression alone on its line, with its number beside it, is printed:
    `loss(x)  # 0.5: of x` becomes `print(loss(x))  # 0.5`."""

    def printed(line: re.Match) -> str:
        try:
            ast.parse(line["code"], mode="eval")
        except SyntaxError:  # an assignment, or a part of a longer statement
            return line[0]
        return f"print({line['code']})  # {line['number']}"

    number = r"(?P<number>-?\d+(?:\.\d+)?(?:e-?\d+)?)(?::.*)?"
    return re.sub(rf"^(?!print\()(?P<code>[^\s#].*)  # {number}$", printed, text, flags=re.MULTILINE)


def run_python(text: str, names: dict) -> None:
    """Runs Python, whose values in comments are compared, or a session of an interpreter, whose output is."""
    if not text.startswith(">>>"):
        text = with_prints(text)
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(text, "<page>", "exec"), names)
        for value in re.findall(r"^print\(.*\)  # ([-\d(\[TF].*)$", text, flags=re.MULTILINE):
            assert value in printed.getvalue().splitlines()
        return
    runner = doctest.DocTestRunner(verbose=False)
    test = doctest.DocTestParser().get_doctest(text, names, "page", None, None)
    test.globs = names  # and no copy: functions of one block see what a later one defines
    runner.run(test, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_blocks_run(page, models, clone, monkeypatch):
    names: dict = {}
    for block in WITH_BLOCKS[page]:
        text = block.text
        for hub_id, folder in models.items():
            text = text.replace(hub_id, folder)
        if block.title:
            Path(block.title).write_text(text, encoding="utf-8")
        if block.language == "python" and not block.title:
            run_python(text, names)
        elif block.language == "bash":
            for command in commands_of(text):
                with monkeypatch.context() as own:  # the precision of another process, which depends on the machine
                    own.setattr(AcceleratorState, "_shared_state", {})
                    run_command(command, monkeypatch)
        elif block.language == "yaml":
            assert yaml.safe_load(text), "an empty block"
        else:
            assert block.title or block.language in ("text", "bibtex"), f"a block of {block.language or 'no language'}"


def test_numbers_beside_expressions_are_compared():
    text = "x = 0.5  # 2\nx + 1  # 1.5: more\n2 * x  # 1\nx  # a half\nprint(x)  # 0.5\n"
    printed = "x = 0.5  # 2\nprint(x + 1)  # 1.5\nprint(2 * x)  # 1\nx  # a half\nprint(x)  # 0.5\n"
    assert with_prints(text) == printed
    with pytest.raises(AssertionError):  # 1.0
        run_python(text, {})
    run_python(text.replace("# 1\n", "# 1.0\n"), {})


def test_pages_are_found():
    assert {"README.md", "examples/guides/index.md", "examples/guides/operators/attention.md"} <= PAGES.keys()
    assert len(WITH_BLOCKS) > 15
    assert NOTEBOOKS


# Commands of measurements stand in indented blocks: they take minutes to hours, so that only their options are checked.
MEASUREMENTS = sorted(
    {
        (command[1], *(word.split("=")[0] for word in command if word.startswith("--")))
        for text in PAGES.values()
        for block in re.findall(r"(?:^    .*\n)+", text, flags=re.MULTILINE)
        for command in commands_of(re.sub("^    ", "", block, flags=re.MULTILINE) if "python " in block else "")
        if command[0] == "python" and command[1].endswith(".py")
    }
)


@pytest.mark.parametrize("script", sorted({script for script, *_ in MEASUREMENTS}))
def test_measurements_have_their_options(script, clone, monkeypatch, capsys):
    os.symlink(ROOT / "tests", clone / "tests")
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    options = {option for name, *options in MEASUREMENTS if name == script for option in options}
    if script.startswith(("examples/benchmarks", "examples/studies")):
        assert run_script(script, ["--help"], monkeypatch) == 0
        assert options <= set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    else:
        assert (ROOT / script).is_file()
        assert not options


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, models, clone, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for written, here in (*models.items(), ("num_train_epochs=4", "num_train_epochs=1")):
            cell.source = cell.source.replace(written, here)
    assert any("num_train_epochs=1" in cell.source for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(clone)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2


def test_every_option_and_class_has_its_place():
    parts = runpy.run_path(str(GUIDES / "site" / "generated_pages.py"))["reference_pages"]()
    pages = {Path(path).stem: text for part in parts.values() for path, text in part.items()}
    public = {*hf_feedback.__all__, *hf_feedback.training.__all__, *hf_feedback.evaluation.__all__} - {"__version__"}
    assert public == pages.keys() - {"options", "commands"}
    assert {f"--{name.replace('_', '-')}" for name in FeedbackConfig.declared_options()} <= set(
        re.findall(r"--[a-z-]+", pages["commands"])
    )
    for page, config_class in (("options", FeedbackConfig), ("FNNConfig", FNNConfig)):
        names = set(config_class.declared_options())
        assert len(names) > 10
        assert names == set(re.findall(r"^\| `(\w+)` \|", pages[page], flags=re.MULTILINE))


@pytest.mark.parametrize("script", ["draw_passes", "draw_operators"])
def test_figures_are_those_of_their_scripts(script, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(GUIDES / "figures"))
    drawing = importlib.import_module(script)
    monkeypatch.setattr(drawing, "IMAGES", tmp_path)
    drawing.main()
    drawn = list(tmp_path.iterdir())
    assert drawn
    for picture in drawn:
        assert picture.read_bytes() == (GUIDES / "images" / picture.name).read_bytes()
