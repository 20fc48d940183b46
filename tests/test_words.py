"""Words and their pieces: where labels stand, how decoders' tokenizers read words and pairs, what pipelines answer."""

import json
import sys
from pathlib import Path

import pytest
import torch
from builders import run_without_package
from datasets import Dataset
from families import randomize_messages, tiny_backbone, tiny_config
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from hf_feedback import (
    FeedbackConfig,
    FeedbackForMultipleChoice,
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
    add_feedback,
)
from hf_feedback.training.data.answers import WindowEncoder, best_answers
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.data.splits import Split
from hf_feedback.training.starting_model.model_arguments import ModelArguments
from hf_feedback.training.starting_model.model_setup import load_tokenizer, set_padding
from hf_feedback.training.tasks import MultipleChoice, TokenClassification
from hf_feedback.training.tasks.multiple_choice import ChoiceArguments, tokenize_choices
from hf_feedback.training.tasks.token_classification import TagArguments, align_labels, tokenize_words
from hf_feedback.words import labelled_pieces, space_before_words, space_between_texts, split_words

EXAMPLES = Path(__file__).parent.parent / "examples"
ENTITIES = EXAMPLES / "data" / "entities" / "train.jsonl"
NAMES = ("O", "B-X", "I-X", "B-Y")
WORDS = ["My", "parcel", "1997", "from", "Berlin", ".", "it's"]
DIGITS = pre_tokenizers.Digits(individual_digits=True)
LLAMA3 = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
SPLITTERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm2": pre_tokenizers.Sequence([DIGITS, pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "llama3": pre_tokenizers.Sequence([LLAMA3, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
    "llama2": pre_tokenizers.Metaspace(),
}


def bytes_tokenizer(kind: str = "smollm2", **options) -> PreTrainedTokenizerFast:
    """A tokenizer as decoders have them: pieces of bytes or letters, no special tokens around or between texts."""
    texts = [" ".join(json.loads(line)["tokens"]) for line in ENTITIES.read_text().splitlines()]
    tokenizer = Tokenizer(models.BPE(unk_token="<end>"))
    tokenizer.pre_tokenizer = SPLITTERS[kind]
    tokenizer.decoder = decoders.Metaspace() if kind == "llama2" else decoders.ByteLevel()
    alphabet = [chr(i) for i in range(33, 127)] if kind == "llama2" else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "<end>", **options})


