"""An operator of a user's own: registered from outside, trained, saved with its code, and loaded with consent."""

import importlib
import json
import shutil
import sys

import pytest
import torch
from families import randomize_messages, tiny_backbone, tiny_batch
from fresh_processes import LOADED, run_python

from hf_feedback import FeedbackConfig, FeedbackForSequenceClassification, load_feedback
from hf_feedback.connections import CONNECTIONS

OPERATOR = '''
"""`message_t = scale · up(f(down(LayerNorm(h_{t-1}))))`: each token is informed about the one before it."""

import torch
from torch import nn
from torch.nn import functional as F

from hf_feedback.connections import CONNECTIONS, FeedbackConnection
from .shifts import SHIFT


class Offset(nn.Module):
    """A vector that is added to every source, three at the start."""

    def __init__(self, size):
        super().__init__()
        self.value = nn.Parameter(torch.empty(size))

    def init_feedback_weights(self):
        nn.init.constant_(self.value, 3.0)

    def forward(self, x):
        return x + self.value


class ShiftedConnection(FeedbackConnection):
    mixes_tokens = True

    def __init__(self, config, hidden_size, num_edges, causal=False):
        super().__init__(config, hidden_size, num_edges, causal)
        self.offset = Offset(hidden_size)

    @classmethod
    def check_options(cls, config):
        if config.feedback_signal == "error":
            raise ValueError("`feedback_signal`='error' is not for 'shifted'; use 'state'.")

    def project_source(self, h, context, edge=None):
        return super().project_source(F.pad(self.offset(h)[:, :-SHIFT], (0, 0, SHIFT, 0)), context, edge)


CONNECTIONS["shifted"] = ShiftedConnection
'''

LOAD = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification
import hf_feedback
folder, trust, batch = sys.argv[1], sys.argv[2] == "trust", json.loads(sys.argv[3])
try:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trust)
except ValueError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps(model(**{k: torch.tensor(v) for k, v in batch.items()}).logits.tolist()))
"""


@pytest.fixture
def shifted(tmp_path, monkeypatch):
    """Registers the operator, which lives in a package of the user's own."""
    package = tmp_path / "my_operators"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shifts.py").write_text("SHIFT = 1\n")
    (package / "shifted.py").write_text(OPERATOR)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(CONNECTIONS, "shifted", None)
    importlib.invalidate_caches()
    yield importlib.import_module("my_operators.shifted").ShiftedConnection
    for name in ("my_operators", "my_operators.shifts", "my_operators.shifted"):
        sys.modules.pop(name, None)


def make(**options):
    options = {"feedback_type": "shifted+additive", "feedback_rank": 8, "num_labels": 3, "num_iterations": 3} | options
    return FeedbackForSequenceClassification.from_backbone(tiny_backbone("bert"), **options)


