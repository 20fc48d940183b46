"""A study runs to its verdicts on a handful of examples, and all others to their plans."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from builders import tiny_tokenizer
from families import tiny_backbone
from training_runs import rows, write
from transformers import AutoModel, AutoTokenizer

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.evaluation.comparison.card import write_comparison_card
from hf_feedback.evaluation.comparison.joined_results import join_results, read_results
from hf_feedback.evaluation.markdown_tables import format_values
from hf_feedback.training.data.files import read_file

FOLDER = Path(__file__).parent.parent / "examples" / "studies"
SMALL = "--train 8 --validation 6 --test 6 --seeds 0 --max-length 32"
RUNS = {
    "later_tokens": (
        "--model {0}/llama --data {0}/words {0}/more --layers 2 --rank 8 --regimes full",
        "| more | ",
        "feedback minus unmasked",
    ),
    "later_tokens, other options": (
        "--model {0}/llama --data {0}/words --layers 2 --rank 8 --regimes full --dry-run --arms unmasked "
        "--feedback-type temporal",
        "2 arms",
    ),
    "later_tokens, frozen": (
        "--model {0}/llama --data {0}/words --layers 2 --rank 8 --regimes frozen --dry-run",
        "lora+unmasked",
        "bottom-up",
    ),
    "robustness": ("--model {0}/bert --data {0}/texts --strengths 0.4 --adversarial {0}/others/test.csv --dry-run",),
    "other_domain": ("--model {0}/bert --data {0}/texts {0}/others --dry-run", "lora"),
    "other_domain, a test file alone": (
        "--model {0}/bert --data {0}/texts {0}/misleading --dry-run",
        "texts to misleading",
    ),
    "compression": ("--model {0}/bert --data {0}/texts --dry-run --kept all", "loop-only"),
    "babi": (
        "--model {0}/bert --data {0}/stories --between {0}/texts --layers 2 --tokens 48 --segment-length 24 --dry-run",
        "duplicated",
        "tobert",
        "memory-question-first",
    ),
    "babi, facts alone": (
        "--model {0}/bert --data {0}/stories --parts segments --layers 2 --tokens 48 --segment-length 24 --dry-run "
        "--arms windows",
        "memory-question-first",
    ),
    "no_harm": ("--model {0}/bert --data {0}/texts --dry-run", "head-only", "lora"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with tiny backbones, texts and words with tags."""
    folder = tmp_path_factory.mktemp("studies")
    for family in ("bert", "llama"):
        tiny_backbone(family).save_pretrained(folder / family)
        tiny_tokenizer().save_pretrained(folder / family)
    for seed, split in enumerate(("train", "validation", "test")):
        for name in ("texts", "others", "words", "more"):
            (folder / name).mkdir(exist_ok=True)
        for name in ("texts", "others"):
            write(folder / name, f"{split}.csv", rows(9, seed))
        (folder / "stories").mkdir(exist_ok=True)
        (folder / "misleading").mkdir(exist_ok=True)
        stories = [{**row, "text": f"{row['text']}. the dog ran. is it big?"} for row in rows(9, seed)]
        write(folder / "stories", f"{split}.csv", stories)
        tagged = [
            {"tokens": (words := row["text"].split()), "tags": ["O", *["B-X"] * (len(words) - 1)]}
            for row in rows(9, seed)
        ]
        for name in ("words", "more"):
            write(folder / name, f"{split}.jsonl", tagged)
    write(folder / "misleading", "test.csv", rows(20, 3))
    return folder