def decoder_folder(folder: Path, kind: str = "smollm2", **options) -> Path:
    """A tiny Llama with such a tokenizer."""
    tokenizer = bytes_tokenizer(kind, **options)
    sizes = dict(vocab_size=len(tokenizer), max_position_embeddings=128, pad_token_id=None, eos_token_id=0)
    tiny_backbone("llama", **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> str:
    return str(decoder_folder(tmp_path_factory.mktemp("decoder")))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory, decoder) -> str:
    """A folder of a decoder that tags words, whose answers differ from piece to piece."""
    folder = tmp_path_factory.mktemp("tagger")
    model = FeedbackForTokenClassification.from_backbone(decoder, id2label=dict(enumerate(NAMES)), feedback_rank=8)
    torch.nn.init.normal_(randomize_messages(model).classifier.weight)
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    set_padding(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# Where labels stand


def test_labelled_pieces():
    word_ids = [None, 0, 1, 1, 2, 2, 2, None]
    assert align_labels(word_ids, [5, 6, 7]) == [-100, 5, 6, -100, 7, -100, -100, -100]
    assert align_labels(word_ids, [5, 6, 7], "last") == [-100, 5, -100, 6, -100, -100, 7, -100]
    assert labelled_pieces(word_ids, "auto") == labelled_pieces(word_ids, "first")  # models of before
    assert labelled_pieces([0, 1, 1], "last") == [True, False, True]  # cut in a word: the last piece that is left
    assert labelled_pieces([], "last") == labelled_pieces([], "first") == []


SETTLED = {
    "encoder": (lambda: FeedbackForTokenClassification.from_backbone(tiny_backbone("bert")), "first"),
    "decoder": (lambda: FeedbackForTokenClassification.from_backbone(tiny_backbone("llama")), "last"),
    "causal encoder": (
        lambda: FeedbackForTokenClassification.from_backbone(tiny_backbone("bert", is_decoder=True)),
        "last",
    ),
    "first, as was asked": (
        lambda: FeedbackForTokenClassification.from_backbone(tiny_backbone("llama"), label_piece="first"),
        "first",
    ),
    "last, as was asked": (
        lambda: FeedbackForTokenClassification.from_backbone(tiny_backbone("bert"), label_piece="last"),
        "last",
    ),
    "new head of the family's own": (
        lambda: add_feedback(LlamaForTokenClassification(tiny_config("llama")), FeedbackConfig()),
        "last",
    ),
    "no labels of words": (lambda: FeedbackForSequenceClassification.from_backbone(tiny_backbone("llama")), "auto"),
}


@pytest.mark.parametrize("case", SETTLED)
def test_the_piece_is_settled_when_a_model_is_built(case, tmp_path):
    make, wanted = SETTLED[case]
    model = make()
    assert model.config.label_piece == wanted
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.label_piece == wanted


def test_a_head_that_is_trained_elsewhere_keeps_the_first_piece(tmp_path):
    LlamaForTokenClassification(tiny_config("llama")).save_pretrained(tmp_path)
    model = FeedbackForTokenClassification.from_backbone(tmp_path, head="backbone")
    assert model.config.label_piece == "first"


def test_models_of_before_read_first_pieces(tagger, tmp_path):
    for file in Path(tagger).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("label_piece") == "last"
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = FeedbackForTokenClassification.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "again")
    for old in (model, FeedbackForTokenClassification.from_pretrained(tmp_path / "again")):
        assert labelled_pieces([0, 0], old.config.label_piece) == [True, False]
        assert old.config.custom_pipelines == {}


def test_a_new_head_on_trained_feedback_settles_its_own(tmp_path):
    FeedbackForSequenceClassification.from_backbone(tiny_backbone("llama")).save_pretrained(tmp_path)
    assert FeedbackForTokenClassification.from_pretrained(tmp_path).config.label_piece == "last"


def test_values_of_the_option():
    with pytest.raises(ValueError, match="`label_piece` must be one of 'auto', 'first', 'last', got 'middle'"):
        FeedbackConfig(label_piece="middle")


# Words and pairs of texts


@pytest.mark.parametrize("kind", SPLITTERS)
def test_words_are_read_as_those_of_a_text(kind, tmp_path):
    bytes_tokenizer(kind).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), None, of_words=True)
    space = space_before_words(tokenizer)
    found = tokenizer([space + word for word in WORDS], is_split_into_words=True)
    text = " " + " ".join(WORDS)
    assert found["input_ids"] == tokenizer(text if kind != "llama2" else text[1:])["input_ids"]
    ends = labelled_pieces(found.word_ids(), "last")
    assert [word for word, is_end in zip(found.word_ids(), ends, strict=True) if is_end] == [*range(len(WORDS))]


