"""Encoded rows are kept on disk and found again, and never taken for those of other rows, tokenizers or options."""

from types import SimpleNamespace

import datasets
import pytest
from builders import tiny_tokenizer
from datasets import Dataset

from hf_feedback.training.data import row_encoder
from hf_feedback.training.data.columns import Columns
from hf_feedback.training.data.labels import LabelSet
from hf_feedback.training.data.row_encoder import EncodingArguments, RowEncoder, tokenizer_state
from hf_feedback.training.data.splits import Split
from hf_feedback.training.data.texts import tokenize_texts
from hf_feedback.training.resuming.fingerprints import fingerprint_rows
from hf_feedback.training.tasks.multiple_choice import tokenize_choices
from hf_feedback.training.tasks.token_classification import tokenize_words

COLUMNS = Columns("text", None, None)
TEXTS = ["where is my parcel", "the refund", "", "please help it " * 20]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that encoded rows are kept in."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path / "hf_feedback"


def encode(encoder, texts=TEXTS, max_length=16, tokenizer=None, **others):
    split = Split(Dataset.from_dict({"text": texts, **others}), "here")
    return tokenize_texts(split, COLUMNS, tokenizer or tiny_tokenizer(), max_length, encoder)


KEPT = RowEncoder(keeps=True)


def test_rows_are_encoded_once(cache):
    """Also after the tokenizer was used, and whatever other columns hold."""
    used = tiny_tokenizer()
    used("where", truncation=True, max_length=3, padding="max_length")
    plain, first = encode(RowEncoder()), encode(KEPT)
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    again = encode(KEPT, tokenizer=used, label=[1, 2, 3, 4])
    for one in (first, again):
        assert one.data.to_dict() == plain.data.to_dict()
        assert fingerprint_rows(one.data) == fingerprint_rows(plain.data)  # so a run may resume with either
        assert (one.lengths.cut, one.lengths.tokens.tolist(), one.empty) == (1, [6, 4, 2, 62], 1)
    assert [*cache.iterdir()] == [file]
    assert file.stat().st_mtime_ns == written
    encode(RowEncoder(keeps=True, overwrites=True))
    assert file.stat().st_mtime_ns > written


def test_what_differs_is_encoded_anew(cache):
    other = tiny_tokenizer()
    other.add_tokens(["parcel!"])
    for number, change in enumerate(({}, {"texts": TEXTS[:3]}, {"max_length": 8}, {"tokenizer": other}), 1):
        encode(KEPT, **change)
        assert len([*cache.iterdir()]) == number


def test_several_processes_give_the_same_rows(cache):
    texts = TEXTS * 5
    whole = encode(RowEncoder(), texts)
    shared = encode(RowEncoder(num_workers=2, keeps=True), texts)
    assert shared.data.to_dict() == whole.data.to_dict()
    assert shared.lengths.tokens.tolist() == whole.lengths.tokens.tolist()
    with pytest.raises(ValueError, match="here: row 20: column 'text' must hold a text"):
        encode(RowEncoder(num_workers=2), [None] * 19 + [["a"]])


def test_a_folder_that_cannot_be_written_to(cache, caplog):
    cache.write_text("in the way")
    assert encode(KEPT).data.to_dict() == encode(RowEncoder()).data.to_dict()
    assert "encoded rows cannot be kept there" in caplog.text


def test_a_damaged_file_is_no_answer(cache, caplog):
    encode(KEPT)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert encode(KEPT).data.to_dict() == encode(RowEncoder()).data.to_dict()


def test_options():
    assert EncodingArguments().row_encoder == KEPT
    with pytest.raises(ValueError, match="`preprocessing_num_workers` must be an integer of at least 1, got 0"):
        EncodingArguments(preprocessing_num_workers=0).row_encoder  # noqa: B018
    assert tokenizer_state(None) is None


def test_lengths_are_those_before_cutting():
    """Of texts, pairs, words and choices alike, whatever `max_length` leaves of them."""
    tokenizer, words = tiny_tokenizer(), ["where", "is", "my", "parcel"]
    split = Split(Dataset.from_dict({"text": ["where is my parcel", "it"], "b": ["the refund", "it"]}), "here")
    for columns, lengths in ((COLUMNS, [6, 3]), (Columns("text", "b", None), [9, 5])):
        found = tokenize_texts(split, columns, tokenizer, 5).lengths
        assert (found.tokens.tolist(), found.cut) == (lengths, sum(length > 5 for length in lengths))
    tagged = Split(Dataset.from_dict({"tokens": [words, ["it"]]}), "here")
    labels = LabelSet("single_label_classification", ("O", "B-X"))
    found = tokenize_words(tagged, [["O"] * 4, ["O"]], labels, "tokens", tokenizer, 5)
    assert found.lengths.tokens.tolist() == [6, 3]
    assert (
        found.data.column_names
        == tokenize_words(tagged, [["O"] * 4, ["O"]], labels, "tokens", tokenizer, 5).data.column_names
    )
    rows = {"context": ["where is it"] * 2, "choices": [["my parcel", "it"], ["it", "it"]], "label": [1, 0]}
    choices = tokenize_choices(Dataset.from_dict(rows), tokenizer, 6)
    assert (choices.lengths.tokens.tolist(), choices.lengths.cut) == ([8, 7], 2)
    assert [list(map(len, row)) for row in choices.data["input_ids"]] == [[6, 6], [6, 6]]
    assert choices.data["labels"][:] == [1, 0]


@pytest.mark.parametrize(("is_first", "order"), [(True, ["encodes", "waits"]), (False, ["waits", "encodes"])])
def test_one_process_goes_first_also_where_it_fails(is_first, order, monkeypatch):
    happened = []
    state = SimpleNamespace(is_local_main_process=is_first, wait_for_everyone=lambda: happened.append("waits"))
    monkeypatch.setattr(row_encoder, "PartialState", lambda: state)

    @row_encoder.one_process_first()
    def encode():
        happened.append("encodes")
        raise ValueError("a wrong label")

    with pytest.raises(ValueError, match="a wrong label"):
        encode()
    assert happened == order
