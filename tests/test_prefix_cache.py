"""What no trained tensor reaches: no dropout there, and states that are computed once."""

import errno
import os
import shutil
from contextlib import nullcontext

import pytest
import torch
from families import randomize_messages, tiny_backbone
from training_runs import arguments, make, rows, train_command, write

from hf_feedback import FeedbackForSequenceClassification
from hf_feedback.cli import main
from hf_feedback.training import FeedbackTrainer, FrozenPrefix, freeze_parameters
from hf_feedback.training.frozen_layers.prefix_cache import PrefixCache

LENGTHS = [3, 9, 5, 7, 4, 9, 6, 8]


def texts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(5, 90, (length,), generator=generator).tolist(), "labels": i % 3}
        for i, length in enumerate(lengths)
    ]


def pad(rows, left=False):
    length = max(len(row["input_ids"]) for row in rows)
    lines = [row["input_ids"] for row in rows]
    ids = [[1] * (length - len(line)) + line if left else line + [1] * (length - len(line)) for line in lines]
    mask = [[0] * (length - len(line)) + [1] * len(line) for line in lines]
    mask = mask if left else [line[::-1] for line in mask]
    labels = [row["labels"] for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}


def fresh_model(family="bert", **options):
    torch.manual_seed(0)
    model = make(family, classifier_dropout=0.3, **{"num_iterations": 3, **options})
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    return randomize_messages(model)


class Calls:
    """Counts how often the `forward` of a layer really runs."""

    def __init__(self, model, layer=0):
        self.count, self.outputs = 0, []
        submodule = next(m for m in model.layers[layer].modules() if isinstance(m, torch.nn.Linear))
        submodule.register_forward_hook(self.add)

    def add(self, module, args, output):
        self.count += 1


def outputs_of(model, layer, batch):
    """What a layer returns in each iteration of one call."""
    found = []
    handle = model.layers[layer].register_forward_hook(lambda *call: found.append(call[-1]), prepend=True)
    model(**batch)
    handle.remove()
    return [output[0] if isinstance(output, tuple) else output for output in found]


DEPTHS = {  # what is frozen: how many layers no trained tensor reaches in iteration 1
    "nothing": ([], {}, None),
    "layers alone": (["layers:0-3"], {}, None),
    "embeddings": (["embeddings"], {}, 0),
    "two layers": (["embeddings", "layers:0-1"], {}, 2),
    "a layer with a trained one below": (["embeddings", "layers:1-3"], {}, 0),
    "backbone": (["backbone"], {}, 4),
    "backbone, layers above the loop": (["backbone"], dict(feedback_edges=[[2, 1]]), 3),
    "messages in iteration 1": (["backbone"], dict(feedback_type="joint", feedback_layers=[1, 2]), 1),
}


@pytest.mark.parametrize("case", DEPTHS)
def test_only_what_no_trained_tensor_reaches_runs_without_dropout(case):
    freeze, options, depth = DEPTHS[case]
    model, batch = fresh_model(**options), pad(texts())
    freeze_parameters(model, freeze)
    model.train()
    with FrozenPrefix(model) as prefix:
        assert prefix.depth() == depth
        for layer in range(4):
            once, again = outputs_of(model, layer, batch), outputs_of(model, layer, batch)
            assert torch.equal(once[0], again[0]) == (depth is not None and layer < depth)
            assert once[0].requires_grad == (depth is None or layer >= depth)
            assert not any(torch.equal(a, b) for a, b in zip(once[1:], again[1:], strict=True))
        assert all(module.training for module in model.modules())
        quiet = outputs_of(model.eval(), max(0, (depth or 1) - 1), batch)[0]
    assert not any(module.training for module in model.modules())
    assert not depth or torch.equal(quiet, outputs_of(model, depth - 1, batch)[0])
    freeze_parameters(model.train(), freeze)
    assert not torch.equal(*(outputs_of(model, 0, batch)[0] for _ in range(2)))  # outside of the context


def train(folder, model, rows=None, cache=True, collator=pad, **options):
    options = {"num_train_epochs": 3, "max_steps": -1, "freeze": ["embeddings", "layers:0-1"], **options}
    args = arguments(folder, cache_prefix=cache, **options)
    rows = texts() if rows is None else rows
    trainer = FeedbackTrainer(
        model=model, args=args, train_dataset=rows, eval_dataset=rows[:3], data_collator=collator,
    )  # fmt: skip
    trainer.train()
    return trainer