def test_tokenizers_that_know_words_get_no_space():
    letters = BertTokenizer(vocab={token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"])})
    assert (space_before_words(letters), space_between_texts(letters)) == ("", "")
    assert (space_before_words(bytes_tokenizer("llama2")), space_between_texts(bytes_tokenizer("llama2"))) == ("", "")


def test_words_of_a_text():
    text = "It's at  the depot-door, isn't it?"
    words = [text[start:end] for start, end in split_words(text)]
    assert words == ["It", "'", "s", "at", "the", "depot", "-", "door", ",", "isn", "'", "t", "it", "?"]
    assert split_words(" \n") == []


def test_combining_marks_belong_to_the_word_before():
    for text, expected in {
        "हिन्दी भाषा": ["हिन्दी", "भाषा"],
        "cafe\u0301 noir.": ["cafe\u0301", "noir", "."],
        "cafe\u0301.": ["cafe\u0301", "."],
    }.items():
        assert [text[start:end] for start, end in split_words(text)] == expected


def test_tags_stand_at_the_last_piece_also_where_a_text_is_cut():
    data = Dataset.from_list([{"tokens": WORDS, "tags": ["O", "B-X", "I-X", "O", "B-Y", "O", "O"]}])
    labels, tokenizer = LabelSet("single_label_classification", NAMES), bytes_tokenizer()
    for length in (64, 9):
        for piece in ("first", "last"):
            rows = tokenize_words(Split(data, "here"), data["tags"][:], labels, "tokens", tokenizer, length, piece)
            row = rows.data[0]
            word_ids = tokenizer([" " + w for w in WORDS], is_split_into_words=True).word_ids()[:length]
            places = [i for i, label in enumerate(row["labels"]) if label != -100]
            index = {"first": 0, "last": -1}[piece]
            assert places == [
                [i for i, word in enumerate(word_ids) if word == wanted][index] for wanted in dict.fromkeys(word_ids)
            ]
            assert [NAMES[row["labels"][i]] for i in places] == data[0]["tags"][: len(places)]


def test_choices_do_not_begin_in_the_last_word_of_their_context():
    tokenizer = bytes_tokenizer()
    data = Dataset.from_list([{"context": "is it", "choices": ["late", "here"], "label": 1}])
    row = tokenize_choices(data, tokenizer, 64).data[0]
    assert [tokenizer.decode(ids) for ids in row["input_ids"]] == ["is it late", "is it here"]
    assert row["input_ids"][0] == tokenizer("is it late")["input_ids"]


QUESTION = {"question": "Where is my parcel", "context": "My parcel 1997 is at the Berlin depot."}


@pytest.mark.parametrize("kind", SPLITTERS)
@pytest.mark.parametrize("answer", ["My parcel", "1997", "Berlin depot", "depot."])
def test_an_answer_comes_after_its_question_and_comes_back(kind, answer, tmp_path):
    bytes_tokenizer(kind).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), None, of_words=True)
    start = QUESTION["context"].index(answer)
    data = Dataset.from_list([{**QUESTION, "answers": {"text": [answer], "answer_start": [start]}}])
    windows = WindowEncoder(tokenizer, 128, 8).encode(Split(data, "here"))
    (window,) = windows
    first, last, ids = window["start_positions"], window["end_positions"], window["input_ids"]
    assert tokenizer.decode(ids[first : last + 1]).strip() == answer
    asked = tokenizer(QUESTION["question"])["input_ids"]
    assert ids[: len(asked)] == asked  # every token of the text can know the question
    assert first >= len(asked) > window["null"]
    assert tokenizer.decode(ids).strip() == f"{QUESTION['question']} {QUESTION['context']}"
    logits = torch.zeros(2, 1, len(ids))
    logits[0, 0, first] = logits[1, 0, last] = 5
    assert best_answers(*logits.numpy(), windows, [QUESTION["context"]]) == [answer]


def test_windows_of_a_long_text_point_to_the_answer():
    tokenizer, context = bytes_tokenizer(), "it is late and " * 6 + "my parcel is at Berlin " + "and it is late " * 6
    data = Dataset.from_list(
        [{**QUESTION, "context": context, "answers": {"text": ["Berlin"], "answer_start": [context.index("Berlin")]}}]
    )
    windows = WindowEncoder(tokenizer, 48, 12).encode(Split(data, "here"))
    held = [window for window in windows if window["start_positions"]]
    assert 1 <= len(held) < len(windows)
    for window in held:
        first, last = window["start_positions"], window["end_positions"]
        assert tokenizer.decode(window["input_ids"][first : last + 1]).strip() == "Berlin"
        assert context[window["offsets"][first][0] : window["offsets"][last][1]].strip() == "Berlin"


