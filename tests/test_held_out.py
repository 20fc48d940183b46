"""One file becomes rows to train on and rows to validate on; and how many rows are used."""

from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import rows, train_command, write

from hf_feedback.cli import main
from hf_feedback.training.data.held_out import SamplingArguments, held_out_rows
from hf_feedback.training.data.splits import Split, draw_rows
from hf_feedback.training.starting_model.model_arguments import ModelArguments
from hf_feedback.training.tasks.masked_lm import MaskedLM, MaskingArguments


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_every_class_gives_its_share(classes, share, seed):
    held_out = held_out_rows(classes, share, seed)
    assert held_out == held_out_rows(classes, share, seed) == sorted(set(held_out))
    counts, drawn = Counter(classes), Counter(classes[row] for row in held_out)
    for name, count in counts.items():
        assert drawn[name] < count  # it is trained on
        assert drawn[name] > share * count - 2 or drawn[name] == count - 1
        assert drawn[name] <= share * count + 1
    assert len(held_out) <= round(share * len(classes))


def test_the_share_is_exact_where_classes_allow_it():
    assert len(held_out_rows(["a"] * 50 + ["b"] * 55 + ["c"] * 3, 0.1, 0)) == 11
    assert len(held_out_rows([name for name in "abcdefghij" for _ in range(2)], 0.2, 0)) == 4
    assert len({tuple(held_out_rows(["a"] * 50, 0.2, seed)) for seed in range(5)}) == 5


def split_of(count=20):
    return Split(
        Dataset.from_dict({"text": [f"text {i}" for i in range(count)], "label": ["a", "b"] * (count // 2)}), "t.csv"
    )


def test_splits_share_no_row_and_know_their_places():
    drawn = draw_rows({"train": split_of()}, SamplingArguments(validation_split=0.25), ["a", "b"] * 10)
    texts = {name: split.data["text"][:] for name, split in drawn.items()}
    assert (len(texts["train"]), len(texts["validation"])) == (15, 5)
    assert sorted(texts["train"] + texts["validation"]) == sorted(split_of().data["text"])
    for split in drawn.values():
        assert [f"text {row}" for row in split.rows_of(range(len(split.data)))] == split.data["text"][:]
    assert drawn["validation"].source == "t.csv (5 of 20 rows)"


def test_fewer_rows_are_the_same_every_time():
    args = SamplingArguments(validation_split=0.5, max_train_samples=4, max_eval_samples=3)
    first, second = (draw_rows({"train": split_of(), "test": split_of(8)}, args, None) for _ in range(2))
    assert {name: len(split.data) for name, split in first.items()} == {"train": 4, "test": 3, "validation": 3}
    for name, split in first.items():
        assert split.data.to_dict() == second[name].data.to_dict()
        assert [f"text {row}" for row in split.rows] == split.data["text"][:]


WRONG = {
    "all rows": ({"validation_split": 1.0}, "`validation_split` must be between 0 and 1"),
    "no rows": ({"max_train_samples": 0}, "`max_train_samples` must be an integer of at least 1"),
    "a seed below 0": ({"split_seed": -1}, "`split_seed` must be an integer of at least 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(case):
    options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        SamplingArguments(**options).check_sampling()


def test_too_few_rows():
    with pytest.raises(ValueError, match=r"`validation_split`: 0.1 of the 2 rows of t.csv leaves no validation rows"):
        draw_rows({"train": split_of(2)}, SamplingArguments(validation_split=0.1), ["a", "b"])


def test_the_command(backbone, tmp_path, capsys):
    """What was understood comes first and what to try last; a resumed run has the same rows, or is refused."""
    records = rows(30)
    train = write(tmp_path, "train.csv", [*records, {**records[0], "label": "lost"}, {"text": "", "label": "fine"}])
    command = train_command(backbone, tmp_path / "out", "--validation-split", "0.25", train=train, validation=None)
    assert main(command) == 0
    printed = capsys.readouterr().out
    head, tail = printed.split("Trained from")
    assert f"{train}: texts in 'text', labels in 'label'; 3 classes: fine, late, lost\n" in head
    assert f"  train: 24 rows from {train} (24 of 32 rows); fine 8, late 8, lost 8\n" in head
    assert "  validation: 8 rows" in head
    assert "texts of train repeat earlier ones" in head
    assert "texts of validation are in train too, such as row" in head
    assert "tokens: 6 in the median text" in head
    assert head.index("  train: 24 rows") < head.index("tokens: ") < head.index("feedback")
    assert "eval_accuracy" in tail
    assert main([*command, "--resume-from-checkpoint", "true"]) == 0  # finished: the same rows
    assert main([*command, "--resume-from-checkpoint", "true", "--split-seed", "1"]) == 2
    assert "rows of train" in capsys.readouterr().err
    both = train_command(backbone, tmp_path / "both", "--validation-split", "0.25", train=train, validation=train)
    assert main(both) == 2
    assert "exclude each other: both are validation data" in capsys.readouterr().err


def test_a_file_that_is_streamed_cannot_be_divided():
    args = MaskingArguments("train.txt", streaming=True, validation_split=0.1)
    with pytest.raises(ValueError, match="`validation_split` and `streaming` exclude each other"):
        MaskedLM(ModelArguments(model="bert-base-uncased"), args).read_splits()