def test_facts_keep_their_order_between_other_sentences(place, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    babi, tokenizer = importlib.import_module("babi"), AutoTokenizer.from_pretrained(place / "bert")
    file = write(tmp_path, "test.jsonl", [{"text": "it is a. it is b. where is c?", "label": "x"}])
    written = babi.write_long({"test": str(file)}, tmp_path, place / "others", 40, tokenizer)
    (row,) = read_file(written["test"]).to_list()
    assert row["text"] == "where is c?"
    before, between, after = re.fullmatch("(.*?) ?it is a. ?(.*?) ?it is b. ?(.*)", row["text_pair"]).groups()
    others = set(read_file(place / "others" / "test.csv")["text"])
    strewn = " ".join(part for part in (before, between, after) if part)
    while strewn:
        (first,) = {other for other in others if strewn.startswith(other)}
        strewn = strewn.removeprefix(first).lstrip()
    assert len(row["text_pair"].split()) > 20
    assert len(tokenizer(row["text"], row["text_pair"])["input_ids"]) <= 40


def test_a_small_backbone_knows_the_words_of_the_texts(place, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    options = ["--data", str(place / "stories"), "--layers", "3", "--hidden-size", "16"]
    monkeypatch.setattr(sys, "argv", ["small_backbone.py", str(tmp_path), *options])
    importlib.import_module("small_backbone").main()
    assert f"{tmp_path}: 3 layers of 16 features" in capsys.readouterr().out
    model, tokenizer = AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.vocab_size == len(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Is it big?", "The dog ran.")["input_ids"])
    assert tokens == "[CLS] is it big ? [SEP] the dog ran . [SEP]".split()
    again = tmp_path / "again"
    monkeypatch.setattr(sys, "argv", ["small_backbone.py", str(again), *options])
    importlib.import_module("small_backbone").main()
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("num_classes", [2, 20])
def test_a_smaller_copy_has_every_class(num_classes, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    study = importlib.import_module("study")
    texts = [{"text": f"text {i}", "label": f"class {i % num_classes}"} for i in range(40)]
    for split in study.SPLITS:
        file = write(tmp_path, f"{split}.csv", texts)
    options = "--model m --data d --work w --train 25 --validation 5 --test 5".split()
    files = study.smaller_copy(tmp_path, tmp_path / "copy", study.comparison_parser(None).parse_args(options))
    found = {split: read_file(name).to_list() for split, name in files.items()}
    assert {split: len(drawn) for split, drawn in found.items()} == {"train": 25, "validation": 5, "test": 5}
    assert len({row["label"] for row in found["train"]}) == num_classes
    at_random = read_file(str(file)).shuffle(seed=0).select(range(25)).to_list()
    assert found["test"] == at_random[:5]
    order = [row["text"] for row in read_file(str(file)).shuffle(seed=0).to_list()]
    places = [order.index(row["text"]) for row in found["train"]]
    assert places == sorted(set(places))
    assert (found["train"] == at_random) is (num_classes == 2)


def test_the_test_may_be_on_training_examples_that_are_left_out(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    study = importlib.import_module("study")
    for split in study.SPLITS:
        write(tmp_path, f"{split}.csv", [{"text": f"{split} {i}", "label": f"class {i % 2}"} for i in range(40)])
    options = "--model m --data d --work w --validation 5 --test-from train".split()
    parser = study.comparison_parser(None)
    files = study.smaller_copy(tmp_path, tmp_path / "copy", parser.parse_args([*options, "--train", "25"]))
    found = {split: set(read_file(name)["text"]) for split, name in files.items()}
    assert len(found["train"]) == 25
    assert found["train"] | found["test"] == {f"train {i}" for i in range(40)}
    assert not found["train"] & found["test"]
    with pytest.raises(ValueError, match="--test-from train: --train 40 leaves no example"):
        study.smaller_copy(tmp_path, tmp_path / "none", parser.parse_args([*options, "--train", "40"]))


def test_a_test_file_alone_is_divided(place, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    divided = importlib.import_module("other_domain").divided
    assert divided(place / "texts", tmp_path) == place / "texts"
    made = divided(place / "misleading", tmp_path)
    assert made == tmp_path / "misleading"
    found = {file.stem: read_file(str(file)).to_list() for file in made.iterdir()}
    assert all(found.values())
    every = [tuple(row.values()) for drawn in found.values() for row in drawn]
    assert sorted(every) == sorted(tuple(row.values()) for row in read_file(str(place / "misleading/test.csv")))
    texts = [{row["text"] for row in drawn} for drawn in found.values()]
    assert sum(map(len, texts)) == len(set().union(*texts))


def test_versions_of_a_sentence_are_together(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    texts = ["the lamp is red today", "where is it?", "the lqmp is red today", "whree is it?", "something else"]
    assert sorted(map(sorted, importlib.import_module("other_domain").versions(texts))) == [[0, 2], [1, 3], [4]]


@pytest.mark.parametrize("case", RUNS)
def test_a_study_runs(case, place, tmp_path, monkeypatch, capsys):
    study, (options, *expected) = case.split(",")[0], RUNS[case]
    monkeypatch.syspath_prepend(FOLDER)
    arguments = f"{options} {SMALL} --work {tmp_path}".format(place).split()
    monkeypatch.setattr(sys, "argv", [f"{study}.py", *arguments])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(study).main()
    printed, errors = capsys.readouterr()
    assert end.value.code == 0, errors
    for words in [*expected, "cannot tell" if "--dry-run" not in options else "runs:"]:  # one seed
        assert words in printed


@pytest.mark.parametrize(
    ("study", "arm", "more"),
    [
        ("carried_state", "carried state", ["--task", "parity"]),
        ("depth_on_demand", "feedback", []),
        ("segment_memory", "memory", []),
    ],
)
def test_a_card_of_one_arm_is_refused(study, arm, more, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    options = [*more, "--work", str(tmp_path / "work"), "--arms", arm, "--card", str(tmp_path / "card.md")]
    monkeypatch.setattr(sys, "argv", [f"{study}.py", *options])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(study).main()
    assert end.value.code == 2
    assert f"--arms names {arm!r} alone" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def measured(page: str) -> str:
    """A page of measurements in the guides."""
    return (FOLDER.parent / "guides" / "measured" / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("regime", "arms"), [("frozen", ("head-only", "lora")), ("full", ("plain", "lora"))])
def test_the_guide_shows_what_is_kept_of_natural_texts(regime, arms):
    guide, folders = measured("short_texts"), sorted((FOLDER / "results" / "no_harm" / regime).iterdir())
    results = read_results([str(folder) for folder in folders])
    for data, result in results.items():
        tests = {name: format_values([100 * value for value in arm["test"]]) for name, arm in result["arms"].items()}
        means = [tests.pop(name) for name in (*arms, "feedback")]
        assert tests == {}
        assert f"| {data} | {' | '.join(means)} |" in guide
    rows = [line for line in join_results(results).splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (3 + len(results))  # the mean, too
    assert [row for row in rows if row not in guide] == []


def test_the_guide_shows_the_mean_over_the_sets_beside_lora():
    results = FOLDER / "results"
    folders = (results / "later_tokens_held_out/frozen/btc", *(results / "later_tokens_beside_lora/frozen").iterdir())
    tables = join_results(read_results(list(map(str, folders)))).split("\n\n")
    assert len(tables) == 5
    for table in tables:
        other = table.split(" minus ")[1].split(" |")[0]
        points, verdict = (table.splitlines()[-1].split(" | ")[at] for at in (1, 4))
        assert f"| {other} | {points} | {verdict}" in measured("decoders")


def test_the_guide_shows_the_comparisons_that_are_kept():
    guide = "".join(map(measured, ("decoders", "short_texts", "many_steps", "long_texts")))
    folders = ("later_tokens*", "compression", "babi")
    files = [f for name in folders for f in (FOLDER / "results").glob(f"{name}/*/*/comparison.md")]
    assert len(files) == 13
    for file in files:
        rows = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        assert len(rows) > 10
        assert [row for row in rows if row not in guide] == []


TAGGING, SHORT = "HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2"
SETS = "sst2 trec50 cola sms_spam mrpc tweeteval_emotion banking77 ag_news"
CARDS = {
    "decoder_tagging": (TAGGING, {"btc-held-out": "later_tokens_held_out/full/btc"}),
    "adapter_decoder_tagging": (
        TAGGING,
        {
            "btc-held-out": "later_tokens_held_out/frozen/btc",
            **{name: f"later_tokens_beside_lora/frozen/{name}" for name in ("anem", "wnut17")},
        },
    ),
    "frozen_decoder_tagging": (TAGGING, {name: f"later_tokens/frozen/{name}" for name in ("btc", "anem", "wnut17")}),
    "short_texts": (SHORT, {name: f"no_harm/full/{name}" for name in SETS.split()}),
    "frozen_short_texts": (SHORT, {name: f"no_harm/frozen/{name}" for name in SETS.split()}),
}


@pytest.mark.parametrize("card", CARDS)
def test_the_cards_show_the_comparisons_that_are_kept(card, tmp_path):
    base_model, folders = CARDS[card]
    kept = {
        name: json.loads((FOLDER / "results" / folder / "comparison.json").read_text(encoding="utf-8"))
        for name, folder in folders.items()
    }
    write_comparison_card(tmp_path / f"{card}.md", kept, base_model)
    written = (tmp_path / f"{card}.md").read_text(encoding="utf-8")
    assert written == (FOLDER.parent.parent / "model_cards" / f"{card}.md").read_text(encoding="utf-8")


def test_the_guide_shows_the_other_domains_that_are_kept():
    guide = measured("short_texts")
    files = sorted((FOLDER / "results" / "other_domain").glob("*/*/comparison.json"))
    assert len(files) == 6
    for file in files:
        result, (source, target) = json.loads(file.read_text(encoding="utf-8")), file.parts[-3].split(" to ")
        adapted = file.parts[-2] == "adapted"
        for domain in (target,) if adapted else (source, target):
            further = domain == target and not adapted
            cells = [f"| {domain if adapted else f'{source}, {domain}'}"]
            for arm in (*(("head-only", "lora") if adapted else ("plain", "lora")), "feedback"):
                values = result["arms"][arm]["also_test"][domain] if further else result["arms"][arm]["test"]
                cells.append(format_values([100 * value for value in values]))
            contrasts = {one["other"]: one for one in result["further_differences" if further else "differences"]}
            for other in ("lora", "head-only") if adapted else ("plain",):
                mean, low, high = (contrasts[other]["difference"][name] for name in ("mean", "low", "high"))
                cells.append(f"{mean:+z.1f} [{low:+z.1f}, {high:+z.1f}]")
            assert " | ".join(cells) + " |" in guide


def test_the_guide_shows_the_distilled_layers_that_are_kept(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    study, guide = importlib.import_module("distilled_layers"), measured("short_texts")
    (command,) = re.findall(r"python examples/studies/(distilled_layers.py (?:\\\n|.)*)", guide)
    kept = command.replace("FOLDER", str(FOLDER / "results" / "distilled_layers")).replace("\\\n", " ")
    monkeypatch.setattr(sys, "argv", shlex.split(kept.replace("MINILM", "runs/minilm")))
    monkeypatch.setattr(study, "run", lambda *_: pytest.fail("the run is not kept"))
    study.main()
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 1 + 10
    assert printed[printed.index("| arm |") :].strip() in guide


def test_the_guide_shows_the_noisy_texts_that_are_kept(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    table = importlib.import_module("robustness").summary(FOLDER / "results" / "robustness" / "sst2")
    assert len(table.splitlines()) == 2 + 1 + 5 * 3 + 1
    assert table in measured("short_texts")


def test_each_iteration_has_lora_of_its_own(place, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    study = importlib.import_module("distilled_layers")
    model = FeedbackForSequenceClassification.from_backbone(
        str(place / "bert"), num_iterations=2, feedback_state="carry"
    )
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]])}

    def answers():
        with torch.no_grad():
            return [model(**inputs, num_iterations=k).logits for k in (1, 2)]

    before, lora = answers(), study.IterationLoRA(model, rank=2)
    assert all(map(torch.equal, before, answers()))
    linear = next(module for module in model.layers[0].modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        lora.up[0][1].normal_()
    after = answers()
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])
    with torch.no_grad():
        lora.up[0][0] = lora.up[0][1]
        lora.down[0][0] = lora.down[0][1]
    both = answers()
    with torch.no_grad():
        linear.weight += lora.up[0][0] @ lora.down[0][0]
        lora.up[0].zero_()
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(both, answers(), strict=True))


def test_a_taught_layer_learns_what_its_teacher_has_found(place, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    study = importlib.import_module("distilled_layers")
    options = f"--model {place}/bert --data {place}/texts {SMALL} --kept 0 2 --epochs 1 --learning-rates 1e-4 2e-4"
    monkeypatch.setattr(sys, "argv", ["distilled_layers.py", "--work", str(tmp_path), *options.split()])
    study.main()
    table = capsys.readouterr().out[-5000:].partition("| arm |")[2]
    assert all(f"| {arm} |" in table for arm in study.ARMS)
    assert "The teacher, validation and test" in table
    monkeypatch.setattr(study, "run", lambda *_: pytest.fail("the run is kept"))
    study.main()
    assert table in capsys.readouterr().out


def test_the_chase_is_learned_by_commands(tmp_path, monkeypatch, capsys):
    """All runs and tests of both arms, tiny; finished ones are not run again."""
    monkeypatch.syspath_prepend(FOLDER)
    study = importlib.import_module("chase_by_command")
    sizes = dict(RUNS=((96, 1, 2, 3, 32), (96, 1, 3, 3, 32)), NUM_FACTS=3, PRETRAINING_STEPS=2, TESTS={"short": (1, 3)})
    for name, value in sizes.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(sys, "argv", ["chase_by_command.py", "--work", str(tmp_path), "--seeds", "0"])
    study.main()
    table = capsys.readouterr().out.splitlines()[-4:]
    assert [row.split(" | ")[0] for row in table] == ["| accuracy (%)", "|---|---|", "| targets", "| label alone"]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    study.main()
    assert capsys.readouterr().out.splitlines() == table
