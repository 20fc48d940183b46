"""The model card says what the run says, whatever labels, files and folders are called."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard
from training_runs import make

from hf_feedback.training import FeedbackTrainingArguments
from hf_feedback.training.model_card import MAX_NAME_LENGTH, RunFacts, escape_name, short_name, write_model_card
from hf_feedback.training.tasks import TextClassification

HOSTILE = {
    "HTML": "<script>alert(1)</script>",
    "image": "![x](https://example.com/x.png)",
    "link": "[click](https://example.com)",
    "heading": "fine\n\n# Heading\n",
    "table bar": "a | b | c",
    "front matter": "fine\n---\nlicense: mit\n---\n",
    "code": "`rm` ```python\nprint(1)\n```",
    "other lines": "a\u2028b\x0cc\x85d\re",
    "other directions": "abc\u202ecba",
    "entity": "&lt;b&gt;",
    "emphasis": "*a* __b__ ~~c~~ $x$ \\( y \\)",
    "address": "https://example.com/x",
    "address without a scheme": "www.example.com and WWW.example.com",
    "mail": "someone@example.com",
    "length": "x" * 10_000,
}


def card_of(tmp_path, name, max_steps=-1, **options):
    """The card of a run in which everything that has a name is called `name`."""
    args = FeedbackTrainingArguments(
        output_dir=str(tmp_path / "out"), use_cpu=True, report_to=[], freeze=[name], max_steps=max_steps
    )
    (tmp_path / "out").mkdir(parents=True)
    model = make(num_labels=3, id2label={0: name, 1: "late", 2: "lost"}, **options)
    args.hub_model_id = f"me/{name}"
    facts = RunFacts(
        backbone=f"somewhere/{name}",
        data={"train": (f"{name}.csv", 24), "validation": (f"{name}.csv", 12)},
        dataset=None,
        metrics={"eval_accuracy": 0.5, f"eval_{name}": 0.25},
        arguments=args,
        task=TextClassification.card,
    )
    return write_model_card(tmp_path / "out", model.config, facts).read_text(encoding="utf-8")


def test_the_length_of_training_is_the_one_that_counts(tmp_path):
    by_epochs = card_of(tmp_path / "epochs", "news")
    by_steps = card_of(tmp_path / "steps", "news", max_steps=7)
    assert "| epochs | 3.0 |" in by_epochs
    assert "| steps | 7 |" in by_steps
    assert "| epochs |" not in by_steps


@pytest.mark.parametrize(("num_iterations", "words"), [(1, "With one iteration"), (2, "In the first")])
def test_joint_messages_act_in_the_first_iteration(num_iterations, words, tmp_path):
    plain = card_of(tmp_path / "plain", "news", num_iterations=num_iterations)
    joint = card_of(tmp_path / "joint", "news", num_iterations=num_iterations, feedback_type="joint")
    assert "joint messages read their own layer alone, as adapters do." not in plain
    assert ("this is the plain backbone" in plain) == (num_iterations == 1)
    assert "this is the plain backbone" not in joint
    assert words in joint
    assert "joint messages read their own layer alone, as adapters do." in joint


@pytest.mark.parametrize("case", HOSTILE)
def test_a_name_is_nothing_but_a_name(case, tmp_path):
    text = card_of(tmp_path, HOSTILE[case])
    plain = card_of(tmp_path / "plain", "x") if (tmp_path / "plain").mkdir() is None else ""
    for start in ("#", "---", "```", "| "):
        count = sum(line.startswith(start) for line in plain.splitlines())
        assert sum(line.startswith(start) for line in text.splitlines()) == count, start
    body = text.split("---", 2)[2]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in body.splitlines() if line.startswith("|"))
    for sign in ("<", "![", "](", "\u2028", "\u202e", "\x0c", "x" * (MAX_NAME_LENGTH + 1), "://", "@"):
        assert sign not in body, sign
    assert "www." not in body.lower()


@pytest.mark.parametrize("case", HOSTILE)
def test_metadata_is_what_the_run_says(case, tmp_path):
    text = card_of(tmp_path, HOSTILE[case])
    data = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---"))
    assert set(data) <= {"base_model", "library_name", "pipeline_tag", "tags", "metrics", "model-index"}
    assert data["tags"] == ["hf_feedback", "feedback"]
    (result, other) = data["model-index"][0]["results"][0]["metrics"]
    assert (result["type"], result["value"], other["value"]) == ("accuracy", 0.5, 0.25)
    assert ModelCard(text).data.library_name == "transformers"


def test_usual_names_stay_as_they_are():
    for name in ("train.csv", "support_messages", "B-DATE", "layers:0-3", "sentence-transformers/all-MiniLM-L6-v2"):
        assert escape_name(name) == short_name(name) == name
    assert escape_name("päivä, 日本") == "päivä, 日本"
    assert escape_name("a|b") == "a&#124;b"
    assert escape_name("a@b.com") == "a&#64;&#8288;b.com"  # unlike a bare entity no link for GitHub


def test_without_results_nothing_is_said_of_them(tmp_path):
    args = FeedbackTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    for metrics in ({}, {"eval_accuracy": 0.5}):
        data = {"train": ("t.csv", 24), "validation": ("v.csv", 24)}
        facts = RunFacts(None, data, None, metrics, args, TextClassification.card)
        text = write_model_card(tmp_path, make().config, facts).read_text()
        assert ("## Results\n\n| |" in text) == ("One run with one seed" in text) == bool(metrics)


def test_many_labels_are_counted(tmp_path):
    args = FeedbackTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    model = make(num_labels=500, id2label={i: f"label {i}" for i in range(500)})
    facts = RunFacts(None, {"train": ("t.csv", 24)}, None, {}, args, TextClassification.card)
    text = write_model_card(tmp_path, model.config, facts).read_text()
    assert "label 99 and 400 more |" in text
