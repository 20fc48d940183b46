"""The benchmarks run to their tables on a handful of texts, and go on where they were; tagging, what each way reads."""

import importlib
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from builders import tiny_tokenizer
from datasets import Dataset
from families import randomize_messages, tiny_backbone, tiny_config
from training_runs import rows, write
from transformers import AutoModelForCausalLM

from hf_feedback.training.data.labels import LabelSet

FOLDER = Path(__file__).parent.parent / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny backbone and data of three classes."""
    folder = tmp_path_factory.mktemp("benchmarks")
    tiny_backbone("bert").save_pretrained(folder / "backbone")
    tiny_tokenizer().save_pretrained(folder / "backbone")
    AutoModelForCausalLM.from_config(tiny_config("llama")).save_pretrained(folder / "decoder")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder / "decoder")
    (folder / "texts").mkdir()
    (folder / "words").mkdir()
    for seed, split in enumerate(("train", "validation", "test")):
        write(folder / "texts", f"{split}.csv", rows(9, seed))
        write(folder / "words", f"{split}.jsonl", [tagged(row["text"]) for row in rows(9, seed)])
    return folder


def tagged(text):
    """A row of words and tags: the parcel and the refund are items."""
    words = text.split()
    return {"tokens": words, "tags": ["B-ITEM" if word in ("parcel", "refund") else "O" for word in words]}


DATA, MODEL, WORK = "--data {0}/texts", "--model {0}/backbone", "--work {0}/work"
FAST = "--num-train-epochs 1"
RUNS = {
    "decoder_classification": (f"--corpus {{0}} {DATA} {WORK} {FAST} --pretraining-epochs 1 --test", "mask lifted"),
    "decoder_classification of an encoder": (f"{DATA} {MODEL} {WORK}/encoder {FAST}", "causal mask lifted"),
    "second_reading": (
        "--backbone {0}/decoder --data {0}/words --work {0}/work --layers 2 --rank 8 --train 4 --validation 4 --test 4 "
        "--batch-size 4 --epochs 1 --backbone-lr 1e-3 2e-3 --seeds 0 1 --arms causal repeated",
        "| repeated |",
    ),
    "segments": (f"{DATA} {MODEL} {WORK} {FAST} --segment-length 4 --max-length 8 --test", "| whole |"),
    "dial": (f"{DATA} {MODEL} {WORK} {FAST}", "linear loss, K drawn from 1 to 5"),
    "techniques": (f"{DATA} {MODEL} {WORK} --train-texts 8 --also-test {{0}}/texts/test.csv", "gradual unfreezing"),
    "halting": (f"{DATA} {MODEL} {WORK} {FAST} --repeats 1", "confidence|patience"),
    "finetune": (f"{DATA} {MODEL} {FAST}", "K = 2"),
    "fnn": (f"{DATA} --tokenizer {{0}}/backbone {FAST} --seeds 0 --hidden-size 8 --embedding-size 8", "LSTM"),
    "activations": (f"{MODEL} --texts 2 --repeats 1", "| swish |"),
    "language_model": (
        f"{DATA} --model {{0}}/decoder --work {{0}}/work/lm --arms plain lora feedback --seeds 0 --rates 1e-3 "
        "--tokens 8 --train-blocks 4 --test-blocks 2 --epochs 1 --lowest-target 2 --feedback-rank 4",
        "| feedback |",
    ),
    "language_model and its speed": (
        "--model {0}/decoder --speed --rounds 1 --prompt-tokens 4 --new-tokens 3 --lowest-target 2 --feedback-rank 4",
        "| K = 3 |",
    ),
    "prefix_cache": (f"{DATA} {MODEL} --num-train-epochs 2 --frozen-layers 2", "| backbone frozen"),
    "memory": ("--iterations 1 2 --batch-size 2 --length 8", "implicit"),
    "cost": (f"{MODEL} --iterations 1 2 --rounds 1 --batch-size 2 --tokens 8", "K = 2"),
}


@pytest.mark.parametrize("case", RUNS)
def test_runs(case, place, monkeypatch, capsys):
    options, words = RUNS[case]
    name = case.split()[0]
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [name, *options.format(place).split()])
    threads = torch.get_num_threads()
    try:
        importlib.import_module(name).main()
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop(name, None)
    first = capsys.readouterr().out
    assert words in first
    if WORK in options and name != "halting":  # finished runs are not run again
        before = [file.read_text() for file in sorted((place / "work").rglob("*.jsonl"))]
        importlib.import_module(name).main()
        sys.modules.pop(name, None)
        assert before == [file.read_text() for file in sorted((place / "work").rglob("*.jsonl"))]
        assert capsys.readouterr().out.splitlines()[-1] == first.splitlines()[-1]


def test_what_is_read_twice_is_pooled_in_the_second_copy(place, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "decoder_classification", raising=False)
    classifying = importlib.import_module("decoder_classification")
    model = classifying.Echo.from_backbone(
        str(place / "decoder"), num_labels=3, num_iterations=1, pooling="mean"
    ).eval()
    ids, mask = torch.tensor([[5, 6, 7, 5, 6, 7], [8, 9, 8, 9, 0, 0]]), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with torch.no_grad():
        output = model(ids, attention_mask=mask, output_hidden_states=True)
        states = output.hidden_states[-1]
        second = torch.stack((states[0, 3:].mean(0), states[1, 2:4].mean(0)))
        torch.testing.assert_close(output.logits, model.classifier(second))


def test_tagging_reads_later_tokens(place, monkeypatch):
    """Only some ways let a token know what comes after it: this is what the benchmark compares."""
    monkeypatch.syspath_prepend(str(FOLDER))
    tagging = importlib.import_module("second_reading")
    labels = LabelSet("single_label_classification", ("O", "B-ITEM"))
    args = Namespace(backbone=str(place / "decoder"), layers=3, rank=8)
    found = {}
    for name, arm in tagging.ARMS.items():
        model = randomize_messages(tagging.make_model(arm, labels, args))
        found[name] = tagging.reads_later_tokens(model, [5, 6, 7, 8] * arm.copies, arm.copies)
    sys.modules.pop("second_reading", None)
    blind = {"causal", "causal, twice the epochs", "attention, causal messages", "additive"}
    assert found == {name: name not in blind for name in tagging.ARMS}


def test_tagging_reads_tags_in_the_last_copy(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    tagging = importlib.import_module("second_reading")
    data = Dataset.from_list([{"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [-100, 1]}])
    assert tagging.repeat_texts(data)[0] == {
        "input_ids": [5, 6, 5, 6], "attention_mask": [1, 1, 1, 1], "labels": [-100, -100, -100, 1]
    }  # fmt: skip
    sys.modules.pop("second_reading", None)


def test_tagging_is_compared_by_seed(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    tagging = importlib.import_module("second_reading")
    scores = {"causal": (40.0, 50.0), "causal, twice the epochs": (43.0, 51.0)}
    measured = dict(mflop_a_sentence=500.0, seconds_a_step=1.0, later=False, rates=[2e-4, 1e-3])
    results = [
        dict(arm=name, seed=seed, validation_f1=30.0, test_f1=f1, **measured)
        for name, by_seed in scores.items()
        for seed, f1 in enumerate(by_seed)
    ]
    last = tagging.summary(results, "words").splitlines()[-1]
    sys.modules.pop("second_reading", None)
    assert last == (
        "| causal, twice the epochs | 30.0 ± 0.0 (2) | 47.0 ± 50.8 (2) | 43.0, 51.0 | 2.0 ± 12.7 (2) | 2.00 | 0.50 "
        "| 1.00 | no | 0.0002 / 0.001 |"
    )


def test_what_is_finished_outlives_a_kill(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    common = importlib.import_module("common")
    file = tmp_path / "results.jsonl"
    common.Finished(file).find({"arm": "a"}, "accuracy", lambda: {"accuracy": 1.0})
    with file.open("a") as stream:
        stream.write('{"arm": "b", "acc')
    finished = common.Finished(file)
    assert finished.find({"arm": "a"}, "accuracy", lambda: pytest.fail("it is run again"))["accuracy"] == 1.0
    assert finished.find({"arm": "b"}, "accuracy", lambda: {"accuracy": 0.5})["accuracy"] == 0.5
    assert len(common.Finished(file).runs) == 2


def test_a_model_of_other_options_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    common = importlib.import_module("common")
    folder = tmp_path / "work" / "model"
    assert not common.is_made(folder, Namespace(model="a"), ["model"])
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert common.is_made(folder, Namespace(model="a"), ["model"])
    with pytest.raises(SystemExit, match="was made with other options; name another folder"):
        common.is_made(folder, Namespace(model="b"), ["model"])
