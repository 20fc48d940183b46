"""`hf-feedback report`: the page and its numbers."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import LABELS, NAMES, tiny_tokenizer
from datasets import load_dataset
from families import randomize_messages, tiny_backbone
from transformers import ViTImageProcessor, Wav2Vec2FeatureExtractor

from hf_feedback import FeedbackForSequenceClassification, FeedbackForTokenClassification
from hf_feedback.cli import main
from hf_feedback.evaluation.diagnostics import IterationAnswers
from hf_feedback.evaluation.report.building import choose_examples, f1_scores, make_report
from hf_feedback.evaluation.report.labelled_examples import load_examples
from hf_feedback.evaluation.report.observation import Observation, observe
from hf_feedback.evaluation.report.report import ItemChange, Step
from hf_feedback.training.iteration_logs.message_recorder import MessageRecord

HOSTILE = "<script>alert('parcel')</script> & \"refund\""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br", "path", "circle", "line"}


def save_model(folder, cls=FeedbackForSequenceClassification, **options):
    options = {"num_iterations": 2, "feedback_rank": 8, **LABELS, **options}
    randomize_messages(cls.from_backbone(tiny_backbone("bert"), **options), scale=1.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Nine texts, one of them hostile."""
    texts = ["where is my parcel", "the refund has not come", "please help", "it is a parcel", HOSTILE, "my refund"]
    lines = [{"text": text, "label": list(LABELS["label2id"])[i % 3]} for i, text in enumerate([*texts, *texts[:3]])]
    file = tmp_path_factory.mktemp("data") / "test.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return str(file)


@pytest.fixture(scope="module")
def report(model, file):
    return make_report(load_examples(model, file), model, file, batch_size=4, num_pictures=9)


@pytest.fixture(scope="module")
def written(model, file, tmp_path_factory):
    """The folder that the command writes."""
    folder = tmp_path_factory.mktemp("report")
    assert main(["report", model, "--file", file, "--output", str(folder), "--pictures", "9"]) == 0
    return folder