SAME = {
    "lower layers": {},
    "feedback above them": dict(model=dict(feedback_edges=[[3, 2]])),
    "feedback from them": dict(model=dict(feedback_edges=[[1, 0], [3, 1]])),
    "frozen backbone, every source": dict(model=dict(feedback_topology="dense"), freeze=["backbone"]),
    "layers above the loop": dict(model=dict(feedback_edges=[[2, 1]]), freeze=["backbone"]),
    "messages in iteration 1": dict(model=dict(feedback_type="joint", feedback_layers=[1, 2]), freeze=["backbone"]),
    "one iteration": dict(model=dict(num_iterations=1)),
    "drawn iterations": dict(train_iterations="uniform", min_train_iterations=1),
    "one shared layer": dict(family="albert", freeze=["backbone"]),
    "rotary positions": dict(family="llama", freeze=["backbone"]),
    "activation checkpointing": dict(activation_checkpointing=True),
    "accumulation": dict(gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("case", SAME)
def test_a_cache_changes_nothing(case, tmp_path):
    # plain SGD: Adam would divide gradients that are zero but for rounding by themselves
    options = {"per_device_train_batch_size": 3, "num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.1}
    options |= SAME[case]
    family, model_options = options.pop("family", "bert"), options.pop("model", {})
    found, counts = {}, {}
    for cache in (True, False):
        model = fresh_model(family, **model_options)
        calls = Calls(model)
        torch.manual_seed(0)
        trainer = train(tmp_path / str(cache), model, cache=cache, eval_strategy="epoch", **options)
        counts[cache] = calls.count
        losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
        found[cache] = losses, trainer.model.state_dict()
    assert counts[True] < counts[False]
    assert found[True][0] == pytest.approx(found[False][0], abs=1e-5)
    for name, weight in found[True][1].items():
        torch.testing.assert_close(weight, found[False][1][name], rtol=0, atol=1e-5)


def test_the_same_batches_give_the_same_bits(tmp_path):
    weights = {}
    for cache in (True, False):
        model = fresh_model()
        train(tmp_path / str(cache), model, cache=cache, train_sampling_strategy="sequential")
        weights[cache] = model.state_dict()
    assert all(torch.equal(weight, weights[False][name]) for name, weight in weights[True].items())


def test_layers_run_once_for_each_text(tmp_path):
    """8 texts, 2 batches an epoch, 3 epochs: layer 1, which the loop does not repeat, runs in the first epoch alone."""
    counts = []
    for _ in range(2):
        model = fresh_model(feedback_edges=[[3, 2]])
        calls = Calls(model, layer=1)
        train(tmp_path, model)
        counts.append(calls.count)
    assert counts == [2, 1]  # another run finds the files, and looks at one batch whether they are right
    assert not any("forward" in layer.__dict__ for layer in model.layers)


def test_states_of_other_weights_are_not_read(tmp_path):
    first, second = fresh_model(feedback_edges=[[3, 2]]), fresh_model(feedback_edges=[[3, 2]])
    train(tmp_path, first)
    with torch.no_grad():
        next(second.layers[0].parameters()).mul_(2)
    calls = Calls(second, layer=1)
    train(tmp_path, second)
    assert calls.count == 2


def test_states_of_other_heads_are_not_read(tmp_path):
    """The same weights make others of a text where attention has another number of heads."""
    first, *rest = (
        FeedbackForSequenceClassification.from_backbone(
            tiny_backbone("bert", num_attention_heads=heads), num_labels=3, feedback_rank=8, feedback_edges=[[3, 2]]
        )
        for heads in (4, 2, 2)
    )
    counts = []
    for model in (first, *rest):
        assert all(map(torch.equal, model.layers[1].parameters(), first.layers[1].parameters()))
        model.backbone.config.name_or_path = f"place {len(counts)}"
        calls = Calls(model, layer=1)
        train(tmp_path, model)
        counts.append(calls.count)
    assert counts == [2, 2, 1]


@pytest.mark.parametrize(("difference", "allowed"), [(2e-3, False), (2e-2, True), (2e-1, False)])
def test_a_text_may_differ_between_batches_by_what_the_precision_rounds(difference, allowed, tmp_path):
    """Kernels of other shapes round otherwise: under autocast in bfloat16, also where states are kept in float32."""
    rows = [{"input_ids": [5, 6, 7]}]
    cache = PrefixCache(tmp_path, rows, depth=1, layers=[0], width=4, max_gigabytes=1)
    texts = cache.find({"input_ids": torch.tensor(rows[0]["input_ids"])[None]})
    with torch.autocast("cpu", torch.bfloat16, enabled=difference > 1e-2):
        cache.write(texts, {0: torch.ones(1, 3, 4)})
        with nullcontext() if allowed else pytest.raises(ValueError, match="--bf16 False"):
            cache.write(texts, {0: torch.ones(1, 3, 4) + difference})


def test_states_that_depend_on_the_batch_are_not_kept(tmp_path):
    model = fresh_model()
    model.layers[0].register_forward_hook(lambda layer, args, output: output + args[0].shape[1])
    with pytest.raises(ValueError, match="other states for the same text in another batch"):
        train(tmp_path, model, rows=texts([3, 3]) + texts([3, 9]), per_device_train_batch_size=2,
              train_sampling_strategy="sequential")  # fmt: skip


def test_size_is_estimated_and_limited(tmp_path):
    with pytest.raises(ValueError, match=r"keep 51 tokens × 1 layers × 32 numbers = 6.53e-06 GB.* allows 1e-06"):
        train(tmp_path, fresh_model(), cache_prefix_gigabytes=1e-6)
    train(tmp_path, fresh_model())
    (file,) = tmp_path.glob("_prefix_states/*/*.states")
    assert file.stat().st_size == 51 * 32 * 4 <= file.stat().st_blocks * 512


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match=r"`cache_prefix`: .*states has no room for 6.53e-06 GB \(No space left"):
        train(tmp_path, fresh_model())


def test_files_of_other_texts_are_no_room(tmp_path, monkeypatch):
    options = dict(folder=tmp_path, depth=1, layers=[0], width=32, max_gigabytes=1.0)
    (tmp_path / "0-float32.states").write_bytes(bytes(10**6))
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.raises(ValueError, match="and 0 are free"):
        PrefixCache(rows=texts(), **options)


def test_what_the_backbone_does_not_read_is_no_part_of_a_text(tmp_path, caplog):
    """DistilBERT knows no types of tokens, which its tokenizer may give."""
    rows = [{**row, "token_type_ids": [0] * len(row["input_ids"])} for row in texts()]

    def collate(rows):
        batch = pad(rows)
        return {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}

    counts = {}
    for family in ("bert", "distilbert"):
        model = fresh_model(family, feedback_edges=[[3, 2]])
        calls = Calls(model, layer=1)
        train(tmp_path / family, model, rows=rows, collator=collate)
        counts[family] = calls.count
    assert counts == {"bert": 2, "distilbert": 2}
    assert not caplog.records


def test_texts_that_are_no_rows_are_warned_of_once(tmp_path, caplog):
    def cut(rows):
        return pad([{**row, "input_ids": row["input_ids"][:2]} for row in rows])

    train(tmp_path, fresh_model(), collator=cut)
    (record,) = caplog.records
    assert record.getMessage().startswith("`cache_prefix`: a training batch is computed again in every epoch: a text")


def test_what_else_is_not_cached_is_named(tmp_path, caplog):
    train(tmp_path, fresh_model(), collator=lambda rows: {**pad(rows), "output_hidden_states": True})
    (record,) = caplog.records
    assert "in every epoch: hidden states or attentions are asked for; change that" in record.getMessage()


def test_states_of_another_precision_are_not_read(tmp_path):
    counts = []
    for bf16 in (False, True, True):
        model = fresh_model(feedback_edges=[[3, 2]])
        calls = Calls(model, layer=1)
        train(tmp_path, model, bf16=bf16)
        counts.append(calls.count)
    assert counts == [2, 2, 1]


def test_modules_out_of_training_mode_stay_so():
    model, batch = fresh_model(), pad(texts())
    freeze_parameters(model, ["backbone"])
    model.train().layers[2].eval()
    with FrozenPrefix(model):
        model(**batch)
    assert not any(module.training for module in model.layers[2].modules())
    assert model.layers[1].training
    assert model.backbone.training


class TokenBatchNorm(torch.nn.Module):
    """A batch norm over all tokens, after a norm of each."""

    def __init__(self, first, affine):
        super().__init__()
        self.first, self.second = first, torch.nn.BatchNorm1d(first.normalized_shape[0], affine=affine)

    def forward(self, hidden):
        return self.second(self.first(hidden).transpose(1, 2)).transpose(1, 2)


def with_batch_norms(affine=True):
    model = fresh_model()
    for layer in model.layers:
        layer.output.LayerNorm = TokenBatchNorm(layer.output.LayerNorm, affine)
    return model.eval()


NORMS = {  # what is frozen, options: the layers whose running statistics stay
    "backbone": (["backbone"], {}, [0, 1, 2, 3]),
    "backbone from a cache": (["backbone"], dict(cache=True), [0, 1, 2, 3]),
    "backbone, checkpointing": (["backbone"], dict(activation_checkpointing=True), [0, 1, 2, 3]),
    "backbone, compiled": (["backbone"], dict(torch_compile=True, torch_compile_backend="eager"), [0, 1, 2, 3]),
    "layers above trained embeddings": (["layers:0-2"], {}, [0, 1, 2]),
    "lower layers": (["embeddings", "layers:0-1"], dict(cache=True), [0, 1]),
    "stages": ([], dict(unfreeze_every="2 epochs"), [0, 1, 2]),  # of three epochs
    "nothing": ([], {}, []),
}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("case", NORMS)
def test_frozen_batch_norms_keep_their_statistics(case, affine, tmp_path):
    """In all iterations, so that a frozen backbone stays what it was."""
    freeze, options, kept = NORMS[case]
    model, batch = with_batch_norms(affine), pad(texts())
    with torch.no_grad(), model.feedback_disabled():
        before = model(**batch, output_hidden_states=True).hidden_states
    train(tmp_path, model, **{"cache": False, **options, "freeze": freeze})
    norms = [layer.output.LayerNorm.second for layer in model.layers]
    assert [i for i, norm in enumerate(norms) if not norm.num_batches_tracked] == kept
    assert all(norm.running_mean.any() != (i in kept) for i, norm in enumerate(norms))
    with torch.no_grad(), model.eval().feedback_disabled():
        after = model(**batch, output_hidden_states=True).hidden_states
    assert all(map(torch.equal, before, after)) == (freeze == ["backbone"])


def test_batch_norms_that_are_unfrozen_in_a_loop_of_ones_own():
    model, batch = with_batch_norms(), pad(texts())
    freeze_parameters(model, ["backbone"])
    norm = model.layers[3].output.LayerNorm.second
    with FrozenPrefix(model.train()):
        model(**batch)
        assert norm.num_batches_tracked == 0
        assert norm.training
        norm.requires_grad_(True)
        model(**batch)
        assert norm.num_batches_tracked == 3  # once in every iteration
    model.requires_grad_(False)(**batch)
    assert norm.num_batches_tracked == 6  # outside of the context


def test_the_command_removes_the_states_at_the_end(backbone, tmp_path):
    command = train_command(backbone, tmp_path / "out", train=write(tmp_path, "train.csv", rows(6)), validation=None)
    assert main([*command, "--freeze", "embeddings", "layers:0", "--cache-prefix", "true"]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not list((tmp_path / "out").glob("*prefix*"))


WRONG = {
    "no limit": (dict(cache_prefix_gigabytes=0), "`cache_prefix_gigabytes` must be a number above 0"),
    "no cache": (dict(cache=False, cache_prefix_gigabytes=3), "=3 has no effect without `cache_prefix`"),
    "nothing frozen": (dict(freeze=["head"]), r"freeze 'embeddings' and the lowest layers \('layers:0-1'\)"),
    "embeddings alone": (dict(freeze=["embeddings"]), "freeze 'embeddings' and the lowest layers"),
    "noise": (dict(neftune_noise_alpha=5.0), "it does not go with `neftune_noise_alpha`"),
    "adversarial": (dict(adversarial="fgm"), "it does not go with `adversarial`"),
    "stages": (dict(unfreeze_every="1 step"), "it does not go with `unfreeze_every`"),
    "padding on the left": (dict(collator=lambda rows: pad(rows, left=True)), "padded on the right"),
    "no texts": (dict(rows=[{"pixel_values": [0.0], "labels": 0}]), "which these rows do not have"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_kept_is_refused(case, tmp_path):
    options, words = WRONG[case]
    model = fresh_model()
    with pytest.raises(ValueError, match=words):
        train(tmp_path, model, **options)
