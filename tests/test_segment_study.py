"""The studies run to their tables on a handful of texts; what they draw has the answer that a plain reader finds."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples" / "studies"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module


@pytest.mark.parametrize("hops", [1, 3])
def test_a_chase_is_answered_by_following_it(module, hops):
    chase = module("pointer_chase").Chase(num_symbols=12, num_facts=4)
    ids, chain = chase.draw(20, 5, hops, torch.Generator().manual_seed(0))
    inner = chase.segment_length - 2
    assert ids.shape == (20, 2 + 5 * inner)
    assert ids.max() < chase.vocab_size
    for text, expected in zip(ids.tolist(), chain.tolist(), strict=True):
        segments = [text[1:-1][i * inner : (i + 1) * inner] for i in range(5)]
        facts = [[s[i : i + 3] for i in range(3 * (t == 0), inner, 3)] for t, s in enumerate(segments)]
        found, places, key = [], [], text[1]
        for _ in range(hops):
            ((place, key),) = [(t, value) for t, some in enumerate(facts) for k, value, _ in some if k == key]
            found.append(key - 8)
            places.append(place)
        assert found == expected
        assert 0 not in places
        assert len(set(places)) == hops


def test_segment_memory(module, tmp_path, monkeypatch, capsys):
    study = module("segment_memory")
    monkeypatch.setattr(study, "SEGMENTS", (2, 8, 9))
    tiny = (
        "--num-facts 2 --num-symbols 8 --hidden-size 16 --steps 8 --batch-size 3 --pretraining-steps 2 --test-texts 2"
    )
    command = ["segment_memory", "--work", str(tmp_path), *tiny.split(), "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", command)
    for _ in range(2):
        study.main()
        output = capsys.readouterr().out
        assert all(f"| {arm} |" in output for arm in study.ARMS)
        assert "| hops: 2 |" in output
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == 3 * len(study.ARMS)  # two rates with the first seed, one with the second; none of them again