class Page(HTMLParser):
    """What stands in a page: elements that are open at the end, attributes, and text outside of styles."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text, self.tags = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def page(report):
    return Page(report.to_html())


# Numbers


def test_the_numbers_are_those_of_the_model(report, model, file):
    loaded, tokenizer = FeedbackForSequenceClassification.from_pretrained(model), tiny_tokenizer()
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    right = [[] for _ in range(4)]
    for row in rows:
        inputs = tokenizer(row["text"], return_tensors="pt")
        for k in range(4):
            answer = loaded(**inputs, num_iterations=k + 1).logits.argmax().item()
            right[k].append(LABELS["id2label"][answer] == row["label"])
    assert (report.num_iterations, report.observed, report.num_items) == (2, 4, 9)
    assert report.accuracy == pytest.approx([sum(one) / 9 for one in right])
    assert report.oracle_accuracy[1] == sum(map(any, zip(right[0], right[1], strict=True))) / 9
    fixed = [i + 1 for i in range(9) if right[1][i] and not right[0][i]]
    assert [item.row for item in report.whole.fixed] == fixed
    assert [(step.first, step.last) for step in report.steps] == [(1, 2), (2, 3), (3, 4)]


def test_the_contraction_is_the_models_own_estimate(report, model, file):
    examples = load_examples(model, file)
    factors = torch.cat([examples.model.estimate_contraction(batch) for batch in examples.batches(4)])
    assert report.contraction.largest == pytest.approx(factors.max().item(), rel=1e-4)
    assert report.contraction.num_examples == 9


def test_every_edge_has_its_messages(report, model):
    edges = FeedbackForSequenceClassification.from_pretrained(model).config.edges()
    assert [(edge.source, edge.target) for edge in report.edges] == edges
    assert all(edge.norms[0] is None and None not in edge.norms[1:] for edge in report.edges)


def test_pictures_have_one_weight_a_token(report):
    assert {picture.change.row for picture in report.pictures} == set(range(1, 10))
    for picture in report.pictures:
        assert [len(line) for line in picture.movement] == [len(picture.tokens)] * 3
        assert [len(line) for line in picture.attended] == [len(picture.tokens)] * 3
        assert [max(range(len(line)), key=line.__getitem__) for line in picture.movement] == picture.most_moved
    assert report.pictures[0].tokens[0] == "[CLS]"


def changed(row):
    return ItemChange(row, "text", "", "", "late", ["lost"], [0.5])


def test_answers_that_stay_are_named_once():
    item = ItemChange(1, "", "", "", "late", ["lost", "late", "late", "lost"], [0.5] * 4)
    assert item.answer_runs == [("1", "lost"), ("2–3", "late"), ("4", "lost")]


def test_fixed_and_broken_examples_are_shown_by_turns():
    step = Step(1, 2, [changed(5), changed(6), changed(6)], [changed(2)], 0, 1.0)
    others = iter(map(changed, (2, 1, 9, 8)))
    assert [item.row for item in choose_examples(step, others, most=4)] == [5, 2, 6, 1]
    assert [item.row for item in others] == [8]  # they are looked up one by one


def test_f1_is_that_of_the_training_metrics(report, model, file):
    assert report.f1_name == "macro F1"
    seen = observe(load_examples(model, file).model, load_examples(model, file).batches(4), 4)
    for k in range(4):
        scores = []
        for label in range(3):
            hits = sum((seen.answers.predictions[k] == label) & (seen.answers.labels == label))
            both = sum(seen.answers.predictions[k] == label) + sum(seen.answers.labels == label)
            scores.append(2 * hits / both if both else 0.0)
        assert report.f1[k] == pytest.approx(sum(scores) / 3)


def test_f1_of_bio_tags_is_of_entities_in_their_texts():
    """Two texts: the second begins with a tag that would go on with the entity of the first if they were one."""
    labels, predictions = np.array([0, 1, 2, 2]), np.array([[0, 1, 2, 1], [0, 1, 2, 2]])
    answers = IterationAnswers(np.eye(3)[predictions], labels)
    seen = Observation(answers, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.zeros((2, 1)), MessageRecord())
    name, (first, second) = f1_scores(seen, ("O", "B-NAME", "I-NAME"))
    assert name == "entity F1"
    # two entities are right; of three that the first iteration finds, only that of the first text is right
    assert first == pytest.approx(2 * 1 / (2 + 3))
    assert second == 1.0


# JSON


def test_json_holds_everything_and_is_valid(written, report):
    values = json.loads((written / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert values["accuracy"] == pytest.approx(report.accuracy)
    assert values["verdict"] == report.verdict
    assert values["pictures"][0].keys() == {
        *("change", "tokens", "movement", "most_moved", "attended", "attention_source"),
    }
    assert {len(values[name]) for name in ("confusion_first", "confusion_last")} == {3}


def test_the_verdict_names_both_accuracies(report):
    assert f"from {report.accuracy[0]:.1%} to {report.accuracy[1]:.1%}" in report.verdict
    assert "of 9 texts" in report.verdict


# The page


def test_the_page_is_well_formed_and_loads_nothing(page, report):
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    loading = [one for one in page.attributes if one[1] in ("src", "href", "srcset", "data") or one[1].startswith("on")]
    assert loading == []
    assert "url(" not in report.to_html()
    assert ("meta", "content", "width=device-width, initial-scale=1") in page.attributes


def test_texts_and_names_are_escaped(page, report):
    assert "<script" not in report.to_html()
    shown = [item for step in report.steps for item in (*step.fixed, *step.broken)]
    assert all(item.before in page.text for item in shown)
    hostile = ItemChange(1, HOSTILE, HOSTILE, HOSTILE, HOSTILE, [HOSTILE] * 4, [0.5] * 4)
    values = {**vars(report), "model": HOSTILE, "file": HOSTILE, "label_names": (HOSTILE,) * 3}
    values["steps"] = [Step(1, 2, [hostile], [hostile], 0, 1.0)]
    text = type(report)(**values).to_html()
    assert "<script" not in text
    assert Page(text).text.count(HOSTILE) >= 6


def test_every_part_stands_in_the_page(page, report):
    for words in (
        "Accuracy after every iteration",
        "Changed predictions",
        "Convergence of the states",
        "Messages",
        "Token movements",
        "Calibration",
        "Changed confusions",
        report.verdict.split(":")[0],
        *(f"{edge.source} → {edge.target}" for edge in report.edges),
    ):
        assert words in page.text
    assert page.tags.count("svg") == 4


def test_a_tagger_shows_words_in_their_sentences(tmp_path):
    folder = save_model(
        tmp_path / "model", FeedbackForTokenClassification, id2label={0: "N", 1: "V"}, label2id={"N": 0, "V": 1}
    )
    file = tmp_path / "test.jsonl"
    tokens = ["where", "is", "my", "parcel", "refund", "please"]
    file.write_text(
        "\n".join(json.dumps({"tokens": tokens, "tags": list("NVNVNV"[i:] + "NVNVNV"[:i])}) for i in (0, 1))
    )
    report = make_report(load_examples(folder, str(file)), folder, str(file), num_pictures=1)
    assert (report.num_items, report.num_examples, report.unit) == (12, 2, "words")
    assert len(report.pictures) == 1
    assert report.whole.p_value is None
    assert report.verdict.endswith(" become wrong.")
    for step in report.steps:
        for item in (*step.fixed, *step.broken):
            assert f"{item.before} {item.word} {item.after}".split() == tokens
    page = Page(report.to_html())
    assert page.open == []
    assert "12 words in 2 examples" in " ".join(page.text.split())


@pytest.mark.parametrize(
    "options",
    [dict(num_iterations=1), dict(feedback_type="joint"), dict(feedback_activation="gelu"), dict(halting="patience")],
)
def test_pages_of_other_models(file, tmp_path, options):
    folder = save_model(tmp_path / "model", **options)
    report = make_report(load_examples(folder, file), folder, file, num_pictures=0)
    page = Page(report.to_html())
    assert page.open == []
    assert report.pictures == []
    assert ("iteration 1" in page.text.partition("Messages")[2].partition("Calibration")[0]) == (
        "feedback_type" in options
    )
    if report.num_iterations == 1:
        assert report.verdict.startswith("The model takes one iteration, with an accuracy of ")


def test_texts_of_several_segments_have_no_picture(file, tmp_path):
    options = dict(feedback_span="segment", segment_length=6, segment_special_tokens=[1, 1], segment_overlap=0)
    folder = save_model(tmp_path / "model", **options)
    examples = load_examples(folder, file)
    report = make_report(examples, folder, file, num_pictures=9)
    fits = {i + 1 for i, ids in enumerate(examples.data["input_ids"]) if len(ids) <= 6}
    assert {picture.change.row for picture in report.pictures} == fits < set(range(1, 10))
    assert Page(report.to_html()).open == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on the PATH")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_scrolling_sideways(written, tmp_path, width):
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<iframe src="{(written / "report.html").as_uri()}" style="width: {width}px; height: 900px"></iframe>
        <script>
        document.querySelector("iframe").onload = event => {{
            const page = event.target.contentDocument, root = page.documentElement
            page.querySelectorAll("details").forEach(one => one.open = true)
            const inside = [...page.querySelectorAll("main, main *")].filter(one => !one.closest(".scroll"))
            const right = Math.max(...inside.map(one => one.getBoundingClientRect().right))
            document.title = [root.clientWidth, root.scrollWidth, Math.ceil(right), page.querySelectorAll("svg").length]
        }}
        </script>"""
    )
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run(
        [CHROMIUM, *flags, profile, "--virtual-time-budget=5000", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    inner, scrolled, right, num_diagrams = map(int, re.search(r"<title>(.*)</title>", shown)[1].split(","))
    assert scrolled <= inner
    assert right <= inner
    assert num_diagrams == 4


# The command


def test_a_report_is_not_lost(model, file, written, capsys):
    command = ["report", "--model", model, "--file", file, "--output", str(written)]
    assert main(command) == 2
    assert f"error: `output`: {written} holds report.html already; name another, or overwrite it (`--force`)." in (
        capsys.readouterr().err
    )


def test_more_iterations_can_be_asked_for(model, file, tmp_path, capsys):
    command = ["report", model, "--file", file, "--output", str(tmp_path), "--num-iterations", "3", "--pictures", "0"]
    assert main(command) == 0
    values = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (values["num_iterations"], values["observed"], values["pictures"]) == (3, 5, [])
    assert capsys.readouterr().out == (
        f"{values['verdict']}\nThe report is in {tmp_path / 'report.html'}, its numbers in report.json\n"
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--batch-size 0", "`batch_size` must be an integer of at least 1, got 0 (examples per batch)."),
        ("--pictures -1", "`pictures` must be an integer of at least 0, got -1 (0 leaves them out)."),
        ("--tags-column tags", "is a text classifier; leave the option out."),
    ],
)
def test_wrong_options_are_refused_in_one_line(model, file, tmp_path, capsys, option, message):
    assert main(["report", model, "--file", file, "--output", str(tmp_path / "out"), *option.split()]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert line.endswith(message)


MEDIA = {
    "shapes": ("ImageClassification", "vit", lambda: ViTImageProcessor(size={"height": 8, "width": 8}), "image 1"),
    "tones": ("AudioClassification", "wav2vec2", lambda: Wav2Vec2FeatureExtractor(sampling_rate=4000), "recording 1"),
}


@pytest.mark.parametrize("name", MEDIA)
def test_images_and_recordings_have_reports(name, tmp_path):
    task, family, processor, first = MEDIA[name]
    file = Path(__file__).parent.parent / "examples" / "data" / name / "validation.parquet"
    labels = load_dataset("parquet", data_files=str(file), split="train").features["label"].names
    options = {"id2label": dict(enumerate(labels)), "num_iterations": 2, "feedback_rank": 8}
    randomize_messages(NAMES[task].from_backbone(tiny_backbone(family), **options)).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    examples = load_examples(str(tmp_path), str(file))
    assert examples.show(0, 0).before == first
    report = make_report(examples, str(tmp_path), str(file), num_pictures=2)
    assert report.pictures == []
    assert Page(report.to_html()).open == []


def test_examples_in_another_encoding(model, tmp_path, capsys):
    file = tmp_path / "latin.csv"
    file.write_bytes("text;label\nwhere is my parcél;late\nhelp;lost\n".encode("latin-1"))
    command = ["report", model, "--file", str(file), "--output", str(tmp_path / "out"), "--pictures", "0"]
    assert main(command) == 2
    assert "name the encoding" in capsys.readouterr().err
    assert main([*command, "--encoding", "latin-1", "--delimiter", ";"]) == 0
