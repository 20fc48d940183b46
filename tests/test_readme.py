"""What the README says of classes, versions and files is so; its code runs in test_guides.py."""

import re
from pathlib import Path

import pytest
import yaml

import hf_feedback

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = ROOT / "examples" / "guides"


def test_it_is_short():
    assert 80 < len(README.splitlines()) < 140
    tour = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert tour is not None
    assert len([line for line in tour[1].splitlines() if line]) <= 12


def test_every_task_is_in_the_table():
    classes = {name for name in hf_feedback.__all__ if name.startswith("FeedbackFor")} | {"FeedbackModel"}
    assert len(classes) > 5
    for page in (README, (GUIDES / "how_to" / "tasks.md").read_text(encoding="utf-8")):
        assert classes == set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))


def test_links_lead_to_files():
    links = {link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link}
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


def test_results_are_those_of_the_guide():
    guide = " ".join(page.read_text(encoding="utf-8") for page in (GUIDES / "measured").iterdir())
    figures = re.findall(r"[−\d.]+ ± [\d.]+", README)
    assert len(figures) > 10
    for figure in figures:
        assert figure in guide.replace("\n", " "), figure


@pytest.mark.parametrize(
    "page", ["README.md", *(f"examples/guides/{name}.md" for name in ("does_it_help", "how_to/decoders"))]
)
def test_intervals_are_those_of_a_measured_table(page):
    def plain(text):
        return text.replace("−", "-").replace("+", "").replace(" points", "").replace("\n", " ")

    measured = "".join(file.read_text(encoding="utf-8") for file in (GUIDES / "measured").iterdir())
    tables = plain("\n".join(line for line in measured.splitlines() if line.startswith("|")))
    intervals = re.findall(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", plain((ROOT / page).read_text(encoding="utf-8")))
    assert len(intervals) > 3
    assert [one for one in intervals if f" {one} " not in tables] == []


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_feedback.__version__
    assert f"version = {{{hf_feedback.__version__}}}" in README
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