@pytest.mark.parametrize("side", ["left", "right"])
def test_choices_are_padded_on_either_side(decoder, side):
    model = randomize_messages(FeedbackForMultipleChoice.from_backbone(decoder, feedback_rank=8, num_iterations=3))
    tokenizer = AutoTokenizer.from_pretrained(decoder, padding_side=side)
    set_padding(model, tokenizer)
    assert tokenizer.pad_token == tokenizer.eos_token == "<end>"
    assert model.config.pad_token_id == tokenizer.pad_token_id
    task = MultipleChoice(ModelArguments(model=decoder), ChoiceArguments(train_file="here"))
    task.processor = tokenizer
    data = Dataset.from_list([{"context": "is it", "choices": ["late", "here in Berlin at the depot"], "label": 1}])
    row = tokenize_choices(data, tokenizer, 64).data[0]
    batch = task.make_collator()([row])
    lengths = batch["attention_mask"].sum(-1)[0]
    assert lengths[0] < lengths[1]
    with torch.no_grad():
        together = model(**batch).logits[0]
        alone = [model(torch.tensor([[ids]])).logits[0, 0] for ids in row["input_ids"]]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_a_tokenizer_that_cannot_pad_is_refused(decoder):
    model = FeedbackForMultipleChoice.from_backbone(decoder)
    with pytest.raises(ValueError, match="no `pad_token` and no `eos_token` to pad with"):
        set_padding(model, bytes_tokenizer(eos_token=None))


# From training to the pipeline