def load_elsewhere(folder, batch, trust):
    """What a fresh process answers with the model in a folder, or why it does not load it."""
    values = json.dumps({name: value.tolist() for name, value in batch.items()})
    arguments = ("-c", LOAD, str(folder), "trust" if trust else "", values)
    done = run_python(*arguments, cwd=folder, modules=LOADED)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_has_what_every_operator_has(shifted):
    fresh, batch = make(), tiny_batch()
    assert fresh.check_equivalence(batch) == 0.0
    offsets = [module.value for module in fresh.modules() if type(module).__name__ == "Offset"]
    assert offsets
    assert all(torch.equal(value, torch.full_like(value, 3.0)) for value in offsets)
    assert "shifted" in fresh.config.to_json_string()
    assert "parameters of feedback" in fresh.feedback_summary()
    model = randomize_messages(fresh).train()
    model(**batch, labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    with pytest.raises(ValueError, match="is not for 'shifted'"):
        FeedbackConfig(feedback_type="shifted", feedback_signal="error")


def test_it_is_saved_with_its_code_and_loaded_with_consent(shifted, tmp_path):
    model, batch = randomize_messages(make()), tiny_batch()
    expected = model(**batch).logits
    model.save_pretrained(tmp_path / "out")
    assert {"shifted.py", "shifts.py", "modeling_feedback.py"} <= {file.name for file in (tmp_path / "out").iterdir()}
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["custom_operators"] == {"shifted": "shifted.ShiftedConnection"}
    here = FeedbackForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(here(**batch).logits, expected)
    refusal = load_elsewhere(tmp_path / "out", batch, trust=False)
    assert "trust_remote_code=True" in refusal
    answer = torch.tensor(load_elsewhere(tmp_path / "out", batch, trust=True))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_feedback_alone_carries_it_too(shifted, tmp_path, monkeypatch):
    model, batch = randomize_messages(make()), tiny_batch()
    model.save_feedback(tmp_path / "out")
    monkeypatch.delitem(CONNECTIONS, "shifted")
    with pytest.raises(ValueError, match="'shifted' is not part of hf_feedback"):
        load_feedback(tmp_path / "out", model.backbone)
    loaded = load_feedback(tmp_path / "out", model.backbone, trust_remote_code=True)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_other_code_of_the_same_name_is_refused(shifted, tmp_path, monkeypatch):
    randomize_messages(make()).save_pretrained(tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    with (tmp_path / "other" / "shifted.py").open("a") as stream:
        stream.write("\nShiftedConnection.mixes_tokens = False\n")
    monkeypatch.delitem(CONNECTIONS, "shifted")
    load = FeedbackForSequenceClassification.from_pretrained
    for _ in range(2):
        load(tmp_path / "out", trust_remote_code=True)
    for trust in (False, True):
        with pytest.raises(ValueError, match="`custom_operators`: 'shifted' was loaded from another folder"):
            load(tmp_path / "other", trust_remote_code=trust)
    monkeypatch.delitem(CONNECTIONS, "shifted")
    assert load(tmp_path / "other", trust_remote_code=True).feedback is not None
    monkeypatch.delitem(CONNECTIONS, "shifted")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace("shifted.ShiftedConnection", "shifted.Offset"))
    with pytest.raises(ValueError, match=r"shifted\.Offset in .* is no FeedbackConnection"):
        load(tmp_path / "other", trust_remote_code=True)


@pytest.mark.parametrize(
    "reference", ["../shifted.Shifted", "a/b--shifted.Shifted", "shifted", "shifted.Shifted.more", 3, None]
)
def test_only_files_of_the_folder_can_be_named(reference):
    with pytest.raises(ValueError, match=r"`custom_operators` must name operators and their 'module\.Class'"):
        FeedbackConfig(feedback_type="other", custom_operators={"other": reference})


def test_an_operator_that_nobody_registered(shifted, monkeypatch):
    config = make().config
    config.custom_operators = {"shifted": "shifted.ShiftedConnection"}
    monkeypatch.delitem(CONNECTIONS, "shifted")
    config.check_options()
    with pytest.raises(ValueError, match="'shifted' is not among the operators additive, gated"):
        FeedbackForSequenceClassification(config)
    with pytest.raises(ValueError, match="`feedback_type` must be one of 'additive'"):
        FeedbackConfig(feedback_type="shifted")


def test_an_operator_of_the_main_module_is_saved_without_code(shifted, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shifted, "__module__", "__main__")
    with caplog.at_level("WARNING", logger="hf_feedback.operator_code"):
        make().save_pretrained(tmp_path)
    assert "defined in `__main__`, whose code cannot be saved" in caplog.text
    assert json.loads((tmp_path / "config.json").read_text()).get("custom_operators") is None
    loaded = FeedbackForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.check_equivalence(tiny_batch()) == 0.0


def test_its_needs_are_named(shifted, monkeypatch):
    monkeypatch.setattr(shifted, "needs_later_tokens", True)
    with pytest.raises(ValueError, match=r"`feedback_type='shifted\+additive'` sends messages from the whole text"):
        FeedbackForSequenceClassification.from_backbone(
            tiny_backbone("llama"), feedback_type="shifted+additive", feedback_future=False
        )
