"""The benchmarks run to their tables on a handful of texts, and go on where they were."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from builders import tiny_tokenizer
from families import tiny_backbone, tiny_config
from training_runs import rows, write
from transformers import AutoModelForCausalLM

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
    for seed, split in enumerate(("train", "validation", "test")):
        write(folder / "texts", f"{split}.csv", rows(18, seed))
    return folder


DATA, MODEL, WORK = "--data {0}/texts", "--model {0}/backbone", "--work {0}/work"
FAST = "--num-train-epochs 1"
TINY = "--hidden-size 16 --lengths 3 4 --steps 3 --batch-size 2 --test-texts 2"
RUNS = {
    "second_reading": (f"--corpus {{0}} {DATA} {WORK} {FAST} --pretraining-epochs 1 --test", "causal mask lifted"),
    "second_reading of an encoder": (f"{DATA} {MODEL} {WORK}/encoder {FAST}", "causal mask lifted"),
    "segments": (f"{DATA} {MODEL} {WORK} {FAST} --segment-length 4 --max-length 8 --test", "| whole |"),
    "dial": (f"{DATA} {MODEL} {WORK} {FAST}", "linear loss, K drawn from 1 to 5"),
    "halting": (f"{DATA} {MODEL} {WORK} {FAST} --repeats 1", "confidence|patience"),
    "finetune": (f"{DATA} {MODEL} {FAST}", "K = 2"),
    "fnn": (f"{DATA} --tokenizer {{0}}/backbone {FAST} --seeds 0 --hidden-size 8 --embedding-size 8", "LSTM"),
    "carried_state": (f"--task swaps {WORK} {TINY} --learning-rates 1e-3 --seeds 0 1", "| GRU |"),
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