def read_words(folder: str, words: list[str]) -> list[str]:
    """The tag of every word as training reads it: at the piece where its label stands."""
    model, tokenizer = FeedbackForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    data = Dataset.from_list([{"tokens": words, "tags": ["O"] * len(words)}])
    labels = LabelSet.of_model(model)
    piece = model.config.label_piece
    row = tokenize_words(Split(data, "here"), data["tags"][:], labels, "tokens", tokenizer, 128, piece).data[0]
    with torch.no_grad():
        answers = model(torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
    return [labels.names[a] for a, label in zip(answers, row["labels"], strict=True) if label != -100]


TEXTS = ["Where is my parcel from Berlin?", "It's late.", "My red lamp 1997 came  to Hamburg, not to me"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_pipeline_reads_words_as_training_does(tagger, batch_size, side):
    answer = pipeline("token-classification", tagger, trust_remote_code=True, ignore_labels=[], batch_size=batch_size)
    assert type(answer).__name__ == "FeedbackTokenClassificationPipeline"
    answer.tokenizer.padding_side = side
    different = 0
    for text, found in zip(TEXTS, answer(TEXTS), strict=True):
        words = [text[start:end] for start, end in split_words(text)]
        assert [word["word"] for word in found] == words == [text[word["start"] : word["end"]] for word in found]
        tags = [word["entity"] for word in found]
        assert tags == read_words(tagger, words)
        different += len(set(tags))
    assert different > len(TEXTS)
    lists = answer([WORDS, WORDS[:2]], is_split_into_words=True)
    assert [[word["entity"] for word in found] for found in lists] == [
        read_words(tagger, WORDS),
        read_words(tagger, WORDS[:2]),
    ]
    assert [word["word"] for word in lists[0]] == WORDS


def test_entities_are_made_of_words(tagger):
    options = dict(trust_remote_code=True, ignore_labels=[])
    words = pipeline("token-classification", tagger, **options)(TEXTS[2])
    entities = pipeline("token-classification", tagger, aggregation_strategy="simple", **options)(TEXTS[2])
    assert [entity["start"] for entity in entities] == [
        word["start"]
        for word, before in zip(words, [{"entity": ""}, *words[:-1]], strict=True)
        if word["entity"][:1] == "B" or word["entity"][-1:] != before["entity"][-1:]
    ]
    assert all(entity["word"] == TEXTS[2][entity["start"] : entity["end"]] for entity in entities)


def test_a_text_without_words_and_a_long_one(tagger):
    tokenizer = AutoTokenizer.from_pretrained(tagger, model_max_length=24)
    options = dict(trust_remote_code=True, ignore_labels=[], tokenizer=tokenizer)
    answer = pipeline("token-classification", tagger, aggregation_strategy="simple", stride=8, **options)
    assert answer(["", "  ", "late"])[:2] == [[], []]
    long = " ".join(TEXTS * 3)
    assert max(entity["end"] for entity in answer(long)) == len(long)


def test_the_pipeline_without_the_package(tagger, tmp_path):
    printed = run_without_package(
        f"""
        import json
        from transformers import pipeline

        answer = pipeline(model={tagger!r}, trust_remote_code=True, ignore_labels=[])
        print(json.dumps([word["entity"] for word in answer({TEXTS[0]!r})]))
        """,
        tmp_path,
    )
    words = [TEXTS[0][start:end] for start, end in split_words(TEXTS[0])]
    assert json.loads(printed.splitlines()[-1]) == read_words(tagger, words)


def test_a_pipeline_that_would_read_other_pieces_is_refused(tagger):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("token-classification", tagger)
    model = AutoModelForTokenClassification.from_pretrained(tagger)
    options = dict(tokenizer=AutoTokenizer.from_pretrained(tagger), pipeline_class=model.pipeline_class)
    words = pipeline("token-classification", model, ignore_labels=[], **options)("late it is")
    assert [word["entity"] for word in words] == read_words(tagger, ["late", "it", "is"])
    with pytest.raises(ValueError, match="`aggregation_strategy` must be 'none' or 'simple', got 'max'"):
        pipeline("token-classification", model, aggregation_strategy="max", **options)


def test_encoders_keep_the_pipeline_of_transformers(tmp_path):
    model = FeedbackForTokenClassification.from_backbone(tiny_backbone("bert"))
    model.save_pretrained(tmp_path)
    assert FeedbackConfig.from_pretrained(tmp_path).custom_pipelines == {}
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("option", [(), ("--label-piece", "first")])
def test_a_decoder_from_a_file_to_the_pipeline(option, decoder, tmp_path):
    sys.path[:0] = [] if str(EXAMPLES) in sys.path else [str(EXAMPLES)]
    import run_token_classification

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(ENTITIES.read_text().splitlines(keepends=True)[:12]))
    out = str(tmp_path / "out")
    options = "--max-steps 12 --learning-rate 5e-3 --disable-tqdm True --bf16 False --feedback-rank 4".split()
    files = ["--train-file", str(rows), "--validation-file", str(rows), "--output-dir", out]
    assert run_token_classification.main(["--model", decoder, *files, *options, *option]) == 0
    piece = "first" if option else "last"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_piece"] == piece
    strategy = {"first": "first", "last": "simple"}[piece]
    assert f'aggregation_strategy="{strategy}"' in (tmp_path / "out" / "README.md").read_text()
    data = [json.loads(line) for line in rows.read_text().splitlines()]
    kind = FeedbackForTokenClassification.pipeline_class
    answer = pipeline("token-classification", out, pipeline_class=kind, ignore_labels=[], is_split_into_words=True)
    found = [[word["entity"] for word in words] for words in answer([row["tokens"] for row in data])]
    assert found == [read_words(out, row["tokens"]) for row in data]
    right = [a == b for row, tags in zip(data, found, strict=True) for a, b in zip(row["tags"], tags, strict=True)]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert sum(right) / len(right) == pytest.approx(results["eval_token_accuracy"])


def test_training_goes_on_where_labels_stand(tagger, tmp_path):
    def piece_of(**options) -> str:
        arguments = ModelArguments(model=tagger, **options)
        task = TokenClassification(arguments, TagArguments(train_file=str(tmp_path / "rows.jsonl")))
        row = {"tokens": ["a", "b"], "tags": ["O", "B-X"]}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        return task.prepare(announce=False).model.config.label_piece

    assert piece_of() == piece_of(label_piece="auto") == "last"
    assert piece_of(label_piece="first") == "first"
