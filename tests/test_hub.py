"""The life of a model on the Hub: push, load, train from there, push again; the client's own calls, to a stand-in.

The libraries read their settings when they are imported, so every step is a fresh process; it notes what it finds, and
the tests below it say what that must be.
"""

import json
import os
import textwrap
from pathlib import Path

import pytest
import yaml
from builders import NAMES, first_head, labelled_model
from fresh_processes import run_python
from hub_stand_in import TOKEN, HubStandIn, card_of
from huggingface_hub import ModelCard
from training_runs import rows, train_command

from hf_feedback.training import FeedbackTrainingArguments
from hf_feedback.training.model_card import RunFacts, card_data
from hf_feedback.training.tasks import TextClassification

ROOT = Path(__file__).parent.parent
HEADS = [(name, first_head(name)) for name in NAMES] + [
    (name, "backbone") for name in ("SequenceClassification", "MaskedLM")
]

BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_feedback":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Block())
"""

NOTES = """
import json
import os
import traceback

NOTES = {}

def note(body):
    try:
        NOTES[body.__name__] = body()
    except Exception as error:
        NOTES[body.__name__] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}

def refusal(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


@pytest.fixture(scope="module")
def hub():
    with HubStandIn() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Working folder of all processes; each step has a cache of its own."""
    return tmp_path_factory.mktemp("hub")


def start(arguments, hub, folder, home, token=""):
    """Runs Python in a fresh process that sees nothing but the stand-in."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    env |= {**hub.environment(folder / home, token), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return run_python(*arguments, env=env, cwd=folder)


def notes_of(code, hub, folder, home, token="", package=True):
    """What the process notes; `package=False`: one where `import hf_feedback` fails."""
    script = (
        ("" if package else BLOCKED)
        + NOTES
        + textwrap.dedent(code)
        + f"\njson.dump(NOTES, open('{home}.json', 'w'), default=float)"
    )
    ended = start(["-c", script], hub, folder, home, token)
    assert ended.returncode == 0, ended.stderr
    return json.loads((folder / f"{home}.json").read_text())


# Pushing


@pytest.fixture(scope="module")
def pushed(hub, folder):
    """The repositories that the tests read; what their models answered before is in `expected.pt`."""
    data = [json.dumps(row) for row in rows()]
    (folder / "train.jsonl").write_text("\n".join(data))
    (folder / "test.jsonl").write_text("\n".join(data[:6]))
    notes = notes_of(
        f"""
        import torch
        from builders import REPRESENTATIVE, answers, batch_for, labelled_model, task_model, tiny_tokenizer
        from families import randomize_messages, tiny_backbone, tiny_batch
        from hf_feedback import FeedbackForSequenceClassification
        from huggingface_hub import HfApi
        from transformers import Wav2Vec2FeatureExtractor

        api, expected, tokenizer = HfApi(), {{}}, tiny_tokenizer()
        tokenizer.add_special_tokens({{"mask_token": "[MASK]"}})

        for name, head in {HEADS}:
            model, batch = randomize_messages(task_model(name, head)), batch_for(name, REPRESENTATIVE.get(name, "bert"))
            output = model(**batch, output_hidden_states=True)
            flat = {{key: value.flatten(0, 1) for key, value in batch.items()}} if name == "MultipleChoice" else batch
            found = {{key: value.detach() for key, value in answers(output).items()}}
            hidden = output.hidden_states[-1].detach()
            expected[name, head] = dict(batch=batch, flat=flat, answers=found, hidden=hidden)
            repository = f"me/{{name}}-{{head}}"
            model.push_to_hub(repository)
            if "input_ids" in batch:
                tokenizer.push_to_hub(repository)
            elif "input_values" in batch:
                Wav2Vec2FeatureExtractor().push_to_hub(repository)

        # two states of one repository; the second has other weights, then other code
        shas = []
        tokenizer.push_to_hub("me/moving")
        for seed in (1, 2):
            model = randomize_messages(labelled_model(), seed=seed)
            shas.append(model.push_to_hub("me/moving", commit_message=f"weights {{seed}}").oid)
            expected["moving", seed] = model(**tiny_batch()).logits.detach()
        code = open(api.hf_hub_download("me/moving", "modeling_feedback.py")).read()
        changed = (code + "\\nWRITTEN = 'later'\\n").encode()
        upload = dict(path_or_fileobj=changed, path_in_repo="modeling_feedback.py", repo_id="me/moving")
        shas.append(api.upload_file(**upload).oid)

        # a plain backbone that only "me" may see, in two states, with the pooling that it wants
        plain = []
        pooling = dict(path_or_fileobj=b'{{"pooling_mode_mean_tokens": true}}', path_in_repo="1_Pooling/config.json")
        for seed in (1, 2):
            backbone = tiny_backbone("bert", seed=seed)
            backbone.push_to_hub("me/private-backbone", private=True)
            tokenizer.push_to_hub("me/private-backbone")
            plain.append(api.upload_file(**pooling, repo_id="me/private-backbone").oid)
            expected["plain", seed] = backbone(**tiny_batch()).last_hidden_state.detach()
        backbone.save_pretrained("plain")
        tokenizer.save_pretrained("plain")
        labelled_model(num_iterations=2).push_to_hub("me/private-feedback", private=True)
        source = dict(backbone_kwargs=dict(revision=plain[0]), feedback_rank=8, num_iterations=3)
        model = randomize_messages(FeedbackForSequenceClassification.from_backbone("me/private-backbone", **source))
        expected["only"] = model(**tiny_batch()).logits.detach()
        model.push_feedback_to_hub("me/private-only", private=True)
        api.create_repo("me/private-rows", repo_type="dataset", private=True)
        for split in ("train", "test"):
            upload = dict(path_or_fileobj=f"{{split}}.jsonl", path_in_repo=f"{{split}}.jsonl")
            api.upload_file(**upload, repo_id="me/private-rows", repo_type="dataset")
        torch.save(expected, "expected.pt")

        @note
        def commits():
            return dict(moving=shas, plain=plain)
        """,
        hub,
        folder,
        "pushing",
        TOKEN,
    )
    commits = notes["commits"]
    hub.repositories["me/moving"].refs["v1"] = commits["moving"][0]  # a tag
    return commits


def test_a_push_carries_what_save_pretrained_writes(hub, pushed, tmp_path):
    """Weights, config and the same code files, byte for byte; the tokenizer came besides."""
    labelled_model().save_pretrained(tmp_path)
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    there = hub.files("me/SequenceClassification-new")
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert there.keys() == written.keys() | tokenizer | {".gitattributes", "README.md"}
    for name, content in written.items():
        if name.endswith(".py"):
            assert there[name] == content, name
    assert ModelCard(there["README.md"].decode()).data.library_name == "transformers"


def test_a_second_push_is_a_second_commit(hub, pushed):
    titles = [title for title, _ in hub.repositories["me/moving"].commits.values()]
    assert titles[-3:] == ["weights 1", "weights 2", "Upload modeling_feedback.py with huggingface_hub"]
    first, second, _ = (hub.files("me/moving", sha) for sha in pushed["moving"])
    assert {name for name in first if first[name] != second[name]} == {"model.safetensors"}


# Loading where the package is not


@pytest.fixture(scope="module")
def read(hub, folder, pushed):
    """What a process without the package, and without a token, makes of the public repositories."""
    first = pushed["moving"][0]
    return notes_of(
        f"""
        import sys

        import numpy as np
        import torch
        import transformers
        from closeness import from_same_weights
        from families import tiny_batch
        from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, pipeline

        torch.set_grad_enabled(False)
        expected, trusted = torch.load("expected.pt"), dict(trust_remote_code=True)

        def equal(output, answers):
            return all(from_same_weights(output[key], value) for key, value in answers.items())

        for name, head in {HEADS}:
            @note
            def head_of():
                wanted, repository = expected[name, head], f"me/{{name}}-{{head}}"
                config = AutoConfig.from_pretrained(repository, **trusted)
                auto = getattr(transformers, f"AutoModelFor{{name}}")
                model, info = auto.from_pretrained(repository, **trusted, output_loading_info=True)
                base = AutoModel.from_pretrained(repository, **trusted)
                hidden = base(**wanted["flat"], output_hidden_states=True).hidden_states[-1]
                kinds = [type(part) for part in (config, model, base)]
                return dict(
                    types=[kind.__name__ for kind in kinds],
                    from_remote=all(kind.__module__.startswith("transformers_modules.me.") for kind in kinds),
                    head=config.head,
                    missing=sorted(info["missing_keys"]),
                    answers=equal(model(**wanted["batch"]), wanted["answers"]),
                    hidden=float((hidden - wanted["hidden"]).abs().max()),
                )
            NOTES[f"{{name}}-{{head}}"] = NOTES.pop("head_of")

        @note
        def pipelines():
            def of(task, head, given):
                return pipeline(task, f"me/{{head}}-new", **trusted)(given)
            return dict(
                texts=of("text-classification", "SequenceClassification", "where is my parcel?"),
                tokens=of("token-classification", "TokenClassification", "where is my parcel?"),
                masks=of("fill-mask", "MaskedLM", "where is my [MASK]?"),
                continuations=pipeline("text-generation", "me/CausalLM-backbone", **trusted)(
                    "where is my", max_new_tokens=4, do_sample=False
                ),
                sounds=of("audio-classification", "AudioClassification", np.sin(np.arange(800.0))),
            )

        @note
        def untrusted():
            repository = "me/SequenceClassification-new"
            loads = dict(
                config=AutoConfig.from_pretrained,
                model=AutoModelForSequenceClassification.from_pretrained,
                pipeline=lambda repository: pipeline("text-classification", repository),
            )
            return {{kind: refusal(load, repository) for kind, load in loads.items()}}

        def state(**options):
            model = AutoModelForSequenceClassification.from_pretrained("me/moving", **trusted, **options)
            logits, module = model(**tiny_batch()).logits, sys.modules[type(model).__module__]
            weights = [seed for seed in (1, 2) if from_same_weights(logits, expected["moving", seed])]
            return weights, getattr(module, "WRITTEN", "before"), module.__name__.split(".")[3]

        @note
        def revisions():
            return dict(
                main=state(),
                first=state(revision="{first}"),
                tag=state(revision="v1"),
                old_code=state(code_revision="{first}"),
                new_code=state(revision="{first}", code_revision="main"),
            )

        @note
        def pushed_again():
            model = AutoModelForSequenceClassification.from_pretrained("me/moving", revision="{first}", **trusted)
            model.push_to_hub("me/again", token="{TOKEN}")
            config = AutoConfig.from_pretrained("me/moving", revision="{first}", **trusted)
            config.push_to_hub("me/config", token="{TOKEN}")
        """,
        hub,
        folder,
        "reading",
        package=False,
    )


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_every_head_loads_without_the_package(read, name, head):
    found = read[f"{name}-{head}"]
    assert "error" not in found, found["trace"]
    assert found["types"] == ["FeedbackConfig", f"FeedbackFor{name}", "FeedbackModel"]
    assert found["from_remote"]
    assert found["head"] == head
    assert found["missing"] == []
    assert found["answers"]
    assert found["hidden"] < 1e-5


def test_pipelines_by_repository(read):
    found = read["pipelines"]
    assert "error" not in found, found["trace"]
    assert found["texts"][0]["label"] in ("LABEL_0", "LABEL_1", "LABEL_2")
    assert [token["word"] for token in found["tokens"]] == ["where", "is", "my", "parcel", "?"]
    assert len(found["masks"]) == 5
    assert found["continuations"][0]["generated_text"].startswith("where is my")
    assert {sound["label"] for sound in found["sounds"]} == {"LABEL_0", "LABEL_1", "LABEL_2"}


@pytest.mark.parametrize("kind", ["config", "model", "pipeline"])
def test_code_that_is_not_trusted_is_not_run(read, kind):
    """transformers asks; where nobody answers, it refuses and names the repository and the option."""
    words = read["untrusted"][kind]
    assert words.startswith("ValueError: The repository me/SequenceClassification-new contains custom code")
    assert "pass the argument `trust_remote_code=True`" in words


def test_revisions_of_weights_and_code(read, pushed):
    """`revision` is for weights and code, `code_revision` for the code alone."""
    found, (first, _, third) = read["revisions"], pushed["moving"]
    assert "error" not in found, found["trace"]
    assert found == {
        "main": [[2], "later", third],
        "first": [[1], "before", first],
        "tag": [[1], "before", first],
        "old_code": [[2], "before", first],
        "new_code": [[1], "later", third],
    }


def test_a_model_that_came_from_the_hub_is_pushed_whole(hub, read):
    """Its code travels again, and its config no longer points to where it came from."""
    assert read["pushed_again"] is None, read["pushed_again"]["trace"]
    there, origin = hub.files("me/again"), hub.files("me/moving", "v1")
    code = {name for name in origin if name.endswith(".py")}
    assert {name for name in there if name.endswith(".py")} == code
    assert all(there[name] == origin[name] for name in code)
    assert json.loads(there["config.json"])["auto_map"] == json.loads(origin["config.json"])["auto_map"]
    assert "--" not in there["config.json"].decode()


# Training from the Hub, to the Hub


@pytest.fixture(scope="module")
def trained(hub, folder, pushed):
    """`hf-feedback train` from a private backbone and a private data set to a private repository."""
    first, _ = pushed["plain"]
    options = train_command("me/private-backbone", "trained")
    files = options.index("--train-file")
    more = ["--dataset-name", "me/private-rows", "--revision", first, "--pooling", "auto", "--seed", "3"]
    more += ["--push-to-hub", "--hub-model-id", "me/trained", "--hub-private-repo", "True"]
    arguments = ["-m", "hf_feedback.cli", *options[:files], *options[files + 4 :], *more]
    ended = start(arguments, hub, folder, "training", TOKEN)
    assert ended.returncode == 0, ended.stderr


def test_a_trained_model_is_pushed_whole(hub, trained, folder):
    there = hub.files("me/trained")
    assert hub.get("me/trained", known=True).private
    code = {name for name in hub.files("me/moving") if name.endswith(".py")}
    assert code | {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= there.keys()
    assert not any(name.startswith("checkpoint-") for name in there)
    assert not any(TOKEN.encode() in content for content in there.values())
    for name in ("config.json", "model.safetensors", "README.md"):
        assert there[name] == (folder / "trained" / name).read_bytes()
    assert json.loads(there["config.json"])["pooling"] == "mean"  # the private repository names it


def test_card_of_a_pushed_model(hub, trained, folder):
    card = ModelCard(hub.files("me/trained")["README.md"].decode())
    data = yaml.safe_load(card.data.to_yaml())
    assert data["library_name"] == "transformers"
    assert data["base_model"] == "me/private-backbone"
    assert data["datasets"] in ("me/private-rows", ["me/private-rows"])
    assert data["pipeline_tag"] == "text-classification"
    assert {"hf_feedback", "feedback"} <= set(data["tags"])
    results = json.loads((folder / "trained" / "all_results.json").read_text())
    found = {result.metric_name: result for result in card.data.eval_results}
    assert found.keys() == {"accuracy", "macro_f1"}
    assert set(data["metrics"]) == {result.metric_type for result in found.values()} == {"accuracy", "f1"}
    for metric, result in found.items():
        assert result.metric_value == pytest.approx(results[f"test_{metric}"], abs=1e-4)
        assert (result.task_type, result.dataset_split) == ("text-classification", "test")
        assert result.dataset_type == result.dataset_name == "me/private-rows"


def test_card_names_the_repository_and_the_data(hub, trained):
    card = ModelCard(hub.files("me/trained")["README.md"].decode())
    assert 'pipeline("text-classification", "me/trained", trust_remote_code=True)' in card.text
    assert "24 texts from me/private-rows" in card.text


def test_card_of_data_in_a_folder(tmp_path):
    args = FeedbackTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    data = {"test": (f"{tmp_path}/test", 6)}
    facts = RunFacts("me/private-backbone", data, str(tmp_path), {"test_accuracy": 1.0}, args, TextClassification.card)
    assert "datasets" not in card_of(f"---\n{card_data(facts).to_yaml()}\n---\n".encode())


@pytest.fixture(scope="module")
def read_again(hub, folder, read, trained):
    """A fresh process without the package loads what was trained and what was pushed again."""
    hub.repositories["me/moving"].private = True  # so that its code cannot come from there
    return notes_of(
        f"""
        import torch
        from closeness import from_same_weights
        from families import tiny_batch
        from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

        expected = torch.load("expected.pt")

        @note
        def again():
            model = AutoModelForSequenceClassification.from_pretrained("me/again", trust_remote_code=True)
            return from_same_weights(model(**tiny_batch()).logits, expected["moving", 1])

        @note
        def config():
            return AutoConfig.from_pretrained("me/config", trust_remote_code=True).num_iterations

        kind, private = AutoModelForSequenceClassification, dict(token="{TOKEN}", trust_remote_code=True)

        @note
        def whole():
            return kind.from_pretrained("me/private-feedback", **private).config.num_iterations

        @note
        def only():
            model = kind.from_pretrained("me/private-only", **private)
            return from_same_weights(model(**tiny_batch()).logits, expected["only"])

        @note
        def trained():
            os.environ["HF_TOKEN"] = "{TOKEN}"
            classify = pipeline(model="me/trained", trust_remote_code=True)
            return classify.task, classify("where is my parcel")
        """,
        hub,
        folder,
        "reading-again",
        package=False,
    )


def test_what_was_pushed_again_loads(read_again):
    assert read_again["again"] is True, read_again["again"]


def test_a_config_that_came_from_the_hub_is_pushed_whole(read_again):
    assert read_again["config"] == 3, read_again["config"]


def test_code_of_a_private_repository_loads(read_again):
    assert read_again["whole"] == 2, read_again["whole"]


def test_feedback_alone_loads_without_the_package(read_again):
    assert read_again["only"] is True


def test_the_hub_knows_the_task_of_a_trained_model(read_again):
    """`pipeline` without a task asks the Hub, which knows it from the card."""
    task, ((answer),) = read_again["trained"]
    assert task == "text-classification"
    assert answer["label"] in ("late", "lost", "fine")


# Loading where the package is


@pytest.fixture(scope="module")
def used(hub, folder, pushed, trained):
    first = pushed["plain"][0]
    return notes_of(
        f"""
        import contextlib
        import io
        from pathlib import Path

        import torch
        from closeness import from_same_weights
        from families import tiny_batch
        from hf_feedback import FeedbackForSequenceClassification, FeedbackModel
        from hf_feedback.cli import main
        from hf_feedback.training import FeedbackTrainer, FeedbackTrainingArguments
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        expected, batch, private = torch.load("expected.pt"), tiny_batch(), "me/private-backbone"
        token = dict(token="{TOKEN}")

        def hidden(model):
            with model.feedback_disabled():
                return model(**batch, output_hidden_states=True).hidden_states[-1]

        def states(model):
            return [seed for seed in (1, 2) if from_same_weights(hidden(model), expected["plain", seed])]

        @note
        def backbones():
            first = dict(revision="{first}", **token)
            kind, options = FeedbackForSequenceClassification, dict(feedback_rank=8)
            models = dict(
                main=kind.from_backbone(private, backbone_kwargs=token, **options),
                first=kind.from_backbone(private, backbone_kwargs=first, **options),
                plain=kind.from_pretrained(private, **token, num_labels=3, **options),
                plain_first=kind.from_pretrained(private, **first, num_labels=3, **options),
                base=FeedbackModel.from_pretrained(private, **first, **options),
            )
            pooling = sorted({{model.config.pooling for name, model in models.items() if name != "base"}})
            return dict(pooling=pooling, **{{name: states(model) for name, model in models.items()}})

        @note
        def feedback():
            models = [
                kind.from_pretrained("me/private-feedback", **token)
                for kind in (FeedbackForSequenceClassification, AutoModelForSequenceClassification)
            ]
            return [(type(model).__module__, model.config.num_iterations) for model in models]

        @note
        def feedback_only():
            model = FeedbackForSequenceClassification.from_pretrained("me/private-only", **token)
            same = from_same_weights(model(**batch).logits, expected["only"])
            return same, refusal(model.push_feedback_to_hub, "me/private-two", private=True, **token)

        @note
        def refused():
            kind, load = FeedbackForSequenceClassification, FeedbackForSequenceClassification.from_pretrained
            return dict(
                private=refusal(load, "me/trained"),
                private_backbone=refusal(kind.from_backbone, "me/trained"),
                missing=refusal(load, "me/none"),
                missing_backbone=refusal(kind.from_backbone, "me/none"),
                revision=refusal(load, "me/moving", revision="v9", **token),
                wrong_token=refusal(load, "me/trained", token="hf_wrong"),
            )

        def run(command):
            with contextlib.redirect_stderr(io.StringIO()) as said:
                return main(command.split()), said.getvalue()

        train = "train --train-file train.jsonl --disable-tqdm True --max-steps 2 --bf16 False --feedback-rank 4"
        push = "--push-to-hub --hub-model-id me/nothing"

        @note
        def refused_commands():
            told = dict(
                train=run(f"{{train}} --model me/none --output-dir none"),
                push=run(f"{{train}} --model plain --output-dir no-token {{push}}"),
                predict=run("predict --model me/none --file test.jsonl --output none/p.jsonl"),
                evaluate=run("evaluate --model me/trained --file train.jsonl"),
                rows=run("train --model plain --dataset-name me/private-rows --output-dir no-rows"),
            )
            folders = [Path(name) for name in ("none", "no-token", "no-rows")]
            return told, [str(file) for folder in folders for file in folder.rglob("*") if file.is_file()]

        os.environ["HF_TOKEN"] = "{TOKEN}"

        @note
        def commands():
            return [
                run("predict --model me/trained --file test.jsonl --output now.jsonl"),
                run("predict --model me/moving --revision v1 --file test.jsonl --output first.jsonl"),
                run("evaluate --model me/trained --file train.jsonl --revision main"),
            ]

        @note
        def by_hand():
            tokenizer = AutoTokenizer.from_pretrained("plain")
            model = FeedbackForSequenceClassification.from_backbone("plain", num_labels=3, feedback_rank=8)
            data = [{{**tokenizer("where is my parcel"), "labels": i % 3}} for i in range(4)]
            args = FeedbackTrainingArguments(
                output_dir="by-hand", max_steps=3, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True,
                push_to_hub=True, hub_model_id="me/by-hand", hub_token="{TOKEN}", hub_always_push=True,
            )
            trainer = FeedbackTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
            trainer.train()
            trainer.push_to_hub(commit_message="by hand", tags="parcels")
        """,
        hub,
        folder,
        "using",
    )


def test_backbones_from_the_hub(used):
    """`revision` and `token` reach every file: config, pooling and weights."""
    found = used["backbones"]
    assert "error" not in found, found["trace"]
    assert found == {
        "pooling": ["mean"],
        "main": [2],
        "first": [1],
        "plain": [2],
        "plain_first": [1],
        "base": [1],
    }


def test_feedback_models_from_the_hub(used):
    """Where the package is installed, its own code is used."""
    assert used["feedback"] == [["hf_feedback.modeling_feedback", 2]] * 2, used["feedback"]


def test_feedback_alone_from_the_hub(used, hub):
    """It takes a certain commit of its private backbone, and can be pushed again."""
    assert used["feedback_only"] == [True, None], used["feedback_only"]
    again, origin = hub.files("me/private-two"), hub.files("me/private-only")
    assert again["feedback.safetensors"] == origin["feedback.safetensors"]
    assert "model.safetensors" not in again


REFUSALS = {
    "private": "OSError: me/trained is not a local folder and is not a valid model identifier",
    "private_backbone": "OSError: me/trained is not a local folder and is not a valid model identifier",
    "missing": "OSError: me/none is not a local folder and is not a valid model identifier",
    "missing_backbone": "OSError: me/none is not a local folder and is not a valid model identifier",
    "revision": "OSError: v9 is not a valid git identifier",
    "wrong_token": "Invalid credentials in Authorization header",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_loaded_is_named(used, case):
    """The words are those of transformers, as for any other model."""
    assert REFUSALS[case] in used["refused"][case]


REFUSED_COMMANDS = {
    "train": "error: `model`: there is no folder me/none, and no model of that name could be loaded from the Hub",
    "predict": "error: `model`: there is no folder me/none, and no model of that name could be loaded from the Hub",
    "evaluate": "error: `model`: there is no folder me/trained, and no model of that name could be loaded from the Hub",
    "rows": "error: Dataset 'me/private-rows' doesn't exist on the Hub or cannot be accessed",
    "push": "/api/repos/create'",  # the client names the call, not the repository
}


@pytest.mark.parametrize("command", REFUSED_COMMANDS)
def test_commands_that_fail_say_why(used, command):
    status, said = used["refused_commands"][0][command]
    assert status == 2
    assert REFUSED_COMMANDS[command] in said


def test_commands_that_fail_leave_nothing(used, hub):
    """Neither files nor a repository; without a token for pushing, training does not start."""
    assert used["refused_commands"][1] == []
    assert "me/nothing" not in hub.repositories


def test_commands_take_models_from_the_hub(used, folder):
    assert [status for status, _ in used["commands"]] == [0, 0, 0], used["commands"]
    for name in ("now", "first"):
        answers = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert len(answers) == 6
        assert {answer["label"] for answer in answers} <= {"late", "lost", "fine"}


@pytest.fixture(scope="module")
def by_hand(used, hub):
    """The commits of a run of `FeedbackTrainer` that pushed every checkpoint, the last one by `push_to_hub`."""
    assert used["by_hand"] is None, used["by_hand"]["trace"]
    _, *commits = hub.repositories["me/by-hand"].commits.values()
    return commits


def test_a_trainer_pushes_the_model_whole(by_hand, hub):
    title, files = by_hand[-1]
    assert title == "by hand"
    code = {name for name in hub.files("me/moving") if name.endswith(".py")}
    assert code | {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert "parcels" in ModelCard(files["README.md"].decode()).data.tags


def test_every_pushed_checkpoint_has_its_code(by_hand):
    assert len(by_hand) > 1
    for title, files in by_hand:
        wanted = {f"{place.split('.')[0]}.py" for place in json.loads(files["config.json"])["auto_map"].values()}
        assert wanted <= files.keys(), title


def test_the_token_given_to_a_trainer_stays_at_home(by_hand):
    leaks = {name for _, files in by_hand for name, content in files.items() if TOKEN.encode() in content}
    assert leaks == set()


def test_nothing_asked_for_another_host(hub, read_again, used):
    assert hub.strangers == []


def test_private_files_are_asked_for_with_the_token(hub, read_again, used):
    """Every single one; and the token goes nowhere else: large files come from another host."""
    private = ("me/private-backbone", "me/private-feedback", "me/private-only")
    assert [path for _, path, known in hub.asked if not known and any(name in path for name in private)] == []
    assert not any(known for method, path, known in hub.asked if path.startswith("/lfs/") and method == "GET")
