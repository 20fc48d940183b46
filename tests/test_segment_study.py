"""The studies run to their tables on a few texts, which have the answers that a plain reader finds; guides and cards
show what is kept."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

FOLDER = Path(__file__).parent.parent / "examples" / "studies"
CARDS = FOLDER.parent.parent / "model_cards"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module


def check_card(written):
    """A card is that of the project, and the Hub reads what it says."""
    kept = CARDS / written.name
    assert written.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")
    metadata = ModelCard.load(kept).data
    assert metadata.model_name == written.stem
    assert [result.metric_type for result in metadata.eval_results] == ["accuracy"]


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


@pytest.mark.parametrize("hops", [1, 2])
def test_arms_with_a_stage_per_hop_answer_every_hop(module, hops):
    study = module("segment_memory")
    sizes = dict(num_facts=4, num_symbols=12, hidden_size=16, num_layers=2, summaries=2, hops=2, device="cpu")
    args = argparse.Namespace(**sizes)
    chase = study.chase_of(args)
    ids, _ = chase.draw(2, 3, hops, torch.Generator().manual_seed(0))
    counts = {}
    for arm in study.ARMS:
        backbone = module("look_ups").make_backbone(chase.vocab_size, 16, [False, True])
        answers = study.build(arm, backbone, torch.nn.Linear(16, 12), args)(ids, hops, chase.segment_length)
        assert all(answer.shape == (2, 12) for answer in answers)
        counts[arm] = len(answers)
    once = {"windows", "windows, question in every one", "ToBERT", "RMT", "whole text"}
    assert counts == {arm: 1 if arm in once else hops for arm in study.ARMS}


def test_a_backbone_that_cannot_look_up_is_refused(module, tmp_path, monkeypatch):
    study = module("segment_memory")
    command = f"segment_memory --work {tmp_path} --num-facts 2 --num-symbols 8 --hidden-size 16 --pretraining-steps 1"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit, match="--pretraining-steps"):
        study.main()


def test_segment_memory(module, tmp_path, monkeypatch, capsys):
    study = module("segment_memory")
    monkeypatch.setattr(study, "SEGMENTS", (2, 8, 9))
    tiny = (
        "--num-facts 2 --num-symbols 8 --hidden-size 16 --steps 8 --batch-size 3 --pretraining-steps 2 --look-ups 0 "
        "--test-texts 2"
    )
    command = ["segment_memory", "--work", str(tmp_path), *tiny.split(), "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", command)
    for _ in range(2):
        study.main()
        output = capsys.readouterr().out
        assert all(f"| {arm} |" in output for arm in study.ARMS)
        assert "| hops: 2 |" in output
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == 4 * len(study.ARMS)  # three rates with the first seed, one with the second; none of them again


def test_the_guide_and_the_card_show_the_chases_that_are_kept(module, tmp_path, monkeypatch, capsys):
    study = module("segment_memory")
    guide = (FOLDER.parent / "guides" / "concepts" / "segment_memory.md").read_text()
    commands = re.findall(r"python examples/studies/(segment_memory.py (?:\\\n|.)*)", guide)
    assert commands
    for command in commands:
        kept = command.replace("FOLDER", str(FOLDER / "results" / "segment_memory")).replace("\\\n", " ")
        card = tmp_path / "segment_memory.md"
        options = ["--card", str(card)] if command is commands[0] else []
        monkeypatch.setattr(sys, "argv", [*shlex.split(kept), *options])
        monkeypatch.setattr(study, "run", lambda *_: pytest.fail("the run is not kept"))
        study.main()
        if options:
            check_card(card)
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|") and "---" not in line]
        arms, hops = shlex.split(kept.partition("--arms")[2]), int((re.findall(r"--hops (\d)", kept) or "2")[0])
        assert len(rows) == hops * (1 + len(arms))  # of each number of hops: a head, and a row for each arm
        assert [row for row in rows if row not in guide] == []


def test_the_guide_shows_the_chase_by_command_that_is_kept(module, monkeypatch, capsys):
    study = module("chase_by_command")
    guide = (FOLDER.parent / "guides" / "concepts" / "segment_memory.md").read_text()
    (command,) = re.findall(r"python examples/studies/(chase_by_command.py .*)", guide)
    kept = command.replace("FOLDER", str(FOLDER / "results" / "chase_by_command"))
    monkeypatch.setattr(sys, "argv", shlex.split(kept))
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("the run is not kept"))
    study.main()
    assert capsys.readouterr().out.strip() in guide


@pytest.mark.parametrize("longest", [1, 4])
def test_chains_are_answered_by_following_them(module, longest):
    study, args = module("depth_on_demand"), argparse.Namespace(num_facts=6, num_symbols=14, device="cpu")
    ids, answers, hops = study.draw(args, 20, longest, torch.Generator().manual_seed(0))
    assert ids.shape == (20, 2 + 6 + 3 * 6)
    assert ids.max() < study.FIRST_SYMBOL + 14
    for text, found, needed in zip(ids.tolist(), answers.mT.tolist(), hops.tolist(), strict=True):
        facts = dict(zip(text[8::3], text[9::3], strict=True))
        assert sorted(facts) == sorted(text[1:7])
        for key, values, count in zip(text[1:7], found, needed, strict=True):
            chain = [key]
            while chain[-1] in facts:
                chain.append(facts[chain[-1]])
            assert count == len(chain) - 1 <= longest
            assert [value + study.FIRST_SYMBOL for value in values] == [
                chain[min(k, count)] for k in range(1, longest + 1)
            ]


def test_the_guide_and_the_card_show_the_chains_that_are_kept(module, tmp_path, monkeypatch, capsys):
    guide = (FOLDER.parent / "guides" / "measured" / "many_steps.md").read_text(encoding="utf-8")
    study = module("depth_on_demand")
    arms = ["feedback", "feedback, answer last, K = 4", "eight layers", "sixteen layers", "carried state, normed"]
    kept = ["--work", str(FOLDER / "results" / "depth_on_demand"), "--seeds", *"01234", "--arms", *arms]
    card = tmp_path / "depth_on_demand.md"
    monkeypatch.setattr(sys, "argv", ["depth_on_demand", *kept, "--card", str(card)])
    monkeypatch.setattr(study, "run", lambda *_: pytest.fail("the run is not kept"))
    study.main()
    check_card(card)
    table = capsys.readouterr().out.partition("|---")[2]
    rows = [row.split(" | ") for row in table.splitlines()[1:]]
    iterating = [arm for arm in arms if study.ARMS[arm].iterates]
    assert [(row[0][2:], row[1]) for row in rows if row[0][2:] in iterating] == [
        (arm, str(k)) for arm in iterating for k in study.ITERATIONS
    ]
    assert len(rows) == len(iterating) * len(study.ITERATIONS) + len(arms) - len(iterating)
    for arm, k, _, parameters, *accuracies in rows:
        is_first = k in ("1", str(study.ITERATIONS[0]))
        start = f"{arm} | {k} | {parameters}" if is_first else f"| | {k} |"
        assert " | ".join([start, *accuracies]) in guide


def test_the_guide_shows_the_activations_that_are_kept(module, monkeypatch, capsys):
    guide = (FOLDER.parent / "guides" / "measured" / "many_steps.md").read_text(encoding="utf-8")
    study = module("depth_on_demand")
    arms = ["feedback", *(f"feedback, {name}" for name in ("tanh", "swish", "sigmoid", "gated"))]
    kept = ["--work", str(FOLDER / "results" / "depth_on_demand"), "--seeds", *"012", "--arms", *arms]
    monkeypatch.setattr(sys, "argv", ["depth_on_demand", *kept])
    monkeypatch.setattr(study, "run", lambda *_: pytest.fail("the run is not kept"))
    study.main()
    rows = [row for row in capsys.readouterr().out.splitlines() if row.split(" | ")[1:2] in (["8"], ["12"])]
    assert len(rows) == 2 * len(arms)
    assert [row for row in rows if row not in guide] == []


def test_depth_on_demand(module, tmp_path, monkeypatch, capsys):
    study = module("depth_on_demand")
    monkeypatch.setattr(study, "ITERATIONS", (4, 5))
    monkeypatch.setattr(study, "draw_lengths", lambda num_facts, *_: [num_facts])  # so that few texts have all hops
    tiny = (
        "--num-facts 12 --num-symbols 16 --hidden-size 16 --steps 1 --batch-size 2 --pretraining-steps 1 "
        "--test-texts 8 --learning-rates 1e-3"
    )
    monkeypatch.setattr(sys, "argv", ["depth_on_demand", "--work", str(tmp_path), *tiny.split(), "--seeds", "0", "1"])
    study.main()
    output = capsys.readouterr().out
    for arm, its in study.ARMS.items():
        assert output.count(f"| {arm} |") == (2 if its.iterates else 1)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2 * len(study.ARMS)


def test_carried_state(module, tmp_path, monkeypatch, capsys):
    study = module("carried_state")
    tiny = "--hidden-size 16 --lengths 3 4 --steps 3 --batch-size 2 --test-texts 2 --learning-rates 1e-3 --seeds 0 1"
    monkeypatch.setattr(sys, "argv", ["carried_state", "--task", "swaps", "--work", str(tmp_path), *tiny.split()])
    for _ in range(2):
        study.main()
        output = capsys.readouterr().out
        assert all(output.count(f"| {arm} |") == 2 for arm in (*study.FEEDBACK, *study.OTHERS))
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2 * (len(study.FEEDBACK) + len(study.OTHERS))


def test_the_guide_and_the_card_show_the_carried_states_that_are_kept(module, tmp_path, monkeypatch, capsys):
    study = module("carried_state")
    guide = (FOLDER.parent / "guides" / "concepts" / "carried_state.md").read_text(encoding="utf-8")
    commands = [
        found for found in re.findall(r"python examples/studies/(carried_state.py .*)", guide) if "3 4" in found
    ]
    assert commands
    for command in commands:
        kept = command.replace("FOLDER", str(FOLDER / "results" / "carried_state"))
        monkeypatch.setattr(sys, "argv", [*shlex.split(kept), "--card", str(card := tmp_path / "carried_state.md")])
        monkeypatch.setattr(study, "run", lambda *_: pytest.fail("the run is not kept"))
        study.main()
        check_card(card)
        table = capsys.readouterr().out.partition("second half")[2]
        rows = [line for line in table.splitlines()[2:] if line.startswith("|")]
        assert len(rows) > 3
        assert [row for row in rows if row not in guide] == []
