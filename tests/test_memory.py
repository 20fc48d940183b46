"""Weights stay where transformers maps them: a backbone with feedback takes no memory that the backbone does not."""

import platform
from pathlib import Path

import pytest
import torch
from families import tiny_backbone, tiny_batch

from hf_feedback import FeedbackForMaskedLM, FeedbackForSequenceClassification, load_feedback

OPTIONS = dict(feedback_rank=8)


def mapped_ranges(file: Path) -> list[range]:
    """The addresses at which this process has mapped a file."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if len(line) == 6 and line[5] == str(file)]
    return [range(int(start, 16), int(end, 16)) for start, end in spans]


def in_memory_of_their_own(model: torch.nn.Module, file: Path) -> set[str]:
    """The parameters that do not lie in the mapped file."""
    ranges = mapped_ranges(file)
    return {
        name
        for name, parameter in model.named_parameters()
        if not any(parameter.data_ptr() in addresses for addresses in ranges)
    }


@pytest.fixture
def bert(tmp_path):
    tiny_backbone("bert").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


WAYS = {
    "from_backbone": lambda bert, **options: FeedbackForSequenceClassification.from_backbone(bert, **options),
    "some layers": lambda bert, **options: FeedbackForSequenceClassification.from_backbone(
        bert, backbone_layers=[0, 2], **options
    ),
    "own head": lambda bert, **options: FeedbackForMaskedLM.from_backbone(bert, **options),
    "from_pretrained": lambda bert, **options: FeedbackForSequenceClassification.from_pretrained(bert, **options),
}


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
@pytest.mark.parametrize("way", WAYS)
def test_a_backbone_stays_in_its_file(way, bert):
    model = WAYS[way](bert, **OPTIONS)
    new = {name for name, _ in model.backbone.named_parameters() if name.startswith("cls.")}  # no weights in the file
    assert in_memory_of_their_own(model.backbone, bert / "model.safetensors") == new
    model(**tiny_batch())
    assert in_memory_of_their_own(model.backbone, bert / "model.safetensors") == new


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_saved_models_stay_in_their_files(bert, tmp_path):
    model = FeedbackForSequenceClassification.from_backbone(bert, **OPTIONS)
    model.save_pretrained(tmp_path / "whole")
    model.requires_grad_(False).save_feedback(tmp_path / "feedback")
    loaded = FeedbackForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert in_memory_of_their_own(loaded, tmp_path / "whole" / "model.safetensors") == set()
    loaded = load_feedback(tmp_path / "feedback", bert)
    assert in_memory_of_their_own(loaded.backbone, bert / "model.safetensors") == set()
