"""What the README shows runs as it stands."""

import re
from dataclasses import fields
from pathlib import Path

from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedConfig

from hf_feedback import FeedbackConfig

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_tour_runs(minilm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    AutoModelForSequenceClassification.from_config(tiny).save_pretrained("my-tuned-bert")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    names: dict = {}
    for block in blocks:
        exec(block.replace("sentence-transformers/all-MiniLM-L6-v2", minilm), names)
        if "check_equivalence" in block:
            names["model"].set_num_iterations(2)
            assert names["model"].check_equivalence(names["batch"]) == 0.0
            assert len(names["output"].iteration_logits) == 4


def test_every_option_is_in_the_table():
    options = {field.name for field in fields(FeedbackConfig)} - {field.name for field in fields(PreTrainedConfig)}
    for name in options - {"backbone_config", "backbone_source", "hf_feedback_version"}:
        assert f"| `{name}` |" in README, name


def test_commands_name_real_options():
    from hf_feedback.training.arguments import FeedbackTrainingArguments
    from hf_feedback.training.model_arguments import FNNArguments, ModelArguments
    from hf_feedback.training.tasks.text_classification import TextDataArguments

    known = {f.name for part in (TextDataArguments, ModelArguments, FeedbackTrainingArguments) for f in fields(part)}
    known |= {f.name for f in fields(FNNArguments)} | {"fnn", "file", "output", "data", "seeds"}
    for option in re.findall(r" --([a-z][a-z-]+)", README):
        assert option.replace("-", "_") in known, option
